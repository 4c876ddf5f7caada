"""Logits made again from hidden states, by ggml's own matrix product.

``logits = output.weight x hidden`` through ``ggml_mul_mat``, the kernel the engine uses, so that the numbers are the
engine's own, bit for bit (asserted for F32, F16 and BF16 files by tests, and on the first chunk of every base by
`bitloss.divergence.basewrite`). Computed in slices of rows: memory is O(slice x vocabulary). F32, F16, BF16,
Q8_0 and Q6_K weights go through `bitloss.engine.product` once that has shown the same bits.

libggml multiplies few rows, and the last few of many, with kernels that round otherwise. Slices are filled up to whole
groups of rows, so the logits of a row depend on nothing but the row. (The engine's own may: the last one to three of a
micro-batch, where the weight is Q2_K or Q4_K, differ from these by a rounding.)

Some graphs go on after the product, and so does this one, with the same operations of ggml on the same numbers:
Gemma 2 and 3 cap (x / c, tanh, x c), Granite divides by a scale. Others that would are refused by name.

Source: src/models/*.cpp of llama.cpp (``build_lora_mm(model.output, cur)`` after ``result_norm``).
"""

from __future__ import annotations

import ctypes as ct
import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitloss.engine.ggml import TYPE_F32, InitParams, ggml
from bitloss.engine.product import SameProduct
from bitloss.engine.weight_buffer import ExtraWeight, extra_buffer_type
from bitloss.errors import GgufError, MismatchError, UnsupportedError
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import open_model

_ROOM_FOR_GRAPH = 1 << 20
SLICE_BYTES = 24 << 20  # logits of one slice, for which the weight is read once; they should stay in a cache
_GROUP = 16  # rows: no kernel of libggml takes more at a time
_CAPPING = frozenset({"gemma2", "gemma3"})
_DIVIDING = frozenset({"granite"})


class OutputLayer:
    """The product of a model's output weight with hidden states.

    Args:
        path: GGUF file, of a split model the first part, whose ``output.weight`` (or, tied, ``token_embd.weight``) is
            used; its bytes stay memory-mapped.
        threads: CPU threads of the product.

    Raises:
        UnsupportedError: the architecture does something after the product (named).
        GgufError: the file has no such tensor.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        self._g = ggml()
        self._threads = threads
        file = open_model(path)
        self._after = after_the_product(file)
        info = file.tensors.get(output_weight_name(file))
        if info is None:
            raise GgufError("no output.weight and no token_embd.weight", where=path)
        self.n_embd, self.n_vocab = info.shape[0], info.shape[1]
        with file.paths[info.part].open("rb") as stream:
            # a private (copy-on-write) mapping: ctypes needs a writable buffer, the file is never written
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self._weight_context = self._g.ggml_init(InitParams(_ROOM_FOR_GRAPH, None, True))
        self._weight = self._g.ggml_new_tensor_2d(
            self._weight_context, info.ggml_type, self.n_embd, self.n_vocab
        )
        data = ct.addressof(ct.c_char.from_buffer(self._map)) + info.offset
        kind = extra_buffer_type(info.ggml_type, self.n_embd, self.n_vocab)
        self._extra = kind and ExtraWeight(self._weight_context, self._weight, kind=kind, data=data)
        if not self._extra:
            self._weight.contents.data = data
        self.rows_per_slice = rows_per_slice(self.n_vocab)
        room = 4 * _padded(self.rows_per_slice) * (self.n_vocab + 6 * self.n_embd)
        # not filled with zeros, so that what is not needed takes no memory
        self._scratch = np.empty(room + _ROOM_FOR_GRAPH + (threads << 16), np.uint8)
        self._same = SameProduct(
            np.frombuffer(self._map, np.uint8, info.n_bytes, info.offset),
            ggml_type=info.ggml_type, n_out=self.n_vocab, width=self.n_embd, threads=threads,
        )  # fmt: skip

    @property
    def faster(self) -> bool:
        """Whether the product is computed in a faster way than libggml's, which so far has shown the same bits."""
        return self._same.possible and not self._after

    def slices(self, rows: int) -> list[slice]:
        """Cut rows into slices of at most `rows_per_slice`."""
        return [slice(i, min(i + self.rows_per_slice, rows)) for i in range(0, rows, self.rows_per_slice)]

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of at most `rows_per_slice` hidden states.

        Args:
            hidden: float32 [rows, n_embd].

        Returns:
            float32 [rows, n_vocab], valid until the next call.

        Raises:
            MismatchError: the hidden states have another width.
        """
        rows, width = hidden.shape
        if width != self.n_embd:
            raise MismatchError("hidden states of another width", expected=self.n_embd, found=width)
        assert 0 < rows <= self.rows_per_slice
        if self._after:
            return self._by_ggml(hidden)
        if self._same.proven(hidden):
            return self._same(hidden)
        told = self._by_ggml(hidden)
        if self._same.possible:
            self._same.prove(hidden, told)
        return told

    def _by_ggml(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        rows, g = len(hidden), self._g
        padded = _padded(rows)
        context = g.ggml_init(InitParams(self._scratch.nbytes, self._scratch.ctypes.data, False))
        x = g.ggml_new_tensor_2d(context, TYPE_F32, self.n_embd, padded)
        data = np.ndarray(
            (padded, self.n_embd), np.float32, buffer=_memory(x.contents.data, 4 * padded * self.n_embd)
        )
        data[:rows] = hidden
        data[rows:] = 0
        product = g.ggml_mul_mat(context, self._weight, x)
        graph = g.ggml_new_graph(context)
        for factor in self._after:
            product = (
                g.ggml_tanh_inplace(context, product)
                if factor is None
                else g.ggml_scale_inplace(context, product, factor)
            )
        g.ggml_build_forward_expand(graph, product)
        status = g.ggml_graph_compute_with_ctx(context, graph, self._threads)
        assert status == 0, f"ggml_graph_compute_with_ctx returned {status}"
        size = 4 * padded * self.n_vocab
        out = np.ndarray((padded, self.n_vocab), np.float32, buffer=_memory(product.contents.data, size))
        g.ggml_free(context)  # the memory is ours; freeing only returns the context's slot
        return out[:rows]

    def close(self) -> None:
        """Give the mapping back."""
        if self._extra:
            self._extra.close()
        if self._weight_context:
            self._g.ggml_free(self._weight_context)
            self._weight_context = None


def rows_per_slice(n_vocab: int) -> int:
    """Rows whose logits are made at a time; it depends on nothing else."""
    rows = max(2, min(512, SLICE_BYTES // (4 * n_vocab)))
    # whole tiles of the products (6 and 3 rows, see native/product.hpp) and whole groups of libggml's kernels
    return next((rows - rows % n for n in (48, _GROUP) if rows >= n), rows)


def _padded(rows: int) -> int:
    return -(-rows // _GROUP) * _GROUP


def output_weight_name(file: GgufFile) -> str:
    """The weight that makes logits: ``output.weight``, or ``token_embd.weight`` where the two are tied."""
    return "output.weight" if "output.weight" in file.tensors else "token_embd.weight"


def after_the_product(file: GgufFile) -> tuple[float | None, ...]:
    """Return what a model's graph does to the logits after the product.

    Returns:
        Factors in turn; None stands for tanh. Mostly none at all.

    Raises:
        UnsupportedError: the graph does something else, named: logit scaling or capping of an architecture not known
            here, or an output bias.
    """
    architecture = file.architecture
    cap = np.float32(file.value(f"{architecture}.final_logit_softcapping", 0.0) or 0.0)
    scale = np.float32(file.value(f"{architecture}.logit_scale", 0.0) or 0.0)
    mend = "measure against a base made by llama-perplexity (--kl-divergence-base)"
    if "output.bias" in file.tensors:
        raise UnsupportedError(
            "the model adds output.bias after the output product", where=file.path, mend=mend
        )
    # float32 quotients, as the graphs compute them
    if cap != 0 and architecture in _CAPPING:
        return (float(np.float32(1) / cap), None, float(cap))
    if scale != 0 and architecture in _DIVIDING:
        return (float(np.float32(1) / scale),)
    for key, value in (("final_logit_softcapping", cap), ("logit_scale", scale)):
        if value not in (0, 1):
            raise UnsupportedError(
                f"the {architecture} graph changes logits after the output product ({architecture}.{key})",
                where=file.path,
                mend=mend,
            )
    return ()


def _memory(address: int, size: int) -> memoryview:
    return memoryview((ct.c_char * size).from_address(address))
