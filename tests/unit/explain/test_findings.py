"""Each rule speaks where its evidence is, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from bitloss.explain.findings import engine_noise, findings, no_noise_floor, same_type_pair
from bitloss.explain.routes import Twin, route_costs, twin_verdicts
from bitloss.explain.sameness import identical_tensors
from bitloss.records import (
    Candidate,
    Comparison,
    Confidence,
    Cost,
    Figure,
    NoiseFloor,
    Results,
    Verdict,
)


def candidate(results: Results, name: str, **changes: Any) -> Candidate:
    return results.candidate(name).model_copy(update=changes)


def kld(value: float | None) -> dict[str, Figure]:
    return {"kld_mean": Figure(value=value, reason=None if value is not None else "no tokens")}


def comparison(**changes: Any) -> Comparison:
    fields: dict[str, Any] = {
        "a": "Q4_K_M/f32",
        "b": "Q4_K_M/f16",
        "metric": "kld_mean",
        "difference": -0.0012,
        "ci95": (-0.002, -0.0004),
        "p_value": 0.003,
        "p_holm": 0.006,
        "verdict": "better",
    }
    return Comparison.model_validate(fields | changes)


# ------------------------------------------------------------------------------------ identical tensors


def test_identical_tensors_in_different_files(sample_results: Results) -> None:
    first, second = sample_results.candidate("Q8_0/f32"), sample_results.candidate("Q8_0/f16")
    finding = identical_tensors(first, second)
    assert finding is not None
    assert finding.confidence is Confidence.PROVEN
    assert "32 bytes apart (13022372992 and 13022372960)" in finding.text
    assert first.sha256[:12] in finding.text
    assert second.sha256[:12] in finding.text
    assert "metadata" in finding.text
    assert (
        "weights from f32 and f16 with importance matrices from f32 and f16 gave the same Q8_0"
        in finding.text
    )
    assert finding.evidence["bytes"] == [13022372992, 13022372960]
    assert finding.evidence["tensors_sha256"] == first.tensors_sha256


def test_identical_tensors_say_only_what_was_changed(sample_results: Results) -> None:
    first = sample_results.candidate("Q8_0/f32")
    only_weights = candidate(sample_results, "Q8_0/f16", imatrix_from="f32", bytes=first.bytes)
    finding = identical_tensors(first, only_weights)
    assert finding is not None
    assert "Thus weights from f32 and f16 gave" in finding.text
    assert "equal in size" in finding.text
    nothing = identical_tensors(
        first, candidate(sample_results, "Q8_0/f16", imatrix_from="f32", weights_from="f32")
    )
    assert nothing is not None
    assert "Thus" not in nothing.text


def test_identical_tensors_is_silent(sample_results: Results) -> None:
    first = sample_results.candidate("Q8_0/f32")
    other = sample_results.candidate("Q4_K_M/f32")
    same_file = candidate(sample_results, "Q8_0/f16", sha256=first.sha256, bytes=first.bytes)
    assert identical_tensors(first, other) is None
    assert identical_tensors(first, same_file) is None


# --------------------------------------------------------------------------------- pairs of the same type


@pytest.mark.parametrize(
    ("changes", "title", "says"),
    [
        ({}, "Q4_K_M/f32 is better than Q4_K_M/f16", "Q4_K_M/f32 is better (difference -0.001200, "),
        (
            {"verdict": "worse", "difference": 0.1},
            "Q4_K_M/f16 is better than Q4_K_M/f32",
            "p = 0.006 after Holm",
        ),
        ({"verdict": "tie", "p_holm": 1.0}, "Q4_K_M/f32 and Q4_K_M/f16: a tie", "not that there is none"),
        ({"p_holm": 0.0}, "Q4_K_M/f32 is better than Q4_K_M/f16", "p < 1e-15"),
    ],
)
def test_the_verdict_on_a_pair(
    sample_results: Results, changes: dict[str, Any], title: str, says: str
) -> None:
    a, b = sample_results.candidate("Q4_K_M/f32"), sample_results.candidate("Q4_K_M/f16")
    finding = same_type_pair(a, b, [comparison(**changes)], 163710)
    assert finding is not None
    assert finding.title == title
    assert says in finding.text
    assert "163,710 tokens" in finding.text
    assert finding.confidence is Confidence.MEASURED
    assert ("tie" in finding.text) == (changes.get("verdict") == "tie")


def test_metrics_that_disagree(sample_results: Results) -> None:
    a, b = sample_results.candidate("Q4_K_M/f32"), sample_results.candidate("Q4_K_M/f16")
    finding = same_type_pair(
        a, b, [comparison(), comparison(metric="same_top", verdict="tie", difference=0.0025)], 10
    )
    assert finding is not None
    assert finding.title.endswith("the verdict depends on the metric")
    assert "same top p: a tie (difference 0.250 %, " in finding.text


def test_a_pair_says_what_was_held_fixed(sample_results: Results) -> None:
    a = sample_results.candidate("Q4_K_M/f32")
    crossed = candidate(sample_results, "Q4_K_M/f16", weights_from="f32")
    finding = same_type_pair(a, crossed, [comparison()], 10)
    assert finding is not None
    assert "the same weights, with importance matrices from f32 and f16" in finding.text
    crossed = candidate(sample_results, "Q4_K_M/f16", imatrix_from="f32")
    finding = same_type_pair(a, crossed, [comparison()], 10)
    assert finding is not None
    assert "the same importance matrix, weights from f32 and f16" in finding.text


def test_a_pair_is_silent(sample_results: Results) -> None:
    a, b = sample_results.candidate("Q4_K_M/f32"), sample_results.candidate("Q4_K_M/f16")
    undecided = comparison(verdict=None, p_holm=None, p_value=None, ci95=None, reason="one chunk")
    identical = comparison(verdict="identical", p_holm=None, difference=0.0)
    same_route = candidate(sample_results, "Q4_K_M/f16", weights_from="f32", imatrix_from="f32")
    assert same_type_pair(a, b, [], 10) is None
    assert same_type_pair(a, b, [undecided, identical], 10) is None
    assert same_type_pair(a, sample_results.candidate("Q8_0/f16"), [comparison()], 10) is None
    assert same_type_pair(a, same_route, [comparison()], 10) is None


# ----------------------------------------------------------------------------------------- engine noise


def test_noise_far_below(sample_results: Results) -> None:
    finding = engine_noise(sample_results.noise_floor, sample_results.candidates)
    assert finding is not None
    assert finding.title == "The engine's noise is 0.0029 % of the smallest divergence measured"
    assert finding.evidence["noise_floor_kld_mean"] == 2.5e-8
    share = finding.evidence["share_of_floor"]
    assert isinstance(share, dict)
    assert share["Q8_0/f32"] == pytest.approx(2.5e-8 / 0.000859)
    assert "Q8_0/f16" not in share  # the same file, counted once
    assert "noise: " not in finding.text


def test_noise_as_large_as_what_was_measured(sample_results: Results) -> None:
    floor = NoiseFloor(how="x", metrics=kld(0.0005))
    finding = engine_noise(floor, sample_results.candidates)
    assert finding is not None
    assert finding.title == "1 of 3 divergences cannot be told from the engine's noise"
    assert "not to be told from noise: Q8_0/f32." in finding.text


def test_no_noise_at_all(sample_results: Results) -> None:
    finding = engine_noise(NoiseFloor(how="x", metrics=kld(0.0)), sample_results.candidates)
    assert finding is not None
    assert "noise is 0 % of" in finding.title


def test_noise_is_silent(sample_results: Results) -> None:
    floor = sample_results.noise_floor
    candidates = sample_results.candidates
    assert engine_noise(None, candidates) is None
    assert engine_noise(NoiseFloor(how="x", metrics={}), candidates) is None
    assert engine_noise(NoiseFloor(how="x", metrics=kld(None)), candidates) is None
    assert engine_noise(floor, []) is None
    for metrics in (kld(0.0), kld(None), {}):
        assert engine_noise(floor, [candidate(sample_results, "Q8_0/f32", metrics=metrics)]) is None


# ----------------------------------------------------------------------------------------------- costs


def cost(route: str | None, seconds: float, n_bytes: int, *, reused: bool = False) -> Cost:
    return Cost(step="s", kind="convert", route=route, seconds=seconds, bytes=n_bytes, reused=reused)


TIE = Twin(frozenset({"f32", "f16"}), Verdict.TIE)
BETTER = Twin(frozenset({"f32", "f16"}), Verdict.BETTER)


def test_costs_of_two_routes() -> None:
    costs = [cost("f32", 60, 2048), cost("f32", 60, 0), cost("f16", 40, 1024), cost(None, 999, 999)]
    finding = route_costs(costs, [TIE], base="f32")
    assert finding is not None
    assert finding.title == "f16 instead of f32: a tie, 67 % less time in this one run"
    assert "f32: 2 min 00 s, 2.00 KiB on the disk; f16: 40.0 s, 1.00 KiB" in finding.text
    assert finding.text.startswith("By route (convert): f32")
    assert "Shared by the routes (s): 16 min 39 s, 999 B." in finding.text
    assert "though the base needs it" in finding.text
    assert "show a difference: 0 of 1." in finding.text
    assert finding.text.endswith("Nothing measured here speaks for f32: take f16.")
    assert finding.evidence["seconds"] == {"f32": 120.0, "f16": 40.0}
    assert "earlier run" not in finding.text


def test_costs_recommend_nothing_without_comparisons_or_against_them() -> None:
    costs = [cost("f32", 60, 1, reused=True), cost("f16", 40, 1)]
    for twins in ([], [TIE, BETTER], [Twin(frozenset({"f32", "bf16"}), Verdict.TIE)]):
        finding = route_costs(costs, twins, base="bf16")
        assert finding is not None
        assert "speaks for" not in finding.text
        assert "take f" not in finding.text
        assert "the base needs it" not in finding.text
        assert "earlier run" in finding.text
    finding = route_costs([cost("f32", 1, 1), cost("f16", 0, 1)], [], base="f32")
    assert finding is not None
    assert finding.title == "What f32 and f16 took"  # a second says nothing of a route


def test_costs_of_measuring_are_not_the_routes() -> None:
    measured = Cost(step="m", kind="measure", route="f16", seconds=9e9, bytes=1, reused=True)
    finding = route_costs([cost("f32", 60, 1), cost("f16", 40, 1), measured], [], base="x")
    assert finding is not None
    assert finding.title == "f16 instead of f32: 33 % less time in this one run"
    assert "Shared" not in finding.text
    assert "earlier run" not in finding.text


def test_costs_are_silent() -> None:
    assert route_costs([], [TIE], base="f32") is None
    assert route_costs([cost("f32", 60, 1), cost(None, 1, 1)], [TIE], base="f32") is None


def test_twins_are_made_wholly_from_one_source(sample_results: Results) -> None:
    by_name = {c.name: c for c in sample_results.candidates}
    twins = twin_verdicts(by_name, sample_results.comparisons)
    pair = frozenset({"f32", "f16"})
    assert twins == (Twin(pair, Verdict.TIE, "Q4_K_M"), Twin(pair, Verdict.IDENTICAL, "Q8_0"))
    by_name["Q4_K_M/f16"] = candidate(sample_results, "Q4_K_M/f16", imatrix_from="f32")
    assert twin_verdicts(by_name, sample_results.comparisons) == (Twin(pair, Verdict.IDENTICAL, "Q8_0"),)


# ------------------------------------------------------------------------------------------- all of them


def test_the_founding_experiment(sample_results: Results) -> None:
    found = findings(sample_results)
    assert [(f.id, f.question) for f in found] == [
        ("identical-tensors", 1),
        ("cast-not-counted", 2),
        ("same-type-pair", 3),
        ("not-crossed", 3),
        ("ties", 3),
        ("route-costs", 4),
        ("engine-noise", 5),
    ]
    document = sample_results.model_dump(by_alias=True) | {"findings": found}
    assert Results.model_validate(document).findings == found


def test_nothing_measured_nothing_found(sample_results: Results) -> None:
    empty = sample_results.model_copy(update={"candidates": (), "comparisons": (), "costs": ()})
    assert findings(empty) == ()


def test_no_noise_floor_is_said_and_a_floor_is_not(sample_results: Results) -> None:
    floor = sample_results.noise_floor
    assert no_noise_floor(floor, ("f32",)) is None
    assert no_noise_floor(None, ()) is None  # finished files, no routes
    for missing in (None, NoiseFloor(how="x", metrics=kld(None)), NoiseFloor(how="x", metrics={})):
        finding = no_noise_floor(missing, ("f32", "f16"))
        assert finding is not None
        assert finding.question == 5
        assert finding in findings(sample_results.model_copy(update={"noise_floor": missing}))
