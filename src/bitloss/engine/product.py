"""The product with an output weight, bit for bit as libggml computes it, faster.

A sum of floats depends on nothing but the order in which it is taken. libggml's CPU product takes it in vectors: lane l
of 16 (or 8) adds, fused, entries l, l + 16, ... in turn, and halves are added to halves at the end. The native kernel
takes it in the same order, but widens a float16 weight once for all rows and folds several results at a time.

Nothing of this is taken on trust: `SameProduct` is told what libggml computed and is used only after it gave the same
bits, for every number of rows anew. Where another build of libggml sums in another order it is never used, and
everything is computed by libggml as before.

Source: ggml/src/ggml-cpu/llamafile/sgemm.cpp (the order of the sums), ggml/src/ggml-cpu/ggml-cpu.c (float32 rows are
rounded to float16 before they meet a float16 weight, where the kernel for that exists).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitloss import _native
from bitloss.engine.ggml import TYPE_F16, TYPE_F32

_KINDS = {TYPE_F32: 0, TYPE_F16: 1}


class SameProduct:
    """``x @ weight.T`` with the bits of libggml's product.

    Args:
        weight: uint8, the bytes of [n_out, width] float32 or float16 values.
        ggml_type: of the weight.
        n_out: results a row.
        width: entries of a row.
        threads: CPU threads; the result does not depend on them.
    """

    def __init__(
        self, weight: NDArray[np.uint8], *, ggml_type: int, n_out: int, width: int, threads: int
    ) -> None:
        self._weight, self._n_out, self._width, self._threads = weight, n_out, width, threads
        self._kind = _KINDS.get(ggml_type)
        # (lanes, whether rows are rounded to float16): the first that is not yet refuted is the one in use
        rounding = (True, False) if ggml_type == TYPE_F16 else (False,)
        fits = [n for n in _native.product_lanes() if width % n == 0 and n_out % 4 == 0]
        self._ways = [(n, rounded) for n in fits for rounded in rounding] if self._kind is not None else []
        self._proven: set[int] = set()
        self._out = np.empty((0, n_out), np.float32)

    @property
    def possible(self) -> bool:
        """Whether some way of summing is not refuted."""
        return bool(self._ways)

    def proven(self, rows: int) -> bool:
        """Whether libggml was seen to give the same bits for this many rows."""
        return rows in self._proven

    def prove(self, x: NDArray[np.float32], told: NDArray[np.float32]) -> bool:
        """Compare with what libggml computed; ways of summing that give other bits are given up for good.

        Args:
            x: float32 [rows, width].
            told: float32 [rows, n_out], libggml's product.
        """
        while self._ways:
            if np.array_equal(self(x).view(np.uint32), told.view(np.uint32)):
                self._proven.add(len(x))
                return True
            self._ways.pop(0)
            self._proven.clear()
        return False

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the product of float32 [rows, width]: float32 [rows, n_out], valid until the next call."""
        lanes, rounded = self._ways[0]
        assert self._kind is not None
        if len(self._out) < len(x):
            self._out = np.empty((len(x), self._n_out), np.float32)
        if rounded:
            with np.errstate(over="ignore"):  # beyond float16: infinite, as libggml makes it
                x = x.astype(np.float16).astype(np.float32)
        out = self._out[: len(x)]
        _native.product_rows(self._weight, self._kind, np.ascontiguousarray(x), out, lanes, self._threads)
        return out
