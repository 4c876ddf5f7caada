"""`bitloss diff` at the command line: output, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Cli, Inputs
from tests.unit.explain.models import gguf, normal

from bitloss.model.gguf import GgufType, GgufValue
from bitloss.records import Diff


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two files that differ in one key and one value."""
    one, two = normal(4, 64), normal(4, 64)
    two[2, 3] += 1
    key = {"general.name": GgufValue(GgufType.STRING, "second")}
    same = normal(8)
    return (
        gguf(tmp_path / "a.gguf", {"w": one, "n": same}),
        gguf(tmp_path / "b.gguf", {"w": two, "n": same}, key),
    )


def test_conclusion_first_then_causes_and_tables(cli: Cli, files: tuple[Path, Path]) -> None:
    done = cli("diff", *files)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith(
        "different weights: 1 of 2 tensors differs, 1 of 256 values (0.391 %) changed, "
    )
    assert "- metadata key general.name is only in B (38 bytes)" in lines
    assert "- 1 tensor holds other weights: w (value 131, 9 bits)" in lines
    size = [f"{path.stat().st_size:,}" for path in files]
    assert next(line for line in lines if line.startswith("all ")).split()[1:3] == size
    assert next(line for line in lines if line.startswith("general.name")).split()[1:] == ["(none)", "second"]
    row = next(line for line in lines if line.startswith("w "))
    assert "different" in row
    assert "1 of 256" in row
    assert not any(line.startswith("n ") for line in lines)


def test_all_and_summary(cli: Cli, files: tuple[Path, Path]) -> None:
    assert any(line.startswith("n ") for line in cli("diff", *files, "--all").out.splitlines())
    done = cli("diff", *files, "--summary")
    assert "- 1 tensor holds other weights: w (value 131, 9 bits)\n" in done.out
    assert "Where the bytes are" not in done.out


def test_json_is_the_record(cli: Cli, files: tuple[Path, Path]) -> None:
    done = cli("diff", *files, "--json", "--reference", files[0])
    found = Diff.model_validate_json(done.out, strict=True)
    assert (found.conclusion, found.reference) == ("different weights", "a.gguf")
    assert json.loads(done.out)["tensors"][0]["reference"]["a_rms"] == 0
    (ratio,) = [each.reference.ratio for each in found.tensors if each.reference]
    assert ratio == 1
    assert "RMS / error" in cli("diff", *files, "--reference", files[0]).out


def test_two_routes_to_q8_0(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    """What convert and quantize make by way of F32 and of F16, with their source as the reference."""
    out = tmp_path / "out"
    assert cli("convert", inputs.source, "--to", "f16", "-o", out, "--quiet").code == 0
    half = next(out.glob("*.gguf"))
    made = []
    for source in (inputs.source, half):
        assert cli("quantize", source, "--types", "Q8_0", "-o", out, "--quiet").code == 0
        made.append(next(path for path in out.glob(f"{source.stem}-Q8_0.gguf")))
    done = cli("diff", *made, "--reference", inputs.source, "--json")
    found = Diff.model_validate_json(done.out, strict=True)
    assert found.conclusion == "different weights"  # random weights are no values of F16
    assert found.total.reference is not None
    assert found.total.reference.ratio is not None
    assert 0 < found.total.reference.ratio < 1
    for side, path in ((found.a, made[0]), (found.b, made[1])):
        assert side.bytes == path.stat().st_size


def test_names_and_values_cannot_act_on_the_terminal(cli: Cli, tmp_path: Path) -> None:
    bad = "\x1b[31m[red]x"
    a = gguf(tmp_path / "a.gguf", {bad: normal(1, 32)}, {f"k{bad}": GgufValue(GgufType.STRING, bad)})
    b = gguf(tmp_path / "b.gguf", {bad: normal(1, 32, seed=1)})
    done = cli("diff", a, b)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "\\x1b[31m[red]x" in done.out


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        ("missing", 1, "no such GGUF file"),
        ("empty", 1, "the file is empty"),
        ("text", 1, "not a GGUF file"),
        ("cut", 1, "ends inside the tensors"),
        ("folder", 1, "a folder, not a GGUF file"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, tmp_path: Path, damage: str, code: int, said: str) -> None:
    good = gguf(tmp_path / "good.gguf", {"a": normal(4, 64)})
    path = tmp_path / "m.gguf"
    if damage == "cut":
        path.write_bytes(good.read_bytes()[:-40])
    elif damage in ("empty", "text"):
        path.write_text("" if damage == "empty" else "hello")
    elif damage == "folder":
        path.mkdir()
    for arguments in ((good, path), (path, good), (good, good, "--reference", path)):
        done = cli("diff", *arguments)
        assert (done.code, done.out) == (code, "")
        assert said in done.err
        assert done.err.count("\n") == 1


def test_wrong_use(cli: Cli, files: tuple[Path, Path]) -> None:
    for arguments in ((), files[:1], (*files, files[0]), (*files, "--threads", "-1")):
        done = cli("diff", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


def test_values_that_are_not_finite_are_counted_by_kind(cli: Cli, tmp_path: Path) -> None:
    values = normal(1, 32)
    values[0, :2] = np.nan, -np.inf
    a, b = gguf(tmp_path / "a.gguf", {"w": normal(1, 32)}), gguf(tmp_path / "b.gguf", {"w": values})
    assert "2 of 32 (B: 1 NaN, 1 -infinity)" in cli("diff", a, b).out
