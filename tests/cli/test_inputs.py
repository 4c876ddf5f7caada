"""Models and texts by name on the command line, and what a conversion says of bad input."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bitloss.convert.convert import Conversion
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.random_checkpoint import (
    CheckpointOptions,
    random_checkpoint,
    write_json,
    write_safetensors,
)

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

DATA = Path(__file__).parents[1] / "data" / "families"
INDEX = "model.safetensors.index.json"


def test_a_conversion_is_proven_unless_told_otherwise(tmp_path: Path, cli: Cli) -> None:
    for extra, proven in (([], True), (["--no-proof"], False)):
        done = cli("convert", DATA / "olmo2", "--to", "f16,f32", "-o", tmp_path, "-q", *extra)
        assert done.code == 0
        assert done.out.splitlines() == [str(tmp_path / f"olmo2-{kind}.gguf") for kind in ("f16", "f32")]
        record = Conversion.model_validate_json((tmp_path / "conversion.json").read_text())
        assert (record.proof is not None) is proven


def test_what_one_should_know_of_a_conversion_is_told_beside_its_files(tmp_path: Path, cli: Cli) -> None:
    told = cli("convert", DATA / "mistral", "--to", "f32,f16,bf16", "-o", tmp_path)
    assert told.out.splitlines() == [
        str(tmp_path / f"mistral-{kind}.gguf") for kind in ("f32", "f16", "bf16")
    ]
    record = Conversion.model_validate_json((tmp_path / "conversion.json").read_text())
    changed = {str(each.type): each.casts.changed for each in record.outputs if each.casts}
    assert changed["f32"] == changed["bf16"] == 0 < changed["f16"]
    casts, note, proof = told.err.splitlines()
    assert casts.startswith(f"the cast to F16 changed {changed['f16']:,} of {record.weights:,} weights")
    assert note == "note: sliding_window = 1024 is not carried over: llama.cpp attends to the whole context"
    assert proof.startswith("proven: 21 tensors accounted for and compared, 28 texts of ")
    assert "finite logits from llama.cpp 0." in proof
    assert (
        cli("convert", DATA / "qwen3", "-o", tmp_path).err.count("(1 of them not, for a known reason)") == 1
    )
    assert cli("convert", DATA / "qwen3", "-o", tmp_path, "-q").err == ""
    told = cli("convert", DATA / "olmo2", "-o", tmp_path, "--no-proof")
    assert told.err == "compared with the model, but not proven (--no-proof)\n"
    given = tmp_path / "olmo2-f32.gguf"
    assert "no tokenizer to compare with" in cli("convert", given, "--to", "f16", "-o", tmp_path).err


def test_overflow_by_the_option_alone(tmp_path: Path, cli: Cli) -> None:
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shards=2))
    _weight(folder, 70000.0)
    code, _, line = cli("convert", folder, "--to", "f16", "-o", tmp_path / "out", "-q")
    assert (code, line.endswith("let it become infinite (bitloss convert --allow-overflow)\n")) == (1, True)
    done = cli("convert", folder, "--to", "f16", "-o", tmp_path / "out", "--allow-overflow", "--no-proof")
    assert done.code == 0
    assert ", 1 became infinite\n" in done.err
    # It is there; the proof says what becomes of it.
    code, _, line = cli("convert", folder, "--to", "f16", "-o", tmp_path / "x", "--allow-overflow", "-q")
    assert (code, "m-f16.gguf: the engine's logits are not finite" in line) == (1, True)
    assert not list((tmp_path / "x").iterdir())


def test_a_converter_of_ones_own(tmp_path: Path, cli: Cli) -> None:
    script = Path(__file__).parents[1] / "data" / "other_converter.py"
    by = ("--converter", script, "--converter-python", sys.executable)
    done = cli("convert", DATA / "olmo2", "--to", "f32,f16", "-o", tmp_path / "a", *by)
    assert done.code == 0
    assert done.err.startswith(
        "note: made by other_converter.py\nproven: 25 tensors accounted for and compared"
    )
    assert cli("convert", DATA / "olmo2", "--to", "f16", "-o", tmp_path / "a", "--no-proof", *by).err == (
        "note: made by other_converter.py\nnot compared, not proven (--no-proof)\n"
    )
    for arguments, message in (
        (
            (DATA / "olmo2", "--to", "bf16", *by),
            "failed (exit code 2): found other_converter.py: error: argument",
        ),
        (
            (DATA / "qwen3", "--to", "f16", *by),
            "other_converter.py: the converter failed (exit code 1): found ValueError: Dup",
        ),
        (
            (tmp_path / "a" / "olmo2-f16.gguf", *by),
            "olmo2-f16.gguf: another converter takes an HF folder, not a file",
        ),
        (
            (DATA / "olmo2", "--split-max-size", "5M", *by),
            "--split-max-size: another converter writes whole files",
        ),
        ((DATA / "olmo2", "--converter", tmp_path / "none.py"), "none.py: no such converter"),
    ):
        code, out, line = cli("convert", *arguments, "-o", tmp_path / "b", "-q")
        assert (code in (1, 2), out, line.count("\n")) == (True, "", 1)
        assert message in line
        assert not (tmp_path / "b").exists() or not list((tmp_path / "b").iterdir())


@pytest.mark.parametrize("own", [False, True], ids=["bitloss", "another converter"])
def test_a_file_of_somebody_elses_is_not_replaced(tmp_path: Path, cli: Cli, *, own: bool) -> None:
    script = Path(__file__).parents[1] / "data" / "other_converter.py"
    by = ("--converter", script, "--converter-python", sys.executable) if own else ()
    command = ("convert", DATA / "olmo2", "--to", "f32", "-o", tmp_path, "--no-proof", "-q", *by)
    mine = tmp_path / "olmo2-f32.gguf"
    mine.write_text("mine")
    code, out, line = cli(*command)
    assert (code, out, line.count("\n")) == (1, "", 1)
    assert f"{mine}: already there, and not known to be made from this model" in line
    assert "--force" in line
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert mine.read_text() == "mine"
    assert cli(*command, "--force").code == 0
    made = mine.read_bytes()
    assert cli(*command).code == 0  # the same again needs no force
    assert mine.read_bytes() == made


def test_a_gguf_is_converted(tmp_path: Path, cli: Cli) -> None:
    assert cli("convert", DATA / "olmo2", "--to", "bf16", "-o", tmp_path / "a", "-q").code == 0
    given = tmp_path / "a" / "olmo2-bf16.gguf"
    record = json.loads(cli("convert", given, "--to", "f16", "-o", tmp_path / "b", "-q", "--json").out)
    assert record["outputs"][0]["file"] == "olmo2-f16.gguf"
    assert record["proof"]["tensors"]["used"] == record["proof"]["tensors"]["checkpoint"]


def test_the_hub_is_asked_for_what_is_no_path(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(model: str, revision: str | None = None, **_: Any) -> Path:
        asked.append((model, revision))
        return DATA / "olmo2"

    monkeypatch.setattr("bitloss.cli.inputs.fetch_model", fetch)
    out = ["--to", "f16", "-o", tmp_path, "-q", "--no-proof"]
    assert cli("convert", "allenai/OLMo-2", "--revision", "v2", *out).code == 0
    assert asked == [("allenai/OLMo-2", "v2")]
    code, _, line = cli("convert", DATA / "olmo2", "--revision", "v2", *out)
    assert (code, line) == (2, "bitloss: --revision: only models of the hub have revisions: found v2\n")
    code, _, line = cli("convert", "./nowhere", *out)
    assert code == 1
    assert "./nowhere: no such model. Give an HF folder" in line


def test_wikitext_is_fetched_by_its_name(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "wiki.test.raw"
    text.write_text("too short\n")
    monkeypatch.setattr("bitloss.cli.inputs.wikitext", lambda: text)
    monkeypatch.chdir(tmp_path)
    code, _, line = cli("run", DATA / "olmo2", "--text", "wikitext-2", "--ctx", 64, "-q", "--out", "run")
    assert (code, "wiki.test.raw: text too short" in line) == (1, True)
    (tmp_path / "wikitext-2").write_text("a file of that name goes first\n")
    code, _, line = cli("run", DATA / "olmo2", "--text", "wikitext-2", "--ctx", 64, "-q", "--out", "run")
    assert (code, "/wikitext-2: text too short" in line) == (1, True)


def _index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    data = json.loads((folder / INDEX).read_text())
    change(data["weight_map"])
    write_json(folder / INDEX, data)


def _config(folder: Path, **values: Any) -> None:
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | values)


def _shorten(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _header(folder: Path, shape: list[int], end: int) -> None:
    header = {"model.norm.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    (folder / "model-00002-of-00002.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + bytes(64)
    )


def _integers(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    checkpoint = Checkpoint.open(folder)
    mine = [name for name in checkpoint.names() if checkpoint._part(name).path == path]
    tensors = {name: np.array(checkpoint.tensor(name)) for name in mine}
    del checkpoint
    tensors[mine[0]] = np.zeros(tensors[mine[0]].shape, np.int8)
    write_safetensors(path, tensors)


def _weight(folder: Path, value: float) -> None:
    """Change one weight of the second shard in place."""
    path = folder / "model-00002-of-00002.safetensors"
    checkpoint = Checkpoint.open(folder)
    mine = [name for name in checkpoint.names() if checkpoint._part(name).path == path]
    tensors = {name: np.array(checkpoint.tensor(name)) for name in mine}
    del checkpoint
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = value
    write_safetensors(path, tensors)


def _splitting(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    splitter = {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False}
    data["pre_tokenizer"]["pretokenizers"][0] = splitter
    write_json(folder / "tokenizer.json", data)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty shard": (
        lambda f: (f / "model-00002-of-00002.safetensors").write_bytes(b""),
        "model-00002-of-00002.safetensors: the file is empty",
    ),
    "extra tensor": (
        lambda f: write_safetensors(f / "model-00002-of-00002.safetensors", {"x": np.ones(3, np.float32)}),
        "tensor of the index is not in its file",
    ),
    "NaN": (
        lambda f: _weight(f, np.nan),
        "[model.layers.1.mlp.up_proj.weight, row 2, column 3]: NaN weight: expected a finite number",
    ),
    "overflow": (
        lambda f: _weight(f, 70000.0),
        "[model.layers.1.mlp.up_proj.weight, row 2, column 3]: weight out of the range of F16",
    ),
    "unknown splitting": (_splitting, "[aeiou]+"),
    "missing shard": (
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        "1 weight file(s) of the index are missing: found model-00002-of-00002.safetensors",
    ),
    "short shard": (_shorten, "the file is cut off: it ends inside the tensors"),
    "listed but absent": (
        lambda f: _index(f, lambda m: m.update({"model.extra.weight": "model-00001-of-00002.safetensors"})),
        "[model.extra.weight]: tensor of the index is not in its file",
    ),
    "there but not listed": (
        lambda f: _index(f, lambda m: m.pop("model.norm.weight")),
        "[model.norm.weight]: tensor is not in the index",
    ),
    "path in the index": (
        lambda f: _index(f, lambda m: m.update({"model.norm.weight": "../../etc/x.safetensors"})),
        "the index names no plain safetensors file: found '../../etc/x.safetensors'",
    ),
    "absurd shape": (lambda f: _header(f, [1 << 62, 4], 64), "the shape does not fit the data"),
    "absurd offsets": (
        lambda f: _header(f, [1 << 60], 1 << 62),
        "the file is cut off: it ends inside the tensors",
    ),
    "header beyond the file": (
        lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(
            (1 << 60).to_bytes(8, "little") + b"{}"
        ),
        "bad header length",
    ),
    "integers": (_integers, "weights that are not full precision: expected F32, F16 or BF16, found I8"),
    "config against shapes": (lambda f: _config(f, hidden_size=128), "shape that does not fit config.json"),
    "absurd config": (lambda f: _config(f, num_hidden_layers=1 << 30), "more layers than tensors"),
    "fewer rows than tokens": (
        lambda f: _config(f, vocab_size=500),
        "shape that does not fit config.json: expected [500, 64], found [512, 64]",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json in the folder"),
    "unknown family": (
        lambda f: _config(f, architectures=["Nope"]),
        "architecture that cannot be converted here",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(case: str, tmp_path: Path, cli: Cli) -> None:
    damage, message = BAD[case]
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shards=2))
    damage(folder)
    code, _, line = cli("convert", folder, "--to", "f32,f16", "-o", tmp_path / "out", "-q")
    assert code == 1
    assert message in line
    assert line.startswith("bitloss: ")
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_more_tokens_than_rows(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "qwen3"
    shutil.copytree(DATA / "qwen3", folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    last = data["added_tokens"][-1]
    data["added_tokens"].append(last | {"id": last["id"] + 1, "content": "<|one more|>"})
    write_json(folder / "tokenizer.json", data)
    code, _, line = cli("convert", folder, "-o", tmp_path / "out", "-q")
    assert (code, "token ids beyond the embedding: expected below 320, found 320" in line) == (1, True)
    assert not (tmp_path / "out").exists()
