"""Products with blocks of Q8_0 and Q6_K, and what holds for the products of every type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.unit.engine.products import (
    Blocks,
    SuperBlocks,
    bf16,
    bits,
    block_product,
    in_exact,
    model,
    needs,
    random,
    run,
)

from bitloss import _native
from bitloss.engine.ggml import TYPE_BF16, TYPE_F16, TYPE_F32, TYPE_Q6_K, TYPE_Q8_0
from bitloss.engine.output_layer import OutputLayer
from bitloss.engine.product import SameProduct
from bitloss.quantize.quantize import QuantizeSpec, quantize

needs_super_blocks = needs("q6_k", TYPE_Q6_K)
needs_blocks = needs("q8_0", TYPE_Q8_0)


@needs_blocks
@pytest.mark.parametrize("n_out", [1, 5, 16, 23])
def test_blocks_are_added_in_the_order_described(n_out: int) -> None:
    weight, x = Blocks.random(n_out, 96, 1), random(5, 96, 2)
    expected = [[block_product(weight, w, Blocks.of(x), r) for w in range(n_out)] for r in range(5)]
    assert run(weight.bytes, TYPE_Q8_0, x, n_out, "q8_0").tolist() == expected


@needs_blocks
def test_blocks_at_their_limits() -> None:
    """Largest entries of both signs, blocks of zeros, ties, scales beyond and below float16."""
    weight = Blocks.random(16, 128, 3)
    weight.entries[0], weight.entries[1], weight.entries[2] = -128, 127, 0
    weight.scale[3:6, 0] = 0, np.float16(6e-8), np.float16(65504)
    x = np.ones((6, 128), np.float32)
    x[1] = -1
    x[2] = np.tile([127, 0.5, 1.5, -2.5], 32)
    x[3] = np.tile([1e-4, 3e-5], 64)  # scales below the smallest normal float16
    x[4] = 0
    x[5] = np.tile([1e6, -1e6], 64)
    expected = [[block_product(weight, w, Blocks.of(x), r) for w in range(16)] for r in range(6)]
    assert run(weight.bytes, TYPE_Q8_0, x, 16, "q8_0").tolist() == expected
    x[:, 0] = 1e9  # a scale that float16 holds as infinity
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(run(weight.bytes, TYPE_Q8_0, x, 16, "q8_0")[:, 6:]).any()


@needs_super_blocks
@pytest.mark.parametrize("n_out", [1, 5, 16, 23])
def test_super_blocks_are_added_in_the_order_described(n_out: int) -> None:
    weight, x = SuperBlocks.random(n_out, 768, 1), random(8, 768, 2)
    out = run(weight.bytes, TYPE_Q6_K, x, n_out, "q6_k")
    np.testing.assert_array_equal(out, weight.product(x))
    assert not np.array_equal(out, in_exact(x, weight.values))


@needs_super_blocks
def test_super_blocks_at_their_limits() -> None:
    """The largest whole numbers a block can give, blocks of zeros, ties, scales that overflow and vanish."""
    weight = SuperBlocks.random(16, 512, 3)
    weight.entries[0], weight.part[0] = 0, -128  # -32 * -128 * 127 * 256 and its opposite
    weight.entries[1], weight.part[1] = 63, 127
    weight.entries[2] = 32
    weight.scale[3:6, 0] = 0, np.float16(6e-8), np.float16(65504)
    x = np.ones((7, 512), np.float32)
    x[1] = -1
    x[2] = np.tile([127, 0.5, 1.5, -2.5], 128)
    x[3] = np.tile([1e-30, 3e-31], 256)
    x[4] = 0
    x[5] = np.tile([-1e6, 1e6], 256)  # the first of the largest says the sign
    x[6, :256] = 1e-40  # too small for a factor
    np.testing.assert_array_equal(run(weight.bytes, TYPE_Q6_K, x, 16, "q6_k"), weight.product(x))


def _weight(ggml_type: int, n_out: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A weight [n_out, 256], and the numbers it was made from or stands for."""
    plain = random(n_out, 256, 3)
    if ggml_type == TYPE_Q6_K:
        super_blocks = SuperBlocks.random(n_out, 256, 3)
        return super_blocks.bytes, super_blocks.values
    if ggml_type == TYPE_Q8_0:
        blocks = Blocks.random(n_out, 256, 3)
        scale = blocks.scale.astype(np.float32)[:, :, None]
        return blocks.bytes, (scale * blocks.entries).astype(np.float32).reshape(n_out, 256)
    if ggml_type == TYPE_BF16:
        return bf16(plain), plain
    return plain.astype(np.float16 if ggml_type == TYPE_F16 else np.float32), plain


_TYPES = (TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_Q8_0, TYPE_Q6_K)
_EACH = [(way, kind) for kind in _TYPES for way in _native.product_ways(kind, 256, 64)]


@pytest.mark.parametrize(("way", "ggml_type"), _EACH)
@pytest.mark.parametrize("n_out", [4, 12, 16, 60, 64, 132, 2048])
def test_threads_rows_and_stretches_do_not_matter(way: str, ggml_type: int, n_out: int) -> None:
    x = random(13, 256, 4)
    weight, plain = _weight(ggml_type, n_out)
    whole = run(weight, ggml_type, x, n_out, way)
    coarse = 0.5 if ggml_type in (TYPE_BF16, TYPE_Q8_0, TYPE_Q6_K) else 0.02
    np.testing.assert_allclose(whole, x @ plain.T, rtol=0, atol=coarse * np.abs(plain).max())
    for threads in (2, 3, 8):
        assert np.array_equal(bits(run(weight, ggml_type, x, n_out, way, threads)), bits(whole))
    for rows in range(1, 13):
        part = run(weight, ggml_type, np.ascontiguousarray(x[13 - rows :]), n_out, way, 2)
        assert np.array_equal(bits(part), bits(whole[13 - rows :]))


@needs_blocks
@pytest.mark.parametrize(
    ("kind", "width", "n_vocab"),
    [
        ("Q8_0", 1056, 512),  # no whole blocks of 256
        *((kind, *shape) for kind in ("Q8_0", "Q6_K") for shape in ((256, 500), (768, 512), (5120, 509))),
    ],
)
def test_the_bits_are_libggmls_with_blocks(kind: str, width: int, n_vocab: int, tmp_path: Path) -> None:
    source = model(tmp_path, width=width, n_vocab=n_vocab, dtype="f32")
    path = tmp_path / "quantized.gguf"
    quantize(QuantizeSpec(source, kind, path))
    layer = OutputLayer(path, threads=2)
    scale = np.float32(10.0) ** np.random.default_rng(7).integers(-9, 6, size=(40, 1)).astype(np.float32)
    x = random(40, width, 6) * scale
    for rows in (1, 2, 3, 5, 6, 7, 11, 12, 13, 24, 40):
        told = layer._by_ggml(x[:rows]).copy()
        assert layer._same.prove(x[:rows], told), (rows, layer.faster)
    layer.close()


@needs_blocks
def test_rows_that_are_not_finite_are_left_to_libggml() -> None:
    weight = Blocks.random(16, 64, 3)
    same = SameProduct(weight.bytes.reshape(-1), ggml_type=TYPE_Q8_0, n_out=16, width=64, threads=1)
    x = random(4, 64, 4)
    assert same.prove(x, same(x).copy())
    assert same.proven(x)
    for value in (np.nan, np.inf, -np.inf):
        x[2, 5] = value
        assert not same.proven(x)
        assert not same.prove(x, np.zeros((4, 16), np.float32))
        assert same.possible  # nothing was refuted
