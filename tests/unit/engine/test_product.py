"""The product that keeps libggml's order of sums: the same bits as libggml, and as exact arithmetic in that order."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from bitloss import _native
from bitloss.engine.ggml import TYPE_F16, TYPE_F32
from bitloss.engine.output_layer import OutputLayer
from bitloss.engine.product import SameProduct
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf

FloatName = Literal["f32", "f16", "bf16"]
_LANES = _native.product_lanes()
needs_vectors = pytest.mark.skipif(not _LANES, reason="no kernel for this machine's instruction set")


def _random(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return values.view(np.uint32)


def _rounded(value: Fraction) -> Fraction:
    """To the nearest float32, once; the values here stay far from its limits."""
    near = np.float32(float(value))
    around = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    distances = [(abs(Fraction(float(x)) - value), int(x.view(np.uint32)) & 1, float(x)) for x in around]
    return Fraction(min(distances)[2])  # a tie goes to the even one


def _in_order(weight: NDArray[np.float32], x: NDArray[np.float32], lanes: int) -> Fraction:
    """One result: fused sums by lane, then halves added to halves."""
    sums = [Fraction(0)] * lanes
    for i, (a, b) in enumerate(zip(weight, x, strict=True)):
        sums[i % lanes] = _rounded(Fraction(float(a)) * Fraction(float(b)) + sums[i % lanes])
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [_rounded(sums[i] + sums[i + half]) for i in range(half)]
    return sums[0]


@needs_vectors
@pytest.mark.parametrize("lanes", _LANES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sums_are_taken_in_the_order_described(lanes: int, dtype: type[np.generic]) -> None:
    weight, x = _random(8, 3 * lanes, 1).astype(dtype), _random(3, 3 * lanes, 2)
    out = np.empty((3, 8), np.float32)
    _native.product_rows(weight.view(np.uint8).reshape(-1), int(dtype is np.float16), x, out, lanes, 1)
    expected = [[float(_in_order(w.astype(np.float32), row, lanes)) for w in weight] for row in x]
    assert out.tolist() == expected
    assert not np.array_equal(out, (x.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.float32))


@needs_vectors
@pytest.mark.parametrize("lanes", _LANES)
@pytest.mark.parametrize("n_out", [4, 12, 16, 60, 64, 132, 2048])
def test_threads_rows_and_stretches_do_not_matter(lanes: int, n_out: int) -> None:
    weight, x = _random(n_out, 64, 3).astype(np.float16), _random(13, 64, 4)
    data = weight.view(np.uint8).reshape(-1)
    whole = np.empty((13, n_out), np.float32)
    _native.product_rows(data, 1, x, whole, lanes, 1)
    np.testing.assert_allclose(whole, x @ weight.astype(np.float32).T, rtol=0, atol=1e-4)
    for threads in (2, 3, 8):
        again = np.full_like(whole, np.nan)
        _native.product_rows(data, 1, x, again, lanes, threads)
        assert np.array_equal(_bits(again), _bits(whole))
    for rows in range(1, 13):
        part = np.full((rows, n_out), np.nan, np.float32)
        _native.product_rows(data, 1, np.ascontiguousarray(x[13 - rows :]), part, lanes, 2)
        assert np.array_equal(_bits(part), _bits(whole[13 - rows :]))


@needs_vectors
def test_shapes_that_do_not_fit_are_refused() -> None:
    x, out = _random(2, 64, 5), np.empty((2, 8), np.float32)
    data = np.zeros(8 * 64 * 4, np.uint8)
    lanes = _LANES[0]
    for arguments in (
        (data[:-4], 0, x, out, lanes, 1),
        (data, 2, x, out, lanes, 1),
        (data, 1, x, out, lanes, 1),
        (data, 0, x, out, 5, 1),
        (data, 0, x, out, 0, 1),
        (data, 0, x, np.empty((3, 8), np.float32), lanes, 1),
        (np.zeros(6 * 64 * 4, np.uint8), 0, x, np.empty((2, 6), np.float32), lanes, 1),
        (np.zeros(8 * 60 * 4, np.uint8), 0, _random(2, 60, 5), out, 16, 1),
    ):
        with pytest.raises(ValueError, match="product_rows"):
            _native.product_rows(*arguments)


def _layer(folder: Path, *, width: int, n_vocab: int, dtype: FloatName) -> tuple[OutputLayer, Path]:
    shape = RandomShape(
        n_vocab=n_vocab, n_embd=width, n_layer=1, n_head=2, n_head_kv=1, head_dim=32, n_ff=64, n_ctx_train=64
    )
    path = random_gguf(folder / f"{dtype}.gguf", shape, seed=width, dtype=dtype)
    return OutputLayer(path, threads=2), path


@needs_vectors
@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("width", [64, 96, 256, 1040, 5120])
def test_the_bits_are_libggmls(dtype: FloatName, width: int, tmp_path: Path) -> None:
    """Large and tiny values, infinities and what float16 cannot hold, at every number of rows."""
    layer, path = _layer(tmp_path, width=width, n_vocab=512, dtype=dtype)
    file = GgufFile.open(path)
    weight = np.frombuffer(file.tensor_bytes("output.weight"), np.uint8)
    kind = file.tensors["output.weight"].ggml_type
    same = SameProduct(weight, ggml_type=kind, n_out=512, width=width, threads=2)
    scale = np.float32(10.0) ** np.random.default_rng(7).integers(-9, 6, size=(40, 1)).astype(np.float32)
    x = _random(40, width, 6) * scale
    for rows in (2, 3, 5, 6, 7, 11, 12, 13, 24, 40):
        assert same.prove(x[:rows], layer.logits(x[:rows])), (rows, same.possible)
    layer.close()


@needs_vectors
def test_it_is_used_once_proven_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = _layer(tmp_path, width=256, n_vocab=1024, dtype="f16")
    x = _random(8, 256, 8)
    told = layer.logits(x).copy()
    asked: list[int] = []
    by_ggml = layer._by_ggml

    def count(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(len(hidden))
        return by_ggml(hidden)

    monkeypatch.setattr(layer, "_by_ggml", count)
    assert np.array_equal(_bits(layer.logits(x)), _bits(told))
    assert asked == []
    layer.logits(x[:7])  # another number of rows is proven anew
    assert asked == [7]
    layer.close()


@needs_vectors
def test_a_libggml_that_sums_otherwise_is_followed(tmp_path: Path) -> None:
    """Told other bits, it gives up; what libggml says is handed out then and ever after."""
    weight, x = _random(16, 64, 9), _random(4, 64, 10)
    same = SameProduct(weight.view(np.uint8).reshape(-1), ggml_type=TYPE_F32, n_out=16, width=64, threads=1)
    told = same(x).copy()
    assert same.prove(x, told)
    assert same.proven(4)
    told[2, 5] = np.nextafter(told[2, 5], np.float32(np.inf))
    assert not same.prove(x, told)
    assert not same.possible
    assert not same.proven(4)


@needs_vectors
@pytest.mark.skipif(8 not in _LANES, reason="only one kernel here")
def test_the_kernel_is_chosen_by_what_it_computes() -> None:
    weight, x = _random(16, 64, 11).astype(np.float16), _random(4, 64, 12)
    data = weight.view(np.uint8).reshape(-1)
    told = np.empty((4, 16), np.float32)
    _native.product_rows(data, 1, x, told, 8, 1)  # eight lanes, and rows that are not rounded
    same = SameProduct(data, ggml_type=TYPE_F16, n_out=16, width=64, threads=1)
    assert same.prove(x, told)
    assert np.array_equal(_bits(same(x)), _bits(told))


def test_other_types_and_shapes_are_left_to_libggml() -> None:
    assert not SameProduct(np.zeros(18, np.uint8), ggml_type=2, n_out=1, width=32, threads=1).possible
    odd = np.zeros(6 * 64 * 4, np.uint8)
    assert not SameProduct(odd, ggml_type=TYPE_F32, n_out=6, width=64, threads=1).possible
