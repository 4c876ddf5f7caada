"""Steps that make files: sources, importance matrices, candidates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from bitloss.engine.base import chunks_of_text
from bitloss.progress import ProgressCallback
from bitloss.run.steps.common import StepModel, engine_options, rounding, told_hashes
from bitloss.spec import EngineSpec

if TYPE_CHECKING:
    from bitloss.convert.convert import Prover
    from bitloss.quantize.request import QuantizeSpec


class ConvertStep(StepModel):
    """HF folder -> source GGUFs and conversion.json."""

    kind: Literal["convert"] = "convert"
    model: Path
    model_sha256: str
    types: tuple[str, ...]
    name: str | None = None
    allow_overflow: bool = False
    proof: bool = True
    converter: Path | None = None
    converter_python: str = "python3"
    split_max_bytes: int | None = None
    replace: bool = True

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {
            "model": self.model_sha256,
            "types": list(self.types),
            "name": self.name or self.model.name,
            "allow_overflow": self.allow_overflow,
            "proof": self.proof,
            **({} if self.split_max_bytes is None else {"split_max_bytes": self.split_max_bytes}),
        }

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.convert.convert.convert` and `bitloss.run.converter.convert_by`."""
        from bitloss.convert.convert import ConvertOptions, SourceType, convert

        prover: Prover | None = None
        if self.proof:  # loads the engine
            from bitloss.run.proof import prove

            prover = prove
        options = ConvertOptions(
            name=self.name,
            allow_overflow=self.allow_overflow,
            prover=prover,
            split_max_bytes=self.split_max_bytes,
            replace=self.replace,
        )
        if self.converter is not None:
            from bitloss.run.converter import Converter, convert_by

            other = Converter(self.converter, self.converter_python)
            types = [SourceType(t) for t in self.types]
            record = convert_by(other, self.model, types, self.out, options, progress)
        else:
            record = convert(
                self.model, [SourceType(t) for t in self.types], self.out, options, progress=progress
            )
        told: dict[str, JsonValue] = record.model_dump(mode="json")
        return told

    def hashes(self, result: JsonValue) -> dict[Path, str]:
        """See `StepModel.hashes`."""
        assert isinstance(result, dict)
        outputs: Any = result["outputs"]
        return {path: sha for made in outputs for path, sha in told_hashes(self.out, made).items()}


class ImatrixStep(StepModel):
    """Source GGUF + calibration text -> importance matrix."""

    kind: Literal["imatrix"] = "imatrix"
    source: Path
    source_sha256: str
    text: Path
    text_sha256: str
    n_ctx: int
    chunks: int | None
    engine: EngineSpec

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
        """See `bitloss.imatrix.collect.collect_halves`; ``halves`` tells how alike those of the text are."""
        import numpy as np

        from bitloss.engine.finite import TOKENS, compute_finite
        from bitloss.engine.llama import LlamaEngine
        from bitloss.errors import EngineError
        from bitloss.imatrix.collect import collect_halves
        from bitloss.imatrix.file import write_imatrix
        from bitloss.imatrix.likeness import likeness

        with LlamaEngine(self.source, engine_options(self.engine)) as engine:
            chunks = chunks_of_text(engine, self.text, n_ctx=self.n_ctx, n_chunks=self.chunks)
            try:
                compute_finite(engine, chunks.as_computed()[0, :TOKENS])
            except EngineError:
                # sums name the tensor, but show nothing of a weight behind the last that is looked at
                together = min(chunks.n_chunks, engine.options.side_by_side(chunks.n_ctx))
                collect_halves(engine, chunks.pick(np.arange(together)), dataset=self.text.name)
                raise
            imatrix, halves = collect_halves(engine, chunks, dataset=self.text.name, progress=progress)
        write_imatrix(imatrix, self.out)
        unseen = sorted(name for name, entry in imatrix.entries.items() if (entry.counts == 0).any())
        return {
            "chunks": chunks.n_chunks,
            "tokens": chunks.n_chunks * chunks.n_ctx,
            "entries": len(imatrix.entries),
            "unseen_experts": list(unseen),
            "halves": likeness(*halves).model_dump(mode="json") if halves else None,
        }


class QuantizeStep(StepModel):
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
    keep_split: bool = False
    split_max_bytes: int | None = None
    encoder: Literal["bitloss", "llama.cpp"] = "bitloss"
    threads: int = 0
    verify: bool = False
    errors: bool = False
    replace: bool = True

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
            "split": [self.keep_split, self.split_max_bytes],
            "encoder": self.encoder,
            "errors": self.errors,
        }

    def spec(self) -> QuantizeSpec:
        """What to make."""
        from bitloss.quantize.quantize import QuantizeSpec

        return QuantizeSpec(
            source=self.source,
            type=self.type,
            out=self.out,
            imatrix=self.imatrix,
            tensor_types=self.tensor_types,
            output_tensor_type=self.output_tensor_type,
            token_embedding_type=self.token_embedding_type,
            pure=self.pure,
            allow_requantize=self.allow_requantize,
            keep_split=self.keep_split,
            split_max_bytes=self.split_max_bytes,
        )

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.quantize.quantize.quantize_all`."""
        return _quantize((self,), progress)[0]

    def hashes(self, result: JsonValue) -> dict[Path, str]:
        """See `StepModel.hashes`."""
        assert isinstance(result, dict)
        return told_hashes(self.out.parent, result)


class QuantizeTogetherStep(BaseModel):
    """Several `QuantizeStep`s of one source in one pass: it is read once, what candidates share is encoded once.

    It is never looked up itself: each of its steps is, and is kept as if it had been done alone. With ``dry_run``
    nothing is written and the results tell what would be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["quantize-together"] = "quantize-together"
    steps: tuple[QuantizeStep, ...] = Field(min_length=1)
    dry_run: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if len({(s.source, s.encoder, s.threads, s.verify, s.errors, s.replace) for s in self.steps}) > 1:
            raise ValueError("steps of one pass have one source and the same way of encoding")
        return self

    @property
    def outs(self) -> tuple[Path, ...]:
        """What it leaves."""
        return tuple(step.out for step in self.steps)

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {"steps": [step.identity() for step in self.steps], "dry_run": self.dry_run}

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """Results of the steps, in order."""
        from bitloss.quantize.quantize import plan_candidates

        if self.dry_run:
            return [one.as_json() for one in plan_candidates([step.spec() for step in self.steps])]
        return list(_quantize(self.steps, progress))


def _quantize(steps: Sequence[QuantizeStep], progress: ProgressCallback) -> list[JsonValue]:
    from bitloss.quantize.quantize import How, quantize_all

    first = steps[0]
    how = How(first.encoder, first.threads, first.verify, first.errors, resume=True, replace=first.replace)
    return [made.as_json() for made in quantize_all([step.spec() for step in steps], progress, how)]
