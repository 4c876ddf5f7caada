"""What an eval callback sees of llama.cpp's graph: hidden states and the inputs of weight matrices."""

from __future__ import annotations

import ctypes as ct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitloss.engine.base import Observer
from bitloss.engine.ggml import TYPE_F32, TYPE_I32, Tensor, ggml, op_codes
from bitloss.errors import EngineError, UnsupportedError

_HIDDEN_NODE = b"result_norm"
# llama-imatrix leaves out products of fewer rows than this ("why are small batches ignored (<16 tokens)?", its source
# asks); we follow it so that the sums are the same.
_LEAST_ROWS = 16


def weight_name(name: str) -> str:
    """A tensor's name in the file, from its name in the graph (``CUDA0#blk.0.attn_q.weight#0``).

    Source: filter_tensor_name in tools/imatrix/imatrix.cpp.
    """
    parts = name.split("#")
    return parts[1] if len(parts) > 1 else name


class GraphWatch:
    """Collects from the nodes of one computation.

    Args:
        hidden: take the rows of ``result_norm``.
        observer: is shown the inputs of weight matrices of layers (``blk.*``) it wants.
        stop: stop the graph after ``result_norm``; what follows is the product with the vocabulary.
    """

    def __init__(self, *, hidden: bool, observer: Observer | None, stop: bool = True) -> None:
        self.hidden = hidden
        self.observer = observer
        self.stop = stop
        self.watching = hidden or observer is not None
        self.rows: NDArray[np.float32] | None = None
        self._error: BaseException | None = None
        self._ggml = ggml()
        codes = op_codes()
        self._mul_mat, self._mul_mat_id = codes["MUL_MAT"], codes["MUL_MAT_ID"]

    def start(self) -> None:
        """Forget the rows of the computation before."""
        _listen()
        self.rows = None
        self._error = None

    def callback(self, address: int, ask: bool, _: object) -> bool:
        """``ggml_backend_sched_eval_callback``: asked whether a node is wanted, then shown it.

        An exception must not cross the C frames: it is kept, the graph is stopped, and `raise_if_failed` raises it.
        """
        try:
            if self._error is not None:
                return not ask  # let the rest run through without being looked at
            node = Tensor.from_address(address)
            if self.hidden and node.name == _HIDDEN_NODE:
                if not ask:
                    self.rows = self._floats(node)[0, 0]
                    return not self.stop
                return True
            handler = self._handler(node)
            if handler is None:
                return not ask
            if not ask:
                handler(node)
        except BaseException as error:
            self._error = error
            return False
        return True

    def keep(self, error: BaseException) -> None:
        """Take an error that did not get into `callback`, to be raised by `raise_if_failed`."""
        self._error = error

    def raise_if_failed(self) -> None:
        """Raise what the callback had to keep to itself."""
        if self._error is not None:
            raise self._error

    def taken(self, n_rows: int, n_embd: int, path: Path) -> NDArray[np.float32]:
        """The hidden rows, checked: float32 [n_rows, n_embd].

        Raises:
            UnsupportedError: the architecture's graph has no node ``result_norm``.
            EngineError: it has another shape than asked for.
        """
        if self.rows is None:
            raise UnsupportedError(
                "the graph of this architecture has no node result_norm, so its hidden states cannot be stored",
                where=path,
                mend="measure against a base made by llama-perplexity (--kl-divergence-base)",
            )
        if self.rows.shape != (n_rows, n_embd):
            raise EngineError(
                "result_norm has an unexpected shape",
                where=path,
                expected=f"{n_rows} x {n_embd}",
                found=" x ".join(map(str, self.rows.shape)),
            )
        return self.rows

    def _handler(self, node: Tensor) -> Callable[[Tensor], None] | None:
        if self.observer is None or node.op not in (self._mul_mat, self._mul_mat_id):
            return None
        weight, x = node.src[0].contents, node.src[1].contents
        if x.type != TYPE_F32 or not self.observer.wants(weight_name(weight.name.decode("utf-8", "replace"))):
            return None
        if node.op == self._mul_mat_id:
            return self._show_experts
        return self._show_dense if x.ne[1] >= _LEAST_ROWS else None

    def _show_dense(self, node: Tensor) -> None:
        """A product src0 [n_in, n_out, n2, n3] x src1 [n_in, rows, m2, m3]."""
        weight, x = node.src[0].contents, self._floats(node.src[1].contents)
        n2, n3 = weight.ne[2], weight.ne[3]
        m3, m2, rows, n_in = x.shape
        assert self.observer is not None
        # activations with more dimensions than the weight are more rows of the same matrix
        by_matrix = x.reshape(m3 // n3, n3, m2 // n2, n2, rows, n_in).transpose(1, 3, 0, 2, 4, 5)
        self.observer.dense(
            weight_name(weight.name.decode()), np.ascontiguousarray(by_matrix).reshape(n3 * n2, -1, n_in)
        )

    def _show_experts(self, node: Tensor) -> None:
        """A product by chosen experts: ids [n_used, n_tokens], src1 [n_in, n_used or 1, n_tokens]."""
        weight, x = node.src[0].contents, self._floats(node.src[1].contents)
        ids = self._ints(node.src[2].contents)  # [1, 1, n_tokens, n_used]
        n_tokens, n_used = ids.shape[2], ids.shape[3]
        rows = x[0]  # [n_tokens, n_used or 1, n_in]
        columns = np.arange(n_used) % rows.shape[1]
        chosen = rows[:, columns, :].reshape(n_tokens * n_used, -1)
        assert self.observer is not None
        self.observer.experts(
            weight_name(weight.name.decode()),
            int(weight.ne[2]),
            chosen,
            ids[0, 0].reshape(-1).astype(np.int32),
        )

    def _floats(self, tensor: Tensor) -> NDArray[np.float32]:
        if tensor.type != TYPE_F32:
            raise EngineError(
                "unexpected type in the graph", where=tensor.name.decode(), expected="F32", found=tensor.type
            )
        return self._array(tensor, np.dtype(np.float32))

    def _ints(self, tensor: Tensor) -> NDArray[np.int32]:
        if tensor.type != TYPE_I32:
            raise EngineError(
                "unexpected type in the graph", where=tensor.name.decode(), expected="I32", found=tensor.type
            )
        return self._array(tensor, np.dtype(np.int32))

    def _array(self, tensor: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A tensor as [ne3, ne2, ne1, ne0]; a view of host memory, else a copy from the device."""
        g = self._ggml
        size = g.ggml_nbytes(ct.byref(tensor))
        if not tensor.buffer or g.ggml_backend_buffer_is_host(tensor.buffer):
            raw = (ct.c_char * size).from_address(tensor.data)
        else:
            raw = (ct.c_char * size)()
            g.ggml_backend_tensor_get(ct.byref(tensor), raw, 0, size)
        return np.ndarray(tuple(tensor.ne)[::-1], dtype, buffer=raw, strides=tuple(tensor.nb)[::-1])


_unraisable = sys.unraisablehook


def _hook(told: sys.UnraisableHookArgs) -> None:
    watch = getattr(told.object, "__self__", None)
    if isinstance(watch, GraphWatch) and told.exc_value is not None:
        watch.keep(told.exc_value)
    else:
        _unraisable(told)


def _listen() -> None:
    """Have ctypes hand over the interrupts it would drop.

    Python acts on a signal where a function begins, so an interrupt during a computation is mostly raised in `callback`
    before its first line: no `try` of it sees that, and the node it was called for is passed over.
    """
    global _unraisable
    now = sys.unraisablehook
    if now is not _hook:
        _unraisable, sys.unraisablehook = now, _hook
