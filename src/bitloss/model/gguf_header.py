"""The header of a GGUF file, versions 2 and 3, little-endian: metadata and tensor list, read strictly.

Follows the GGUF specification of ggml and the checks of llama.cpp's own loader (`ggml/src/gguf.cpp`). A file
is taken for an adversary: every length and count is tested against the bytes that remain before anything is
read or allocated, so a damaged file ends in a `BitlossError` that names the key or tensor, never in another
exception.

    magic "GGUF" | u32 version | u64 n_tensors | u64 n_keys
    n_keys    x (string key, u32 value type, value)          string = u64 length, UTF-8 bytes
    n_tensors x (string name, u32 n_dims, u64 ne[n_dims], u32 ggml type, u64 offset into the data section)
    padding to `general.alignment` (default 32) | data section

Stricter than llama.cpp: keys and tensor names must be UTF-8, tensors must not overlap and must lie in the
file. Looser than llama.cpp: gaps between tensors and tensors stored in another order than listed are
accepted. Left out: version 1 and big-endian files are refused by name. One part of a split model is read like
any other file when the caller asks for it (`bitloss.model.gguf_split` joins them), and refused by name else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from bitloss.errors import GgufError, UnsupportedError, cut_off
from bitloss.model.gguf_bytes import Cursor
from bitloss.model.tensor_types import TensorType, block_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_KEYS = 1 << 20
MAX_TENSORS = 1 << 20
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # GGML_MAX_NAME less the closing zero
MAX_KEY_BYTES = 65535  # the specification's limit


class GgufType(IntEnum):
    """Type of a metadata value, as numbered in the format."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


NUMBER_DTYPES: Mapping[GgufType, np.dtype[Any]] = {
    GgufType.UINT8: np.dtype("<u1"),
    GgufType.INT8: np.dtype("<i1"),
    GgufType.UINT16: np.dtype("<u2"),
    GgufType.INT16: np.dtype("<i2"),
    GgufType.UINT32: np.dtype("<u4"),
    GgufType.INT32: np.dtype("<i4"),
    GgufType.FLOAT32: np.dtype("<f4"),
    GgufType.BOOL: np.dtype("<u1"),
    GgufType.UINT64: np.dtype("<u8"),
    GgufType.INT64: np.dtype("<i8"),
    GgufType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class GgufValue:
    r"""A metadata value with its type.

    Attributes:
        value_type: the type the file gives it.
        value: int, float, bool or str; for an array `list[str]` or a NumPy array of the item type. Bytes of a
            string value that are not UTF-8 are shown as ``\\xNN``.
        item_type: type of an array's items, None for a scalar.
    """

    value_type: GgufType
    value: Any
    item_type: GgufType | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes:
        name: its name.
        shape: ggml order, the contiguous dimension (ne0) first; `shape[::-1]` is NumPy's order.
        ggml_type: a value of `bitloss.model.tensor_types.TensorType`.
        offset: absolute position of its first byte in the file.
        n_bytes: bytes of data, padding left out.
        part: index of the file it lies in, 0 but for split models.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    n_bytes: int
    part: int = 0

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def type_name(self) -> str:
        """Name of the type: "F32", "Q4_K"."""
        return type_name(self.ggml_type)


def type_name(ggml_type: int) -> str:
    """Return ggml's name of a tensor type ("Q4_K"), or "type 99" for one that is not known here."""
    try:
        return str(TensorType(ggml_type).name)
    except ValueError:
        return f"type {ggml_type}"


def tensor_bytes(shape: tuple[int, ...], ggml_type: int) -> int:
    """Return how many bytes a tensor of `shape` (ggml order) takes.

    Raises:
        UnsupportedError: neither the `gguf` package nor the installed ggml knows the type.
        GgufError: the row length is no multiple of the type's block size.
    """
    try:
        block, size = block_of(ggml_type)
    except KeyError:
        raise UnsupportedError(
            "tensor type with unknown size",
            found=ggml_type,
            mend="this file needs another version of llama.cpp than the installed one",
        ) from None
    row = shape[0] if shape else 1
    if row % block:
        raise GgufError(
            "row length does not fit the type",
            expected=f"a multiple of {block} for {type_name(ggml_type)}",
            found=row,
        )
    return int(prod(shape) // block * size)


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data section; the attributes are those of `GgufFile`.

    `spans` says where each key stands, with its type and value: key -> (first byte, byte after the last).
    """

    version: int
    metadata: dict[str, GgufValue]
    tensors: dict[str, TensorInfo]
    alignment: int
    data_offset: int
    spans: dict[str, tuple[int, int]]


def read_header(
    path: Path, data: memoryview, *, part_of_split: bool = False, unknown_types: bool = False
) -> Header:
    """Read and check the header of the file mapped at `data`; `path` is for messages.

    With `unknown_types` a tensor of a type that is not known here reaches to the next tensor, or to the
    end of the file: opaque bytes, padding among them.

    Raises:
        GgufError: the file breaks the format.
        UnsupportedError: version 1, a newer version, big-endian, a tensor type of unknown size (without
            `unknown_types`), or a part of a split model (without `part_of_split`).
    """
    reader = Cursor(path, data)
    version, n_tensors, n_keys = _read_start(reader)
    metadata, spans = _read_metadata(reader, n_keys)
    if not part_of_split:
        _refuse_split(path, metadata)
    alignment = _alignment(path, metadata)
    listed = [_read_tensor(reader, unknown_types) for _ in range(n_tensors)]
    data_offset = -(-reader.at // alignment) * alignment
    listed = _to_the_next(listed, max(0, len(data) - data_offset))
    tensors = _place_tensors(reader, listed, alignment, data_offset)
    return Header(version, metadata, tensors, alignment, data_offset, spans)


def _read_start(reader: Cursor) -> tuple[int, int, int]:
    """Return (version, number of tensors, number of keys)."""
    magic = bytes(reader.take(4, "the magic"))
    if magic != MAGIC:
        raise GgufError(
            "not a GGUF file",
            where=reader.path,
            expected="the letters GGUF at its start",
            found=ascii(magic.decode("latin-1")),
            mend="give a GGUF file: `bitloss convert` makes one of a Hugging Face folder",
        )
    version = reader.u32("the version")
    if version not in {2, 3}:
        big_endian = version != 0 and version & 0xFFFF == 0
        mend = "convert it to little-endian with gguf-py's gguf_convert_endian" if big_endian else None
        what = "big-endian GGUF" if big_endian else "GGUF version that cannot be read"
        raise UnsupportedError(what, where=reader.path, expected="2 or 3", found=version, mend=mend)
    n_tensors, n_keys = reader.u64("the tensor count"), reader.u64("the key count")
    # The smallest key takes 8 + 1 + 4 + 1 bytes, the smallest tensor 8 + 4 + 4 + 8.
    for what, count, cap, least in (("tensors", n_tensors, MAX_TENSORS, 24), ("keys", n_keys, MAX_KEYS, 14)):
        most = min(cap, (len(reader.data) - reader.at) // least)
        if count > most:
            raise reader.fail(f"more {what} than the file can hold", expected=f"at most {most}", found=count)
    return version, n_tensors, n_keys


def _read_metadata(reader: Cursor, n_keys: int) -> tuple[dict[str, GgufValue], dict[str, tuple[int, int]]]:
    metadata: dict[str, GgufValue] = {}
    spans: dict[str, tuple[int, int]] = {}
    for index in range(n_keys):
        reader.place = f"key {index}"
        start = reader.at
        key = reader.name("a key", MAX_KEY_BYTES)
        if not key:
            raise reader.fail("the key is empty")
        if key in metadata:
            raise reader.fail("duplicate key", found=key)
        reader.place = key
        metadata[key] = _read_value(reader, _value_type(reader))
        spans[key] = (start, reader.at)
    return metadata, spans


def _value_type(reader: Cursor) -> GgufType:
    number = reader.u32("a value type")
    try:
        return GgufType(number)
    except ValueError:
        raise reader.fail("unknown value type", expected="0 to 12", found=number) from None


def _read_value(reader: Cursor, kind: GgufType) -> GgufValue:
    if kind is GgufType.STRING:
        return GgufValue(kind, reader.string())
    if kind is GgufType.BOOL:
        return GgufValue(kind, bool(reader.number(NUMBER_DTYPES[kind], "a value")))
    if kind is not GgufType.ARRAY:
        return GgufValue(kind, reader.number(NUMBER_DTYPES[kind], "a value"))
    item = _value_type(reader)
    count = reader.u64("an array's length")
    if item is GgufType.ARRAY:
        raise reader.fail("nested array", expected="an array of numbers or strings")
    least = 8 if item is GgufType.STRING else NUMBER_DTYPES[item].itemsize
    left = len(reader.data) - reader.at
    if count > left // least:
        raise reader.fail(
            "the array is longer than the file", expected=f"at most {left // least}", found=count
        )
    if item is GgufType.STRING:
        return GgufValue(kind, reader.strings(count), item)
    raw = reader.take(count * least, "an array")
    # A copy: a view would keep the whole map alive for a few numbers.
    numbers = np.frombuffer(raw, dtype=NUMBER_DTYPES[item]).copy()
    return GgufValue(kind, numbers.astype(bool) if item is GgufType.BOOL else numbers, item)


def _refuse_split(path: Path, metadata: Mapping[str, GgufValue]) -> None:
    entry = metadata.get("split.count")
    if entry is not None and isinstance(entry.value, int) and entry.value > 1:
        raise UnsupportedError(
            f"one of {entry.value} parts of a split model",
            where=path,
            mend="join the parts first with `llama-gguf-split --merge FIRST-PART OUT.gguf`",
        )


def _alignment(path: Path, metadata: Mapping[str, GgufValue]) -> int:
    entry = metadata.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    value = entry.value
    if entry.value_type is not GgufType.UINT32 or value <= 0 or value & (value - 1):
        raise GgufError(
            "bad alignment",
            where=f"{path}[general.alignment]",
            expected="a power of two as UINT32",
            found=f"{entry.value_type.name} {value!r}"[:60],
        )
    return int(value)


def _read_tensor(reader: Cursor, unknown_types: bool) -> TensorInfo:
    """Read one entry of the tensor list; `offset` is still relative to the data section.

    With `unknown_types` a type of unknown size has -1 bytes for now.
    """
    reader.place = "tensor list"
    name = reader.name("a tensor name", MAX_NAME_BYTES)
    reader.place = f"tensor {name}"
    n_dims = reader.u32("the number of dimensions")
    if n_dims > MAX_DIMS:
        raise reader.fail("too many dimensions", expected=f"at most {MAX_DIMS}", found=n_dims)
    shape = tuple(reader.u64("a dimension") for _ in range(n_dims))
    ggml_type = reader.u32("the tensor type")
    offset = reader.u64("the data offset")
    if any(n >= 1 << 63 for n in shape) or prod(shape) >= 1 << 63:
        raise reader.fail("the shape is too large", found=shape)
    try:
        n_bytes = tensor_bytes(shape, ggml_type)
    except (GgufError, UnsupportedError) as error:
        if unknown_types and isinstance(error, UnsupportedError):
            return TensorInfo(name, shape, ggml_type, offset, -1)
        where = f"{reader.path}[{reader.place}]"
        raise type(error)(
            error.what, where=where, expected=error.expected, found=error.found, mend=error.mend
        ) from None
    return TensorInfo(name, shape, ggml_type, offset, n_bytes)


def _to_the_next(listed: list[TensorInfo], data_bytes: int) -> list[TensorInfo]:
    """Give tensors of unknown size all bytes up to the next one, or to the end of the data section."""
    if all(info.n_bytes >= 0 for info in listed):
        return listed
    starts = sorted({info.offset for info in listed} | {data_bytes})
    return [
        info
        if info.n_bytes >= 0
        else replace(info, n_bytes=next((s for s in starts if s > info.offset), info.offset) - info.offset)
        for info in listed
    ]


def _place_tensors(
    reader: Cursor, listed: list[TensorInfo], alignment: int, data_offset: int
) -> dict[str, TensorInfo]:
    """Make offsets absolute and refuse duplicates, misaligned, overlapping and outside tensors."""
    tensors: dict[str, TensorInfo] = {}
    for info in listed:
        where = f"{reader.path}[{info.name}]"
        if info.name in tensors:
            raise GgufError("duplicate tensor", where=where)
        if info.offset % alignment:
            raise GgufError("misaligned tensor", where=where, expected=f"x {alignment}", found=info.offset)
        start = data_offset + info.offset
        if start + info.n_bytes > len(reader.data):
            raise cut_off(
                GgufError,
                where=where,
                inside="the tensors",
                expected=data_offset + max(each.offset + each.n_bytes for each in listed),
                found=len(reader.data),
            )
        tensors[info.name] = TensorInfo(info.name, info.shape, info.ggml_type, start, info.n_bytes)
    end, before = 0, ""
    for info in _by_offset(tensors):
        if info.offset < end:
            raise GgufError(
                "overlapping tensors", where=f"{reader.path}[{info.name}]", found=f"also in {before}"
            )
        end, before = info.offset + info.n_bytes, info.name
    return tensors


def _by_offset(tensors: Mapping[str, TensorInfo]) -> Iterator[TensorInfo]:
    yield from sorted((info for info in tensors.values() if info.n_bytes), key=lambda info: info.offset)
