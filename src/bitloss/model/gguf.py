"""GGUF files, versions 2 and 3, little-endian: a strict reader over a memory map.

The format and what is refused: `bitloss.model.gguf_header`. Writing: `bitloss.model.gguf_writer`. Models in
several files: `bitloss.model.gguf_split`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from bitloss.errors import FileProblem, GgufError, UnsupportedError, unreadable
from bitloss.model.gguf_header import (
    DEFAULT_ALIGNMENT,
    GgufType,
    GgufValue,
    TensorInfo,
    read_header,
    tensor_bytes,
    type_name,
)
from bitloss.model.tensor_types import TensorType, block_of
from bitloss.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "DEFAULT_ALIGNMENT",
    "GgufFile",
    "GgufType",
    "GgufValue",
    "TensorInfo",
    "join_tensor_hashes",
    "tensor_bytes",
    "type_name",
]

_HASH_PIECE = 16 << 20


class GgufFile:
    """An open GGUF file: metadata in memory, tensor data mapped from disk.

    Attributes:
        path: the file; the first of a split model.
        paths: all files, one but for a split model.
        version: 2 or 3.
        size: bytes of the file, or of all files together.
        metadata: key -> `GgufValue`, in file order.
        tensors: name -> `TensorInfo`, in file order.
        alignment: of the data section.
        data_offset: where the data section begins.
    """

    def __init__(
        self, path: Path, data: memoryview, *, part_of_split: bool = False, unknown_types: bool = False
    ) -> None:
        """Read the header of `data`; use `GgufFile.open`."""
        self.path = path
        self.paths: tuple[Path, ...] = (path,)
        self.size = len(data)
        self._data = [data]
        self._tensors_sha256: str | None = None
        self._hashing = threading.Lock()
        header = read_header(path, data, part_of_split=part_of_split, unknown_types=unknown_types)
        self.version = header.version
        self.metadata = header.metadata
        self.tensors = header.tensors
        self.alignment = header.alignment
        self.data_offset = header.data_offset
        self._spans = header.spans

    @classmethod
    def open(cls, path: Path, *, part_of_split: bool = False, unknown_types: bool = False) -> GgufFile:
        """Open and check a GGUF file; tensor data is mapped, not read.

        Args:
            path: the file.
            part_of_split: read a part of a split model for itself (else it is refused).
            unknown_types: take tensors of unknown types as opaque bytes (else they are refused).

        Raises:
            FileProblem: the file is missing, unreadable or no regular file.
            GgufError: the file breaks the format.
            UnsupportedError: version 1, a newer version, big-endian, split, or a tensor type of unknown size.
        """
        try:
            # Before opening: a pipe would block, a device would have no size.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise FileProblem("not a regular file", where=path, expected="a GGUF file")
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size == 0:
                    raise GgufError("the file is empty", where=path)
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise unreadable(
                error, where=path, what="GGUF file", mend="give the path of a GGUF file"
            ) from error
        return cls(path, data, part_of_split=part_of_split, unknown_types=unknown_types)

    def join(self, parts: Sequence[GgufFile]) -> None:
        """Add the tensors of the other parts of a split model, in their order; metadata stays that of the first.

        Raises:
            GgufError: two parts have a tensor of the same name.
        """
        for index, part in enumerate(parts, start=1):
            for name, info in part.tensors.items():
                if name in self.tensors:
                    raise GgufError("duplicate tensor", where=f"{part.path}[{name}]", found="in two parts")
                self.tensors[name] = replace(info, part=index)
            self.size += part.size
            self._data += part._data
        self.paths = (self.path, *(part.path for part in parts))

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture ("llama")."""
        return self.text("general.architecture")

    def value(self, key: str, default: Any = ...) -> Any:
        """Return a metadata value; without `default` a missing key is a `GgufError`."""
        if key in self.metadata:
            return self.metadata[key].value
        if default is ...:
            raise GgufError("metadata key is missing", where=f"{self.path}[{key}]")
        return default

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string value; a missing key without default or another type is a `GgufError`."""
        value = self.value(key, ... if default is None else default)
        if not isinstance(value, str):
            raise GgufError(
                "wrong value type", where=f"{self.path}[{key}]", expected="string", found=repr(value)[:60]
            )
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return an integer value; a missing key without default or another type is a `GgufError`."""
        value = self.value(key, ... if default is None else default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise GgufError(
                "wrong value type", where=f"{self.path}[{key}]", expected="integer", found=repr(value)[:60]
            )
        return value

    def key_bytes(self, key: str) -> bytes:
        """Return a key with its type and value as the file has them; the key must be there."""
        start, end = self._spans[key]
        return bytes(self._data[0][start:end])

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's facts; `GgufError` if the file has none of that name."""
        try:
            return self.tensors[name]
        except KeyError:
            raise GgufError("no such tensor", where=f"{self.path}[{name}]") from None

    def tensor_bytes(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the stored bytes of a tensor: uint8 [n_bytes], read-only, mapped from the file."""
        info = self.info(name)
        data = self._data[info.part]
        return np.frombuffer(data, dtype=np.uint8, count=info.n_bytes, offset=info.offset)

    def forget(self, name: str, n_bytes: int | None = None) -> None:
        """Tell the system that a tensor's pages (of its first bytes only) are not needed: they leave this process."""
        info = self.info(name)
        end = info.offset + (info.n_bytes if n_bytes is None else n_bytes)
        mapped = self._data[info.part].obj
        page = mmap.PAGESIZE
        start = info.offset // page * page
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and end > start:
            mapped.madvise(mmap.MADV_DONTNEED, start, end - start)

    def tensor_f32(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return a tensor's values as float32 in NumPy order (`shape[::-1]`).

        F32 is mapped, not copied. F16 and BF16 are widened exactly, I8..I64 and F64 are rounded to the
        nearest float32, quantized types are decoded by the `gguf` package. Damaged scales may decode to inf
        or NaN.

        Raises:
            UnsupportedError: the `gguf` package cannot decode the type.
        """
        info = self.info(name)
        raw = self.tensor_bytes(name)
        shape = info.shape[::-1]
        kind = TensorType(info.ggml_type)
        if kind == TensorType.F32:
            return raw.view("<f4").reshape(shape)
        with np.errstate(all="ignore"):
            if kind in _PLAIN_DTYPES:
                return raw.view(_PLAIN_DTYPES[kind]).astype(np.float32).reshape(shape)
            block, size = block_of(kind)
            row_bytes = (info.shape[0] if info.shape else 1) // block * size
            try:
                return np.ascontiguousarray(dequantize(raw.reshape(-1, row_bytes), kind).reshape(shape))
            except NotImplementedError:
                raise UnsupportedError(
                    f"{info.type_name} cannot be decoded to float32", where=f"{self.path}[{name}]"
                ) from None

    def tensors_sha256(self, progress: ProgressCallback = silent) -> str:
        """Return the hash of what the file computes with: the tensors, metadata left out.

        That of `join_tensor_hashes` over all tensors; order in the file, alignment and padding do not matter. Computed
        once as long as the file is open; who asks while another thread is at it waits for that.
        """
        with self._hashing:
            if self._tensors_sha256 is None:
                self._tensors_sha256 = self._hash_tensors(progress)
            return self._tensors_sha256

    def _hash_tensors(self, progress: ProgressCallback) -> str:
        hashes: dict[str, tuple[TensorInfo, bytes]] = {}
        done, total = 0, sum(info.n_bytes for info in self.tensors.values())
        for name, info in self.tensors.items():
            digest, data = hashlib.sha256(), self._data[info.part]
            for at in range(info.offset, info.offset + info.n_bytes, _HASH_PIECE):
                piece = data[at : min(at + _HASH_PIECE, info.offset + info.n_bytes)]
                digest.update(piece)
                done += len(piece)
                progress(Progress(f"hash {self.path.name}", done, total, "bytes"))
            hashes[name] = info, digest.digest()
        return join_tensor_hashes(
            (info.name, info.ggml_type, info.shape, own) for info, own in hashes.values()
        )

    def bits_per_weight(self) -> float:
        """Return 8 x tensor bytes / weights, over all tensors; metadata and padding are not counted.

        Raises:
            GgufError: the file has no weights.
        """
        weights = sum(info.n_elements for info in self.tensors.values())
        if weights == 0:
            raise GgufError("the file has no weights", where=self.path)
        return 8 * sum(info.n_bytes for info in self.tensors.values()) / weights


def join_tensor_hashes(tensors: Iterable[tuple[str, int, tuple[int, ...], bytes]]) -> str:
    """Return the hash of a set of tensors from (name, ggml type, shape in ggml order, SHA-256 of the data) of each.

    SHA-256 over the tensors sorted by name (as UTF-8); each adds its name (u64 length, bytes), ggml type (u32),
    number of dimensions (u32), dimensions (u64 each), u64 byte count, and the 32 bytes of its own hash, so that
    a writer needs no second look at what it wrote, whatever the order.
    """
    digest = hashlib.sha256()
    for name, kind, shape, own in sorted(tensors, key=lambda tensor: tensor[0].encode()):
        label = name.encode()
        digest.update(struct.pack("<Q", len(label)) + label)
        digest.update(struct.pack("<II", kind, len(shape)))
        digest.update(struct.pack(f"<{len(shape)}QQ", *shape, tensor_bytes(shape, kind)) + own)
    return digest.hexdigest()


_PLAIN_DTYPES: Mapping[GGMLQuantizationType, np.dtype[Any]] = {
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
    GGMLQuantizationType.F64: np.dtype("<f8"),
    GGMLQuantizationType.I8: np.dtype("<i1"),
    GGMLQuantizationType.I16: np.dtype("<i2"),
    GGMLQuantizationType.I32: np.dtype("<i4"),
    GGMLQuantizationType.I64: np.dtype("<i8"),
}
