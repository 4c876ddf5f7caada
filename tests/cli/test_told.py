"""What a person should know is said once, in one line, before or beside the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.cli.printed import document

from bitloss.report.uncertainty import ALONE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cli, Inputs

TINY = ("--ctx", 32, "--chunks", 2)


@pytest.mark.parametrize(
    ("given", "said", "options"),
    [
        ((), ("evaluation.txt", "calibration.txt"), "give --text FILE and --calibration FILE"),
        (("--text",), ("calibration.txt",), "give --calibration FILE"),
        (("--calibration",), ("evaluation.txt",), "give --text FILE"),
        (("--text", "--calibration"), (), ""),
    ],
    ids=["none", "text", "calibration", "both"],
)
def test_bundled_texts_are_named(
    cli: Cli, inputs: Inputs, tmp_path: Path, given: tuple[str, ...], said: tuple[str, ...], options: str
) -> None:
    texts = tuple(item for option in given for item in (option, inputs.text))
    words = ("run", inputs.source, *texts, *TINY, "--quants", "NONE", "-o", tmp_path / "run")
    lines = [line for line in cli(*words).err.splitlines() if line.startswith("bundled texts are used")]
    assert len(lines) == bool(said)
    for line in lines:
        assert all(name in line for name in said)
        assert line.endswith(options)
    assert "bundled" not in cli(*words, "-q").err


def test_help_says_which_texts_and_that_files_are_added(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert "Without --text and --calibration the bundled texts are used" in cli("run", "--help").out
    said = cli("measure", "--help").out
    assert "are added to the table there" in said
    assert "where --base is a GGUF file; a base that is stored is measured as a whole" in said


def test_a_quantized_base_is_told(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    assert cli("quantize", inputs.source, "--types", "Q8_0", "-o", tmp_path, "-q").code == 0
    quantized = tmp_path / "tiny-f32-Q8_0.gguf"
    text = ("--text", inputs.text, *TINY)
    done = cli("base", quantized, *text, "-o", tmp_path / "base")
    assert done.code == 0
    assert done.err.count("tiny-f32-Q8_0.gguf is quantized itself (Q8_0)") == 1
    assert "quantized" not in cli("base", quantized, *text, "-o", tmp_path / "quiet", "-q").err
    assert "quantized" not in cli("base", inputs.source, *text, "-o", tmp_path / "plain").err
    for base, fires in ((tmp_path / "base", True), (tmp_path / "plain", False)):
        out = tmp_path / f"m-{base.name}"
        told = document(cli("measure", inputs.source, "--base", base, "-o", out, "--json", "-q"))
        assert ("base-is-quantized" in [each["id"] for each in told["findings"]]) == fires
        assert ("The base is quantized itself (Q8_0)" in (out / "report.md").read_text()) == fires


def test_a_table_of_comparisons_says_what_its_intervals_are(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    assert cli("quantize", inputs.source, "--types", "Q8_0,Q4_0", "-o", tmp_path, "-q").code == 0
    files = [tmp_path / f"tiny-f32-{kind}.gguf" for kind in ("Q8_0", "Q4_0")]
    out = tmp_path / "m"
    words = ("--base", inputs.source, "--text", inputs.text, "--ctx", 32, "--chunks", 12, "-q")
    assert cli("measure", *files, *words, "-o", out).code == 0
    assert cli("compare", out).out.rstrip().endswith(ALONE)
    assert ALONE in (out / "report.md").read_text()
    assert ALONE in (out / "report.html").read_text()
