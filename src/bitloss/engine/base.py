"""What bitloss asks of an engine.

An engine holds one model. It turns text into tokens, and fixed-length chunks of tokens into rows: the logits, or the
final normed hidden states, of the positions that are scored. While it computes, an observer may look at the inputs of
the weight matrices; that is how importance matrices are made.

Implementations: ``engine.llama.LlamaEngine`` (llama.cpp) and ``engine.fake.FakeEngine`` (NumPy, for tests).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from bitloss.errors import UsageError
from bitloss.model.text import Chunks, cut_chunks, read_text

_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
_INT_MAX = 2**31 - 1  # llama.cpp takes int32; a larger number would be cut without a word


class FlashAttention(StrEnum):
    """``--flash-attn`` of llama.cpp."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class SplitMode(StrEnum):
    """``--split-mode`` of llama.cpp: how a model is spread over several GPUs."""

    NONE = "none"
    LAYER = "layer"
    ROW = "row"


class Outputs(StrEnum):
    """What `Engine.evaluate` yields."""

    LOGITS = "logits"
    HIDDEN = "hidden"
    NOTHING = "nothing"  # every position is computed up to the last norm; only the observer sees anything


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Settings of a run of the engine, under llama.cpp's names.

    Attributes:
        n_gpu_layers: layers kept on the GPU (``-ngl``).
        flash_attn: ``-fa``.
        split_mode: ``-sm``.
        tensor_split: share of the model for each GPU (``-ts``).
        threads: CPU threads (``-t``); 0 takes the cores this process may use.
        batch: tokens handed over at a time (``-b``).
        ubatch: tokens computed at a time (``-ub``); memory for logits grows with it. Lowered to ``batch``.
        cache_f32: keep keys and values in F32 instead of llama.cpp's default F16 (``-ctk f32 -ctv f32``).
    """

    n_gpu_layers: int = 0
    flash_attn: FlashAttention = FlashAttention.AUTO
    split_mode: SplitMode = SplitMode.LAYER
    tensor_split: tuple[float, ...] = ()
    threads: int = 0
    batch: int = 2048
    ubatch: int = 512
    cache_f32: bool = False

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--gpu-layers", self.n_gpu_layers, -1, _INT_MAX),
            ("--threads", self.threads, 0, 512),  # GGML_MAX_N_THREADS; ggml aborts beyond
            ("--batch-size", self.batch, 2, _INT_MAX),
            ("--ubatch-size", self.ubatch, 2, _INT_MAX),
        ):
            if not least <= value <= most:
                raise UsageError("value out of range", where=name, expected=f"{least}..{most}", found=value)

    @property
    def micro_batch(self) -> int:
        """Tokens computed at a time."""
        return min(self.batch, self.ubatch)

    def side_by_side(self, n_ctx: int) -> int:
        """Chunks computed side by side, as llama-perplexity feeds them.

        A micro-batch then holds a stretch of each, and the stretches before the scored half skip the last layer's
        feed-forward and most of the attention.
        """
        return max(1, min(self.batch // n_ctx, _MAX_SEQUENCES, self.micro_batch))


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine knows of its model.

    Attributes:
        architecture: ``general.architecture`` of the GGUF.
        n_vocab: entries of the vocabulary.
        n_embd: width of the hidden state.
        n_layer: number of layers.
        n_ctx_train: longest context the model was made for.
        n_expert: experts per layer, 0 for a dense model.
        bos: token id of BOS, -1 if there is none.
        add_bos: whether the vocabulary asks for BOS before a text.
        add_eos: whether the vocabulary asks for EOS after a text.
    """

    architecture: str
    n_vocab: int
    n_embd: int
    n_layer: int
    n_ctx_train: int
    n_expert: int
    bos: int
    add_bos: bool
    add_eos: bool


class TokenRole(StrEnum):
    """What a token is for."""

    TEXT = "text"
    CONTROL = "control"
    END = "end"  # a control token that ends a generation


class Rows(NamedTuple):
    """Results of consecutive scored positions of one chunk.

    Attributes:
        chunk: index of the chunk within those handed to `Engine.evaluate`.
        start: position of the first row in the chunk.
        values: float32 [rows, n_vocab] logits or [rows, n_embd] hidden states. Valid until the next rows are asked
            for, of this or another evaluation of the same engine.
    """

    chunk: int
    start: int
    values: NDArray[np.float32]


class Observer(Protocol):
    """Looks at the inputs of weight matrices while the engine computes."""

    def wants(self, weight: str) -> bool:
        """Whether the inputs of this weight (GGUF tensor name) are to be shown."""
        ...

    def dense(self, weight: str, x: NDArray[np.float32]) -> None:
        """Inputs of a matrix: float32 [n_mat, rows, n_in] (n_mat is 1 for a plain matrix)."""
        ...

    def experts(self, weight: str, n_expert: int, x: NDArray[np.float32], ids: NDArray[np.int32]) -> None:
        """Inputs of expert matrices: float32 [rows, n_in]; ids int32 [rows] names the expert of each row."""
        ...


class Engine(Protocol):
    """One model, ready to compute."""

    @property
    def facts(self) -> EngineFacts:
        """What the engine knows of its model."""
        ...

    def tokenize(self, text: str, *, rendered: bool = False) -> NDArray[np.int32]:
        """Tokens of a text as llama-perplexity makes them: BOS first if the vocabulary adds it, text taken literally.

        Special tokens spelled out in the text are text; with ``rendered`` (the text is a chat template's) they are
        tokens, and nothing is added.
        """
        ...

    def token_text(self, token: int) -> bytes:
        """The bytes a token stands for (special tokens as they are spelled)."""
        ...

    def token_role(self, token: int) -> TokenRole:
        """Whether a token is text, a control token, or one that ends a generation."""
        ...

    def evaluate(
        self,
        chunks: NDArray[np.int32],
        outputs: Outputs,
        observer: Observer | None = None,
        *,
        scored: NDArray[np.bool_] | None = None,
    ) -> Generator[Rows, None, None]:
        """Compute chunks and yield what was asked for.

        Rows of one chunk come in ascending order of position, none twice and none left out; rows of chunks that are
        computed side by side come in turn. No row of a later group comes before a group is complete.

        Args:
            chunks: int32 [n_chunks, n_ctx] token ids as they are to be computed (BOS already put in).
            outputs: LOGITS and HIDDEN yield rows for the scored positions; NOTHING yields empty rows, as a sign of
                progress.
            observer: sees the inputs of weight matrices for *all* positions computed.
            scored: bool [n_chunks, n_ctx], the scored positions of every chunk; n_ctx/2 .. n_ctx-2 when None. Rows
                that follow one another come together, as far as they are computed together.

        Raises:
            EngineError: the engine failed.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_context(engine: Engine, n_ctx: int) -> None:
    """Refuse chunks longer than the model was made for.

    Raises:
        UsageError: n_ctx is beyond that.
    """
    if n_ctx > engine.facts.n_ctx_train:
        raise UsageError(
            "context longer than the model was made for",
            where="--ctx",
            expected=f"at most {engine.facts.n_ctx_train}",
            found=n_ctx,
        )


def chunks_of_text(engine: Engine, path: Path, *, n_ctx: int, n_chunks: int | None) -> Chunks:
    """Read, tokenize and cut a text with the engine's vocabulary.

    Raises:
        UsageError: n_ctx is beyond what the model was made for.
        TextError: the text is too short for two chunks.
        FileProblem, FormatError: the text cannot be read.
    """
    check_context(engine, n_ctx)
    facts = engine.facts
    return cut_chunks(
        engine.tokenize(read_text(path)),
        n_ctx=n_ctx,
        n_chunks=n_chunks,
        bos=facts.bos if facts.add_bos else None,
        where=path.name,
    )
