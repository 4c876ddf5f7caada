"""The steps an experiment is made of.

A step is a small pydantic model: what to do, in absolute paths and settings, nothing else. It is what crosses to the
child process that runs it (`bitloss.run.child`), and `identity` is what its content key is made of: hashes of contents
and settings, never paths or times. Running a step gives a JSON-able result.

Heavy imports happen inside `execute`: a parent that only plans stays light.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from bitloss.engine.base import EngineOptions, FlashAttention, SplitMode, chunks_of_text
from bitloss.progress import ProgressCallback
from bitloss.spec import EngineSpec

MEASUREMENT_VERSION = 1
"""Raised whenever a number bitloss computes changes; part of every key, so that old results are not taken for new."""


def engine_options(engine: EngineSpec) -> EngineOptions:
    """Engine settings of an experiment as options of the engine."""
    return EngineOptions(
        n_gpu_layers=engine.n_gpu_layers,
        flash_attn=FlashAttention(engine.flash_attn),
        split_mode=SplitMode(engine.split_mode),
        tensor_split=engine.tensor_split,
        threads=engine.threads,
        batch=engine.batch,
        ubatch=engine.ubatch,
    )


def rounding(engine: EngineSpec) -> dict[str, JsonValue]:
    """The engine settings that can change a bit of a result (threads cannot)."""
    return {
        "n_gpu_layers": engine.n_gpu_layers,
        "flash_attn": engine.flash_attn,
        "split_mode": engine.split_mode,
        "tensor_split": list(engine.tensor_split),
        "batch": engine.batch,
        "ubatch": min(engine.ubatch, engine.batch),
    }


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConvertStep(_Step):
    """HF folder -> source GGUFs and conversion.json."""

    kind: Literal["convert"] = "convert"
    model: Path
    model_sha256: str
    types: tuple[str, ...]
    out: Path
    name: str | None = None

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {"model": self.model_sha256, "types": list(self.types), "name": self.name or self.model.name}

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.convert.convert.convert`."""
        from bitloss.convert.convert import SourceType, convert

        done = convert(
            self.model, [SourceType(t) for t in self.types], self.out, name=self.name, progress=progress
        )
        record: dict[str, JsonValue] = done.model_dump(mode="json")
        return record


class ImatrixStep(_Step):
    """Source GGUF + calibration text -> importance matrix."""

    kind: Literal["imatrix"] = "imatrix"
    source: Path
    source_sha256: str
    text: Path
    text_sha256: str
    n_ctx: int
    chunks: int | None
    engine: EngineSpec
    out: Path

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {
            "source": self.source_sha256,
            "text": self.text_sha256,
            "dataset": self.text.name,
            "n_ctx": self.n_ctx,
            "chunks": self.chunks,
            "engine": rounding(self.engine),
        }

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.imatrix.collect.collect_imatrix`."""
        from bitloss.engine.llama import LlamaEngine
        from bitloss.imatrix.collect import collect_imatrix
        from bitloss.imatrix.file import write_imatrix

        with LlamaEngine(self.source, engine_options(self.engine)) as engine:
            chunks = chunks_of_text(engine, self.text, n_ctx=self.n_ctx, n_chunks=self.chunks)
            imatrix = collect_imatrix(engine, chunks, dataset=self.text.name, progress=progress)
        write_imatrix(imatrix, self.out)
        unseen = sorted(name for name, entry in imatrix.entries.items() if (entry.counts == 0).any())
        return {
            "chunks": chunks.n_chunks,
            "tokens": chunks.n_chunks * chunks.n_ctx,
            "entries": len(imatrix.entries),
            "unseen_experts": list(unseen),
        }


class QuantizeStep(_Step):
    """Source GGUF (+ importance matrix) -> candidate GGUF."""

    kind: Literal["quantize"] = "quantize"
    source: Path
    source_sha256: str
    type: str
    imatrix: Path | None
    imatrix_sha256: str | None
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    allow_requantize: bool = False
    threads: int = 0
    out: Path

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {
            "source": self.source_sha256,
            "type": self.type,
            "imatrix": self.imatrix_sha256,
            "imatrix_name": self.imatrix.name if self.imatrix else None,
            "tensor_types": [list(pair) for pair in self.tensor_types],
            "output_tensor_type": self.output_tensor_type,
            "token_embedding_type": self.token_embedding_type,
            "pure": self.pure,
        }

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.quantize.quantize.quantize`."""
        from bitloss.quantize.quantize import QuantizeSpec, quantize

        spec = QuantizeSpec(
            source=self.source,
            type=self.type,
            imatrix=self.imatrix,
            out=self.out,
            tensor_types=self.tensor_types,
            output_tensor_type=self.output_tensor_type,
            token_embedding_type=self.token_embedding_type,
            pure=self.pure,
            allow_requantize=self.allow_requantize,
            threads=self.threads,
        )
        return quantize(spec, progress).as_json()


class Part(BaseModel):
    """Chunks ``first .. last-1`` of a text in a seeded random order (`bitloss.divergence.stopping.chunk_order`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int = Field(ge=0)
    first: int = Field(ge=0)
    last: int

    @property
    def tag(self) -> str:
        """Name of its files."""
        return f"{self.first:06d}-{self.last:06d}"

    def of(self, n_chunks: int) -> NDArray[np.int64]:
        """Indices of its chunks in a text of that many; fewer at the text's end."""
        from bitloss.divergence.stopping import chunk_order

        return chunk_order(n_chunks, self.seed)[self.first : self.last]

    def identity(self) -> dict[str, JsonValue]:
        """Parts of a step's content key."""
        return {"part": self.model_dump()}


class BaseStep(_Step):
    """Base model + evaluation text -> hidden states.

    With a part, the folder holds those chunks in their order; the result tells of the whole text (its ``n_chunks`` and
    ``tokens_sha256``).
    """

    kind: Literal["base"] = "base"
    source: Path
    source_sha256: str
    text: Path
    text_sha256: str
    n_ctx: int
    chunks: int | None
    part: Part | None = None
    engine: EngineSpec
    out: Path

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {
            "source": self.source_sha256,
            "text": self.text_sha256,
            "n_ctx": self.n_ctx,
            "chunks": self.chunks,
            "engine": rounding(self.engine),
            **(self.part.identity() if self.part else {}),
        }

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.divergence.basefile.write_base`."""
        from bitloss.divergence.basefile import TextSource, write_base
        from bitloss.engine.llama import LlamaEngine

        with LlamaEngine(self.source, engine_options(self.engine)) as engine:
            chunks = chunks_of_text(engine, self.text, n_ctx=self.n_ctx, n_chunks=self.chunks)
            header = write_base(
                engine,
                chunks.pick(self.part.of(chunks.n_chunks)) if self.part else chunks,
                text=TextSource(self.text.name, self.text_sha256),
                out=self.out,
                progress=progress,
            )
        told = header.model_copy(update={"n_chunks": chunks.n_chunks, "tokens_sha256": chunks.sha256})
        return told.model_dump(mode="json")


class KldStep(_Step):
    """Base -> file of log-probabilities as llama-perplexity reads it (``.kld``)."""

    kind: Literal["kld"] = "kld"
    base: Path
    base_key: str
    threads: int = 0
    out: Path

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {"base": self.base_key}

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.divergence.kldfile.write_kld`."""
        from bitloss.divergence.basefile import Base
        from bitloss.divergence.kldfile import write_kld

        base = Base(self.base, threads=self.threads)
        return {"bytes": write_kld(self.out, base, progress)}


class MeasureStep(_Step):
    """Candidate GGUF against a base (folder, or ``.kld`` file), or some of its chunks -> per-token metrics."""

    kind: Literal["measure"] = "measure"
    candidate: Path
    candidate_tensors_sha256: str
    base: Path
    base_model: Path | None = None
    base_key: str
    part: Part | None = None
    engine: EngineSpec
    out: Path

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {
            "candidate": self.candidate_tensors_sha256,
            "base": self.base_key,
            "engine": rounding(self.engine),
            **(self.part.identity() if self.part else {}),
        }

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.divergence.measure.measure`."""
        from bitloss.divergence.basefile import Base, check_vocabulary
        from bitloss.divergence.kldfile import KldFile
        from bitloss.divergence.measure import measure, measure_picked, write_tokens
        from bitloss.engine.llama import LlamaEngine, usable_cores

        threads = self.engine.threads or usable_cores()
        base: Base | KldFile | None = None
        if not self.base.is_file():
            base = Base(self.base, model=self.base_model, threads=threads)
            check_vocabulary(base, self.candidate)
        with LlamaEngine(self.candidate, engine_options(self.engine)) as engine:
            if base is None:
                base = KldFile(self.base, bos=engine.facts.bos if engine.facts.add_bos else None)
            if self.part is None:
                table = measure(engine, base, threads=threads, progress=progress)
            else:
                which = self.part.of(base.chunks.n_chunks)
                table = measure_picked(engine, base, which, threads=threads, progress=progress)
        facts = {
            "candidate": self.candidate.name,
            "tensors_sha256": self.candidate_tensors_sha256,
            "base": self.base_key,
        }
        write_tokens(table, self.out, facts)
        chunks = base.chunks
        return {
            "tokens": len(table),
            "chunks": chunks.n_chunks,
            "add_bos": chunks.add_bos,
            "tokens_sha256": chunks.sha256,
            "targets_cut": base.targets_cut if isinstance(base, KldFile) else 0,
        }


Step = Annotated[
    ConvertStep | ImatrixStep | QuantizeStep | BaseStep | KldStep | MeasureStep,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Step)


def step_from_json(data: str | bytes) -> Step:
    """Read a step that crossed to this process."""
    step: Step = _ADAPTER.validate_json(data)
    return step
