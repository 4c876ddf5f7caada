"""Steps that evaluate: the base, and candidates measured against it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from bitloss.errors import BaseError, FileProblem, MismatchError, UnsupportedError
from bitloss.model.text import Chunks
from bitloss.progress import ProgressCallback
from bitloss.run.steps.common import StepModel, engine_options, rounding
from bitloss.run.steps.texts import EvaluationTexts
from bitloss.spec import EngineSpec

if TYPE_CHECKING:
    from bitloss.divergence.basefile import Base
    from bitloss.divergence.kldfile import KldFile

_NOT_TO_BE_MENDED = (BaseError, FileProblem, MismatchError)


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


class Repair(StrEnum):
    """What to do about a base that is there already."""

    NEVER = "never"
    """Make all of it again."""
    IF_SAME = "if-same"
    """Keep what is whole of it where it was made from the same with the same arithmetic, else make it again."""
    ONLY = "only"
    """Keep what is whole of it, or fail."""


class BaseStep(StepModel):
    """Base model + evaluation texts -> hidden states.

    With a part, the folder holds those chunks in their order; the result tells of the whole text (its ``n_chunks`` and
    ``tokens_sha256``).
    """

    kind: Literal["base"] = "base"
    source: Path
    source_sha256: str
    texts: EvaluationTexts
    part: Part | None = None
    repair: Repair = Repair.NEVER
    kld: Path | None = None
    """File for llama-perplexity that will be made of it: there must be room for it too."""
    engine: EngineSpec

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {
            "source": self.source_sha256,
            **self.texts.identity(),
            "engine": rounding(self.engine),
            **(self.part.identity() if self.part else {}),
        }

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.divergence.basewrite`: `write_base`, `repair_base`."""
        from bitloss.divergence.basefile import read_header
        from bitloss.divergence.basewrite import repair_base, write_base
        from bitloss.divergence.kldfile import kld_bytes
        from bitloss.engine.llama import LlamaEngine
        from bitloss.engine.texts import pooled

        mended: list[str] | None = None
        with LlamaEngine(self.source, engine_options(self.engine)) as engine:
            # the header will need it; libllama makes tokens of the text on one core
            threading.Thread(target=engine.file.tensors_sha256, daemon=True).start()
            cut = self.texts.cut(engine)
            chunks = pooled(cut)
            self._refuse_mask_in_parts(chunks)
            mine = chunks.pick(self.part.of(chunks.n_chunks)) if self.part else chunks
            if self.repair is not Repair.NEVER:
                with contextlib.suppress(*(() if self.repair is Repair.ONLY else _NOT_TO_BE_MENDED)):
                    mended = repair_base(engine, mine, self.out, progress)
            if mended is None:
                size = kld_bytes(mine.n_ctx, engine.facts.n_vocab, mine.n_chunks)
                also = [] if self.kld is None else [(self.kld, size)]
                text = self.texts.source(cut)
                write_base(engine, mine, text=text, out=self.out, also=also, progress=progress)
        header = read_header(self.out)
        told = header.model_copy(update={"n_chunks": chunks.n_chunks, "tokens_sha256": chunks.sha256})
        return {**told.model_dump(mode="json"), "repaired": list(mended or ())}

    def _refuse_mask_in_parts(self, chunks: Chunks) -> None:
        if self.part is not None and chunks.scored is not None:
            raise UnsupportedError(
                "stopping by a rule needs chunks of one length",
                where="--stop-when with --documents or --chat-template",
                mend="measure the whole text",
            )


class KldStep(StepModel):
    """Base -> file of log-probabilities as llama-perplexity reads it (``.kld``)."""

    kind: Literal["kld"] = "kld"
    base: Path
    base_key: str
    threads: int = 0

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {"base": self.base_key}

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.divergence.kldfile.write_kld`."""
        from bitloss.divergence.basefile import Base
        from bitloss.divergence.kldfile import write_kld

        base = Base(self.base, threads=self.threads)
        return {"bytes": write_kld(self.out, base, progress)}


class MeasureStep(StepModel):
    """Candidate GGUF against a base (folder, or ``.kld`` file), or some of its chunks -> per-token metrics."""

    kind: Literal["measure"] = "measure"
    candidate: Path
    candidate_tensors_sha256: str
    base: Path
    base_model: Path | None = None
    base_key: str
    part: Part | None = None
    engine: EngineSpec

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
        return _measure([self], progress)[0]


class MeasureTogetherStep(BaseModel):
    """Several `MeasureStep`s against one base in one pass: base logits are made once for all.

    It is never looked up itself: each of its steps is, and is kept as if it had been done alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["measure-together"] = "measure-together"
    steps: tuple[MeasureStep, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_base(self) -> Self:
        shared = {(s.base, s.base_model, s.base_key, s.part, s.engine) for s in self.steps}
        if len(shared) > 1:
            raise ValueError("steps of one pass have one base, one part of it and the same engine settings")
        return self

    @property
    def outs(self) -> tuple[Path, ...]:
        """What it leaves."""
        return tuple(step.out for step in self.steps)

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {"steps": [step.identity() for step in self.steps]}

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """Results of the steps, in order, each with the ``seconds`` that were spent on it."""
        return list(_measure(self.steps, progress))


def _measure(steps: Sequence[MeasureStep], progress: ProgressCallback) -> list[dict[str, JsonValue]]:
    """Measure candidates side by side; they have the base, its part and the engine's settings in common."""
    from bitloss.divergence.kldfile import KldFile
    from bitloss.divergence.measure import measure_together, write_tokens
    from bitloss.engine.ggml import ggml
    from bitloss.engine.llama import LlamaEngine, usable_cores

    first = steps[0]
    threads = first.engine.threads or usable_cores()
    with contextlib.ExitStack() as stack:
        # hashed and checked on one core while libllama reads models on another
        beside = stack.enter_context(ThreadPoolExecutor(1))
        ggml()  # which both will need
        opening = None if first.base.is_file() else beside.submit(_opened_base, steps, threads)
        engines = [
            stack.enter_context(LlamaEngine(step.candidate, engine_options(step.engine))) for step in steps
        ]
        base: Base | KldFile
        if opening is None:
            facts = engines[0].facts
            base = KldFile(first.base, bos=facts.bos if facts.add_bos else None)
        else:
            base = opening.result()
        which = first.part.of(base.chunks.n_chunks) if first.part else None
        measured = measure_together(engines, base, which=which, threads=threads, progress=progress)
    results: list[dict[str, JsonValue]] = []
    for step, each in zip(steps, measured, strict=True):
        names = {
            "candidate": step.candidate.name,
            "tensors_sha256": step.candidate_tensors_sha256,
            "base": step.base_key,
        }
        write_tokens(each.table, step.out, names)
        results.append(
            {
                "tokens": len(each.table),
                "chunks": base.chunks.n_chunks,
                "add_bos": base.chunks.add_bos,
                "tokens_sha256": base.chunks.sha256,
                "targets_cut": base.targets_cut if isinstance(base, KldFile) else 0,
                "seconds": each.seconds,
            }
        )
    return results


def _opened_base(steps: Sequence[MeasureStep], threads: int) -> Base:
    """Open the base and refuse candidates of another vocabulary."""
    from bitloss.divergence.basefile import Base, check_vocabulary

    base = Base(steps[0].base, model=steps[0].base_model, threads=threads)
    for step in steps:
        check_vocabulary(base, step.candidate)
    return base
