"""Steps that make files: sources, importance matrices, candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from bitloss.engine.base import chunks_of_text
from bitloss.progress import ProgressCallback
from bitloss.run.steps.common import StepModel, engine_options, rounding
from bitloss.spec import EngineSpec


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

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {
            "model": self.model_sha256,
            "types": list(self.types),
            "name": self.name or self.model.name,
            "allow_overflow": self.allow_overflow,
            "proof": self.proof,
        }

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.convert.convert.convert` and `bitloss.run.converter.convert_by`."""
        from bitloss.convert.convert import ConvertOptions, SourceType, convert
        from bitloss.run.converter import Converter, convert_by
        from bitloss.run.proof import prove

        options = ConvertOptions(
            name=self.name, allow_overflow=self.allow_overflow, prover=prove if self.proof else None
        )
        if self.converter is not None:
            other = Converter(self.converter, self.converter_python)
            types = [SourceType(t) for t in self.types]
            told: dict[str, JsonValue] = convert_by(other, self.model, types, self.out, options).model_dump(
                mode="json"
            )
            return told
        done = convert(self.model, [SourceType(t) for t in self.types], self.out, options, progress=progress)
        record: dict[str, JsonValue] = done.model_dump(mode="json")
        return record


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
    threads: int = 0

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
        from bitloss.quantize.quantize import How, QuantizeSpec, quantize

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
        )
        return quantize(spec, progress, How(threads=self.threads)).as_json()
