"""`bitloss quantize`: what it prints, and every kind of bad input, through the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli.conftest import Cli, Done, Inputs

from bitloss.imatrix.file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf


def refused(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done
    assert done.out == ""
    assert done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err


def lines(done: Done) -> list[str]:
    assert done.code == 0, done
    return done.out.splitlines()


def document(done: Done) -> list[dict[str, Any]]:
    assert done.code == 0, done
    found = json.loads(done.out)
    assert isinstance(found, list)
    return found


def with_entries(inputs: Inputs, out: Path, **changed: dict[str, float]) -> Path:
    """The importance matrix with sums, counts of some tensors set: name with _ for . -> {"sums": 0}."""
    matrix = read_imatrix(inputs.imatrix)
    for name, fields in changed.items():
        for field, value in fields.items():
            getattr(matrix.entries[f"blk.0.{name}.weight"], field)[:] = value
    write_imatrix(matrix, out)
    return out


def test_types_may_be_given_one_by_one(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    made = lines(
        cli("quantize", inputs.source, "--types", "Q8_0", "--types", "q4_0,Q4_1", "-o", tmp_path / "out")
    )
    assert [line.split("  ")[0] for line in made] == [
        str(tmp_path / "out" / f"tiny-f32-{kind}.gguf") for kind in ("Q8_0", "Q4_0", "Q4_1")
    ]


def test_a_repeat_says_what_was_there(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    asked = ("quantize", inputs.source, "-o", tmp_path / "out", "-q")
    (first,) = lines(cli(*asked, "--types", "Q8_0"))
    assert "already made" not in first
    again = lines(cli(*asked, "--types", "Q8_0,Q4_0"))
    assert again[0] == first.replace("(", "(already made, kept; ", 1)
    assert "already made" not in again[1]
    kept = document(cli(*asked, "--types", "Q8_0,Q4_0,F16", "--json"))
    assert [each["reused"] for each in kept] == [True, True, False]


def test_errors_as_a_table(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    asked = ("quantize", inputs.source, "--types", "Q8_0,Q2_K", "-o", tmp_path / "out", "--errors")
    plain = lines(cli(*asked))
    table = [re.split(r"  +", line.strip()) for line in plain[2:] if line.strip()]
    assert table[0] == ["Type", "RMS error", "Worst tensors"]
    told = document(cli(*asked, "--json"))
    sizes = {name: info.n_elements for name, info in GgufFile.open(inputs.source).tensors.items()}
    for row, each in zip(table[2:4], told, strict=True):
        errors = {name: error["rms"] for name, error in each["errors"].items()}
        mean = np.sqrt(np.average([e**2 for e in errors.values()], weights=[sizes[name] for name in errors]))
        assert each["error"]["rms"] == pytest.approx(mean, rel=1e-12)
        assert row[:2] == [each["type"], f"{100 * mean:.3f} %"]
        worst = sorted(errors, key=lambda name: -errors[name])[:3]
        assert row[2] == ", ".join(
            f"{name} ({each['errors'][name]['type']}) {100 * errors[name]:.3f} %" for name in worst
        )
    assert "shares of a tensor's own root mean square" in plain[-1]
    weighted = lines(cli(*asked, "--imatrix", inputs.imatrix, "--force"))
    heads = next(line for line in weighted if "RMS error" in line)
    assert "By importance" in heads
    cells = [re.split(r"  +", line.strip()) for line in weighted if re.match(r" +Q\w+ +\d", line)]
    assert cells[0][2] == "n/a"  # Q8_0 takes no notice of importance
    assert re.fullmatch(r"\d+\.\d{3} %", cells[1][2])


def test_without_errors_there_is_no_table(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    assert len(lines(cli("quantize", inputs.source, "--types", "Q8_0,Q2_K", "-o", tmp_path / "out"))) == 2
    (each,) = document(cli("quantize", inputs.source, "--types", "Q4_0", "-o", tmp_path / "out", "--json"))
    assert (each["errors"], each["error"]) == (None, None)


def test_importance_0_is_warned_of(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    odd = with_entries(inputs, tmp_path / "odd.gguf", attn_q={"sums": 0}, ffn_up={"sums": 0})
    asked = (
        "quantize",
        inputs.source,
        "--types",
        "Q8_0,Q4_K_S,IQ3_XXS",
        "--imatrix",
        odd,
        "-o",
        tmp_path / "out",
    )
    for more in ((), ("--dry-run",)):
        said = [line for line in lines(cli(*asked, *more)) if line.startswith("warning")]
        assert said == [
            "warning: tiny-f32-Q4_K_S.gguf: 2 tensors hold zeros, as the importance of all columns is 0: "
            "blk.0.attn_q.weight, blk.0.ffn_up.weight",
            "warning: tiny-f32-IQ3_XXS.gguf: 2 tensors hold mostly noise, as the importance of all columns is 0: "
            "blk.0.attn_q.weight, blk.0.ffn_up.weight",
        ]
        assert "--tensor-type REGEX=Q8_0" in cli(*asked, *more).out
    told = document(cli(*asked, "--json"))
    assert [sorted(each["lost"]) for each in told] == [
        [],
        *[["blk.0.attn_q.weight", "blk.0.ffn_up.weight"]] * 2,
    ]
    file = GgufFile.open(tmp_path / "out" / "tiny-f32-Q4_K_S.gguf")
    assert not file.tensor_f32("blk.0.attn_q.weight").any()
    assert file.tensor_f32("blk.0.attn_k.weight").any()
    mended = lines(cli(*asked, "--tensor-type", "attn_q|ffn_up=Q8_0", "--force"))
    assert not [line for line in mended if line.startswith("warning")]


def test_experts_are_named_in_the_warning(cli: Cli, tmp_path: Path) -> None:
    shape = RandomShape(n_embd=256, n_ff=256, n_layer=7, n_expert=8, n_expert_used=2, n_head=2, head_dim=128)
    model = random_gguf(tmp_path / "moe-f32.gguf", shape, dtype="f32")
    entries = {}
    for layer in range(7):
        sums, counts = np.ones((8, 256)), np.full(8, 4.0)
        sums[:: 7 if layer else 1] = 0
        counts[3] = 0 if layer == 2 else 4
        entries[f"blk.{layer}.ffn_up_exps.weight"] = ImatrixEntry(sums, counts)
    write_imatrix(Imatrix(entries, 1, 8, ()), tmp_path / "i.gguf")
    said = lines(
        cli("quantize", model, "--types", "Q4_0", "--imatrix", tmp_path / "i.gguf", "-o", tmp_path / "o")
    )
    assert "1 tensor with experts no token reached (importance 1)" in said[0]
    assert "7 tensors with importance 0 (of all, or of some experts)" in said[0]
    assert said[1] == (
        "warning: moe-f32-Q4_0.gguf: 7 tensors hold zeros, as the importance of all columns is 0: "
        "blk.0.ffn_up_exps.weight (experts 0, 1, 2, 3, 4, ... of 8), "
        + ", ".join(f"blk.{n}.ffn_up_exps.weight (experts 0, 7 of 8)" for n in range(1, 5))
        + " and 2 more"
    )


def test_a_dry_run_says_when_the_disk_is_too_small(
    cli: Cli, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 1_000_000))
    asked = ("quantize", inputs.source, "--types", "F16", "-o", tmp_path / "new" / "out")
    planned = lines(cli(*asked, "--dry-run"))
    assert planned[-1] == f"nothing was written; 976.56 KiB free in {tmp_path}, which is not enough"
    assert [line.split()[:2] for line in planned if "file " in line] == [["1", "file"]]
    refused(
        cli(*asked, "-q"),
        1,
        "not enough space on the disk: expected 1.07 MiB free, found 976.56 KiB",
        "Free some space",
    )
    assert not (tmp_path / "new").exists()


def test_parts_and_odd_rows_are_noted(cli: Cli, tmp_path: Path) -> None:
    shape = RandomShape(n_embd=288, n_head=6, n_head_kv=2, head_dim=10, n_ff=352, n_layer=1)
    model = random_gguf(tmp_path / "odd-f32.gguf", shape, dtype="f32")
    asked = ("quantize", model, "--types", "Q4_K_M,F16", "--split-max-size", "1M", "-o", tmp_path / "out")
    planned = [re.split(r"  +", line.strip()) for line in lines(cli(*asked, "--dry-run")) if ".gguf" in line]
    assert [row[0] for row in planned] == ["odd-f32-Q4_K_M.gguf", "odd-f32-F16-00001-of-00002.gguf"]
    assert [row[4] for row in planned] == ["8 of other types, as rows do not fit the blocks", "2 parts"]
    made = lines(cli(*asked))
    assert made[0].endswith("; 8 of other types, as rows do not fit the blocks)")
    assert made[1].endswith("; 2 parts)")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"attn_q": {"sums": np.nan}}, ("impossible sum", "found nan", "Compute the matrix again")),
        ({"attn_q": {"counts": np.inf}}, ("impossible count", "found inf", "Compute the matrix again")),
        ({"attn_q": {"sums": -1}}, ("impossible sum", "found -1.0", "Compute the matrix again")),
        (
            {"attn_q": {"sums": 3e38}},
            ("impossible mean square", "at most 1e+30", "The activations overflowed"),
        ),
    ],
    ids=["nan", "infinite", "negative", "huge"],
)
def test_a_matrix_with_impossible_values(
    cli: Cli, inputs: Inputs, tmp_path: Path, changed: dict[str, dict[str, float]], words: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    matrix = tmp_path / "m.gguf"
    # Written by hand: write_imatrix would refuse them.
    matrix.write_bytes(inputs.imatrix.read_bytes())
    file = GgufFile.open(matrix)
    for name, fields in changed.items():
        for field, value in fields.items():
            info = file.tensors[f"blk.0.{name}.weight.{'in_sum2' if field == 'sums' else 'counts'}"]
            with matrix.open("r+b") as stream:
                stream.seek(info.offset)
                stream.write(np.float32(value).tobytes())
    done = cli("quantize", inputs.source, "--types", "Q4_K_M,Q8_0", "--imatrix", matrix, "-o", out, "-q")
    refused(done, 1, "m.gguf[blk.0.attn_q.weight]", *words)
    assert not out.exists()


def test_a_matrix_of_another_model(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    """Other weights, or other widths: which."""
    out = tmp_path / "out"
    deeper = random_gguf(
        tmp_path / "deep.gguf", RandomShape(n_embd=256, n_layer=1, n_expert=2, n_expert_used=1)
    )
    names = [name for name in GgufFile.open(deeper).tensors if "exps" in name]
    write_imatrix(
        Imatrix({name: ImatrixEntry(np.ones((2, 256)), np.ones(2)) for name in names}, 1, 8, ()),
        tmp_path / "m.gguf",
    )
    asked = ("quantize", inputs.source, "--types", "Q4_K_M", "-o", out, "-q", "--imatrix")
    refused(
        cli(*asked, tmp_path / "m.gguf"),
        1,
        "m.gguf: importance matrix of another model: found 3 of 3 weights unknown, the first is "
        "blk.0.ffn_down_exps.weight. Is it of the model in tiny-f32.gguf?",
    )
    entries = dict(read_imatrix(inputs.imatrix).entries)
    entries["blk.0.ffn_up.weight"] = ImatrixEntry(np.ones((1, 512)), np.ones(1))
    write_imatrix(Imatrix(entries, 1, 8, ()), tmp_path / "w.gguf")
    refused(
        cli(*asked, tmp_path / "w.gguf"),
        1,
        "w.gguf[blk.0.ffn_up.weight]: importance matrix of another model: expected 256 values, found 512. Is it of",
    )
    assert not out.exists()


def test_types_that_cannot_be_made_are_named_before_anything_is_written(
    cli: Cli, inputs: Inputs, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = ("quantize", inputs.source, "--types", "Q8_0,IQ2_XS,Q4_K_M,IQ1_M", "-o", out, "-q")
    for more in ((), ("--dry-run",)):
        refused(cli(*asked, *more), 1, "2 of 4 types cannot be made: IQ2_XS, IQ1_M (blk.0.",
                "or leave out IQ2_XS, IQ1_M; the others can be made: Q8_0,Q4_K_M")  # fmt: skip
    rows = RandomShape(n_embd=96, n_head=2, n_head_kv=1, head_dim=48, n_ff=160, n_layer=1)
    odd = random_gguf(tmp_path / "odd.gguf", rows, dtype="f32")
    refused(cli("quantize", odd, "--types", "Q8_0,Q1_0", "-o", out, "-q"), 1,
            "1 of 2 types cannot be made: Q1_0 (token_embd.weight: Q1_0 does not fit the row length",
            "expected a multiple of 128, found 96", "the others can be made: Q8_0")  # fmt: skip
    assert not out.exists()


def test_two_failures_together(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    info = GgufFile.open(inputs.source).tensors["blk.0.ffn_up.weight"]
    with inputs.source.open("r+b") as file:
        file.seek(info.offset)
        file.write(np.float32(1e8).tobytes())
    out = tmp_path / "out"
    done = cli("quantize", inputs.source, "--types", "Q8_0,BF16,Q4_0", "-o", out, "-q")
    refused(done, 1, "Q8_0 cannot hold this tensor", "failed likewise", "tiny-f32-Q4_0.gguf[blk.0.ffn_up.weight]",
            "finished: tiny-f32-BF16.gguf")  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["quantization.json", "tiny-f32-BF16.gguf"]


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--encoder", "llama.cpp")])
def test_a_file_in_the_way_of_the_folder(
    cli: Cli, inputs: Inputs, tmp_path: Path, more: tuple[str, ...]
) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    done = cli("quantize", inputs.source, "--types", "Q8_0", "-o", tmp_path / "out", "-q", *more)
    refused(done, 1, f"{tmp_path / 'out'}: a file is in the way of the output folder. Give -o another folder")
    assert (tmp_path / "out").read_bytes() == b"mine"


def test_a_source_that_is_no_model(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    done = cli("quantize", inputs.imatrix, "--types", "Q8_0", "-o", tmp_path / "out", "-q")
    refused(done, 2, "tiny.imatrix.gguf: an importance matrix, not a model. Give the model's GGUF file")


def test_parts_of_a_split_source(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    assert (
        cli("quantize", inputs.source, "--types", "F16", "--split-max-size", "1M", "-o", tmp_path).code == 0
    )
    first, second = sorted(tmp_path.glob("tiny-f32-F16-*.gguf"))
    asked = ("--types", "Q8_0", "-o", tmp_path / "out", "-q")
    refused(cli("quantize", second, *asked), 2, "not the first part", first.name, "Give the first part")
    second.rename(tmp_path / "elsewhere")
    refused(
        cli("quantize", first, *asked), 1, second.name, "part of a split model is missing", "Put all parts"
    )
    assert not (tmp_path / "out").exists()


def test_no_local_path_in_what_is_made(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    """Neither a file, nor the record beside it, nor the JSON name a folder of this machine."""
    out = tmp_path / "secret-out"
    done = cli(
        "quantize", inputs.source, "--types", "Q8_0,Q4_K_M", "--imatrix", inputs.imatrix, "-o", out, "--json"
    )
    assert done.code == 0
    here = str(tmp_path).encode()
    for path in out.iterdir():
        assert here not in path.read_bytes(), path.name
        assert b"secret-out" not in path.read_bytes(), path.name
    assert str(tmp_path) not in done.out
    assert (
        GgufFile.open(out / "tiny-f32-Q8_0.gguf")
        .text("quantize.imatrix.file")
        .startswith("tiny.imatrix.gguf (")
    )


def test_what_was_read_back_is_said(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    asked = ("quantize", inputs.source, "--types", "Q8_0", "-o", tmp_path / "out", "-q")
    assert "(8." in lines(cli(*asked))[0]
    assert "(already made, kept; verified; 8." in lines(cli(*asked, "--verify"))[0]
    assert [each["verified"] for each in document(cli(*asked, "--json"))] == [False]
    assert "(verified; 8." in lines(cli(*asked, "--encoder", "llama.cpp", "--force"))[0]  # always


def test_a_file_of_something_else_is_not_replaced(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("quantize", inputs.source, "--types", "Q8_0,Q4_K_M", "-o", out, "-q")
    file = out / "tiny-f32-Q4_K_M.gguf"
    out.mkdir()
    file.write_bytes(b"somebody's own")
    refused(cli(*asked), 1, f"{file}: already there", "--force")
    assert [path.name for path in out.iterdir()] == [file.name]
    assert file.read_bytes() == b"somebody's own"
    lines(cli(*asked, "--force"))
    plain = file.read_bytes()
    assert plain[:4] == b"GGUF"
    # the same inputs: found again, also where more is to be told of them
    assert all("already made" in line for line in lines(cli(*asked)))
    lines(cli(*asked, "--errors"))
    # other inputs, though the file is ours
    weighted = (*asked, "--imatrix", inputs.imatrix)
    refused(cli(*weighted), 1, f"{file.parent}", "already there, and not known to be made", "--force")
    assert file.read_bytes() == plain
    lines(cli(*weighted, "--force"))
    assert file.read_bytes() != plain


def test_an_importance_matrix_is_not_replaced(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "i.gguf"
    out.write_bytes(b"somebody's own")
    asked = ("imatrix", inputs.source, "--text", inputs.text, "--ctx", 32, "--chunks", 2, "-o", out, "-q")
    refused(cli(*asked), 1, f"{out}: already there", "--force")
    assert out.read_bytes() == b"somebody's own"
    lines(cli(*asked, "--force"))
    assert read_imatrix(out).chunk_count == 2
