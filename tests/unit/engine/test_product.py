"""The product that keeps libggml's order of sums: the same bits as libggml, and as exact arithmetic in that order."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from bitloss import _native
from bitloss.engine.ggml import TYPE_BF16, TYPE_F16, TYPE_F32, TYPE_Q8_0
from bitloss.engine.output_layer import OutputLayer
from bitloss.engine.product import SameProduct
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.quantize import QuantizeSpec, quantize

FloatName = Literal["f32", "f16", "bf16"]
_LANES = {"avx512": 16, "avx2": 8}
_WAYS = _native.product_ways(TYPE_F32, 64, 64)
needs_vectors = pytest.mark.skipif(not _WAYS, reason="no kernel for this machine's instruction set")


def _needs(way: str, ggml_type: int) -> pytest.MarkDecorator:
    there = way in _native.product_ways(ggml_type, 64, 64)
    return pytest.mark.skipif(not there, reason=f"no {way} on this machine")


needs_pairs, needs_blocks = _needs("pairs", TYPE_BF16), _needs("vnni", TYPE_Q8_0)


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


def _halves(sums: list[Fraction]) -> float:
    """Halves added to halves, to one number."""
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [_rounded(sums[i] + sums[i + half]) for i in range(half)]
    return float(sums[0])


def _in_order(
    weight: NDArray[np.float32], x: NDArray[np.float32], lanes: int, order: tuple[int, ...] = (0,)
) -> float:
    """One result: fused sums by lane, of neighbours that share one in the order given."""
    sums = [Fraction(0)] * lanes
    pairs = [(Fraction(float(a)), Fraction(float(b))) for a, b in zip(weight, x, strict=True)]
    for i in range(len(pairs) // len(order)):
        for k in order:
            a, b = pairs[len(order) * i + k]
            sums[i % lanes] = _rounded(a * b + sums[i % lanes])
    return _halves(sums)


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Upper halves; rounding is not what is looked at here."""
    return (_bits(values) >> 16).astype(np.uint16)


def _from_bf16(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32)


def _run(
    weight: NDArray[np.generic],
    ggml_type: int,
    x: NDArray[np.float32],
    n_out: int,
    way: str,
    threads: int = 1,
) -> NDArray[np.float32]:
    out = np.full((len(x), n_out), np.nan, np.float32)
    _native.product_rows(weight.view(np.uint8).reshape(-1), ggml_type, x, out, way, threads)
    return out


def _in_exact(x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return (x.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.float32)


@needs_vectors
@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sums_are_taken_in_the_order_described(way: str, dtype: type[np.generic]) -> None:
    lanes = _LANES[way]
    weight, x = _random(8, 3 * lanes, 1).astype(dtype), _random(3, 3 * lanes, 2)
    out = _run(weight, TYPE_F16 if dtype is np.float16 else TYPE_F32, x, 8, way)
    expected = [[_in_order(w.astype(np.float32), row, lanes) for w in weight] for row in x]
    assert out.tolist() == expected
    assert not np.array_equal(out, _in_exact(x, weight.astype(np.float32)))


@needs_vectors
@pytest.mark.parametrize("way", _WAYS)
def test_bf16_is_widened(way: str) -> None:
    lanes = _LANES[way]
    weight, x = _bf16(_random(8, 3 * lanes, 1)), _random(3, 3 * lanes, 2)
    expected = [[_in_order(w, row, lanes) for w in _from_bf16(weight)] for row in x]
    assert _run(weight, TYPE_BF16, x, 8, way).tolist() == expected


@needs_pairs
@pytest.mark.parametrize("way", ["pairs", "fused-pairs"])
def test_pairs_add_the_second_first(way: str) -> None:
    weight, x = _bf16(_random(8, 96, 1)), _from_bf16(_bf16(_random(7, 96, 2)))
    expected = [[_in_order(w, row, 16, (1, 0)) for w in _from_bf16(weight)] for row in x]
    out = _run(weight, TYPE_BF16, x, 8, way)
    assert out.tolist() == expected
    assert not np.array_equal(out, _in_exact(x, _from_bf16(weight)))


@needs_pairs
def test_both_ways_to_multiply_pairs_agree_where_numbers_are_subnormal() -> None:
    rng = np.random.default_rng(5)
    weight = rng.integers(0, 1 << 16, (64, 64)).astype(np.uint16)
    x = _bf16(rng.integers(0, 1 << 32, (12, 64)).astype(np.uint32).view(np.float32))
    for numbers in (weight, x):  # tiny to middling, of both signs; none that is not finite
        exponent = rng.choice([0, 1, 2, 40, 80, 120, 127], numbers.shape).astype(np.uint16)
        numbers[:] = (numbers & 0x807F) | exponent << 7
    told = _run(weight, TYPE_BF16, _from_bf16(x), 64, "pairs", 2)
    assert np.array_equal(_bits(_run(weight, TYPE_BF16, _from_bf16(x), 64, "fused-pairs", 2)), _bits(told))
    # and numbers that are subnormal do count where sums are not taken in pairs
    assert not np.array_equal(_bits(_run(weight, TYPE_BF16, _from_bf16(x), 64, "avx512", 2)), _bits(told))
    assert np.float32(1e-40) * np.float32(0.5) > 0  # the mode of this thread is as it was


@dataclass
class _Blocks:
    """Blocks of Q8_0: scales float16 [rows, blocks], entries int8 [rows, blocks, 32]."""

    scale: NDArray[np.float16]
    entries: NDArray[np.int8]

    @classmethod
    def random(cls, rows: int, width: int, seed: int) -> _Blocks:
        rng = np.random.default_rng(seed)
        scale = (rng.normal(size=(rows, width // 32)) / 100).astype(np.float16)
        return cls(scale, rng.integers(-128, 128, (rows, width // 32, 32)).astype(np.int8))

    @classmethod
    def of(cls, x: NDArray[np.float32]) -> _Blocks:
        """As quantize_row_q8_0 of libggml-cpu: all in float32, ties to even."""
        blocks = x.reshape(len(x), -1, 32)
        largest = np.abs(blocks).max(axis=2)
        with np.errstate(divide="ignore"):
            factor = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
        scale = (largest / np.float32(127)).astype(np.float16)
        return cls(scale, np.rint(blocks * factor[:, :, None]).astype(np.int8))

    @property
    def bytes(self) -> NDArray[np.uint8]:
        packed = [self.scale[:, :, None].view(np.uint8), self.entries.view(np.uint8)]
        return np.concatenate(packed, axis=2)


def _block_product(weight: _Blocks, w: int, x: _Blocks, row: int) -> float:
    sums = [Fraction(0)] * 8
    for b in range(weight.scale.shape[1]):
        scale = Fraction(float(weight.scale[w, b])) * Fraction(float(x.scale[row, b]))
        products = weight.entries[w, b].astype(int) * x.entries[row, b].astype(int)
        whole = products.reshape(8, 4).sum(axis=1)
        sums = [_rounded(scale * int(n) + s) for n, s in zip(whole, sums, strict=True)]
    return _halves(sums)


@needs_blocks
@pytest.mark.parametrize("n_out", [1, 5, 16, 23])
def test_blocks_are_added_in_the_order_described(n_out: int) -> None:
    weight, x = _Blocks.random(n_out, 96, 1), _random(5, 96, 2)
    expected = [[_block_product(weight, w, _Blocks.of(x), r) for w in range(n_out)] for r in range(5)]
    assert _run(weight.bytes, TYPE_Q8_0, x, n_out, "vnni").tolist() == expected


@needs_blocks
def test_blocks_at_their_limits() -> None:
    """Largest entries of both signs, blocks of zeros, ties, scales beyond and below float16."""
    weight = _Blocks.random(16, 128, 3)
    weight.entries[0], weight.entries[1], weight.entries[2] = -128, 127, 0
    weight.scale[3:6, 0] = 0, np.float16(6e-8), np.float16(65504)
    x = np.ones((6, 128), np.float32)
    x[1] = -1
    x[2] = np.tile([127, 0.5, 1.5, -2.5], 32)
    x[3] = np.tile([1e-4, 3e-5], 64)  # scales below the smallest normal float16
    x[4] = 0
    x[5] = np.tile([1e6, -1e6], 64)
    expected = [[_block_product(weight, w, _Blocks.of(x), r) for w in range(16)] for r in range(6)]
    assert _run(weight.bytes, TYPE_Q8_0, x, 16, "vnni").tolist() == expected
    x[:, 0] = 1e9  # a scale that float16 holds as infinity
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(_run(weight.bytes, TYPE_Q8_0, x, 16, "vnni")[:, 6:]).any()


def _weight(ggml_type: int, n_out: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A weight [n_out, 64], and the numbers it was made from or stands for."""
    plain = _random(n_out, 64, 3)
    if ggml_type == TYPE_Q8_0:
        blocks = _Blocks.random(n_out, 64, 3)
        scale = blocks.scale.astype(np.float32)[:, :, None]
        return blocks.bytes, (scale * blocks.entries).astype(np.float32).reshape(n_out, 64)
    if ggml_type == TYPE_BF16:
        return _bf16(plain), plain
    return plain.astype(np.float16 if ggml_type == TYPE_F16 else np.float32), plain


_EACH = [
    (way, kind)
    for kind in (TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_Q8_0)
    for way in _native.product_ways(kind, 64, 64)
]


@needs_vectors
@pytest.mark.parametrize(("way", "ggml_type"), _EACH)
@pytest.mark.parametrize("n_out", [4, 12, 16, 60, 64, 132, 2048])
def test_threads_rows_and_stretches_do_not_matter(way: str, ggml_type: int, n_out: int) -> None:
    x = _random(13, 64, 4)
    weight, plain = _weight(ggml_type, n_out)
    whole = _run(weight, ggml_type, x, n_out, way)
    coarse = {TYPE_BF16: 0.3, TYPE_Q8_0: 0.5}.get(ggml_type, 0.02)
    np.testing.assert_allclose(whole, x @ plain.T, rtol=0, atol=coarse)
    for threads in (2, 3, 8):
        assert np.array_equal(_bits(_run(weight, ggml_type, x, n_out, way, threads)), _bits(whole))
    for rows in range(1, 13):
        part = _run(weight, ggml_type, np.ascontiguousarray(x[13 - rows :]), n_out, way, 2)
        assert np.array_equal(_bits(part), _bits(whole[13 - rows :]))


@needs_vectors
def test_shapes_that_do_not_fit_are_refused() -> None:
    x, out = _random(2, 64, 5), np.empty((2, 8), np.float32)
    data = np.zeros(8 * 64 * 4, np.uint8)
    way = _WAYS[0]
    for arguments in (
        (data[:-4], TYPE_F32, x, out, way, 1),
        (data, 2, x, out, way, 1),
        (data, TYPE_F16, x, out, way, 1),
        (data, TYPE_F32, x, out, "vnni", 1),
        (data, TYPE_F32, x, out, "", 1),
        (data, TYPE_F32, x, np.empty((3, 8), np.float32), way, 1),
        (np.zeros(6 * 64 * 4, np.uint8), TYPE_F32, x, np.empty((2, 6), np.float32), way, 1),
        (np.zeros(8 * 60 * 4, np.uint8), TYPE_F32, _random(2, 60, 5), out, "avx512", 1),
    ):
        with pytest.raises(ValueError, match="product_rows"):
            _native.product_rows(*arguments)


def _model(folder: Path, *, width: int, n_vocab: int, dtype: FloatName) -> Path:
    shape = RandomShape(
        n_vocab=n_vocab, n_embd=width, n_layer=1, n_head=2, n_head_kv=1, head_dim=32, n_ff=64, n_ctx_train=64
    )
    return random_gguf(folder / f"{dtype}.gguf", shape, seed=width, dtype=dtype)


def _layer(folder: Path, *, width: int, n_vocab: int, dtype: FloatName) -> tuple[OutputLayer, Path]:
    path = _model(folder, width=width, n_vocab=n_vocab, dtype=dtype)
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
    x = _random(40, width, 6) * scale
    for rows in (2, 3, 5, 6, 7, 11, 12, 13, 24, 40):
        assert same.prove(x[:rows], layer.logits(x[:rows])), (rows, same.possible)
    layer.close()


@needs_blocks
@pytest.mark.parametrize(("width", "n_vocab"), [(64, 512), (256, 500), (1056, 512), (5120, 509)])
def test_the_bits_are_libggmls_with_blocks(width: int, n_vocab: int, tmp_path: Path) -> None:
    source = _model(tmp_path, width=width, n_vocab=n_vocab, dtype="f32")
    path = tmp_path / "q8_0.gguf"
    quantize(QuantizeSpec(source, "Q8_0", path))
    layer = OutputLayer(path, threads=2)
    scale = np.float32(10.0) ** np.random.default_rng(7).integers(-9, 6, size=(40, 1)).astype(np.float32)
    x = _random(40, width, 6) * scale
    for rows in (1, 2, 3, 5, 6, 7, 11, 12, 13, 24, 40):
        told = layer._by_ggml(x[:rows]).copy()
        assert layer._same.prove(x[:rows], told), (rows, layer.faster)
    layer.close()


@needs_blocks
def test_rows_that_are_not_finite_are_left_to_libggml() -> None:
    weight = _Blocks.random(16, 64, 3)
    same = SameProduct(weight.bytes.reshape(-1), ggml_type=TYPE_Q8_0, n_out=16, width=64, threads=1)
    x = _random(4, 64, 4)
    assert same.prove(x, same(x).copy())
    assert same.proven(x)
    for value in (np.nan, np.inf, -np.inf):
        x[2, 5] = value
        assert not same.proven(x)
        assert not same.prove(x, np.zeros((4, 16), np.float32))
        assert same.possible  # nothing was refuted


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
    assert same.proven(x)
    told[2, 5] = np.nextafter(told[2, 5], np.float32(np.inf))
    assert not same.prove(x, told)
    assert not same.possible
    assert not same.proven(x)


@needs_vectors
@pytest.mark.skipif("avx2" not in _WAYS, reason="only one kernel here")
def test_the_kernel_is_chosen_by_what_it_computes() -> None:
    weight, x = _random(16, 64, 11).astype(np.float16), _random(4, 64, 12)
    data = weight.view(np.uint8).reshape(-1)
    told = _run(data, TYPE_F16, x, 16, "avx2")  # eight lanes, and rows that are not rounded
    same = SameProduct(data, ggml_type=TYPE_F16, n_out=16, width=64, threads=1)
    assert same.prove(x, told)
    assert np.array_equal(_bits(same(x)), _bits(told))


def test_other_types_and_shapes_are_left_to_libggml() -> None:
    assert not SameProduct(np.zeros(18, np.uint8), ggml_type=2, n_out=1, width=32, threads=1).possible
    odd = np.zeros(6 * 64 * 4, np.uint8)
    assert not SameProduct(odd, ggml_type=TYPE_F32, n_out=6, width=64, threads=1).possible
