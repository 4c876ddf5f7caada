"""llama.cpp as the engine, through llama-cpp-python's low-level API.

Logits come from ``llama_get_logits``. Hidden states are read with an eval callback at the
graph node ``result_norm``, the final norm's output for just the rows asked for (what ``output.weight`` is applied
to); the graph is stopped there, so a base or an importance matrix does not pay for the product with the vocabulary.

On a CPU, logits are made from hidden states as well where that gives the same bits sooner (`bitloss.engine.remade`).

Chunks are computed one micro-batch at a time (as many side by side as fit into a batch), so memory is O(micro-batch x
vocabulary) and does not grow with n_ctx beyond the KV cache.

Source: include/llama.h; tools/perplexity/perplexity.cpp (how chunks are fed); tools/imatrix/imatrix.cpp (which inputs
are collected).
"""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from bitloss.engine.base import (
    EngineFacts,
    EngineOptions,
    Observer,
    Outputs,
    Rows,
    SplitMode,
    TokenRole,
)
from bitloss.engine.context import Context, last_error, runs, usable_cores
from bitloss.engine.ggml import ggml
from bitloss.engine.limits import check_limits
from bitloss.engine.llama_log import captured_log
from bitloss.engine.output_layer import OutputLayer, rows_per_slice
from bitloss.engine.remade import remaking_layer
from bitloss.engine.tokenized import WORTH_KEEPING, remembered, vocabulary_key
from bitloss.engine.watch import GraphWatch
from bitloss.errors import EngineError, FileProblem, UnsupportedError, UsageError
from bitloss.model.gguf_split import open_model
from bitloss.model.source import refuse_matrix
from bitloss.model.text import scored_positions

__all__ = ["LlamaEngine", "build_flags", "engine_version", "usable_cores"]

_SPLIT = {SplitMode.NONE: 0, SplitMode.LAYER: 1, SplitMode.ROW: 2}


def engine_version() -> str:
    """Version of the installed package and commit of its llama.cpp, as ``0.3.36 (0c1e570)``."""
    commit = ggml().ggml_commit().decode().removesuffix("-dirty")
    return f"{llama_cpp.__version__} ({commit})"


def build_flags() -> str:
    """What the installed llama.cpp was built for, in its own words (instruction sets, backends)."""
    return " ".join(llama_cpp.llama_print_system_info().decode().split())


class LlamaEngine:
    """One GGUF file loaded by llama.cpp.

    Args:
        path: the GGUF file.
        options: how to run it.
        vocab_only: load the vocabulary alone (enough for `tokenize` and `facts`, no weights).

    Attributes:
        path, options: as given.
        file: its header and tensors, read by us.

    Raises:
        FileProblem: no such file, or a part of it is missing.
        UsageError: a later part of a split model, or an importance matrix.
        EngineError: llama.cpp could not load it; the last lines of its log are in the message.
        EngineLayoutError: the installed ggml is not the one this code was written for.
    """

    def __init__(self, path: Path, options: EngineOptions | None = None, *, vocab_only: bool = False) -> None:
        if not path.is_file():
            raise FileProblem("no such file", where=path)
        self.path = path
        self.options = options or EngineOptions()
        self.handle: Any = None
        self._vocabulary_key: bytes | None = None
        self._layer: OutputLayer | None = None
        self._layer_sought = False
        ggml()  # checks the struct layout before anything relies on it
        self.file = open_model(path)
        refuse_matrix(self.file)
        check_limits(self.file)  # hyperparameters on which libllama aborts the process
        self.handle = self._load(vocab_only)
        self._vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self._facts = self._read_facts()

    def _load(self, vocab_only: bool) -> Any:
        with captured_log() as log:
            llama_cpp.llama_backend_init()
            params = llama_cpp.llama_model_default_params()
            params.vocab_only = vocab_only
            params.n_gpu_layers = self.options.n_gpu_layers
            params.split_mode = _SPLIT[self.options.split_mode]
            if self.options.tensor_split:
                devices = llama_cpp.llama_max_devices()
                if len(self.options.tensor_split) > devices:
                    raise UsageError(
                        "more shares than devices",
                        where="--tensor-split",
                        expected=f"at most {devices}",
                        found=len(self.options.tensor_split),
                    )
                shares = (ct.c_float * devices)(*self.options.tensor_split)
                params.tensor_split = shares
            model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if not model:
            raise EngineError("llama.cpp could not load the model", where=self.path, found=last_error(log))
        return model

    def _read_facts(self) -> EngineFacts:
        model, vocab = self.handle, self._vocab
        architecture = self._meta("general.architecture") or "unknown"
        return EngineFacts(
            architecture=architecture,
            n_vocab=llama_cpp.llama_vocab_n_tokens(vocab),
            # with the vocabulary alone libllama reads no hyperparameters, but the metadata is there
            n_embd=llama_cpp.llama_model_n_embd(model) or self._number(f"{architecture}.embedding_length"),
            n_layer=llama_cpp.llama_model_n_layer(model) or self._number(f"{architecture}.block_count"),
            n_ctx_train=llama_cpp.llama_model_n_ctx_train(model)
            or self._number(f"{architecture}.context_length"),
            n_expert=self._number(f"{architecture}.expert_count"),
            bos=llama_cpp.llama_vocab_bos(vocab),
            add_bos=bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
            add_eos=bool(llama_cpp.llama_vocab_get_add_eos(vocab)),
        )

    def _meta(self, key: str) -> str | None:
        buffer = ct.create_string_buffer(512)
        length = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return None if length < 0 else buffer.value.decode("utf-8", "replace")

    def _number(self, key: str) -> int:
        return int(self._meta(key) or 0)

    @property
    def facts(self) -> EngineFacts:
        """What the engine knows of its model."""
        return self._facts

    @property
    def version(self) -> str:
        """Version and commit of the llama.cpp that computes."""
        return engine_version()

    def tokenize(self, text: str, *, rendered: bool = False) -> NDArray[np.int32]:
        """See `bitloss.engine.base.Engine.tokenize` (``add_special`` and ``parse_special`` of llama.cpp)."""
        data = text.encode("utf-8")
        if len(data) < WORTH_KEEPING:
            return self._tokenize(data, rendered)
        if self._vocabulary_key is None:
            self._vocabulary_key = vocabulary_key(self.file)
        return remembered((self._vocabulary_key, rendered), data, lambda: self._tokenize(data, rendered))

    def _tokenize(self, data: bytes, rendered: bool) -> NDArray[np.int32]:
        room = len(data) + 16  # a token is never shorter than a byte, but for the special ones added around
        while True:
            tokens = np.empty(room, np.int32)
            pointer = tokens.ctypes.data_as(ct.POINTER(ct.c_int32))
            count = llama_cpp.llama_tokenize(
                self._vocab, data, len(data), pointer, room, not rendered, rendered
            )
            if count >= 0:
                return tokens[:count].copy()
            room = -count

    def token_text(self, token: int) -> bytes:
        """The bytes a token stands for (special tokens as they are spelled)."""
        room = 64
        while True:
            buffer = ct.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def token_role(self, token: int) -> TokenRole:
        """See `bitloss.engine.base.Engine.token_role`."""
        if llama_cpp.llama_vocab_is_eog(self._vocab, token):
            return TokenRole.END
        return TokenRole.CONTROL if llama_cpp.llama_vocab_is_control(self._vocab, token) else TokenRole.TEXT

    def evaluate(
        self,
        chunks: NDArray[np.int32],
        outputs: Outputs,
        observer: Observer | None = None,
        *,
        scored: NDArray[np.bool_] | None = None,
    ) -> Generator[Rows, None, None]:
        """See `bitloss.engine.base.Engine.evaluate`."""
        n_ctx = self._check_chunks(chunks)
        layer = self._layer_for(chunks) if outputs is Outputs.LOGITS and observer is None else None
        computed = outputs if layer is None else Outputs.HIDDEN
        watch = GraphWatch(hidden=computed is not Outputs.LOGITS, observer=observer)
        side_by_side = min(self.options.side_by_side(n_ctx), len(chunks))
        with Context(self, n_ctx=n_ctx, n_seq=side_by_side, watch=watch) as context:
            for first in range(0, len(chunks), side_by_side):
                group = slice(first, first + side_by_side)
                context.clear()
                for rows in self._group(
                    context, chunks[group], first, None if scored is None else scored[group], computed
                ):
                    if outputs is Outputs.LOGITS:
                        yield from self._sliced(rows, layer)
                    else:
                        yield rows

    def _width(self, n_ctx: int) -> int:
        """Tokens of a chunk in a micro-batch: the same for every group, so that no row's rounding depends on others."""
        return self.options.micro_batch // self.options.side_by_side(n_ctx)

    def _layer_for(self, chunks: NDArray[np.int32]) -> OutputLayer | None:
        if self._width(chunks.shape[1]) < 2:
            return None  # a row alone goes through another kernel of libggml, which rounds differently
        if not self._layer_sought and len(chunks):
            self._layer = remaking_layer(self, chunks[0])
            self._layer_sought = True
        return self._layer

    def _sliced(self, rows: Rows, layer: OutputLayer | None) -> Iterator[Rows]:
        """Logits of rows (with a layer: of hidden states), cut alike with and without a layer."""
        step = rows_per_slice(self._facts.n_vocab)
        for at in range(0, len(rows.values), step):
            values = rows.values[at : at + step]
            yield Rows(rows.chunk, rows.start + at, values if layer is None else layer.logits(values))

    def _group(
        self,
        context: Context,
        group: NDArray[np.int32],
        first: int,
        scored: NDArray[np.bool_] | None,
        outputs: Outputs,
    ) -> Iterator[Rows]:
        """Compute chunks side by side, [chunks, n_ctx]."""
        width = self._width(context.n_ctx)
        if scored is not None and outputs is not Outputs.NOTHING:
            yield from self._masked(context, group, first, scored, outputs, width)
            return
        for begin in range(0, context.n_ctx, width):
            yield from self._micro_batch(context, group[:, begin : begin + width], first, begin, outputs)

    def _micro_batch(
        self, context: Context, tokens: NDArray[np.int32], first: int, begin: int, outputs: Outputs
    ) -> Iterator[Rows]:
        """Compute [chunks side by side, width] tokens at positions begin.."""
        n_chunks, width = tokens.shape
        scored = scored_positions(context.n_ctx)
        low, high = max(scored.start, begin) - begin, min(scored.stop, begin + width) - begin
        wanted = np.zeros(tokens.shape, np.int8)
        if outputs is Outputs.NOTHING:
            wanted[:] = 1  # else the last layer's feed-forward would see only the scored rows
            low, high = 0, width
        elif high > low:
            if n_chunks == 1 and high - low == 1 and width > 1:
                # ggml multiplies a single row with another kernel, which rounds differently: never ask for just one
                low, spare = (low - 1, 1) if low > 0 else (low, 0)
                high += 1 - spare
                wanted[:, low:high] = 1
                rows = context.decode(tokens, begin, wanted, outputs)
                yield Rows(first, begin + low + spare, rows[spare : spare + 1])
                return
            wanted[:, low:high] = 1
        rows = context.decode(tokens, begin, wanted, outputs)
        if outputs is Outputs.NOTHING:
            yield Rows(first + n_chunks - 1, begin, rows)  # a sign of progress
            return
        if high <= low:
            return
        per_chunk = high - low
        for i in range(n_chunks):
            yield Rows(first + i, begin + low, rows[i * per_chunk : (i + 1) * per_chunk])

    def _masked(
        self,
        context: Context,
        group: NDArray[np.int32],
        first: int,
        scored: NDArray[np.bool_],
        outputs: Outputs,
        width: int,
    ) -> Iterator[Rows]:
        """Compute chunks side by side, as far as something is scored; both arrays [chunks side by side, n_ctx]."""
        for begin in range(0, int(np.flatnonzero(scored.any(axis=0))[-1]) + 1, width):
            tokens, mask = group[:, begin : begin + width], scored[:, begin : begin + width]
            wanted = mask.astype(np.int8)
            spare = -1
            if mask.sum() == 1 and mask.size > 1:
                # as in `_micro_batch`: never a single row; its neighbour is asked for as well and thrown away
                spare = int(np.flatnonzero(~mask)[0])
                wanted.reshape(-1)[spare] = 1
            rows = context.decode(tokens, begin, wanted, outputs)
            at = int(0 <= spare < int(np.argmax(mask)))
            for chunk, low, high in runs(mask):
                yield Rows(first + chunk, begin + low, rows[at : at + high - low])
                at += high - low

    def hidden_and_logits(self, chunk: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both for the scored positions of one chunk's first micro-batch that has any, computed in one graph.

        This is the witness for logits made again from hidden states.

        Returns:
            hidden float32 [rows, n_embd] and logits float32 [rows, n_vocab], copies.

        Raises:
            UnsupportedError: the graph has no node ``result_norm``.
        """
        self._check_chunks(chunk[None])
        micro, n_ctx = self.options.micro_batch, len(chunk)
        watch = GraphWatch(hidden=True, observer=None, stop=False)
        with Context(self, n_ctx=n_ctx, n_seq=1, watch=watch) as context:
            context.clear()
            start = scored_positions(n_ctx).start
            for begin in range(0, n_ctx, micro):
                tokens = chunk[None, begin : begin + micro]
                wanted = np.zeros(tokens.shape, np.int8)
                wanted[0, max(start - begin, 0) :] = 1
                logits = context.decode(tokens, begin, wanted, Outputs.LOGITS)
                if wanted.sum() >= 2:
                    hidden = watch.taken(len(logits), self._facts.n_embd, self.path)
                    return hidden.copy(), logits.copy()
        raise UsageError("chunk too short to check", where="--ctx", expected="at least 8 tokens", found=n_ctx)

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits of every position of a short text, computed at once.

        Args:
            tokens: int32 [n], at most a micro-batch and what the model was made for.

        Returns:
            float32 [n, n_vocab], a copy.
        """
        self._check_tokens(tokens[None])
        watch = GraphWatch(hidden=False, observer=None)
        with Context(self, n_ctx=len(tokens), n_seq=1, watch=watch) as context:
            context.clear()
            return context.decode(tokens[None], 0, np.ones((1, len(tokens)), np.int8), Outputs.LOGITS).copy()

    def _check_chunks(self, chunks: NDArray[np.int32]) -> int:
        if self._facts.add_eos:
            raise UnsupportedError(
                "the vocabulary adds EOS after every text, which llama-perplexity refuses as well",
                where=self.path,
            )
        return self._check_tokens(chunks)

    def _check_tokens(self, chunks: NDArray[np.int32]) -> int:
        n_ctx = int(chunks.shape[1])
        if n_ctx > self._facts.n_ctx_train:
            raise UsageError(
                "context longer than the model was made for",
                where=f"--ctx with {self.path.name}",
                expected=f"at most {self._facts.n_ctx_train}",
                found=n_ctx,
            )
        if chunks.size and (chunks.min() < 0 or chunks.max() >= self._facts.n_vocab):
            raise UsageError(
                "token id outside the vocabulary",
                where=self.path.name,
                expected=f"0..{self._facts.n_vocab - 1}",
                found=int(chunks.max()),
            )
        return n_ctx

    def close(self) -> None:
        """Free the model."""
        if self._layer is not None:
            self._layer.close()
            self._layer = None
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
