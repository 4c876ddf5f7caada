"""Tensor types: those of the gguf package, and what the installed ggml adds."""

from __future__ import annotations

import ctypes as ct
import pickle
from pathlib import Path

import llama_cpp
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from bitloss.errors import UnsupportedError
from bitloss.explain.audit import audit
from bitloss.explain.diff import diff
from bitloss.model import tensor_types as types
from bitloss.model.gguf import GgufFile, tensor_bytes, type_name
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.model.tensor_types import Block, TensorType, asked_of_ggml, block_of, tensor_types
from bitloss.quantize.quantize import QuantizeSpec, quantize

# Those the package lacks, by the library; 42 in the pinned llama.cpp.
NEWER = [int(kind) for kind in tensor_types() if kind not in GGML_QUANT_SIZES]


def test_ggml_and_the_package_agree() -> None:
    for kind, (weights, size) in GGML_QUANT_SIZES.items():
        if kind.name != "Q8_1":  # of products under way, in no file; the package has 40 bytes for ggml's 36
            assert asked_of_ggml(kind) == (kind.name, Block(weights, size))
        assert block_of(kind) == Block(weights, size)
        assert TensorType(kind) == kind
        assert hash(TensorType(kind)) == hash(kind)
        assert TensorType(kind).name == kind.name


def test_every_type_of_ggml_is_known() -> None:
    named = {
        getattr(llama_cpp, name): name.removeprefix("GGML_TYPE_")
        for name in dir(llama_cpp)
        if name.startswith("GGML_TYPE_") and name != "GGML_TYPE_COUNT"
    }
    known = {int(kind): kind.name for kind in tensor_types()}
    assert named.items() <= known.items()
    assert 42 in NEWER or 42 in GGML_QUANT_SIZES
    assert block_of(42) == Block(64, 18)
    assert type_name(42) == "Q2_0"


@pytest.mark.parametrize("number", NEWER)
def test_a_newer_type_is_a_type_like_the_others(number: int) -> None:
    with pytest.raises(ValueError, match="is not a valid GGMLQuantizationType"):
        GGMLQuantizationType(number)
    kind = TensorType(number)
    assert kind is TensorType(number)
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert tensor_bytes((128, 3), number) == 128 // block_of(number).weights * block_of(number).bytes * 3


@pytest.mark.parametrize("number", [4, 31, 43, 777, -1, 1 << 31])
def test_what_nobody_knows_is_no_type(number: int) -> None:
    assert asked_of_ggml(number) is None
    with pytest.raises(ValueError, match="is not a valid TensorType"):
        TensorType(number)
    with pytest.raises(KeyError):
        block_of(number)
    assert type_name(number) == f"type {number}"
    with pytest.raises(UnsupportedError, match="tensor type with unknown size"):
        tensor_bytes((256,), number)


def test_without_the_library_there_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> ct.CDLL:
        raise OSError("no such library")

    monkeypatch.setattr(types, "ggml_library", missing)
    for cached in (types._count, asked_of_ggml, tensor_types):
        cached.cache_clear()
    try:
        assert set(tensor_types()) == set(GGMLQuantizationType)
        assert asked_of_ggml(12) is None
        assert block_of(12) == Block(256, 144)
    finally:
        for cached in (types._count, asked_of_ggml, tensor_types):
            cached.cache_clear()


def test_files_of_a_newer_type_are_read_compared_and_audited(tmp_path: Path) -> None:
    """Q2_0 of the same model by two seeds: blocks, values and weights are counted, not only bytes."""
    shape = RandomShape(n_embd=256, n_head=2, n_head_kv=1, head_dim=128, n_ff=256, n_layer=1, n_vocab=300)
    made = []
    for seed in (1, 2):
        source = random_gguf(tmp_path / f"m{seed}.gguf", shape, seed=seed, dtype="f32")
        made.append(quantize(QuantizeSpec(source, "Q2_0", tmp_path / f"q{seed}.gguf")).out)
    file = GgufFile.open(made[0])
    info = file.tensors["blk.0.ffn_up.weight"]
    assert (info.type_name, info.n_bytes) == ("Q2_0", 256 * 256 // 64 * 18)
    assert file.bits_per_weight() < 8
    row = next(t for t in diff(made[0], made[1]).tensors if t.name == info.name)
    assert row.blocks == 256 * 256 // 64
    assert row.differing_blocks == row.blocks
    assert row.values is not None
    assert row.note is None
    counted = next(t for t in audit(made[0]).tensors if t.name == info.name)
    assert not counted.opaque
    with pytest.raises(UnsupportedError, match="Q2_0 cannot be decoded to float32"):
        file.tensor_f32(info.name)
