"""`bitloss audit` at the command line: output, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Cli, Inputs
from tests.unit.explain.models import BF16, folder, gguf, normal

from bitloss.records.audit import Audit


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder whose second tensor holds one value that F16 changes and one that it cannot hold."""
    bad = normal(2, 64, dtype=BF16)
    bad[0, 0], bad[1, 1] = 1e-7, 70144
    return folder(tmp_path / "doctored", {"a.weight": normal(2, 64, dtype=BF16), "b.weight": bad})


def test_table_and_summary(cli: Cli, model: Path) -> None:
    done = cli("audit", model)
    assert (done.code, done.err) == (0, "")
    row = next(line for line in done.out.splitlines() if line.startswith("b.weight"))
    assert "overflows: 1 value (1 value changed besides, largest error 1.91e-08)" in row
    assert "1 / 0 of 4" in row
    assert "F16: overflows: 1 value (1 value changed besides, largest error 1.91e-08)" in done.out
    assert "\nBF16: lossless\n" in done.out
    assert "Q8_0 blocks: 1 of 8 would change by way of F16 (1 holds an overflow), 0 of 8" in done.out
    assert "#" not in done.out


def test_summary_and_histogram(cli: Cli, model: Path) -> None:
    done = cli("audit", model, "--summary", "--histogram", "--formats", "Q8_0,Q4_0")
    assert done.code == 0
    assert "a.weight" not in done.out
    assert "Q4_0 blocks: 1 of 8" in done.out
    assert "  2^16                1 #" in done.out


def test_json_is_the_record(cli: Cli, model: Path) -> None:
    done = cli("audit", model, "--json")
    found = Audit.model_validate_json(done.out, strict=True)
    assert [each.name for each in found.tensors] == ["a.weight", "b.weight"]
    assert json.loads(done.out)["total"]["f16"]["verdict"] == "overflows"


def test_gguf_and_folder_that_convert_made(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    """A GGUF converted to F32 holds the folder's values."""
    assert cli("convert", inputs.checkpoint, "--to", "f32", "-o", tmp_path / "out", "--quiet").code == 0
    made = next((tmp_path / "out").glob("*.gguf"))
    one, two = (
        Audit.model_validate_json(cli("audit", m, "--json").out).matrices for m in (inputs.checkpoint, made)
    )
    assert one == two


def test_names_of_tensors_cannot_act_on_the_terminal(cli: Cli, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", {"\x1b[31m[red]w": normal(1, 32)})
    done = cli("audit", path)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "\\x1b[31m[red]w" in done.out


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        ("missing", 1, "no such model"),
        ("empty", 1, "the file is empty"),
        ("text", 1, "not a GGUF file"),
        ("cut", 1, "ends inside the tensors"),
        ("bare", 1, "no config.json"),
        ("weightless", 1, "no weights"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, tmp_path: Path, damage: str, code: int, said: str) -> None:
    path = tmp_path / "m.gguf"
    if damage == "cut":
        gguf(path, {"a": normal(4, 64)})
        path.write_bytes(path.read_bytes()[:-40])
    elif damage in ("empty", "text"):
        path.write_text("" if damage == "empty" else "hello")
    elif damage in ("bare", "weightless"):
        path.mkdir()
        if damage == "weightless":
            (path / "config.json").write_text("{}")
    done = cli("audit", path)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_wrong_use(cli: Cli, model: Path) -> None:
    for formats in ("", "Q8_O", "F16", "Q8_0,Q8_0"):
        done = cli("audit", model, "--formats", formats)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert cli("audit").code == 2
    assert cli("audit", model, "--threads", "-1").code == 2


def test_nan_is_counted_not_an_error(cli: Cli, tmp_path: Path) -> None:
    values = normal(1, 32)
    values[0, 0] = np.nan
    done = cli("audit", gguf(tmp_path / "m.gguf", {"a": values}), "--summary")
    assert done.code == 0
    assert "not finite: 1 NaN, in a;" in done.out


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_of_the_exponents(cli: Cli, model: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"exponents.{suffix}"
    done = cli("audit", model, "--summary", "--plot", path)
    assert (done.code, done.err) == (0, "")
    start = {"svg": b"<svg", "png": b"\x89PNG"}[suffix]
    assert path.read_bytes().startswith(start)
    if suffix == "svg":
        assert b"doctored: how large the weights are" in path.read_bytes()


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_picture_replaces_a_picture_of_ours_and_nothing_else(
    cli: Cli, model: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"mine.{suffix}"
    mine = {"svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>', "png": b"\x89PNG\r\n\x1a\n" + bytes(64)}[
        suffix
    ]
    command = ("audit", model, "--summary", "--plot", path)
    path.write_bytes(mine)
    done = cli(*command)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert f"{path}: already there, and not a picture that bitloss drew" in done.err
    assert path.read_bytes() == mine
    assert cli(*command, "--force").code == 0
    drawn = path.read_bytes()
    assert cli(*command).code == 0
    assert path.read_bytes() == drawn


def test_pictures_that_cannot_be_written(cli: Cli, model: Path, tmp_path: Path) -> None:
    for path, code, said in (
        (tmp_path / "x.jpg", 2, "expected FILE.svg or FILE.png, found x.jpg"),
        (tmp_path / "none" / "x.svg", 1, "no place to write the picture to"),
    ):
        done = cli("audit", model, "--plot", path)
        assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
        assert said in done.err
    zeros = gguf(tmp_path / "z.gguf", {"a": np.zeros((2, 32), np.float32)})
    done = cli("audit", zeros, "--plot", tmp_path / "x.svg")
    assert (done.code, done.out) == (1, "")
    assert "no matrix has a weight to draw" in done.err
    assert not (tmp_path / "x.svg").exists()
