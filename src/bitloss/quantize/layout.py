"""The candidate file before it is written: header, place of every tensor, size.

The header is the one llama_model_quantize writes, byte for byte: the source's keys as they stand, without those of
splitting; `general.quantization_version` and `general.file_type` moved to the end; then the keys of the importance
matrix. Tensors in the plan's order, aligned to 32 bytes, the last one padded too. Different on purpose: text with a
zero byte in it is kept whole (llama.cpp cuts it there).

Split candidates: with the parts of the source as `llama-quantize --keep-split` writes them, or of a largest size as
`llama-gguf-split --split-max-size` writes them. Different on purpose: a candidate of one part is a plain file, and a
tensor larger than the limit has a part of its own, the first one too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from bitloss.model.gguf_header import DEFAULT_ALIGNMENT, MAGIC, GgufType
from bitloss.model.gguf_split import SPLIT_KEYS, in_parts, part_path, split_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bitloss.model.gguf import GgufFile
    from bitloss.quantize.plan import PlannedTensor, TypePlan
    from bitloss.quantize.request import QuantizeSpec
    from bitloss.quantize.types import QuantType

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


class PlacedTensor(NamedTuple):
    """A tensor's place in a file.

    Attributes:
        name: its name.
        offset: absolute position of its first byte.
        n_bytes: bytes of data, padding left out.
    """

    name: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A file to be written.

    Attributes:
        path: where.
        header: all that stands before the tensors, padding included.
        tensors: in their order.
    """

    path: Path
    header: bytes
    tensors: tuple[PlacedTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        last = self.tensors[-1] if self.tensors else None
        return padded(last.offset + last.n_bytes) if last else len(self.header)


def padded(n_bytes: int) -> int:
    """Round up to the alignment."""
    return -(-n_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop trailing ones, as ggml counts dimensions; at least one stays."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape or (1,)


def layout(
    spec: QuantizeSpec,
    source: GgufFile,
    kind: QuantType,
    plan: TypePlan,
    extra: Sequence[tuple[str, int | str]],
) -> tuple[FileLayout, ...]:
    """Lay out a candidate's file, or its parts.

    Args:
        spec: how to split, and where to write.
        source: whose metadata it takes.
        kind: its file type.
        plan: its tensors.
        extra: keys to set, in order; int as UINT32.

    Raises:
        UsageError: parts too small, or more than the format counts.
    """
    groups = _groups(spec, source, plan)
    keys = _metadata(source, kind, extra)
    if len(groups) == 1:
        return (_file(spec.out, keys, groups[0]),)
    files = []
    for index, group in enumerate(groups):
        marks = split_metadata(index, len(groups), len(plan.tensors))
        # llama-quantize sets the number of tensors last, llama-gguf-split the number of parts.
        order = SPLIT_KEYS if spec.keep_split else marks
        packed = {key: _packed(key, marks[key].value_type, marks[key].value) for key in order}
        own = {**(keys if index == 0 else {}), **packed}
        files.append(_file(part_path(spec.out, index, len(groups)), own, group))
    return tuple(files)


def _groups(spec: QuantizeSpec, source: GgufFile, plan: TypePlan) -> list[list[PlannedTensor]]:
    """Return the tensors of each part."""
    if not spec.keep_split:
        return in_parts(plan.tensors.values(), lambda tensor: padded(tensor.n_bytes), spec.split_max_bytes)
    return [
        [tensor for name, tensor in plan.tensors.items() if source.tensors[name].part == part]
        for part in range(len(source.paths))
    ]


def _metadata(source: GgufFile, kind: QuantType, extra: Sequence[tuple[str, int | str]]) -> dict[str, bytes]:
    """Return key -> its bytes, in the order of the file; a key that is set moves to the end."""
    keys = {key: source.key_bytes(key) for key in source.metadata if key not in SPLIT_KEYS}
    placed: list[tuple[str, int | str]] = []
    if source.alignment != DEFAULT_ALIGNMENT:
        # llama.cpp copies the key but places data and tensors by 32: read by the key they are elsewhere.
        placed.append(("general.alignment", DEFAULT_ALIGNMENT))
    version = ("general.quantization_version", QUANTIZATION_VERSION)
    for key, value in (version, ("general.file_type", kind.ftype), *placed, *extra):
        keys.pop(key, None)
        keys[key] = _packed(key, GgufType.UINT32 if isinstance(value, int) else GgufType.STRING, value)
    return keys


def _file(path: Path, keys: Mapping[str, bytes], tensors: Sequence[PlannedTensor]) -> FileLayout:
    infos: list[bytes] = []
    offsets: list[int] = []
    at = 0
    for tensor in tensors:
        shape = trimmed(tensor.shape)
        infos.append(_string(tensor.name))
        infos.append(
            struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.target_type, at),
        )
        offsets.append(at)
        at += padded(tensor.n_bytes)
    header = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join([*keys.values(), *infos])
    header += bytes(padded(len(header)) - len(header))
    placed = (
        PlacedTensor(tensor.name, len(header) + offset, tensor.n_bytes)
        for tensor, offset in zip(tensors, offsets, strict=True)
    )
    return FileLayout(path, header, tuple(placed))


def _packed(key: str, kind: GgufType, value: int | str) -> bytes:
    start = _string(key) + struct.pack("<I", kind)
    if isinstance(value, str):
        return start + _string(value)
    return start + struct.pack({GgufType.UINT16: "<H", GgufType.INT32: "<i"}.get(kind, "<I"), value)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
