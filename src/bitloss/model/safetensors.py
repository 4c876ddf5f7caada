"""Strict reader of one safetensors file: header checked, tensors mapped from disk.

    u64 header length | JSON header {name: {dtype, shape, data_offsets}} | data

Every rule of the format is tested before anything is read: header length (at most 100 MB and inside the
file), valid UTF-8 JSON without duplicate names, known dtypes, offsets that cover the data without holes or
overlaps, and sizes that equal shape x item size. Tensors come back lazily, so a file larger than memory is no
matter.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bitloss.display import json_kind
from bitloss.errors import CheckpointError, FileProblem, UnsupportedError, cut_off, unreadable

MAX_HEADER = 100_000_000  # as the safetensors library
MAX_JSON = 256 << 20
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("<u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: its name.
        dtype: safetensors' name of the type ("BF16").
        shape: NumPy order.
        start: position of its first byte in the file.
        n_bytes: bytes of data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int


class SafetensorsFile:
    """An open safetensors file.

    Attributes:
        path: the file.
        tensors: name -> `StoredTensor`, sorted by name (the order llama.cpp's converter writes them in).
    """

    def __init__(self, path: Path, data: memoryview) -> None:
        """Read the header of `data`; use `SafetensorsFile.open`."""
        self.path = path
        self._data = data
        header, begin = _header(path, data)
        listed = sorted(
            (_entry(path, name, entry, begin) for name, entry in header.items()), key=lambda t: t.name
        )
        _check_layout(path, listed, begin, len(data))
        self.tensors = {tensor.name: tensor for tensor in listed}

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Open and check a file.

        Raises:
            FileProblem: missing, unreadable or no regular file.
            CheckpointError: the file breaks the format.
            UnsupportedError: a dtype that is not known here.
        """
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise FileProblem("not a regular file", where=path)
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size == 0:
                    raise CheckpointError("the file is empty", where=path)
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise unreadable(
                error, where=path, what="safetensors file", mend="copy or fetch the model's folder again"
            ) from error
        return cls(path, data)

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """Return a read-only view of a tensor's data in the file; bfloat16 as `ml_dtypes.bfloat16`."""
        info = self.tensors[name]
        dtype = DTYPES[info.dtype]
        flat = np.frombuffer(self._data, dtype=dtype, count=info.n_bytes // dtype.itemsize, offset=info.start)
        return flat.reshape(info.shape)

    def forget(self, name: str, n_bytes: int | None = None) -> None:
        """Tell the system that a tensor's pages (of its first bytes only) are not needed: they leave this process."""
        info = self.tensors[name]
        end = info.start + (info.n_bytes if n_bytes is None else n_bytes)
        start = info.start // mmap.PAGESIZE * mmap.PAGESIZE
        mapped = self._data.obj
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and end > start:
            mapped.madvise(mmap.MADV_DONTNEED, start, end - start)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint folder.

    Raises:
        FileProblem: missing or unreadable.
        CheckpointError: too large, not UTF-8, not JSON, or not an object.
    """
    try:
        if not path.is_file():
            raise FileProblem("no such file", where=path, mend="copy or fetch the model's folder again")
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(
                "too large for what it should hold", where=path, expected=f"at most {MAX_JSON} bytes"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(
            error, where=path, what="file", mend="copy or fetch the model's folder again"
        ) from error
    return parse_json(raw, path)


def parse_json(raw: bytes, where: object) -> dict[str, Any]:
    """Parse a JSON object; anything else, or a name that occurs twice, is a `CheckpointError`."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
        if "\\ud" in text.lower():
            # Half of a surrogate pair is valid JSON but no text: it could not be written anywhere.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not valid JSON ({str(error)[:120]})", where=where) from None
    if not isinstance(value, dict):
        raise CheckpointError("not a JSON object", where=where, found=json_kind(value))
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ValueError(f"the name {twice!r} occurs twice")
    return result


def _header(path: Path, data: memoryview) -> tuple[dict[str, Any], int]:
    """Return (tensor entries, position where the data begins)."""
    if len(data) < 8:
        raise cut_off(
            CheckpointError,
            where=path,
            inside="the length of the header",
            expected=10,
            found=len(data),
            least=True,
        )
    length = int.from_bytes(data[:8], "little")
    if len(data) - 8 < length <= MAX_HEADER:
        raise cut_off(
            CheckpointError, where=path, inside="the header", expected=8 + length, found=len(data), least=True
        )
    most = min(MAX_HEADER, len(data) - 8)
    if not 2 <= length <= most:
        raise CheckpointError("bad header length", where=path, expected=f"2 to {most} bytes", found=length)
    header = parse_json(bytes(data[8 : 8 + length]), f"{path}[header]")
    header.pop("__metadata__", None)
    return header, 8 + length


def _entry(path: Path, name: str, entry: Any, begin: int) -> StoredTensor:
    where = f"{path}[{name}]"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            "bad header entry", where=where, expected="dtype, shape, data_offsets", found=str(entry)[:80]
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnsupportedError(
            "unknown dtype", where=where, expected=", ".join(DTYPES), found=str(dtype)[:40]
        )
    if not _counts(shape) or len(shape) > 8:
        raise CheckpointError("bad shape", where=where, found=str(shape)[:80])
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError("bad data offsets", where=where, found=str(offsets)[:80])
    n_bytes = prod(shape) * DTYPES[dtype].itemsize
    if n_bytes != offsets[1] - offsets[0]:
        raise CheckpointError(
            "the shape does not fit the data",
            where=where,
            expected=f"{n_bytes} bytes",
            found=offsets[1] - offsets[0],
        )
    return StoredTensor(name, dtype, tuple(shape), begin + offsets[0], n_bytes)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _check_layout(path: Path, listed: list[StoredTensor], begin: int, size: int) -> None:
    """Refuse holes and overlaps between tensors and data outside the file."""
    at = begin
    for tensor in sorted(listed, key=lambda t: (t.start, t.n_bytes)):
        if tensor.start != at:
            raise CheckpointError(
                "holes or overlaps between tensors",
                where=f"{path}[{tensor.name}]",
                expected=at,
                found=tensor.start,
            )
        at += tensor.n_bytes
    if at > size:
        raise cut_off(CheckpointError, where=path, inside="the tensors", expected=at, found=size)
    if at != size:
        raise CheckpointError(
            "the data is not as long as the header says", where=path, expected=at, found=size
        )
