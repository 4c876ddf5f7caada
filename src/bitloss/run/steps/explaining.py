"""Steps that look into files and need no engine: the audit of a model, the blocks of crossed files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from bitloss.progress import ProgressCallback
from bitloss.run.steps.common import StepModel
from bitloss.store import atomic_write_text


class AuditStep(StepModel):
    """Model (folder or GGUF) -> what its weights would lose, counted."""

    kind: Literal["audit"] = "audit"
    model: Path
    model_sha256: str
    formats: tuple[str, ...] = ("Q8_0",)
    threads: int = 0

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {"model": self.model_sha256, "name": self.model.name, "formats": list(self.formats)}

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.explain.audit.audit`; the result is left at ``out`` alone, it may be large."""
        from bitloss.explain.audit import audit

        found = audit(self.model, formats=self.formats, threads=self.threads, progress=progress)
        atomic_write_text(self.out, found.model_dump_json() + "\n")
        return {"verdict": found.matrices.f16.verdict, "tensors": len(found.tensors)}


class BlocksStep(StepModel):
    """Four crossed files of one type -> which blocks differ, through weights or importance matrix."""

    kind: Literal["blocks"] = "blocks"
    files: tuple[Path, Path, Path, Path]
    tensors_sha256: tuple[str, str, str, str]

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {"files": list(self.tensors_sha256), "apart": "values that are in no blocks"}

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.explain.crossed.compare_blocks`."""
        from bitloss.explain.crossed import Files, compare_blocks

        first: dict[str, Path] = {}
        for path, tensors in zip(self.files, self.tensors_sha256, strict=True):
            first.setdefault(tensors, path)  # files with equal tensors are read once
        found = compare_blocks(Files(*(first[tensors] for tensors in self.tensors_sha256)), progress)
        told: dict[str, JsonValue] = {
            "blocks": found.blocks.model_dump(mode="json"),
            "values": found.values.model_dump(mode="json"),
            "tensors": [each.model_dump(mode="json") for each in found.tensors],
        }
        atomic_write_text(self.out, json.dumps(told) + "\n")
        return told
