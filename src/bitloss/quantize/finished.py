"""What is known of the candidates in a folder, so that a repeat does not make them again: quantization.json.

A candidate is found when what it is made of is the same (`content_key_of`, and the source's tensors by their hash) and
its files have the size and the SHA-256 they were written with. Names and times count for nothing. Reading a file takes
a fraction of the time of encoding it; the source is read once for all candidates, and only when there is one to find.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from bitloss.convert.convert import tool_version
from bitloss.engine.llama import engine_version
from bitloss.errors import FileProblem
from bitloss.quantize.onepass import Written
from bitloss.quantize.request import Encoder, TensorError, WrittenFile
from bitloss.store import atomic_write_text, content_key, sha256_file

if TYPE_CHECKING:
    from bitloss.progress import ProgressCallback
    from bitloss.quantize.candidate import Candidate

NAME = "quantization.json"
# Raised whenever the same source, type and importance give other bytes.
ENCODING_VERSION = 1
_MAX_BYTES = 256 << 20


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """A file of a candidate: name in the folder, bytes, SHA-256."""

    name: str
    bytes: int
    sha256: str


class CandidateRecord(_Record):
    """A candidate that was finished.

    Attributes:
        key: hash of what it is made of: header, types, importance, encoder, versions.
        type: name of its file type.
        source_tensors_sha256: `GgufFile.tensors_sha256` of its source.
        files: it, or its parts.
        tensors_sha256: of its own tensors.
        errors: tensor -> (type, rms, rms_weighted), `bitloss.quantize.request.TensorError`; None if not asked for.
        bitloss: version of this tool.
        llama_cpp: version and commit of the engine.
    """

    key: str
    type: str
    source_tensors_sha256: str
    files: tuple[FileRecord, ...]
    tensors_sha256: str
    errors: dict[str, tuple[str, float | None, float | None]] | None
    bitloss: str
    llama_cpp: str


class FolderRecord(_Record):
    """quantization.json: name of the (first) file -> its candidate."""

    candidates: dict[str, CandidateRecord]


def content_key_of(candidate: Candidate, encoder: Encoder) -> str:
    """Name a candidate by what it is made of, the values of the source's tensors left out."""
    digest = hashlib.sha256()
    if candidate.weights is not None:
        for name, values in sorted(candidate.weights.by_tensor.items()):
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(values, "<f4").tobytes())
    return content_key(
        "candidate",
        {
            # names, types, shapes and places of all tensors, and the source's metadata
            "headers": [hashlib.sha256(file.header).hexdigest() for file in candidate.files],
            "importance": None if candidate.weights is None else digest.hexdigest(),
            "encoder": encoder,
            "encoding": ENCODING_VERSION,
            "bitloss": tool_version(),
            "llama_cpp": engine_version(),
        },
    )


def find_finished(
    candidate: Candidate, key: str, progress: ProgressCallback, *, errors: bool
) -> Written | None:
    """Return what is there of a candidate, if it is whole and of the same inputs.

    Args:
        candidate: what shall be made.
        key: its `content_key_of`.
        progress: told while files are hashed.
        errors: its errors must be known.
    """
    record = _read(candidate.files[0].path.parent).get(candidate.files[0].path.name)
    if record is None or (errors and record.errors is None) or not _holds(candidate, record, key, progress):
        return None
    told = {name: TensorError(*each) for name, each in (record.errors or {}).items()}
    files = zip(candidate.files, record.files, strict=True)
    written = tuple(WrittenFile(layout.path, one.bytes, one.sha256) for layout, one in files)
    return Written(written, record.tensors_sha256, told if errors else {})


def refuse_to_replace(candidate: Candidate, key: str | None, progress: ProgressCallback) -> None:
    """Refuse to write a candidate over a file that is not known to be the same one.

    Args:
        candidate: what shall be made.
        key: its `content_key_of`; None where nothing is known of files that are there.
        progress: told while files are hashed.

    Raises:
        FileProblem: a file is there, and is something else.
    """
    there = next((file.path for file in candidate.files if file.path.exists()), None)
    if there is None:
        return
    record = _read(candidate.files[0].path.parent).get(candidate.files[0].path.name)
    if key is None or record is None or not _holds(candidate, record, key, progress):
        raise FileProblem(
            "already there, and not known to be made from these inputs",
            where=there,
            mend="choose another folder with --out, or replace the file with --force",
        )


def _holds(candidate: Candidate, record: CandidateRecord, key: str, progress: ProgressCallback) -> bool:
    """Whether the candidate's files are those of the record, and of the same inputs."""
    pairs = list(zip(candidate.files, record.files, strict=False))
    return (
        record.key == key
        and len(pairs) == len(candidate.files) == len(record.files)
        and all(
            (one.name, one.bytes) == (layout.path.name, layout.size) and _size(layout.path) == one.bytes
            for layout, one in pairs
        )
        and candidate.source.tensors_sha256(progress) == record.source_tensors_sha256
        and all(sha256_file(layout.path, progress) == one.sha256 for layout, one in pairs)
    )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def keep_finished(candidate: Candidate, key: str, written: Written, source: str, *, errors: bool) -> None:
    """Write down a candidate beside its files; `source` is `GgufFile.tensors_sha256` of its source.

    Raises:
        DiskFull, FileProblem: the record cannot be written.
    """
    folder = candidate.files[0].path.parent
    record = CandidateRecord(
        key=key,
        type=candidate.kind.name,
        source_tensors_sha256=source,
        files=tuple(FileRecord(name=f.path.name, bytes=f.bytes, sha256=f.sha256) for f in written.files),
        tensors_sha256=written.tensors_sha256,
        errors={name: (e.type, e.rms, e.rms_weighted) for name, e in written.errors.items()}
        if errors
        else None,
        bitloss=tool_version(),
        llama_cpp=engine_version(),
    )
    known = {name: each for name, each in _read(folder).items() if (folder / name).is_file()}
    whole = FolderRecord(candidates={**known, candidate.files[0].path.name: record})
    atomic_write_text(folder / NAME, whole.model_dump_json(indent=1) + "\n")


def _read(folder: Path) -> dict[str, CandidateRecord]:
    """Return what is written down; nothing where that is missing or damaged, for then all is made again."""
    path = folder / NAME
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        return dict(FolderRecord.model_validate_json(path.read_bytes()).candidates)
    except (OSError, ValidationError):
        return {}
