"""Every verb: what it prints where, what it leaves, what its help says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.cli import printed

from bitloss.imatrix.file import read_imatrix
from bitloss.imatrix.legacy import write_legacy_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.records import Results, read_results

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

VERBS = (
    "demo",
    "run",
    "audit",
    "convert",
    "imatrix",
    "quantize",
    "base",
    "measure",
    "sensitivity",
    "compare",
    "report",
    "card",
    "pick",
)
COMPUTE = ("demo", "run", "imatrix", "base", "measure", "sensitivity")


# ------------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_that_names_the_verb(
    cli: Cli, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = cli(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: bitloss {verb}" in done.out
    assert re.search(rf"Example: bitloss {verb}\b", done.out)
    assert "--json" in done.out


@pytest.mark.parametrize("verb", COMPUTE)
def test_help_lists_the_engine_flags_under_llama_cpps_names(
    cli: Cli, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = cli(verb, "--help").out
    for long, short in (
        ("--gpu-layers", "-ngl"),
        ("--flash-attn", "-fa"),
        ("--split-mode", "-sm"),
        ("--tensor-split", "-ts"),
        ("--threads", "-t"),
        ("--batch-size", "-b"),
        ("--ubatch-size", "-ub"),
    ):
        assert re.search(rf"{long}\s+{short}\b", said), f"{long} {short}"


def test_help_of_the_tool_lists_every_verb(cli: Cli) -> None:
    said = cli("--help").out
    assert [verb for verb in VERBS if not re.search(rf"\b{verb}\b", said)] == []


def test_no_verb_at_all_shows_the_help_and_is_wrong_use(cli: Cli) -> None:
    done = cli()
    assert done.code == 2
    assert "Usage: bitloss" in done.out + done.err


def test_the_installed_command_keeps_standard_output_to_the_document(inputs: Inputs, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bitloss", "imatrix", inputs.source, "--text", inputs.text]
    out = tmp_path / "i.gguf"
    done = subprocess.run(
        [*map(str, command), "--ctx", "32", "--chunks", "2", "-o", str(out), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["file"] == "i.gguf"
    assert document["chunks"] == 2
    assert read_imatrix(out).entries.keys() == read_imatrix(inputs.imatrix).entries.keys()


def test_modules_in_the_current_folder_are_not_run_by_a_step(inputs: Inputs, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "gguf.py").write_text("open('was-run', 'w').close()\n")
    script = Path(sys.executable).with_name("bitloss")
    done = subprocess.run(
        [script, "convert", inputs.checkpoint, "--to", "f16", "-o", "out", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=here,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert not (here / "was-run").exists()
    assert GgufFile.open(here / "out" / "mistral-odd-f16.gguf").architecture == "llama"


# ------------------------------------------------------------------------------------------------ single verbs


def test_convert_writes_the_types_asked_for(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    document = printed.document(
        cli("convert", inputs.checkpoint, "--to", "f16,bf16", "-o", tmp_path / "a", "--json")
    )
    assert [row["file"] for row in document["outputs"]] == ["mistral-odd-f16.gguf", "mistral-odd-bf16.gguf"]
    for row in document["outputs"]:
        file = GgufFile.open(tmp_path / "a" / row["file"])
        assert file.tensors_sha256() == row["tensors_sha256"]
    named = printed.lines(
        cli("convert", inputs.checkpoint, "--to", "f16", "--name", "x", "-o", tmp_path / "b")
    )
    assert named == [str(tmp_path / "b" / "x-f16.gguf")]
    assert (
        GgufFile.open(tmp_path / "b" / "x-f16.gguf").tensors_sha256()
        == (document["outputs"][0]["tensors_sha256"])
    )


def test_imatrix_computes_and_quiet_says_nothing(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "new" / "i.gguf"
    done = cli("imatrix", inputs.source, "--text", inputs.text, *printed.TINY, "-o", out, "--quiet")
    assert printed.lines(done) == [f"{out}  ({len(read_imatrix(out).entries)} tensors, 3 chunks)"]
    assert done.err == ""


@pytest.mark.parametrize("legacy", [False, True], ids=["gguf", "dat"])
def test_imatrix_adds_earlier_files(cli: Cli, inputs: Inputs, tmp_path: Path, legacy: bool) -> None:
    earlier = inputs.imatrix
    if legacy:
        earlier = tmp_path / "old.dat"
        write_legacy_imatrix(read_imatrix(inputs.imatrix), earlier)
    first, both = tmp_path / "first.gguf", tmp_path / "both.gguf"
    text = ("--text", inputs.text, "--ctx", 32, "--chunks", 2)
    assert cli("imatrix", inputs.source, *text, "-o", first).code == 0
    document = printed.document(
        cli("imatrix", inputs.source, *text, "--in-file", earlier, "-o", both, "--json")
    )
    assert (document["merged"], document["chunks"]) == (2, 4)
    one, two, sum_ = read_imatrix(first), read_imatrix(inputs.imatrix), read_imatrix(both)
    assert sum_.entries.keys() == one.entries.keys()
    for name, entry in sum_.entries.items():
        expected = one.entries[name].sums.astype(np.float64) + two.entries[name].sums
        np.testing.assert_allclose(entry.sums, expected, rtol=1e-6)
        np.testing.assert_allclose(entry.counts, one.entries[name].counts + two.entries[name].counts)


def test_imatrix_merges_files_without_a_model(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "sum.gguf"
    document = printed.document(
        cli("imatrix", "--in-file", inputs.imatrix, "--in-file", inputs.imatrix, "-o", out, "--json")
    )
    assert (document["merged"], document["chunks"]) == (2, 4)
    name, entry = next(iter(read_imatrix(out).entries.items()))
    np.testing.assert_allclose(entry.sums, 2 * read_imatrix(inputs.imatrix).entries[name].sums, rtol=1e-6)


def test_quantize_makes_each_type(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = printed.document(
        cli(
            "quantize",
            inputs.source,
            "--types",
            "q8_0,Q4_K_M",
            "--imatrix",
            inputs.imatrix,
            "-o",
            out,
            "--json",
        )
    )
    assert [row["file"] for row in document] == ["tiny-f32-Q8_0.gguf", "tiny-f32-Q4_K_M.gguf"]
    kinds = [GgufFile.open(out / row["file"]).tensors["blk.0.ffn_gate.weight"].type_name for row in document]
    assert kinds == ["Q8_0", "Q4_K"]
    lines = printed.lines(
        cli(
            "quantize",
            inputs.source,
            "--types",
            "Q8_0",
            "--tensor-type",
            "ffn_gate=f16",
            "-o",
            tmp_path / "b",
        )
    )
    assert lines[0].startswith(str(tmp_path / "b" / "tiny-f32-Q8_0.gguf"))
    made = GgufFile.open(tmp_path / "b" / "tiny-f32-Q8_0.gguf")
    assert made.tensors["blk.0.ffn_gate.weight"].type_name == "F16"


def test_quantize_dry_run_tells_the_sizes(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    asked = ("quantize", inputs.source, "--types", "Q8_0,Q4_K_M,IQ4_XS", "-o", tmp_path / "out")
    planned = printed.document(cli(*asked, "--dry-run", "--json"))
    lines = printed.lines(cli(*asked, "--dry-run"))
    assert not (tmp_path / "out").exists()
    made = printed.document(cli(*asked, "--json", "--errors", "--verify"))
    for before, after in zip(planned, made, strict=True):
        assert {key: after[key] for key in before} == before
        assert after["bytes"] == (tmp_path / "out" / after["file"]).stat().st_size
        assert 0 < after["errors"]["blk.0.ffn_up.weight"]["rms"] < 0.2
    table = [line.split() for line in lines if line.strip()]
    assert table[0][:2] == ["File", "Size"]
    assert [row[0] for row in table[2:5]] == [each["file"] for each in planned]
    assert table[2][3:] == [f"{made[0]['bits_per_weight']:.2f}", "3", "F32,", "9", "Q8_0"]
    assert table[5][:2] == ["3", "files"]
    assert re.fullmatch(rf"nothing was written; [\d.]+ .iB free in {tmp_path}", lines[-1])


def test_quantize_by_either_encoder(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    recipe = tmp_path / "types.txt"
    recipe.write_text("ffn_up=q5_0 ffn_down=q8_0")
    asked = ("quantize", inputs.source, "--types", "Q4_K_M,Q6_K", "--imatrix", inputs.imatrix,
             "--tensor-type-file", recipe, "--tensor-type", "ffn_up=q4_1")  # fmt: skip
    for encoder in ("bitloss", "llama.cpp"):
        assert cli(*asked, "--encoder", encoder, "-o", tmp_path / encoder).code == 0
    for kind in ("Q4_K_M", "Q6_K"):
        name = f"tiny-f32-{kind}.gguf"
        assert (tmp_path / "bitloss" / name).read_bytes() == (tmp_path / "llama.cpp" / name).read_bytes()
        tensors = GgufFile.open(tmp_path / "bitloss" / name).tensors
        assert [tensors[f"blk.0.ffn_{part}.weight"].type_name for part in ("up", "down")] == ["Q4_1", "Q8_0"]


def test_quantize_in_parts_and_from_parts(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    row = printed.document(
        cli("quantize", inputs.source, "--types", "F16", "--split-max-size", "1M", "-o", out, "--json")
    )[0]
    assert [part["path"] for part in row["parts"]] == sorted(path.name for path in out.glob("*.gguf"))
    assert row["sha256"] is None
    first = out / row["file"]
    whole = printed.document(cli("quantize", first, "--types", "Q8_0", "-o", tmp_path, "--json"))[0]
    assert whole["file"] == "tiny-f32-F16-Q8_0.gguf"
    kept = printed.document(
        cli("quantize", first, "--types", "Q8_0", "--keep-split", "-o", tmp_path, "--json")
    )[0]
    assert len(kept["parts"]) == len(row["parts"])
    assert kept["tensors_sha256"] == whole["tensors_sha256"]


def test_base_then_measure_then_compare_and_report(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "measured"
    header = printed.document(
        cli("base", inputs.source, "--text", inputs.text, *printed.TINY, "-o", base, "--json")
    )
    assert (header["n_chunks"], header["n_ctx"]) == (3, 32)
    assert cli("quantize", inputs.source, "--types", "Q8_0,Q4_K_M", "-o", tmp_path).code == 0
    files = [tmp_path / f"tiny-f32-{kind}.gguf" for kind in ("Q8_0", "Q4_K_M")]
    document = printed.document(cli("measure", *files, "--base", base, "-o", out, "--json"))
    results = Results.model_validate_json(json.dumps(document))
    assert [c.name for c in results.candidates] == ["tiny-f32-Q8_0", "tiny-f32-Q4_K_M"]
    assert results.text.scored_tokens == 3 * 15
    klds = [c.metrics["kld_mean"].value for c in results.candidates]
    assert klds[0] is not None
    assert klds[1] is not None
    assert 0 < klds[0] < klds[1]
    assert results == read_results(out)
    assert results.commands[0].startswith(f"bitloss measure {files[0]}")
    names = [c.tokens or "" for c in results.candidates]
    assert [name.rpartition("-")[0] for name in names] == ["tiny-f32-Q8_0", "tiny-f32-Q4_K_M"]
    assert sorted(path.name for path in (out / "tokens").iterdir()) == sorted(names)

    rows = printed.document(cli("compare", out, "--json"))
    assert {(row["a"], row["b"]) for row in rows} == {("tiny-f32-Q8_0", "tiny-f32-Q4_K_M")}
    table = printed.lines(cli("compare", out))
    assert any("Mean KLD" in line and "tiny-f32-Q8_0" in line for line in table)

    written = (out / "report.md").read_bytes()
    (out / "report.md").unlink()
    assert printed.document(cli("report", out, "--json")) == {
        "report": "report.md",
        "html": "report.html",
        "finished": True,
    }
    assert (out / "report.md").read_bytes() == written
    assert printed.lines(cli("report", out / "results.json")) == [
        str(out / "report.md"),
        str(out / "report.html"),
    ]


def test_measure_against_a_gguf_equals_measuring_against_its_stored_base(
    cli: Cli, inputs: Inputs, tmp_path: Path
) -> None:
    assert cli("quantize", inputs.source, "--types", "Q8_0", "-o", tmp_path).code == 0
    candidate = tmp_path / "tiny-f32-Q8_0.gguf"
    assert cli("base", inputs.source, "--text", inputs.text, *printed.TINY, "-o", tmp_path / "base").code == 0
    stored = printed.document(
        cli("measure", candidate, "--base", tmp_path / "base", "-o", tmp_path / "a", "--json")
    )
    direct = printed.document(
        cli(
            "measure",
            candidate,
            "--base",
            inputs.source,
            "--text",
            inputs.text,
            *printed.TINY,
            "-o",
            tmp_path / "b",
            "--json",
        )
    )
    assert direct["candidates"][0]["metrics"] == stored["candidates"][0]["metrics"]


def test_a_base_that_was_moved_finds_its_model_by_flag(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    base, moved = tmp_path / "base", inputs.folder / "moved.gguf"
    assert cli("base", inputs.source, "--text", inputs.text, *printed.TINY, "-o", base).code == 0
    inputs.source.rename(moved)
    failed = cli("measure", moved, "--base", base, "-o", tmp_path / "m")
    assert failed.code == 1
    assert "--base-model" in failed.err
    assert not (tmp_path / "m").exists()
    document = printed.document(
        cli("measure", moved, "--base", base, "--base-model", moved, "-o", tmp_path / "m", "--json")
    )
    assert document["candidates"][0]["metrics"]["kld_max"]["value"] == 0
