"""Whole experiments by one command: what they print and leave, and how they go on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cli import printed

from bitloss.records import Results

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Done, Inputs


# ------------------------------------------------------------------------------------------------ whole experiments


def test_run_on_a_gguf(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = (
        "run",
        inputs.source,
        "--quants",
        "Q8_0",
        "--text",
        inputs.text,
        "--calibration",
        inputs.text,
        *printed.TINY,
        "--imatrix-chunks",
        2,
        "-o",
        out,
    )
    done = cli(*common, "--json")
    document = printed.document(done)
    assert [c["name"] for c in document["candidates"]] == ["Q8_0/f32"]
    assert document["calibration"]["chunks"] == 2
    assert document["commands"] == [f"bitloss {' '.join(map(str, (*common, '--json')))}"]
    assert "quantize Q8_0/f32" in done.err
    importance = document["candidates"][0]["importance"]
    assert importance.pop("missing") == ["output.weight", "token_embd.weight"]
    assert importance == {"unused_experts": {}, "zero_weights": {}, "lost": []}
    again = cli(*common)
    assert again.code == 0
    assert again.err.count("done before") == len(document["costs"])
    assert "Mean KLD" in again.out
    assert f"report: {out / 'report.html'}" in again.out


def test_demo_with_two_chunks(cli: Cli, tmp_path: Path) -> None:
    done = cli("demo", "--chunks", 2, "--imatrix-chunks", 1, "--out", tmp_path / "demo", "--json", "--quiet")
    document = printed.document(done)
    assert done.err == ""
    routes = ("f32", "f16", "f32+f16", "f16+f32")
    assert [c["name"] for c in document["candidates"]] == [
        f"{k}/{r}" for k in ("Q8_0", "Q4_K_M") for r in routes
    ]
    assert document["text"]["chunks"] == 2
    reasons = {half["reason"] for half in document["cross"]["halves"]}  # one chunk has no halves
    assert len(reasons) == 1
    assert "of calibration text: too few to be halved" in reasons.pop()
    shutil.rmtree(tmp_path / "demo")


def test_engine_flags_reach_the_engine(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    done = cli(
        "base",
        inputs.source,
        "--text",
        inputs.text,
        *printed.TINY,
        "-ub",
        16,
        "-b",
        64,
        "-fa",
        "off",
        "-t",
        1,
        "-sm",
        "row",
        "-ts",
        "3,1",
        "-ngl",
        0,
        "-o",
        tmp_path / "base",
        "--json",
    )
    assert printed.document(done)["options"] == {
        "batch": 64,
        "ubatch": 16,
        "flash_attn": "off",
        "n_gpu_layers": 0,
    }


def test_a_terminal_without_the_signs_of_a_table(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "measured"
    done = cli(
        *(
            "measure",
            inputs.source,
            "--base",
            inputs.source,
            "--text",
            inputs.text,
            *printed.TINY,
            "-o",
            out,
            "-q",
        )
    )
    assert done.code == 0, done.err
    command = [
        "measure",
        inputs.source,
        "--base",
        inputs.source,
        "--text",
        inputs.text,
        *printed.TINY,
        "-o",
        out,
    ]
    for name, more in (("ascii", []), ("latin-1", []), ("ascii", ["--json"])):
        again = subprocess.run(
            [sys.executable, "-m", "bitloss", *map(str, command), "-q", *more],
            env={**os.environ, "PYTHONIOENCODING": name},
            capture_output=True,
            check=False,
        )
        assert again.returncode == 0, again.stderr
        assert b"Traceback" not in again.stderr
        if more:
            Results.model_validate_json(again.stdout)


def test_a_run_goes_on_after_its_gguf_was_moved(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    def run(model: Path) -> Done:
        settings = ("--text", inputs.text, "--calibration", inputs.text, "--quants", "Q8_0", *printed.TINY)
        return cli("run", model, *settings, "--imatrix-chunks", 2, "-o", tmp_path / "run", "-q", "--json")

    first = printed.document(run(inputs.source))
    moved = tmp_path / "elsewhere" / inputs.source.name
    moved.parent.mkdir()
    inputs.source.rename(moved)
    for tokens in (tmp_path / "run" / "tokens").iterdir():
        tokens.unlink()
    assert printed.document(run(moved))["candidates"] == first["candidates"]


def test_the_hash_told_is_the_files_after_going_back_to_another_calibration(
    cli: Cli, inputs: Inputs, tmp_path: Path
) -> None:
    """The same text under a name of the same length: candidates of the same size with other bytes."""
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for text in texts:
        shutil.copy(inputs.text, text)
    for text in (*texts, texts[0]):
        settings = ("--text", inputs.text, "--calibration", text, "--quants", "Q8_0", *printed.TINY)
        done = cli(
            *("run", inputs.source, *settings, "--imatrix-chunks", 2, "-o", tmp_path / "run", "-q", "--json")
        )
        (candidate,) = printed.document(done)["candidates"]
        file = tmp_path / "run" / "candidates" / candidate["file"]
        assert candidate["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
