"""The product with an output weight, bit for bit as libggml computes it, faster.

A sum of floats depends on nothing but the order in which it is taken. libggml's CPU product takes it in vectors: lane l
of 16 (or 8) adds, fused, entries l, l + 16, ... in turn, and halves are added to halves at the end; for BF16,
Q8_0 and Q6_K see ``native/product.hpp``. The native kernels take it in the same order, but bring a weight into shape
once for all rows, and with blocks compute sixteen results to a vector.

Nothing of this is taken on trust: `SameProduct` is told what libggml computed and is used only after it gave the same
bits, for every number of rows anew. Where another build of libggml sums in another order it is never used, and
everything is computed by libggml as before.

Source: ggml/src/ggml-cpu/llamafile/sgemm.cpp (the order of the sums), ggml/src/ggml-cpu/ggml-cpu.c (float32 rows are
rounded to float16 before they meet a float16 weight, where the kernel for that exists; to BF16 before a BF16 weight;
and made Q8_0 before a Q8_0 weight), ggml/src/ggml-cpu/tiled (K-quants).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitloss import _native
from bitloss.engine.ggml import TYPE_BF16, TYPE_F16, TYPE_Q6_K, TYPE_Q8_0


def _to_f16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # beyond float16: infinite, as libggml makes it
        return x.astype(np.float16).astype(np.float32)


def _to_bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), bits | np.uint32(0x400000), rounded).view(np.float32)


def _plain(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x


_BLOCKS = frozenset({TYPE_Q8_0, TYPE_Q6_K})
# what libggml does to rows before the product: the first that is not refuted holds
_ROUNDINGS = {TYPE_F16: (_to_f16, _plain), TYPE_BF16: (_to_bf16,)}


class SameProduct:
    """``x @ weight.T`` with the bits of libggml's product.

    Args:
        weight: uint8, the bytes of [n_out, width] entries.
        ggml_type: of the weight; F32, F16, BF16, Q8_0 and Q6_K are known.
        n_out: results a row.
        width: entries of a row.
        threads: CPU threads; the result does not depend on them.
    """

    def __init__(
        self, weight: NDArray[np.uint8], *, ggml_type: int, n_out: int, width: int, threads: int
    ) -> None:
        self._weight, self._n_out, self._width, self._threads = weight, n_out, width, threads
        self._type = ggml_type
        # the first that is not yet refuted is the one in use
        self._ways = [
            (way, rounding)
            for way in _native.product_ways(ggml_type, width, n_out)
            for rounding in _ROUNDINGS.get(ggml_type, (_plain,))
        ]
        self._proven: set[int] = set()
        self._out = np.empty((0, n_out), np.float32)

    @property
    def possible(self) -> bool:
        """Whether some way of summing is not refuted."""
        return bool(self._ways)

    def proven(self, x: NDArray[np.float32]) -> bool:
        """Whether libggml was seen to give the same bits for as many rows as these, float32 [rows, width]."""
        return len(x) in self._proven and self._takes(x)

    def _takes(self, x: NDArray[np.float32]) -> bool:
        # which bytes a block with a NaN or an infinity becomes is left to libggml
        return self._type not in _BLOCKS or bool(np.isfinite(x).all())

    def prove(self, x: NDArray[np.float32], told: NDArray[np.float32]) -> bool:
        """Compare with what libggml computed; ways of summing that give other bits are given up for good.

        Rows a way cannot take, or of zeros alone, prove nothing.

        Args:
            x: float32 [rows, width].
            told: float32 [rows, n_out], libggml's product.
        """
        while self._ways and self._takes(x) and x.any():
            if np.array_equal(self(x).view(np.uint32), told.view(np.uint32)):
                self._proven.add(len(x))
                return True
            self._ways.pop(0)
            self._proven.clear()
        return False

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the product of float32 [rows, width]: float32 [rows, n_out], valid until the next call."""
        way, rounding = self._ways[0]
        if len(self._out) < len(x):
            self._out = np.empty((len(x), self._n_out), np.float32)
        out = self._out[: len(x)]
        x = np.ascontiguousarray(rounding(x))
        _native.product_rows(self._weight, self._type, x, out, way, self._threads)
        return out
