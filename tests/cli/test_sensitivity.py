"""`bitloss sensitivity` and `run --cross`: what they leave, what they refuse, what is not done twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.cli.test_bad_input import refused

from bitloss.divergence.measure import read_tokens
from bitloss.model.gguf import GgufFile
from bitloss.quantize.quantize import QuantizeSpec, quantize
from bitloss.records import Results, read_results

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

Snapshot = Callable[[Path], dict[str, str]]
SMALL = ("--ctx", 32, "--chunks", 12)


def _sense(cli: Cli, inputs: Inputs, out: Path, *more: object) -> Any:
    done = cli("sensitivity", inputs.source, "--text", inputs.text, *SMALL, "-o", out, "-q", "--json", *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


def _started(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "step-started"]


def test_groups_are_raised_alone_and_ranked(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "s"
    document = _sense(cli, inputs, out, "--type", "q4_k_m", "--imatrix", inputs.imatrix)
    assert Results.model_validate_json(json.dumps(document)) == read_results(out)
    told = document["sensitivity"]
    assert (told["type"], told["plain"], told["per_layer"]) == ("Q4_K_M", "tiny-f32-Q4_K_M", False)
    groups = {row["group"]: row for row in told["groups"]}
    assert groups.keys() == {"embeddings", "attention", "feed-forward", "output"}
    gains = [row["gain"] for row in told["groups"]]
    assert gains == sorted(gains, reverse=True)
    plain = GgufFile.open(out / "candidates" / "tiny-f32-Q4_K_M.gguf")
    for name, row in groups.items():
        file = GgufFile.open(out / "candidates" / f"tiny-f32-Q4_K_M+{name}.gguf")
        raised = [n for n, info in file.tensors.items() if info.ggml_type != plain.tensors[n].ggml_type]
        assert len(raised) == row["tensors"] > 0
        assert {file.tensors[n].type_name for n in raised} == {"F32"}
        for tensor in file.tensors:  # all others as they were
            same = file.tensor_bytes(tensor).tobytes() == plain.tensor_bytes(tensor).tobytes()
            assert same == (tensor not in raised)
        added = file.bits_per_weight() - plain.bits_per_weight()
        assert row["bits_per_weight_added"] == pytest.approx(added)
        assert row["gain_per_bit"] == pytest.approx(row["gain"] / added)
    tokens = {c["name"]: read_tokens(out / "tokens" / c["tokens"])[0] for c in document["candidates"]}
    best = told["groups"][0]
    difference = tokens[told["plain"]].metrics.kld - tokens[best["candidate"]].metrics.kld
    assert best["gain"] == pytest.approx(float(np.mean(difference)), rel=1e-12)
    by_chunk = difference.reshape(12, -1).sum(axis=1) - difference.mean() * difference.size / 12
    assert best["se"] == pytest.approx(np.sqrt(12 / 11 * np.sum(by_chunk**2)) / difference.size)
    assert {(c["a"], c["metric"]) for c in document["comparisons"]} == {
        (told["plain"], metric) for metric in ("kld_mean", "ln_ppl", "same_top")
    }
    report = (out / "report.md").read_text()
    assert "## Sensitivity" in report
    assert "most-sensitive" in {finding["id"] for finding in document["findings"]}
    assert 'id="sensitivity"' in (out / "report.html").read_text()


def test_per_layer_takes_what_whole_groups_left(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "s"
    first = _sense(cli, inputs, out, "--type", "Q4_0")
    before = _started(out), _started(out / "candidates")
    again = _sense(cli, inputs, out, "--type", "Q4_0")
    assert (_started(out), _started(out / "candidates")) == before
    assert again["sensitivity"] == first["sensitivity"]
    layers = _sense(cli, inputs, out, "--type", "Q4_0", "--per-layer")
    names = {row["group"] for row in layers["sensitivity"]["groups"]}
    assert names == {"embeddings", "output", "layer 0 attention", "layer 0 feed-forward"}
    assert {row["layer"] for row in layers["sensitivity"]["groups"]} == {None, 0}
    # of one layer, the groups of the layer are the whole ones: other files, the same tensors, nothing to measure
    assert _started(out) == before[0]
    gains = {row["group"].removeprefix("layer 0 "): row["gain"] for row in layers["sensitivity"]["groups"]}
    assert gains == {row["group"]: row["gain"] for row in first["sensitivity"]["groups"]}


def test_a_base_that_is_there_is_used(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    assert cli("base", inputs.source, "--text", inputs.text, *SMALL, "-o", tmp_path / "b", "-q").code == 0
    done = cli(
        *(
            "sensitivity",
            inputs.source,
            "--type",
            "Q4_0",
            "--base",
            tmp_path / "b",
            "-o",
            tmp_path / "s",
            "-q",
        )
    )
    assert done.code == 0, done.err
    assert "feed-forward" in done.out
    assert not (tmp_path / "s" / "base").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("MISSING", "--type", "Q4_0", "--text", "TEXT"), 1, ("no such GGUF file", "not-there")),
        (
            ("QUANTIZED", "--type", "Q4_0", "--text", "TEXT"),
            2,
            ("the model is quantized already", "found Q8_0"),
        ),
        (("SOURCE", "--type", "Q4_X", "--text", "TEXT"), 2, ("unknown quantization type", "Did you mean")),
        (("SOURCE", "--type", "F16", "--text", "TEXT"), 2, ("not a quantized type", "F16")),
        (("SOURCE", "--type", "Q4_0"), 2, ("nothing to measure on", "--text")),
        (("SOURCE", "--type", "Q4_0", "--text", "MISSING"), 1, ("not-there",)),
        (
            ("SOURCE", "--type", "Q4_0", "--text", "TEXT", "--imatrix", "MISSING"),
            1,
            ("not-there", "importance matrix"),
        ),
        (("SOURCE", "--type", "Q4_0", "--base", "MISSING"), 1, ("not-there",)),
    ],
)
def test_refusals_leave_nothing(
    cli: Cli,
    inputs: Inputs,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
) -> None:
    quantized = tmp_path / "q.gguf"
    quantize(QuantizeSpec(inputs.source, "Q8_0", quantized))
    names: dict[str, object] = {
        "MISSING": tmp_path / "not-there",
        "QUANTIZED": quantized,
        "SOURCE": inputs.source,
        "TEXT": inputs.text,
    }
    out = tmp_path / "out"
    done = cli("sensitivity", *(names.get(each, each) for each in arguments), *SMALL[:2], "-o", out, "-q")
    refused(done, code, *words)
    assert not out.exists()


def test_a_folder_with_something_else_is_left_alone(
    cli: Cli, inputs: Inputs, tmp_path: Path, snapshot: Snapshot
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    before = snapshot(out)
    done = cli(
        *("sensitivity", inputs.source, "--type", "Q4_0", "--text", inputs.text, *SMALL, "-o", out, "-q")
    )
    refused(done, 1, "not empty")
    assert snapshot(out) == before


# ------------------------------------------------------------------------------------------------ --cross


def test_crossing_needs_two_sources_and_a_calibration_text(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = (
        "--text",
        inputs.text,
        "--calibration",
        inputs.text,
        "--quants",
        "Q8_0",
        *SMALL,
        "-o",
        out,
        "-q",
    )
    refused(cli("run", inputs.source, *settings, "--cross"), 2, "nothing to cross", "--cross", "found f32")
    refused(
        cli("run", inputs.checkpoint, *settings, "--from", "f16", "--cross"),
        2,
        "nothing to cross",
        "found f16",
    )
    file = tmp_path / "cross.toml"
    file.write_text(
        f'model = "{inputs.checkpoint}"\ntext = "{inputs.text}"\nquants = ["Q8_0"]\nctx = 32\ncross = true\n'
    )
    refused(cli("run", file, "-o", out, "-q"), 2, "nothing to cross", "no calibration text")
    file.write_text(file.read_text().replace("true", '"yes"'))
    refused(cli("run", file, "-o", out, "-q"), 2, "cross", "true or false")
    assert not out.exists()


def test_a_crossed_run_names_every_file_and_adds_up(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli(
        *("run", inputs.checkpoint, "--from", "f32,f16,bf16", "--quants", "Q4_K_M,Q8_0", "--cross"),
        *("--text", inputs.text, "--calibration", inputs.text, "--imatrix-chunks", 30),
        *("--ctx", 32, "--chunks", 12, "-o", out, "-q", "--json"),
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    names = [c["name"] for c in document["candidates"]]
    crossed = [f"{w}+{i}" for w in ("f32", "f16", "bf16") for i in ("f32", "f16", "bf16") if w != i]
    assert names == [f"{k}/{r}" for k in ("Q4_K_M", "Q8_0") for r in ("f32", "f16", "bf16", *crossed)]
    assert {path.name for path in (out / "candidates").iterdir()} >= {
        "mistral-odd-f32-Q4_K_M+f16.gguf",
        "mistral-odd-bf16-Q8_0+f32.gguf",
    }
    found = document["cross"]["attributions"]
    pairs = [("f32", "f16"), ("f32", "bf16"), ("f16", "bf16")]
    assert [(a["type"], a["a"], a["b"]) for a in found] == [
        (k, *p) for k in ("Q4_K_M", "Q8_0") for p in pairs
    ]
    for each in found:
        blocks, kld = each["blocks"], each["kld"]
        assert blocks["whole"] == blocks["weights"] + blocks["imatrix"] + blocks["both"]
        parts = [kld[part]["difference"] for part in ("weights", "imatrix", "both")]
        assert kld["whole"]["difference"] == (parts[0] + parts[1]) + parts[2]
    assert len(document["cross"]["imatrices"]) == 3
    matrices = {c["imatrix_from"] for c in document["candidates"]}
    assert matrices == {"f32", "f16", "bf16"}
    shutil.rmtree(out / "cross")
    before = _started(out)
    again = cli(
        *("run", inputs.checkpoint, "--from", "f32,f16,bf16", "--quants", "Q4_K_M,Q8_0", "--cross"),
        *("--text", inputs.text, "--calibration", inputs.text, "--imatrix-chunks", 30),
        *("--ctx", 32, "--chunks", 12, "-o", out, "-q", "--json"),
    )
    assert again.code == 0, again.err
    assert json.loads(again.out)["cross"] == document["cross"]
    assert {step.split()[0] for step in _started(out)[len(before) :]} <= {"blocks"}


def test_a_finished_run_is_crossed_in_its_own_folder(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = (
        *("run", inputs.checkpoint, "--from", "f32,f16", "--quants", "Q4_0", "--text", inputs.text),
        *("--calibration", inputs.text, "--imatrix-chunks", 4, "--ctx", 32, "--chunks", 3, "-o", out, "-q"),
    )
    assert cli(*command).code == 0
    assert "not-crossed" in {finding.id for finding in read_results(out).findings}
    before = _started(out)
    assert cli(*command, "--cross").code == 0
    added = _started(out)[len(before) :]
    assert {step.split()[0] for step in added} <= {"quantize", "measure", "blocks"}
    assert not [step for step in added if "+" not in step and step.startswith(("quantize", "measure"))]
    results = read_results(out)
    assert results.cross is not None
    assert "not-crossed" not in {finding.id for finding in results.findings}


def test_a_type_that_wants_a_matrix_is_refused_before_anything_is_written(
    cli: Cli, inputs: Inputs, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    done = cli(
        "sensitivity", inputs.source, "--text", inputs.text, *SMALL, "-o", out, "-q", "--type", "IQ1_S"
    )
    refused(
        done, 1, "is garbage without an importance matrix", "give it with --imatrix, or take another type"
    )
    assert not out.exists()


def test_an_importance_matrix_is_no_model(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = ("--text", inputs.text, *SMALL, "-o", out, "-q")
    for asked in (
        ("base", inputs.imatrix, *text),
        ("measure", inputs.imatrix, "--base", inputs.source, *text),
        ("measure", inputs.source, "--base", inputs.imatrix, *text),
        ("sensitivity", inputs.imatrix, "--type", "Q4_0", *text),
    ):
        refused(
            cli(*asked), 2, f"{inputs.imatrix.name}: an importance matrix, not a model. Give the model's GGUF"
        )
        assert not out.exists(), asked
