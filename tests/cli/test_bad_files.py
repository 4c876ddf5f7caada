"""Damaged checkpoints, GGUF files and importance matrices: one clear line, nothing half-written, nothing lost."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.cli.test_bad_input import TINY, refused, run_command

from bitloss.imatrix.file import read_imatrix
from bitloss.imatrix.legacy import write_legacy_imatrix
from bitloss.model.random_model import RandomShape, random_gguf

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

    Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where outputs go; each test proves that nothing is there afterwards."""
    return tmp_path / "out"


# ------------------------------------------------------------------------------------------------ checkpoints


class _Bomb:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))


def _cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _bad_header(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[8:40] = b"\xff" * 32
    (folder / "model.safetensors").write_bytes(data)


def _huge_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + data[8:])


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(folder.parent / "was-unpickled")))


def _bad_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize("verb", ["convert", "run"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_config, ("mistral-odd", "no config.json")),
        (_other_architecture, ("MambaForCausalLM", "MistralForCausalLM", "GGUF")),
        (_cut_weights, ("model.safetensors",)),
        (_bad_header, ("model.safetensors",)),
        (_huge_header, ("model.safetensors", "header")),
        (_pickle_only, ("pytorch_model.bin", "pickle", "safetensors")),
    ],
)
def test_a_damaged_checkpoint(
    cli: Cli, inputs: Inputs, out: Path, verb: str, damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    damage(inputs.checkpoint)
    if verb == "convert":
        done = cli("convert", inputs.checkpoint, "-o", out, "-q")
    else:
        done = cli(*run_command(inputs, inputs.checkpoint, out))
    refused(done, 1, *words)
    assert not out.exists()
    assert not (inputs.folder / "was-unpickled").exists()


def test_the_pickle_would_have_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "was-unpickled")))
    assert (tmp_path / "was-unpickled").exists()


def test_a_damaged_tokenizer_leaves_no_file(cli: Cli, inputs: Inputs, out: Path) -> None:
    _bad_tokenizer(inputs.checkpoint)
    refused(cli("convert", inputs.checkpoint, "-o", out, "-q"), 1, "tokenizer.json")
    assert not out.exists()


# ------------------------------------------------------------------------------------------------ GGUF, imatrix


@pytest.mark.parametrize("damage", ["cut header", "cut data", "magic", "type", "empty"])
def test_a_damaged_gguf(cli: Cli, inputs: Inputs, out: Path, damage: str) -> None:
    data = bytearray(inputs.source.read_bytes())
    if damage == "cut header":
        data = data[:200]
    elif damage == "cut data":
        data = data[:-1000]
    elif damage == "magic":
        data[:4] = b"LOSS"
    elif damage == "type":
        at = data.index(b"output.weight") + len(b"output.weight")
        data[at + 4 + 16 : at + 4 + 20] = struct.pack("<I", 777)
    else:
        data = bytearray()
    bad = inputs.folder / "bad.gguf"
    bad.write_bytes(data)
    text = ("--text", inputs.text, *TINY, "-o", out, "-q")
    refused(cli("imatrix", bad, *text), 1, "bad.gguf")
    refused(cli("base", bad, *text), 1, "bad.gguf")
    refused(cli("quantize", bad, "--types", "Q8_0", "-o", out, "-q"), 1, "bad.gguf")
    refused(cli("measure", bad, "--base", inputs.source, *text), 1, "bad.gguf")
    refused(cli("measure", inputs.source, "--base", bad, *text), 1, "bad.gguf")
    refused(cli(*run_command(inputs, bad, out)), 1, "bad.gguf")
    assert not out.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["gguf", "dat"])
@pytest.mark.parametrize("damage", ["cut", "count", "rubbish"])
def test_a_damaged_imatrix(cli: Cli, inputs: Inputs, out: Path, legacy: bool, damage: str) -> None:
    path = inputs.imatrix
    if legacy:
        path = inputs.folder / "old.dat"
        write_legacy_imatrix(read_imatrix(inputs.imatrix), path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) * 2 // 3]
    elif damage == "count":
        data[0 if legacy else 8 : 4 if legacy else 16] = b"\x7f" * (4 if legacy else 8)
    else:
        data = bytearray(b"\xab" * 300)
    path.write_bytes(data)
    kept = inputs.folder / "kept.gguf"
    kept.write_bytes(b"an importance matrix made before")
    done = cli("imatrix", inputs.source, "--text", inputs.text, *TINY, "--in-file", path, "-o", kept, "-q")
    refused(done, 1, path.name)
    assert kept.read_bytes() == b"an importance matrix made before"
    refused(
        cli("quantize", inputs.source, "--types", "Q4_K_M", "--imatrix", path, "-o", out, "-q"), 1, path.name
    )
    assert not out.exists()


def test_matrices_of_another_model_leave_the_earlier_output(
    cli: Cli, inputs: Inputs, snapshot: Snapshot
) -> None:
    other = random_gguf(
        inputs.folder / "other.gguf", RandomShape(n_embd=32, n_layer=1, head_dim=8), dtype="f32"
    )
    before = snapshot(inputs.folder)
    done = cli("imatrix", other, "--text", inputs.text, *TINY, "--in-file", inputs.imatrix,
               "-o", inputs.imatrix, "--force", "-q")  # fmt: skip
    refused(done, 1, "blk.0.")
    assert snapshot(inputs.folder) == before


def test_a_type_that_needs_an_importance_matrix(cli: Cli, inputs: Inputs, out: Path) -> None:
    refused(cli("quantize", inputs.source, "--types", "IQ2_XS", "-o", out, "-q"), 1, "IQ2_XS", "mportance")
    assert not out.exists()


def test_quantizing_what_is_quantized(cli: Cli, inputs: Inputs, out: Path, snapshot: Snapshot) -> None:
    assert cli("quantize", inputs.source, "--types", "Q8_0", "-o", inputs.folder).code == 0
    made = inputs.folder / "tiny-f32-Q8_0.gguf"
    before = snapshot(inputs.folder)
    refused(cli("quantize", made, "--types", "Q4_K_M", "-o", out, "-q"), 1, made.name, "quantized")
    refused(cli(*run_command(inputs, made, out)), 2, made.name, "quantized already")
    assert not out.exists()
    assert snapshot(inputs.folder) == before
