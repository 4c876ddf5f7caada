"""Importance matrix files: read either format, write GGUF.

GGUF (little-endian, version 3, alignment 32), as llama.cpp's `tools/imatrix` writes it:
    general.type = "imatrix", imatrix.datasets [string], imatrix.chunk_count u32, imatrix.chunk_size u32
    per weight, sorted by name: `<name>.in_sum2` F32 ne [n_in, n_mat] and `<name>.counts` F32 ne [1, n_mat]
    sums of squares and numbers of tokens; n_mat = experts, 1 for a dense tensor (a 3-D one is one row)

Equal to llama-imatrix: the same content gives the same bytes. Different on purpose:
- Only the file name of a dataset is written, never its folder: a published file must not show a local path.
- A damaged file is refused: sums and counts that do not fit each other, values negative or not finite.
  Tensors with other suffixes are skipped, as llama.cpp does.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType

from bitloss.errors import FileProblem, GgufError, ImatrixError, UsageError, unreadable
from bitloss.imatrix.legacy import read_legacy, write_legacy_imatrix
from bitloss.imatrix.matrix import (
    Imatrix,
    ImatrixEntry,
    as_float32,
    checked_entry,
    file_name,
    merge_imatrices,
    quantize_weights,
    sorted_entries,
    with_raw_sums,
)
from bitloss.model.gguf import GgufFile, GgufType, TensorInfo
from bitloss.model.gguf_header import DEFAULT_ALIGNMENT, MAGIC, MAX_NAME_BYTES
from bitloss.store import atomic_write_bytes

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "Imatrix",
    "ImatrixEntry",
    "merge_imatrices",
    "quantize_weights",
    "read_imatrix",
    "with_raw_sums",
    "write_imatrix",
    "write_legacy_imatrix",
]

SUMS = ".in_sum2"
COUNTS = ".counts"
DATASETS_KEY = "imatrix.datasets"
CHUNK_COUNT_KEY = "imatrix.chunk_count"
CHUNK_SIZE_KEY = "imatrix.chunk_size"


def read_imatrix(path: Path) -> Imatrix:
    """Read a GGUF or legacy importance matrix; which one it is is told by its first bytes.

    Raises:
        FileProblem: the file is missing, unreadable or no regular file.
        ImatrixError: the file breaks its format, is a model, or holds negative or non-finite values.
        UnsupportedError: a GGUF version that cannot be read.
    """
    try:
        if not path.is_file():
            raise FileProblem(
                "not a file" if path.exists() else "no such file",
                where=path,
                expected="an importance matrix",
                mend="`bitloss imatrix` makes one",
            )
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                return read_legacy(path, start + file.read())
    except (OSError, ValueError) as error:
        raise unreadable(
            error, where=path, what="importance matrix", mend="`bitloss imatrix` makes one"
        ) from error
    try:
        return _read_gguf(GgufFile.open(path))
    except GgufError as error:
        raise ImatrixError(
            error.what, where=error.where, expected=error.expected, found=error.found, mend=error.mend
        ) from error


def write_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Write a GGUF file, the same bytes as llama-imatrix's for the same content; atomically.

    Raises:
        UsageError: `imatrix` is of the legacy form (see `with_raw_sums`) or empty.
        ImatrixError: a name too long for GGUF, or a value float32 cannot hold.
        DiskFull, FileProblem: the file cannot be written.
    """
    if imatrix.is_legacy:
        raise UsageError(
            "legacy sums cannot be written as GGUF", where=path, mend="convert with with_raw_sums first"
        )
    datasets = [_gguf_string(file_name(text)) for text in imatrix.datasets]
    keys = [
        _gguf_string("general.type") + struct.pack("<I", GgufType.STRING) + _gguf_string("imatrix"),
        _gguf_string(DATASETS_KEY)
        + struct.pack("<IIQ", GgufType.ARRAY, GgufType.STRING, len(datasets))
        + b"".join(datasets),
        _gguf_string(CHUNK_COUNT_KEY) + struct.pack("<II", GgufType.UINT32, imatrix.chunk_count),
        _gguf_string(CHUNK_SIZE_KEY) + struct.pack("<II", GgufType.UINT32, imatrix.chunk_size),
    ]
    infos: list[bytes] = []
    data: list[bytes] = []
    offset = 0
    for name, entry in sorted_entries(imatrix, path):
        for suffix, values in ((SUMS, entry.stored_sums()), (COUNTS, entry.counts[:, np.newaxis])):
            raw = as_float32(f"{path}[{name}]", values).tobytes()
            infos.append(_gguf_tensor(path, name + suffix, values.shape[::-1], offset))
            data.append(raw + bytes(-len(raw) % DEFAULT_ALIGNMENT))
            offset += len(data[-1])
    header = MAGIC + struct.pack("<IQQ", 3, len(infos), len(keys)) + b"".join(keys) + b"".join(infos)
    atomic_write_bytes(path, b"".join([header, bytes(-len(header) % DEFAULT_ALIGNMENT), *data]))


def _read_gguf(file: GgufFile) -> Imatrix:
    kind = file.value("general.type", "imatrix")
    if kind != "imatrix" or ("general.architecture" in file.metadata and DATASETS_KEY not in file.metadata):
        raise ImatrixError(
            "this GGUF file is not an importance matrix",
            where=file.path,
            found=f"general.type {kind!r}",
            mend="give a file that `bitloss imatrix` or llama-imatrix has written",
        )
    for key in (DATASETS_KEY, CHUNK_COUNT_KEY, CHUNK_SIZE_KEY):
        if key not in file.metadata:
            raise ImatrixError("metadata key is missing", where=f"{file.path}[{key}]")
    datasets = file.metadata[DATASETS_KEY]
    if datasets.item_type is not GgufType.STRING:
        raise ImatrixError(
            "wrong value type", where=f"{file.path}[{DATASETS_KEY}]", expected="a list of strings"
        )
    sums = {name.removesuffix(SUMS): info for name, info in file.tensors.items() if name.endswith(SUMS)}
    counts = {name.removesuffix(COUNTS): info for name, info in file.tensors.items() if name.endswith(COUNTS)}
    for name in sorted(sums.keys() ^ counts.keys()):
        raise ImatrixError(f"no {COUNTS if name in sums else SUMS} tensor", where=f"{file.path}[{name}]")
    if not sums:
        raise ImatrixError("no entries", where=file.path, expected=f"tensors NAME{SUMS} and NAME{COUNTS}")
    return Imatrix(
        entries={name: _gguf_entry(file, info, counts[name]) for name, info in sums.items()},
        chunk_count=_u32(file, CHUNK_COUNT_KEY),
        chunk_size=_u32(file, CHUNK_SIZE_KEY),
        datasets=tuple(datasets.value),
    )


def _u32(file: GgufFile, key: str) -> int:
    found = file.metadata[key]
    # llama.cpp aborts the process on another type.
    if found.value_type is not GgufType.UINT32:
        raise ImatrixError(
            "wrong value type", where=f"{file.path}[{key}]", expected="UINT32", found=found.value_type.name
        )
    return int(found.value)


def _gguf_entry(file: GgufFile, sums: TensorInfo, counts: TensorInfo) -> ImatrixEntry:
    for info in (sums, counts):
        if info.ggml_type != GGMLQuantizationType.F32:
            raise ImatrixError(
                "wrong type", where=f"{file.path}[{info.name}]", expected="F32", found=info.type_name
            )
    n_in, n_mat = _matrix(file.path, sums)
    one, n_counts = _matrix(file.path, counts)
    if one != 1 or n_counts != n_mat:
        raise ImatrixError(
            "counts do not fit the sums",
            where=f"{file.path}[{counts.name}]",
            expected=f"[1, {n_mat}]",
            found=f"[{one}, {n_counts}]",
        )
    return checked_entry(
        f"{file.path}[{sums.name.removesuffix(SUMS)}]",
        file.tensor_bytes(sums.name).view("<f4").reshape(n_mat, n_in),
        file.tensor_bytes(counts.name).view("<f4"),
    )


def _matrix(path: Path, info: TensorInfo) -> tuple[int, int]:
    """Return (ne0, ne1) of a tensor of at most two dimensions and at least one value."""
    ne0, ne1, *more = (*info.shape, 1, 1)
    if ne0 * ne1 < 1 or any(n != 1 for n in more):
        raise ImatrixError(
            "wrong shape", where=f"{path}[{info.name}]", expected="[n, n_mat]", found=list(info.shape)
        )
    return ne0, ne1


def _gguf_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _gguf_tensor(path: Path, name: str, shape: tuple[int, ...], offset: int) -> bytes:
    if len(name.encode()) > MAX_NAME_BYTES:
        # llama-imatrix would cut the name and lose the weight.
        raise ImatrixError(
            "the tensor name is too long for GGUF", where=path, expected=f"{MAX_NAME_BYTES} bytes", found=name
        )
    dims = shape if shape[1] > 1 else shape[:1]
    body = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, GGMLQuantizationType.F32, offset)
    return _gguf_string(name) + body
