"""The product that keeps libggml's order of sums: the same bits as libggml, and as exact arithmetic in that order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.unit.engine.products import (
    FloatName,
    bf16,
    bits,
    from_bf16,
    in_exact,
    in_order,
    model,
    needs,
    random,
    run,
)

from bitloss import _native
from bitloss.engine.ggml import TYPE_BF16, TYPE_F16, TYPE_F32
from bitloss.engine.output_layer import OutputLayer
from bitloss.engine.product import SameProduct
from bitloss.model.gguf import GgufFile

_LANES = {"avx512": 16, "avx2": 8}
_WAYS = _native.product_ways(TYPE_F32, 64, 64)
needs_vectors = pytest.mark.skipif(not _WAYS, reason="no kernel for this machine's instruction set")


needs_pairs = needs("pairs", TYPE_BF16)


@needs_vectors
@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sums_are_taken_in_the_order_described(way: str, dtype: type[np.generic]) -> None:
    lanes = _LANES[way]
    weight, x = random(8, 3 * lanes, 1).astype(dtype), random(3, 3 * lanes, 2)
    out = run(weight, TYPE_F16 if dtype is np.float16 else TYPE_F32, x, 8, way)
    expected = [[in_order(w.astype(np.float32), row, lanes) for w in weight] for row in x]
    assert out.tolist() == expected
    assert not np.array_equal(out, in_exact(x, weight.astype(np.float32)))


@needs_vectors
@pytest.mark.parametrize("way", _WAYS)
def test_bf16_is_widened(way: str) -> None:
    lanes = _LANES[way]
    weight, x = bf16(random(8, 3 * lanes, 1)), random(3, 3 * lanes, 2)
    expected = [[in_order(w, row, lanes) for w in from_bf16(weight)] for row in x]
    assert run(weight, TYPE_BF16, x, 8, way).tolist() == expected


# What the instruction does to the last bit is the maker's: how it adds a pair is looked at where it was measured. Where
# another maker's does otherwise, libggml's sums are taken by that very instruction, or not at all.
_INTEL = "GenuineIntel" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
of_intel = pytest.mark.skipif(not _INTEL, reason="how this maker's instruction adds a pair is not known")


@needs_pairs
@pytest.mark.parametrize("way", [pytest.param("pairs", marks=of_intel), "fused-pairs"])
def test_pairs_add_the_second_first(way: str) -> None:
    weight, x = bf16(random(8, 96, 1)), from_bf16(bf16(random(7, 96, 2)))
    expected = [[in_order(w, row, 16, (1, 0)) for w in from_bf16(weight)] for row in x]
    out = run(weight, TYPE_BF16, x, 8, way)
    assert out.tolist() == expected
    assert not np.array_equal(out, in_exact(x, from_bf16(weight)))


@needs_pairs
@of_intel
def test_both_ways_to_multiply_pairs_agree_where_numbers_are_subnormal() -> None:
    rng = np.random.default_rng(5)
    weight = rng.integers(0, 1 << 16, (64, 64)).astype(np.uint16)
    x = bf16(rng.integers(0, 1 << 32, (12, 64)).astype(np.uint32).view(np.float32))
    for numbers in (weight, x):  # tiny to middling, of both signs; none that is not finite
        exponent = rng.choice([0, 1, 2, 40, 80, 120, 127], numbers.shape).astype(np.uint16)
        numbers[:] = (numbers & 0x807F) | exponent << 7
    told = run(weight, TYPE_BF16, from_bf16(x), 64, "pairs", 2)
    assert np.array_equal(bits(run(weight, TYPE_BF16, from_bf16(x), 64, "fused-pairs", 2)), bits(told))
    # and numbers that are subnormal do count where sums are not taken in pairs
    assert not np.array_equal(bits(run(weight, TYPE_BF16, from_bf16(x), 64, "avx512", 2)), bits(told))
    assert np.float32(1e-40) * np.float32(0.5) > 0  # the mode of this thread is as it was


@needs_vectors
def test_shapes_that_do_not_fit_are_refused() -> None:
    x, out = random(2, 64, 5), np.empty((2, 8), np.float32)
    data = np.zeros(8 * 64 * 4, np.uint8)
    way = _WAYS[0]
    for arguments in (
        (data[:-4], TYPE_F32, x, out, way, 1),
        (data, 2, x, out, way, 1),
        (data, TYPE_F16, x, out, way, 1),
        (data, TYPE_F32, x, out, "q8_0", 1),
        (data, TYPE_F32, x, out, "", 1),
        (data, TYPE_F32, x, np.empty((3, 8), np.float32), way, 1),
        (np.zeros(6 * 64 * 4, np.uint8), TYPE_F32, x, np.empty((2, 6), np.float32), way, 1),
        (np.zeros(8 * 60 * 4, np.uint8), TYPE_F32, random(2, 60, 5), out, "avx512", 1),
    ):
        with pytest.raises(ValueError, match="product_rows"):
            _native.product_rows(*arguments)


def _layer(folder: Path, *, width: int, n_vocab: int, dtype: FloatName) -> tuple[OutputLayer, Path]:
    path = model(folder, width=width, n_vocab=n_vocab, dtype=dtype)
    return OutputLayer(path, threads=2), path


@needs_vectors
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("width", [64, 96, 256, 1056, 5120])
def test_the_bits_are_libggmls(dtype: FloatName, width: int, tmp_path: Path) -> None:
    """Large and tiny values, infinities and what float16 cannot hold, at every number of rows."""
    layer, path = _layer(tmp_path, width=width, n_vocab=512, dtype=dtype)
    file = GgufFile.open(path)
    weight = np.frombuffer(file.tensor_bytes("output.weight"), np.uint8)
    kind = file.tensors["output.weight"].ggml_type
    same = SameProduct(weight, ggml_type=kind, n_out=512, width=width, threads=2)
    scale = np.float32(10.0) ** np.random.default_rng(7).integers(-9, 6, size=(40, 1)).astype(np.float32)
    x = random(40, width, 6) * scale
    for rows in (2, 3, 5, 6, 7, 11, 12, 13, 24, 40):
        assert same.prove(x[:rows], layer.logits(x[:rows])), (rows, same.possible)
    layer.close()


@needs_vectors
def test_it_is_used_once_proven_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = _layer(tmp_path, width=256, n_vocab=1024, dtype="f16")
    x = random(8, 256, 8)
    told = layer.logits(x).copy()
    asked: list[int] = []
    by_ggml = layer._by_ggml

    def count(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(hidden))
        return by_ggml(hidden)

    monkeypatch.setattr(layer, "_by_ggml", count)
    assert np.array_equal(bits(layer.logits(x)), bits(told))
    assert asked == []
    layer.logits(x[:7])  # another number of rows is proven anew
    assert asked == [7]
    layer.close()


@needs_vectors
def test_a_libggml_that_sums_otherwise_is_followed(tmp_path: Path) -> None:
    """Told other bits, it gives up; what libggml says is handed out then and ever after."""
    weight, x = random(16, 64, 9), random(4, 64, 10)
    same = SameProduct(weight.view(np.uint8).reshape(-1), ggml_type=TYPE_F32, n_out=16, width=64, threads=1)
    told = same(x).copy()
    assert same.prove(x, told)
    assert same.proven(x)
    told[2, 5] = np.nextafter(told[2, 5], np.float32(np.inf))
    assert not same.prove(x, told)
    assert not same.possible
    assert not same.proven(x)


@needs_vectors
@pytest.mark.skipif("avx2" not in _WAYS, reason="only one kernel here")
def test_the_kernel_is_chosen_by_what_it_computes() -> None:
    weight, x = random(16, 64, 11).astype(np.float16), random(4, 64, 12)
    data = weight.view(np.uint8).reshape(-1)
    told = run(data, TYPE_F16, x, 16, "avx2")  # eight lanes, and rows that are not rounded
    same = SameProduct(data, ggml_type=TYPE_F16, n_out=16, width=64, threads=1)
    assert same.prove(x, told)
    assert np.array_equal(bits(same(x)), bits(told))


@needs_vectors
@pytest.mark.parametrize("way", _WAYS)
def test_no_rows_are_no_work(way: str) -> None:
    assert run(random(4, 64, 1), TYPE_F32, np.empty((0, 64), np.float32), 4, way).shape == (0, 4)


@needs_vectors
def test_rows_of_zeros_prove_nothing() -> None:
    weight = random(16, 64, 9).view(np.uint8).reshape(-1)
    same = SameProduct(weight, ggml_type=TYPE_F32, n_out=16, width=64, threads=1)
    x = np.zeros((4, 64), np.float32)
    assert not same.prove(x, np.zeros((4, 16), np.float32))
    assert same.possible
    assert not same.proven(x)


def test_other_types_and_shapes_are_left_to_libggml() -> None:
    assert not SameProduct(np.zeros(18, np.uint8), ggml_type=2, n_out=1, width=32, threads=1).possible
    odd = np.zeros(6 * 64 * 4, np.uint8)
    assert not SameProduct(odd, ggml_type=TYPE_F32, n_out=6, width=64, threads=1).possible
