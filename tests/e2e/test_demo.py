"""The founding experiment on the bundled model: what it must find, and that nothing is computed twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bitloss.cli import main
from bitloss.model.gguf import GgufFile
from bitloss.records import Results, read_results
from bitloss.run.executor import InlineExecutor
from bitloss.store import sha256_file

pytestmark = pytest.mark.e2e

ARGUMENTS = ["demo", "--chunks", "16", "--imatrix-chunks", "2", "--quiet", "--out"]


def _started(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "step-started"]


def _without_costs(results: Results) -> dict[str, Any]:
    """What an experiment found; findings tell of time as well."""
    return results.model_dump(exclude={"costs", "findings", "commands"})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert main([*ARGUMENTS, str(folder)]) == 0
    return folder


@pytest.fixture
def demo(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run; what is run in it again is run in this process."""
    monkeypatch.setattr("bitloss.cli.experiments.LocalExecutor", InlineExecutor)
    return Path(shutil.copytree(first, tmp_path / "run"))


def test_the_answers(first: Path) -> None:
    results = read_results(first)
    by_name = {candidate.name: candidate for candidate in results.candidates}
    assert list(by_name) == ["Q8_0/f32", "Q8_0/f16", "Q4_K_M/f32", "Q4_K_M/f16"]
    f32, f16 = by_name["Q8_0/f32"], by_name["Q8_0/f16"]
    assert f16.identical_to == "Q8_0/f32"
    assert f32.identical_to is None
    assert f32.tensors_sha256 == f16.tensors_sha256
    assert f32.sha256 != f16.sha256
    assert f32.metrics == f16.metrics

    # equal as printed; the kernel's last digits of the base's nll depend on the candidate (1e-11 of a token's)
    bases = [candidate.metrics["ppl_base"].value for candidate in results.candidates]
    assert all(value == pytest.approx(bases[0], rel=1e-11) for value in bases)
    q4 = [by_name[name].metrics["kld_mean"].value for name in ("Q4_K_M/f32", "Q4_K_M/f16")]
    q8 = f32.metrics["kld_mean"].value
    assert q8 is not None
    assert all(value is not None and value > 10 * q8 > 0 for value in q4)
    assert results.noise_floor is not None
    floor = results.noise_floor.metrics["kld_mean"].value
    assert floor is not None
    assert 0 <= floor < q8 / 100
    verdicts = {(c.a, c.b): c.verdict for c in results.comparisons if c.metric == "kld_mean"}
    assert verdicts["Q8_0/f32", "Q8_0/f16"] == "identical"
    assert verdicts["Q8_0/f32", "Q4_K_M/f32"] == "better"
    assert set(verdicts) == {  # every pair, but a twin only with its first
        ("Q8_0/f32", "Q8_0/f16"),
        ("Q8_0/f32", "Q4_K_M/f32"),
        ("Q8_0/f32", "Q4_K_M/f16"),
        ("Q4_K_M/f32", "Q4_K_M/f16"),
    }
    assert results.text.scored_tokens == 16 * 255


def test_the_files_are_what_the_records_say(first: Path) -> None:
    results = read_results(first)
    for candidate in results.candidates:
        path = first / "candidates" / candidate.file
        file = GgufFile.open(path)
        assert candidate.bytes == path.stat().st_size
        assert candidate.sha256 == sha256_file(path)
        assert candidate.tensors_sha256 == file.tensors_sha256()
        assert candidate.bits_per_weight == file.bits_per_weight()
    assert {path.name for path in (first / "tokens").iterdir()} == {
        "Q8_0-f32.parquet",
        "Q4_K_M-f32.parquet",
        "Q4_K_M-f16.parquet",
        "noise-floor.parquet",
    }
    assert not [path for path in first.rglob("*") if ".partial-" in path.name]


def test_the_report_shows_table_and_findings(first: Path) -> None:
    results = read_results(first)
    report = (first / "report.md").read_text()
    for word in ("Mean PPL(Q)", "Mean KLD", "Same top p", "Q8\\_0/f32", "noise floor"):
        assert word in report or word.replace("\\", "") in report, word
    assert len(results.findings) >= 2
    plain = report.replace("\\", "")
    for finding in results.findings:
        assert finding.title.replace("\\", "") in plain
    kld = results.candidate("Q4_K_M/f32").metrics["kld_mean"].value
    assert f"{kld:.6f}" in report


def test_running_again_computes_nothing(demo: Path) -> None:
    before, earlier = _started(demo), read_results(demo)
    assert main([*ARGUMENTS, str(demo)]) == 0
    assert _started(demo) == before
    later = read_results(demo)
    assert all(cost.reused for cost in later.costs)
    assert _without_costs(later) == _without_costs(earlier)
    assert [f.id for f in later.findings] == [f.id for f in earlier.findings]


def test_a_deleted_candidate_is_made_again_and_nothing_else(demo: Path) -> None:
    before, earlier = _started(demo), read_results(demo)
    path = demo / "candidates" / "demo-model-f16-Q4_K_M.gguf"
    content = path.read_bytes()
    path.unlink()
    assert main([*ARGUMENTS, str(demo)]) == 0
    assert _started(demo)[len(before) :] == ["quantize Q4_K_M/f16"]
    assert path.read_bytes() == content
    assert _without_costs(read_results(demo)) == _without_costs(earlier)


def test_a_deleted_measurement_is_measured_to_the_same_bits(demo: Path) -> None:
    before, earlier = _started(demo), read_results(demo)
    path = demo / "tokens" / "Q4_K_M-f32.parquet"
    content = path.read_bytes()
    path.unlink()
    assert main([*ARGUMENTS, str(demo)]) == 0
    assert _started(demo)[len(before) :] == ["measure Q4_K_M/f32"]
    assert path.read_bytes() == content
    assert _without_costs(read_results(demo)) == _without_costs(earlier)
