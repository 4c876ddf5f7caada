"""The proof of a conversion: what it says of sound files, and that each kind of fault stops it with nothing left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitloss
from bitloss.convert import vocab, writing
from bitloss.convert.convert import Conversion, ConvertOptions, SourceType, convert
from bitloss.errors import BitlossError, CheckpointError, EngineError
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan
from bitloss.model.prooftext import PROOF_TEXTS
from bitloss.model.random_checkpoint import write_json, write_safetensors
from bitloss.run.proof import prove

pytestmark = pytest.mark.parity

DATA = Path(__file__).parents[1] / "data"
FOLDERS = sorted([*(DATA / "checkpoints").iterdir(), *(DATA / "families").iterdir()])
PROVEN = ConvertOptions(prover=prove)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_family_is_proven(folder: Path, tmp_path: Path) -> None:
    convert(folder, list(SourceType), tmp_path, PROVEN)
    proof = Conversion.model_validate_json((tmp_path / "conversion.json").read_text()).proof
    assert proof is not None
    assert proof.tensors is not None
    assert proof.tensors.used == proof.tensors.checkpoint == len(Checkpoint.open(folder).names())
    assert proof.tensors.bytes_compared > sum(path.stat().st_size for path in tmp_path.glob("*.gguf")) * 0.8
    assert proof.tokens is not None
    assert proof.tokens.texts == len(PROOF_TEXTS)
    assert proof.tokens.tokens > 1000
    # Qwen's tokenizers compose accents before they split.
    decomposed = [line for line in proof.tokens.known_differences if line.startswith("decomposed accents:")]
    assert list(proof.tokens.known_differences) == decomposed
    assert bool(decomposed) == folder.name.startswith("qwen")
    assert [entry.file for entry in proof.engine] == [f"{folder.name}-{kind}.gguf" for kind in SourceType]
    assert all(entry.logits > 1000 and entry.spread > 0.1 for entry in proof.engine)


def test_a_vocabulary_that_adds_eos_is_proven_too(tmp_path: Path) -> None:
    folder = tmp_path / "mixtral"
    shutil.copytree(DATA / "families" / "mixtral", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", config | {"add_eos_token": True})
    record = convert(folder, [SourceType.F16], tmp_path / "out", PROVEN)
    assert GgufFile.open(tmp_path / "out" / "mixtral-f16.gguf").value("tokenizer.ggml.add_eos_token") is True
    assert record.proof is not None
    assert record.proof.tokens is not None
    assert record.proof.engine[0].logits == 4 * 384


def refused(folder: Path, out: Path, kind: type[BitlossError], message: str) -> None:
    with pytest.raises(kind, match=message):
        convert(folder, list(SourceType), out, PROVEN)
    assert list(out.iterdir()) == []


def test_tokens_that_differ_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens exchanged in the GGUF: found, with the place and both readings."""
    real = vocab._bpe_keys

    def exchanged(*given: Any) -> dict[str, GgufValue]:
        keys = real(*given)
        texts = keys["tokens"].value
        a, b = texts.index("e"), texts.index("t")
        texts[a], texts[b] = texts[b], texts[a]
        return keys

    monkeypatch.setattr(vocab, "_bpe_keys", exchanged)
    refused(
        DATA / "families" / "qwen3",
        tmp_path / "out",
        CheckpointError,
        r"token \d+, after '.*': llama.cpp splits the text 'English' otherwise.*expected \[.*found \[.*--no-proof",
    )


def test_a_wrong_splitting_rule_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitloss.model.tokenizer.recognise", lambda data, where: "gpt-2")
    demo = Path(bitloss.__file__).parent / "assets" / "demo-model"
    refused(demo, tmp_path / "out", CheckpointError, r"splits the text '\w+' otherwise")


def test_bytes_changed_on_the_way_to_the_disk_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = GgufStream.append, []

    def flipped(self: GgufStream, piece: Any) -> None:
        calls.append(piece.size)
        if len(calls) == 9:
            piece = piece.copy()
            piece[-3] ^= 1
        real(self, piece)

    monkeypatch.setattr(GgufStream, "append", flipped)
    refused(
        DATA / "families" / "granite",
        tmp_path / "out",
        CheckpointError,
        r"granite-(f32|f16|bf16).*\[.*\]: the bytes in the file are not those written",
    )


def test_a_header_that_says_other_places_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tensors of one shape, exchanged in the header: every byte written is right, and read as another's."""
    real = TensorPlan

    def exchanged(name: str, shape: tuple[int, ...], kind: int) -> TensorPlan:
        other = {"blk.0.attn_k.weight": "blk.0.attn_v.weight", "blk.0.attn_v.weight": "blk.0.attn_k.weight"}
        return real(other.get(name, name) if exchange else name, shape, kind)

    finish, exchange = writing._File.finish, True

    def honest(self: writing._File) -> writing.WrittenFile:
        nonlocal exchange
        exchange = False
        return finish(self)

    monkeypatch.setattr("bitloss.convert.material.TensorPlan", exchanged)
    monkeypatch.setattr(writing._File, "finish", honest)
    refused(
        DATA / "families" / "granite",
        tmp_path / "out",
        CheckpointError,
        "the file written is not the one planned",
    )


def test_logits_that_are_not_finite_are_found(tmp_path: Path) -> None:
    """Weights within range whose products are not: the F16 file overflows on the way."""
    folder = tmp_path / "qwen3"
    shutil.copytree(DATA / "families" / "qwen3", folder)
    checkpoint = Checkpoint.open(folder)
    tensors = {name: np.array(checkpoint.tensor(name)) for name in checkpoint.names()}
    del checkpoint
    for name, value in tensors.items():
        if name.endswith(("up_proj.weight", "gate_proj.weight", "post_attention_layernorm.weight")):
            tensors[name] = (value.astype(np.float32) * 3e4).astype(value.dtype)
        if name.endswith("down_proj.weight"):
            tensors[name] = (value.astype(np.float32) * 1e35).astype(value.dtype)
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(EngineError, match=r"qwen3-f32\.gguf: the engine's logits are not finite"):
        convert(folder, [SourceType.F32], tmp_path / "out", PROVEN)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_llama_cpp_cannot_load_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitloss.convert.folder.head_keys", lambda *_: {})
    refused(
        DATA / "families" / "gemma2",
        tmp_path / "out",
        EngineError,
        r"could not load the model.*blk\.0\.attn_",
    )


def test_a_tokenizer_the_library_cannot_read(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(DATA / "families" / "gemma2", folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["type"] = "Nothing"
    write_json(folder / "tokenizer.json", data)
    refused(
        folder, tmp_path / "out", CheckpointError, r"tokenizer\.json: the tokenizers library cannot read it"
    )
