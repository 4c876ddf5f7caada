"""Finished GGUF files that are given to be measured: opened, and what results say of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitloss.errors import FileProblem, UsageError
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import absolute, open_model, whole_stem
from bitloss.model.source import model_sha256, refuse_matrix
from bitloss.quantize.types import type_of_file
from bitloss.run.results import MeasuredFile


def opened(candidates: Sequence[Path]) -> dict[Path, GgufFile]:
    """Open files, by their absolute paths and in their order.

    Raises:
        FileProblem, GgufError: one is missing or damaged.
        UsageError: two have one name, or one is an importance matrix.
    """
    files: dict[Path, GgufFile] = {}
    names: dict[str, Path] = {}
    for candidate in candidates:
        if not candidate.is_file():
            raise FileProblem("no such candidate", where=candidate, mend="give GGUF files")
        path = absolute(candidate)
        if names.setdefault(whole_stem(path), path) != path:
            raise UsageError(
                "two candidates have the same file name",
                where=candidate,
                mend="rename one, the table needs names",
            )
        files[path] = open_model(path)
        refuse_matrix(files[path])
    return files


def measured_file(path: Path, file: GgufFile, tokens: Path) -> MeasuredFile:
    """Describe a file whose per-token results are there; of what it was made is not known."""
    return MeasuredFile(
        name=whole_stem(path),
        type=type_of_file(file),
        weights_from=None,
        imatrix_from=None,
        file=path.name,
        bytes=file.size,
        bits_per_weight=file.bits_per_weight(),
        sha256=model_sha256(path),
        tensors_sha256=file.tensors_sha256(),
        tokens=tokens,
    )
