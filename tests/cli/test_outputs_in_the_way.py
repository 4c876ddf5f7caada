"""A file where a folder shall be, or above it: one line before anything is computed, and the file stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.test_bad_input import refused

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cli, Inputs

TINY = ("--ctx", 32, "--chunks", 2)


@pytest.mark.parametrize("below", [False, True], ids=["file", "below a file"])
@pytest.mark.parametrize(
    "verb", ["convert", "imatrix", "quantize", "base", "kld", "measure", "sensitivity", "demo", "run"]
)
def test_a_file_in_the_way(cli: Cli, inputs: Inputs, tmp_path: Path, verb: str, *, below: bool) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    out = mine / "sub" if below else mine
    text = ("--text", inputs.text, *TINY, "-q")
    base = tmp_path / "base"
    commands: dict[str, tuple[Any, ...]] = {
        "convert": ("convert", inputs.checkpoint, "-q", "-o", out),
        "imatrix": ("imatrix", inputs.source, *text, "-o", out),
        "quantize": ("quantize", inputs.source, "--types", "Q8_0", "-q", "-o", out),
        "base": ("base", inputs.source, *text, "-o", out),
        "kld": ("base", inputs.source, *text, "-o", base, "--kld", out),
        "measure": ("measure", inputs.source, "--base", inputs.source, *text, "-o", out),
        "sensitivity": ("sensitivity", inputs.source, "--type", "Q4_0", *text, "-o", out),
        "demo": ("demo", "--chunks", 2, "-q", "-o", out),
        "run": ("run", inputs.source, "--calibration", inputs.text, *text, "-o", out),
    }
    done = cli(*commands[verb])
    refused(done, 1, str(mine))
    assert "in the way" in done.err or "already there" in done.err
    assert mine.read_text() == "mine"
    assert not base.exists()


@pytest.mark.parametrize("verb", ["report", "card"])
def test_a_file_in_the_way_of_what_is_told(cli: Cli, inputs: Inputs, tmp_path: Path, verb: str) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    measure = ("measure", inputs.source, "--base", inputs.source, "--text", inputs.text, *TINY)
    assert cli(*measure, "-q", "-o", run).code == 0
    mine.write_text("mine")
    refused(cli(verb, run, "-o", mine / "sub"), 1, str(mine), "in the way")
    assert mine.read_text() == "mine"
