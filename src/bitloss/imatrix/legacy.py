"""Legacy importance matrix files (.dat), as llama.cpp wrote them before GGUF and still does on request.

Little-endian:
    i32 n, then n x {i32 length, name, i32 ncall, i32 nval, f32[nval]}
    optional: i32 chunks, then optional: i32 length, name of the dataset

A value is sum / count * ncall with ncall = the largest count in chunks, rounded up; the values of an expert
that was never used are ncall. Follows `save_imatrix_legacy` of llama.cpp's `tools/imatrix`; reading is
stricter than
there: no duplicates, no negative or non-finite values, no bytes after the end.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from bitloss.errors import ImatrixError, UsageError, cut_off
from bitloss.imatrix.matrix import (
    I32_MAX,
    Imatrix,
    ImatrixEntry,
    as_float32,
    checked_entry,
    file_name,
    sorted_entries,
)
from bitloss.store import atomic_write_bytes

if TYPE_CHECKING:
    from pathlib import Path


class _Bytes:
    """A legacy file's bytes and a cursor that tests the bounds before every read."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.at = 0
        self.place = "header"

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def fail(self, what: str, *, expected: object = None, found: object = None) -> ImatrixError:
        where = f"{self.path}[{self.place}, byte {self.at}]"
        mend = (
            "is this an importance matrix (GGUF or .dat)?"
            if self.place == "header"
            else "the file is damaged: copy or fetch it again"
        )
        return ImatrixError(what, where=where, expected=expected, found=found, mend=mend)

    def take(self, count: int, what: str) -> memoryview:
        if count > self.left:
            error = cut_off(
                ImatrixError,
                where=f"{self.path}[{self.place}, byte {self.at}]",
                inside=what,
                expected=self.at + count,
                found=len(self.data),
                least=True,
            )
            # the format has no magic: any file that is none ends like this
            raise error.amended(f"{error.mend}, if it is an importance matrix at all (GGUF or .dat)")
        self.at += count
        return memoryview(self.data)[self.at - count : self.at]

    def i32(self, what: str, *, least: int) -> int:
        value = int.from_bytes(self.take(4, what), "little", signed=True)
        if value < least:
            raise self.fail(f"impossible {what}", expected=f"at least {least}", found=value)
        return value

    def text(self, length: int, what: str) -> str:
        raw = bytes(self.take(length, what))
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8", found=raw[:60]) from None
        if "\0" in text:
            raise self.fail(f"{what} holds a zero byte", found=raw[:60])
        return text


def read_legacy(path: Path, content: bytes) -> Imatrix:
    """Read the bytes of a .dat file; `ImatrixError` if it is damaged."""
    data = _Bytes(path, content)
    n_entries = data.i32("number of entries", least=1)
    # The smallest entry: three i32, a name of one byte, one value.
    if n_entries > data.left // 17:
        raise data.fail(
            "more entries than the file can hold", expected=f"at most {data.left // 17}", found=n_entries
        )
    entries: dict[str, ImatrixEntry] = {}
    for index in range(n_entries):
        data.place = f"entry {index + 1} of {n_entries}"
        name = data.text(data.i32("length of the name", least=1), "the name")
        if name in entries:
            raise data.fail("duplicate entry", found=name)
        data.place = name
        ncall = data.i32("number of calls", least=0)
        nval = data.i32("number of values", least=1)
        values = np.frombuffer(data.take(4 * nval, "the values"), dtype="<f4")
        entries[name] = checked_entry(
            f"{data.path}[{name}]", values.reshape(1, nval), np.array([ncall], dtype=np.float64)
        )
    data.place = "end"
    chunks = data.i32("number of chunks", least=0) if data.left else 0
    dataset = (
        data.text(data.i32("length of the dataset's name", least=0), "the dataset's name")
        if data.left
        else ""
    )
    if data.left:
        raise data.fail("bytes after the end", expected=0, found=data.left)
    return Imatrix(entries, chunks, 0, (dataset,) if dataset else (), is_legacy=True)


def write_legacy_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Write a .dat file, the same bytes as `llama-imatrix --output-format dat`; atomically.

    Weights without any count are left out, as there; unused experts hold 1 x ncall. Only the last dataset
    fits.

    Raises:
        UsageError: chunk size 0, or nothing to write.
        ImatrixError: a value float32 cannot hold.
        DiskFull, FileProblem: the file cannot be written.
    """
    if not imatrix.is_legacy and imatrix.chunk_size <= 0:
        raise UsageError("a legacy file needs the chunk size", where=path, expected="at least 1", found=0)
    parts: list[bytes] = []
    for name, entry in sorted_entries(imatrix, path):
        if not imatrix.is_legacy and not entry.counts.any():
            continue
        values = as_float32(f"{path}[{name}]", entry.stored_sums())
        ncall = int(entry.counts.max())
        if not imatrix.is_legacy:
            ncall = -(-ncall // imatrix.chunk_size)
            counts = entry.counts.astype(np.float32)[:, np.newaxis]
            unused = counts == 0
            mean = np.where(unused, np.float32(1), values) / np.where(unused, np.float32(1), counts)
            values = as_float32(f"{path}[{name}]", mean * np.float32(ncall))
        if max(ncall, values.size) > I32_MAX:
            raise ImatrixError("too large for the legacy format", where=f"{path}[{name}]", found=ncall)
        label = name.encode()
        parts.append(struct.pack("<i", len(label)) + label + struct.pack("<ii", ncall, values.size))
        parts.append(values.tobytes())
    dataset = file_name(imatrix.datasets[-1]).encode() if imatrix.datasets else b""
    tail = struct.pack("<ii", imatrix.chunk_count, len(dataset)) + dataset
    atomic_write_bytes(path, b"".join([struct.pack("<i", len(parts) // 2), *parts, tail]))
