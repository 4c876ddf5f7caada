"""The founding experiment on the bundled model: what it must find, and that nothing is computed twice."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from bitloss.cli import main
from bitloss.explain.questions import answers
from bitloss.model.gguf import GgufFile
from bitloss.records import Results, read_results
from bitloss.run.executor import InlineExecutor
from bitloss.store import sha256_file

pytestmark = pytest.mark.e2e

ARGUMENTS = ["demo", "--chunks", "16", "--imatrix-chunks", "8", "--quiet", "--out"]


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
    assert list(by_name) == [
        f"{kind}/{route}" for kind in ("Q8_0", "Q4_K_M") for route in ("f32", "f16", "f32+f16", "f16+f32")
    ]
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
    plain = {pair for pair in verdicts if not any("+" in name for name in pair)}
    assert plain == {  # every pair, but a twin only with its first
        ("Q8_0/f32", "Q8_0/f16"),
        ("Q8_0/f32", "Q4_K_M/f32"),
        ("Q8_0/f32", "Q4_K_M/f16"),
        ("Q4_K_M/f32", "Q4_K_M/f16"),
    }
    assert results.text.scored_tokens == 16 * 255


def _classes(cells: list[GgufFile], name: str) -> list[int]:
    """Blocks of a tensor that differ, through weights, matrix, both; in NumPy, from the definition."""
    info = cells[0].tensors[name]
    size = GGML_QUANT_SIZES[GGMLQuantizationType(info.ggml_type)][1]
    aa, ba, ab, bb = (cell.tensor_bytes(name).reshape(-1, size) for cell in cells)
    whole = (aa != bb).any(axis=1)
    weights = whole & (aa == ab).all(axis=1) & (ba == bb).all(axis=1)
    imatrix = whole & (aa == ba).all(axis=1) & (ab == bb).all(axis=1)
    return [int(marks.sum()) for marks in (whole, weights, imatrix, whole & ~weights & ~imatrix)]


def test_the_cross_says_what_makes_files_differ(first: Path) -> None:
    results = read_results(first)
    assert results.cross is not None
    q8, q4 = results.cross.attributions
    assert (q8.type, q4.type) == ("Q8_0", "Q4_K_M")
    assert q8.blocks.whole == q8.blocks.undone == 0
    assert q8.blocks.total > 0
    names = (q4.file_a, q4.weights_of_b, q4.imatrix_of_b, q4.file_b)
    cells = [GgufFile.open(first / "candidates" / results.candidate(name).file) for name in names]
    counted = np.sum([_classes(cells, name) for name in cells[0].tensors], axis=0)
    told = q4.blocks
    assert (told.whole, told.weights, told.imatrix, told.both) == tuple(counted)
    assert 0 < told.imatrix <= told.whole
    assert {t.name for t in q4.tensors if t.blocks.whole} == {
        name for name in cells[0].tensors if _classes(cells, name)[0]
    }
    # the parts add up to the whole to the bit, and the whole is the comparison's
    w, i, x = (part.difference or 0.0 for part in (q4.kld.weights, q4.kld.imatrix, q4.kld.both))
    assert q4.kld.whole.difference == (w + i) + x
    compared = next(
        c for c in results.comparisons if (c.a, c.b, c.metric) == (q4.file_a, q4.file_b, "kld_mean")
    )
    assert q4.kld.whole.difference == pytest.approx(-(compared.difference or 0.0), rel=1e-9)
    klds = [results.candidate(name).metrics["kld_mean"].value or 0.0 for name in names]
    assert w == pytest.approx(klds[1] - klds[0], abs=1e-15)
    assert i == pytest.approx(klds[2] - klds[0], abs=1e-15)


def test_the_importance_matrices_are_set_beside_the_text(first: Path) -> None:
    results = read_results(first)
    assert results.cross is not None
    (pair,) = results.cross.imatrices
    assert (pair.a, pair.b) == ("f32", "f16")
    assert [each.source for each in results.cross.halves] == ["f32", "f16"]
    for half in results.cross.halves:
        assert half.likeness is not None
        assert half.likeness.spread is not None
        assert pair.likeness.spread is not None
        assert 0 < pair.likeness.spread < half.likeness.spread


def test_the_audit_is_exact(first: Path) -> None:
    results = read_results(first)
    assert results.audit is not None
    f16 = GgufFile.open(first / "sources" / "demo-model-f16.gguf")
    f32 = GgufFile.open(first / "sources" / "demo-model-f32.gguf")
    changed = sum(int((f32.tensor_f32(n) != f16.tensor_f32(n)).sum()) for n in f32.tensors)
    assert results.audit.matrices.f16.changed == changed > 0
    (q8,) = results.audit.blocks
    assert (q8.type, q8.f16.changed) == ("Q8_0", 0)


def test_the_five_questions_are_answered(first: Path) -> None:
    report = (first / "report.md").read_text().replace("\\", "")
    page = html.unescape((first / "report.html").read_text())
    answered = answers(read_results(first).findings)
    assert [each.number for each in answered][:5] == [1, 2, 3, 4, 5]
    for each in answered[:5]:
        assert f"### {each.number}. {each.question}" in report
        assert f"{each.number}. {each.question}</h3>" in page
    ids = {finding.id for each in answered for finding in each.findings}
    assert {"identical-tensors", "why-identical", "cast-to-f16", "why-different", "imatrix-route"} <= ids
    assert {"route-costs", "engine-noise"} <= ids


def test_the_files_are_what_the_records_say(first: Path) -> None:
    results = read_results(first)
    for candidate in results.candidates:
        path = first / "candidates" / candidate.file
        file = GgufFile.open(path)
        assert candidate.bytes == path.stat().st_size
        assert candidate.sha256 == sha256_file(path)
        assert candidate.tensors_sha256 == file.tensors_sha256()
        assert candidate.bits_per_weight == file.bits_per_weight()
    distinct = {c.name.replace("/", "-") for c in results.candidates if c.identical_to is None}
    assert {"Q8_0-f32", "Q4_K_M-f32", "Q4_K_M-f16"} <= distinct
    assert not [name for name in distinct if name.startswith("Q8_0-") and name != "Q8_0-f32"]
    assert {path.stem for path in (first / "tokens").iterdir()} == distinct | {"noise-floor"}
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
