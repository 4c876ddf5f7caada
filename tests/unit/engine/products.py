"""What tests of the product share: references in exact arithmetic, weights of every type, models."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from bitloss import _native
from bitloss.model.random_model import RandomShape, random_gguf

FloatName = Literal["f32", "f16", "bf16"]


def needs(way: str, ggml_type: int) -> pytest.MarkDecorator:
    there = way in _native.product_ways(ggml_type, 256, 64)
    return pytest.mark.skipif(not there, reason=f"no {way} on this machine")


def random(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return values.view(np.uint32)


def rounded(value: Fraction) -> Fraction:
    """To the nearest float32, once; the values here stay far from its limits."""
    near = np.float32(float(value))
    around = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    distances = [(abs(Fraction(float(x)) - value), int(x.view(np.uint32)) & 1, float(x)) for x in around]
    return Fraction(min(distances)[2])  # a tie goes to the even one


def halves_added(sums: list[Fraction]) -> float:
    """Halves added to halves, to one number."""
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [rounded(sums[i] + sums[i + half]) for i in range(half)]
    return float(sums[0])


def in_order(
    weight: NDArray[np.float32], x: NDArray[np.float32], lanes: int, order: tuple[int, ...] = (0,)
) -> float:
    """One result: fused sums by lane, of neighbours that share one in the order given."""
    sums = [Fraction(0)] * lanes
    pairs = [(Fraction(float(a)), Fraction(float(b))) for a, b in zip(weight, x, strict=True)]
    for i in range(len(pairs) // len(order)):
        for k in order:
            a, b = pairs[len(order) * i + k]
            sums[i % lanes] = rounded(a * b + sums[i % lanes])
    return halves_added(sums)


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Upper halves; rounding is not what is looked at here."""
    return (bits(values) >> 16).astype(np.uint16)


def from_bf16(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (values.astype(np.uint32) << 16).view(np.float32)


def run(
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


def in_exact(x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return (x.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.float32)


def model(folder: Path, *, width: int, n_vocab: int, dtype: FloatName) -> Path:
    shape = RandomShape(
        n_vocab=n_vocab, n_embd=width, n_layer=1, n_head=2, n_head_kv=1, head_dim=32, n_ff=64, n_ctx_train=64
    )
    return random_gguf(folder / f"{dtype}.gguf", shape, seed=width, dtype=dtype)


@dataclass
class Blocks:
    """Blocks of Q8_0: scales float16 [rows, blocks], entries int8 [rows, blocks, 32]."""

    scale: NDArray[np.float16]
    entries: NDArray[np.int8]

    @classmethod
    def random(cls, rows: int, width: int, seed: int) -> Blocks:
        rng = np.random.default_rng(seed)
        scale = (rng.normal(size=(rows, width // 32)) / 100).astype(np.float16)
        return cls(scale, rng.integers(-128, 128, (rows, width // 32, 32)).astype(np.int8))

    @classmethod
    def of(cls, x: NDArray[np.float32]) -> Blocks:
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


def block_product(weight: Blocks, w: int, x: Blocks, row: int) -> float:
    sums = [Fraction(0)] * 8
    for b in range(weight.scale.shape[1]):
        scale = Fraction(float(weight.scale[w, b])) * Fraction(float(x.scale[row, b]))
        products = weight.entries[w, b].astype(int) * x.entries[row, b].astype(int)
        whole = products.reshape(8, 4).sum(axis=1)
        sums = [rounded(scale * int(n) + s) for n, s in zip(whole, sums, strict=True)]
    return halves_added(sums)


@dataclass
class SuperBlocks:
    """Blocks of Q6_K: scales float16 [rows, blocks], int8 [rows, blocks, 16], entries 0..63 [rows, blocks, 256]."""

    scale: NDArray[np.float16]
    part: NDArray[np.int8]
    entries: NDArray[np.uint8]

    @classmethod
    def random(cls, rows: int, width: int, seed: int) -> SuperBlocks:
        rng = np.random.default_rng(seed)
        shape = (rows, width // 256)
        scale = (rng.normal(size=shape) / 1000).astype(np.float16)
        return cls(
            scale,
            rng.integers(-128, 128, (*shape, 16)).astype(np.int8),
            rng.integers(0, 64, (*shape, 256), np.uint8),
        )

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """Of each half of 128 entries: low four bits of 0-63 with those of 64-127, high two of four together."""
        quarters = self.entries.reshape(*self.scale.shape, 2, 4, 32)
        a, b, c, d = (quarters[..., k, :] for k in range(4))
        low = np.concatenate([a & 15 | (c & 15) << 4, b & 15 | (d & 15) << 4], axis=-1)
        high = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6
        flat = (*self.scale.shape, -1)
        parts = [
            low.reshape(flat),
            high.reshape(flat),
            self.part.view(np.uint8),
            self.scale[..., None].view(np.uint8),
        ]
        return np.concatenate(parts, axis=-1)

    @property
    def values(self) -> NDArray[np.float32]:
        scales = self.scale.astype(np.float32)[..., None] * self.part
        values = scales[..., None] * (self.entries.astype(np.float32).reshape(*self.part.shape, 16) - 32)
        return values.reshape(len(self.scale), -1).astype(np.float32)

    def product(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """With rows made Q8_K, as quantize_row_q8_K_ref of libggml-base; whole numbers, and three roundings a block."""
        blocks = x.reshape(len(x), -1, 256)
        place = np.abs(blocks).argmax(axis=2)[..., None]
        extreme = np.take_along_axis(blocks, place, axis=2)[..., 0]
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            factor = np.float32(-127) / extreme
            usable = np.isfinite(factor)
            whole = np.where(usable[..., None], np.rint(blocks * factor[..., None]), 0).astype(np.int64)
            scale = np.where(extreme != 0, np.float32(1) / factor, np.float32(0))
        weight = (self.entries.astype(np.int64).reshape(*self.part.shape, 16) - 32) * self.part[..., None]
        sums = np.einsum("rbi,wbi->rwb", whole, weight.reshape(*self.scale.shape, 256))
        found = np.zeros(sums.shape[:2], np.float32)
        for r, w in np.ndindex(found.shape):
            total = Fraction(0)
            for b in range(sums.shape[2]):
                scaled = np.float32(sums[r, w, b]) * np.float32(self.scale[w, b])
                total = rounded(Fraction(float(scaled)) * Fraction(float(scale[r, b])) + total)
            found[r, w] = float(total)
        return found
