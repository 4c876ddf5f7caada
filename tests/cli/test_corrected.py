"""A command that failed early and is corrected simply works, in the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.conftest import Cli, Inputs
from tests.cli.test_bad_input import refused

TINY = ("--ctx", "32", "--chunks", "2")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize("verb", ["measure", "sensitivity", "run"])
def test_a_text_too_short(cli: Cli, inputs: Inputs, out: Path, verb: str) -> None:
    short = inputs.folder / "short.txt"
    short.write_text("a b c " * 14)  # more bytes than two chunks have tokens, fewer tokens
    if verb == "run":  # whatever else a run makes first is kept, and is of that text
        short.write_text("a b c")
    commands = {
        "measure": ("measure", inputs.source, "--base", inputs.source),
        "sensitivity": ("sensitivity", inputs.source, "--type", "Q4_K_M"),
        "run": ("run", inputs.source, "--quants", "Q8_0", "--calibration", inputs.text),
    }
    wrong = cli(*commands[verb], "--text", short, *TINY, "-o", out, "-q")
    refused(wrong, 1, "too short")
    corrected = cli(*commands[verb], "--text", inputs.text, *TINY, "-o", out, "-q")
    assert corrected.code == 0, corrected.err
    assert json.loads((out / "results.json").read_text())["text"]["name"] == "text.txt"
    # finished work is another matter
    other = inputs.folder / "other.txt"
    other.write_text("and then there were none of them left to tell " * 60)
    again = cli(*commands[verb], "--text", other, *TINY, "-o", out, "-q")
    refused(again, 1, "another experiment")


def test_conversations_that_are_none(cli: Cli, inputs: Inputs, out: Path) -> None:
    bad = inputs.folder / "bad.jsonl"
    bad.write_text("no JSON\n" * 40)
    command = ("measure", inputs.source, "--base", inputs.source)
    assert cli(*command, "--text", bad, "--chat-template", *TINY, "-o", out, "-q").code == 1
    assert cli(*command, "--text", inputs.text, *TINY, "-o", out, "-q").code == 0


def test_a_damaged_base(cli: Cli, inputs: Inputs, out: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    assert cli("base", inputs.source, "--text", inputs.text, *TINY, "-o", base, "-q").code == 0
    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    shard = next(base.glob("hidden-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    refused(cli("measure", inputs.source, "--base", base, "-o", out, "-q"), 1, "shard is damaged")
    other = ("measure", inputs.source, "--base", inputs.source, "--text", inputs.text, *TINY, "-o", out, "-q")
    assert cli(*other).code == 0


def test_too_little_memory_is_found_before_the_base_is_made(cli: Cli, inputs: Inputs, out: Path) -> None:
    command = ("measure", inputs.source, "--base", inputs.source, "--text", inputs.text, "-o", out, "-q")
    refused(cli(*command, *TINY, "--max-memory", "1MB"), 2, "too little memory")
    assert not out.exists()
    assert cli(*command, "--ctx", "16", "--chunks", "2").code == 0
