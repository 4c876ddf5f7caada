"""A llama_context: where tokens are computed, one micro-batch at a time.

Source: include/llama.h.
"""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from bitloss.engine.base import EngineFacts, EngineOptions, FlashAttention, Outputs
from bitloss.engine.ggml import TYPE_F32
from bitloss.engine.llama_log import captured_log
from bitloss.engine.watch import GraphWatch
from bitloss.errors import EngineError

_FLASH = {FlashAttention.AUTO: -1, FlashAttention.OFF: 0, FlashAttention.ON: 1}


class Loaded(Protocol):
    """A model that libllama has loaded.

    Attributes:
        path: its file. options: how it is run. handle: libllama's pointer.
    """

    path: Path
    options: EngineOptions
    handle: Any

    @property
    def facts(self) -> EngineFacts:
        """What is known of it."""
        ...


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class Context:
    """A llama_context for chunks of one length, and the arrays a batch is made of."""

    def __init__(self, engine: Loaded, *, n_ctx: int, n_seq: int, watch: GraphWatch) -> None:
        self.engine = engine
        self.n_ctx = n_ctx
        self.watch = watch
        options = engine.options
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx * n_seq
        params.n_batch = params.n_ubatch = options.micro_batch
        params.n_seq_max = n_seq
        params.n_outputs_max_per_seq = 0
        params.n_threads = params.n_threads_batch = options.threads or usable_cores()
        params.flash_attn_type = _FLASH[options.flash_attn]
        params.no_perf = True
        if options.cache_f32:
            params.type_k = params.type_v = TYPE_F32
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(
            watch.callback
        )  # kept alive with the context
        if watch.watching:
            params.cb_eval = self._callback
        with captured_log() as log:
            self._context = llama_cpp.llama_init_from_model(engine.handle, params)
        if not self._context:
            raise EngineError("llama.cpp could not make a context", where=engine.path, found=last_error(log))
        self._memory = llama_cpp.llama_get_memory(self._context)

    def clear(self) -> None:
        """Forget what was computed before."""
        llama_cpp.llama_memory_clear(self._memory, True)

    def decode(
        self, tokens: NDArray[np.int32], begin: int, wanted: NDArray[np.int8], outputs: Outputs
    ) -> NDArray[np.float32]:
        """Compute [n_seq, width] tokens at positions begin.. and return the wanted rows (valid until the next call)."""
        n_seq, width = tokens.shape
        n = n_seq * width
        token = np.ascontiguousarray(tokens, np.int32)
        position = np.tile(np.arange(begin, begin + width, dtype=np.int32), n_seq)
        n_seq_id = np.ones(n, np.int32)
        seq = np.repeat(np.arange(n_seq, dtype=np.int32), width)
        seq_pointers = (seq.ctypes.data + seq.itemsize * np.arange(n)).astype(np.uintp)
        flags = np.ascontiguousarray(wanted)
        batch = llama_cpp.llama_batch(
            n,
            token.ctypes.data_as(ct.POINTER(ct.c_int32)),
            None,
            position.ctypes.data_as(ct.POINTER(ct.c_int32)),
            n_seq_id.ctypes.data_as(ct.POINTER(ct.c_int32)),
            seq_pointers.ctypes.data_as(ct.POINTER(ct.POINTER(ct.c_int32))),
            flags.ctypes.data_as(ct.POINTER(ct.c_int8)),
        )
        self.watch.start()
        with captured_log() as log:
            code = llama_cpp.llama_decode(self._context, batch)
            llama_cpp.llama_synchronize(self._context)
        self.watch.raise_if_failed()
        if code != 0:
            raise EngineError(f"llama_decode returned {code}", where=self.engine.path, found=last_error(log))
        n_rows = int(flags.sum())
        if outputs is Outputs.NOTHING or n_rows == 0:
            return np.empty((0, 0), np.float32)
        if outputs is Outputs.HIDDEN:
            return self.watch.taken(n_rows, self.engine.facts.n_embd, self.engine.path)
        logits = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(n_rows, self.engine.facts.n_vocab))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llama_cpp.llama_free(self._context)


def last_error(log: list[str]) -> str:
    """The last line of a log that speaks of an error, else the last that says something."""
    lines = [line.strip() for line in "".join(log).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return (telling or lines or ["nothing in llama.cpp's log"])[-1]


def runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Stretches of true entries in the rows of a mask: row, first, one after the last."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    begins, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    for (chunk, low), (_, high) in zip(begins, ends, strict=True):
        yield int(chunk), int(low), int(high)
