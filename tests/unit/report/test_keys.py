"""The number on a finding's card is that of its evidence, written as everywhere."""

from __future__ import annotations

import pytest
from tests.unit.report.test_page import rendered

from bitloss.explain.findings import findings
from bitloss.records import Confidence, Finding, Results
from bitloss.report.keys import _RULES, Key, key_of


def finding(name: str, **evidence: object) -> Finding:
    return Finding(id=name, title="t", text="x", evidence=evidence, confidence=Confidence.MEASURED)  # type: ignore[arg-type]


def test_findings_of_a_run(sample_results: Results) -> None:
    found = findings(sample_results)
    keys = {each.id: key_of(each) for each in found}
    assert keys["identical-tensors"] == Key("0", "weights differ")
    pair = next(each for each in found if each.id == "same-type-pair")
    key = key_of(pair)
    assert key is not None
    assert key.number in pair.text
    assert key.words.startswith("nats: mean KLD of Q4_K_M/f32 less that of Q4_K_M/f16, 95 % interval ")
    assert keys["engine-noise"] is not None
    page = rendered(sample_results.model_copy(update={"findings": found}))
    assert page.count('<p class="key">') == sum(key is not None for key in keys.values())
    assert f'<p class="key"><b>{key.number}</b>' in page


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (finding("cast-to-f16", changed=413, values=4_718_592), "413 of 4,718,592"),
        (finding("why-identical", blocks_changed=0, blocks=147_456), "0 of 147,456"),
        (finding("why-identical", blocks_that_differ=0), "0"),
        (finding("why-different", blocks={"whole": 191, "total": 18_432}), "191 of 18,432"),
        (
            finding("why-different", blocks={"whole": 0, "total": 9}, values={"whole": 2, "total": 8}),
            "2 of 8",
        ),
        (finding("imatrix-route", route_over_text=0.000141), "0.0141 %"),
        (finding("imatrix-route", route={"spread": 3e-5}, route_over_text=None), "0.003 %"),
        (finding("ties", ties=[["a", "b"]], pairs=3), "1 of 3"),
        (finding("route-costs", source_bytes={"f32": 2 << 30, "f16": 1 << 30}), "1.00 GiB or 2.00 GiB"),
        (finding("engine-noise", noise_floor_kld_mean=1.946e-08), "1.946e-08"),
        (finding("most-sensitive", gain={"a": 0.001, "b": 0.002, "c": None}), "0.002000"),
        (finding("calibrated-on-the-measured-text", shared=9, windows=1000, window=32), "9 of 1,000"),
        (finding("stopped-by-rule", chunks=64, chunks_available=580), "64 of 580"),
        (finding("stopped-by-rule", chunks=64, chunks_available=580, chunks_needed=41), "41 of 580"),
    ],
)
def test_each_rule(given: Finding, number: str) -> None:
    key = key_of(given)
    assert key is not None
    assert key.number == number


@pytest.mark.parametrize("rule", [*_RULES, "a-rule-of-another-version"])
def test_evidence_of_another_version_has_none(rule: str) -> None:
    assert key_of(finding(rule, other=1)) is None
    assert key_of(finding(rule, blocks=3, gain=[], ties=1, comparisons=[{}], source_bytes={})) is None
