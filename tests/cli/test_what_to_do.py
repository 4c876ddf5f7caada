"""Every refusal says what to do about it, and shows no insides of the program."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.cli.test_bad_input import refused

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

TINY = ("--ctx", 32, "--chunks", 2)
HEADER = b"_logits_" + struct.pack("<Iii", 32, 320, 2)


@pytest.fixture
def kld(cli: Cli, inputs: Inputs, tmp_path: Path) -> Path:
    words = ("base", inputs.source, "--text", inputs.text, *TINY, "-q")
    assert cli(*words, "-o", tmp_path / "base", "--kld", tmp_path / "b.kld").code == 0
    return tmp_path / "b.kld"


def test_each_way_a_kld_can_be_wrong(cli: Cli, inputs: Inputs, kld: Path, tmp_path: Path) -> None:
    whole = kld.read_bytes()
    give, again = (
        "Give a file that llama-perplexity --kl-divergence-base or bitloss base --kld",
        "ake the file again",
    )
    cases = [
        (b"", "expected _logits_ at its beginning, found an empty file", give),
        (b"GG\x00\x1bxxxxxx", "found GG\\x00\\x1bxxxx", give),
        (HEADER[:15], "the file ends inside its header", again),
        (HEADER[:8] + struct.pack("<Iii", 0, 320, 2), "impossible counts", again),
        (HEADER[:8] + struct.pack(">Iii", 32, 320, 2) + whole[20:], "other byte order", "ake the file on a machine"),
        (whole + b"x", "bytes after the end", "Copy or make the file again"),
        (whole[:-1], "cut short", again),
        (whole[:20] + struct.pack("<i", 320) + whole[24:], "outside the vocabulary", again),
    ]  # fmt: skip
    for content, fault, mend in cases:
        kld.write_bytes(content)
        done = cli("measure", inputs.source, "--base", kld, "-o", tmp_path / "m", "-q")
        refused(done, 1, "b.kld", fault, mend)
        assert "b'" not in done.err
        assert not (tmp_path / "m").exists()


def test_a_kld_has_the_length_of_its_chunks_and_no_other(
    cli: Cli, inputs: Inputs, kld: Path, tmp_path: Path
) -> None:
    words = ("measure", inputs.source, "--base", kld, "-o", tmp_path / "m", "-q")
    refused(
        cli(*words, "-c", 64), 1, "b.kld", "expected 64 tokens (--ctx), found 32 tokens", "eave out --ctx"
    )
    assert not (tmp_path / "m").exists()
    assert cli(*words, "-c", 32).code == 0


@pytest.mark.parametrize("verb", ["measure", "sensitivity"])
def test_a_base_that_is_none(cli: Cli, inputs: Inputs, tmp_path: Path, verb: str) -> None:
    more = () if verb == "measure" else ("--type", "Q4_0")
    words = (verb, inputs.source, *more, "-o", tmp_path / "m", "-q", "--base")
    give = "Give a folder made by `bitloss base`"
    for text in ((), ("--text", inputs.text)):
        refused(cli(*words, inputs.text, *text), 1, "text.txt", "neither a GGUF file", give)
        refused(cli(*words, tmp_path / "none.kld", *text), 1, "none.kld: no such file", give)
    refused(cli(*words, inputs.source), 2, "a GGUF file as the base needs a text")
    refused(cli(*words, inputs.folder), 1, "no base here (base.json is missing)")
    assert not (tmp_path / "m").exists()


def test_json_of_something_else(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text("{}")
    for verb in ("compare", "report"):
        refused(
            cli(verb, tmp_path / "e.json"), 1, "e.json: not a results.json that bitloss wrote", "bitloss run"
        )


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that takes no files, whoever writes")
@pytest.mark.parametrize("verb", ["measure", "base", "convert", "quantize", "imatrix", "run"])
def test_a_place_that_takes_no_files(cli: Cli, inputs: Inputs, verb: str) -> None:
    text = ("--text", inputs.text, *TINY)
    commands: dict[str, tuple[object, ...]] = {
        "measure": (inputs.source, "--base", inputs.source, *text),
        "base": (inputs.source, *text),
        "convert": (inputs.checkpoint,),
        "quantize": (inputs.source, "--types", "Q8_0"),
        "imatrix": (inputs.source, *text),
        "run": (inputs.source, *text, "--calibration", inputs.text),
    }
    done = cli(verb, *commands[verb], "-o", "/proc/x", "-q")
    refused(done, 1, "/proc", "nothing can be written there", "Choose another place")
