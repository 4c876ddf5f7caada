"""Two versions of one tensor: what of them differs, in one pass over both.

Types our kernels decode, and F32, are compared natively (`bitloss.explain.distance.compare_tensors`): pieces of equal
bytes are passed over, of the others blocks, quants, scales and values are compared while they lie in the cache. Other
types of blocks are decoded by libggml, those blocks only that differ (`bitloss.explain.blocks`). What cannot be
decoded is compared as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitloss.explain.blocks import block_bytes, mark, marked_pieces, quantized, same_form, unit
from bitloss.explain.distance import Distance, Floats, compare_tensors, direct, distance
from bitloss.explain.fields import SCALES, Fields, compare_fields, told_apart
from bitloss.model.gguf import GgufFile, TensorInfo
from bitloss.model.tensor_types import TensorType, block_of
from bitloss.quantize.codec import decode
from bitloss.quantize.types import TENSOR_TYPES
from bitloss.records.diff import TensorState

Bytes = npt.NDArray[np.uint8]
_FIRST = 8  # differing blocks that are named
_LOOKED_AT = 1 << 16  # bytes at a time while they are looked for
FLOATS = ("F32", "F16", "BF16")
_VALUES = 1 << 23  # looked at before pages are given back; a multiple of every block
_DECODED = 1 << 20  # decoded at a time by libggml


@dataclass(slots=True)
class Found:
    """What a tensor came to.

    Attributes:
        quantized: whether it is of one quantized type in both.
        blocks: of the type both have; None for two types.
        differing_blocks: of them.
        unit: what these blocks are.
        first: the first that differ, as (place, bits that differ).
        fields: quants and scales, where they are told apart.
        distance: of the values; None where they were not compared.
        elements: how many values.
        against: distances of A and of B to the reference.
        note: what could not be compared.
    """

    quantized: bool = False
    blocks: int | None = None
    differing_blocks: int | None = None
    unit: Literal["block", "value", "byte"] | None = None
    first: list[tuple[int, int]] = field(default_factory=list)
    fields: Fields | None = None
    distance: Distance | None = None
    elements: int = 0
    against: tuple[Distance, Distance] | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What tensors are compared in.

    Attributes:
        a: a file.
        b: another one.
        reference: what both were made from.
        threads: worker threads.
        told: called with a tensor's name and the bytes of both looked at.
    """

    a: GgufFile
    b: GgufFile
    reference: GgufFile | None
    threads: int
    told: Callable[[str, int], None]


def compare(job: Job, a: TensorInfo, b: TensorInfo) -> tuple[TensorState, Found]:
    """Compare tensors of one name and shape."""
    found = Found(elements=a.n_elements)
    decodable = _decodable(a) and _decodable(b)
    if same_form(a, b):
        found.quantized, found.unit = quantized(a), unit(a)
        if decodable and direct(_kind(a)):
            _compare_directly(job, a, found)
        else:
            _compare_blocks(job, a, found, decodable=decodable)
        if not found.differing_blocks:
            found.distance, found.fields = None, None
            return "identical", found
    elif decodable:
        found.distance = _between((job.a, a), (job.b, b), job)
    else:
        job.told(a.name, a.n_bytes + b.n_bytes)
    if not decodable:
        found.note = _why_opaque(a, b)
        return "different", found
    if job.reference is not None:
        _compare_reference(job, job.reference, found, (a, b))
    same = found.distance is not None and found.distance.differing == 0
    return "equal values" if same else "different", found


def _kind(info: TensorInfo) -> TensorType:
    return TensorType(info.ggml_type)


def _sizes(info: TensorInfo) -> tuple[int, int]:
    """Values and bytes of a block."""
    return block_of(info.ggml_type)


def _decodable(info: TensorInfo) -> bool:
    return info.type_name in TENSOR_TYPES


def _why_opaque(a: TensorInfo, b: TensorInfo) -> str:
    kinds = " and ".join(dict.fromkeys(i.type_name for i in (a, b) if not _decodable(i)))
    return f"values of {kinds} are not decoded here: compared as bytes"


# ----------------------------------------------------------------------------------------- of one type


def _compare_directly(job: Job, a: TensorInfo, found: Found) -> None:
    kind, (weights, size) = _kind(a), _sizes(a)
    left, right = job.a.tensor_bytes(a.name), job.b.tensor_bytes(a.name)
    total, differing, quants, scales = Distance(), 0, 0, 0
    step = _VALUES // weights * size
    for at in range(0, a.n_bytes, step):
        end = min(at + step, a.n_bytes)
        one = compare_tensors((kind, kind), left[at:end], right[at:end], threads=job.threads)
        total += one.distance
        differing, quants, scales = differing + one.blocks, quants + one.quants, scales + one.scales
        if one.blocks and len(found.first) < _FIRST:
            _name_first(found, at // size, (left[at:end], right[at:end]), size)
        job.a.forget(a.name, end)
        job.b.forget(a.name, end)
        job.told(a.name, 2 * (end - at))
    found.blocks, found.differing_blocks, found.distance = a.n_bytes // size, differing, total
    if a.type_name not in FLOATS:
        found.fields = Fields(a.n_elements, found.blocks * len(SCALES[kind]), quants, scales)


def _name_first(found: Found, first: int, pair: tuple[Bytes, Bytes], size: int) -> None:
    """Add the places of differing blocks of a piece that begins with block `first`, until there are enough."""
    a, b = pair
    step = size * max(1, _LOOKED_AT // size)
    for at in range(0, a.size, step):
        for where in np.flatnonzero(mark(a[at : at + step], b[at : at + step], size)):
            begin = at + int(where) * size
            bits = np.bitwise_count(a[begin : begin + size] ^ b[begin : begin + size]).sum()
            found.first.append((first + begin // size, int(bits)))
            if len(found.first) == _FIRST:
                return


def _compare_blocks(job: Job, a: TensorInfo, found: Found, *, decodable: bool) -> None:
    """Compare bytes; of types that libggml decodes, take apart what differs."""
    size = block_bytes(a)
    left, right = job.a.tensor_bytes(a.name), job.b.tensor_bytes(a.name)
    found.blocks, found.differing_blocks = a.n_bytes // size, 0
    fields, total = Fields(), Distance()
    for first, marks in marked_pieces(job.a, job.b, a.name, threads=job.threads):
        which = np.flatnonzero(marks)
        found.differing_blocks += which.size
        if which.size and len(found.first) < _FIRST:
            piece = slice(first * size, (first + marks.size) * size)
            _name_first(found, first, (left[piece], right[piece]), size)
        if decodable:
            step = _DECODED // _sizes(a)[0]
            for at in range(0, which.size, step):
                places = first + which[at : at + step]
                x, y = (data.reshape(-1, size)[places] for data in (left, right))
                total += distance(*(_decode(_kind(a), z, job.threads) for z in (x, y)), threads=job.threads)
                if told_apart(_kind(a)):
                    fields = fields.plus(compare_fields(_kind(a), x, y, threads=job.threads))
        job.told(a.name, 2 * marks.size * size)
    if decodable and found.differing_blocks:
        found.distance = total
        if told_apart(_kind(a)):
            scales = fields.scales // found.differing_blocks * found.blocks
            found.fields = fields._replace(quants=a.n_elements, scales=scales)


# ------------------------------------------------------------------------------------------- of any two


def _decode(kind: TensorType, blocks: Bytes, threads: int) -> Floats:
    """Values of blocks [n, block bytes], as a vector."""
    if kind == TensorType.F32:
        return np.require(blocks.reshape(-1), requirements=["A", "C"]).view(np.float32)
    return decode(kind, blocks, block_of(kind).weights, threads=threads).reshape(-1)


def _pieces(file: GgufFile, info: TensorInfo, values: int) -> Iterator[Bytes]:
    """Yield a tensor's bytes, so many values at a time; pages are given back afterwards."""
    weights, size = _sizes(info)
    data = file.tensor_bytes(info.name)
    step = values // weights * size
    for at in range(0, info.n_bytes, step):
        yield data[at : at + step]
        file.forget(info.name, min(at + step, info.n_bytes))


def _between(a: tuple[GgufFile, TensorInfo], b: tuple[GgufFile, TensorInfo], job: Job) -> Distance:
    """The distance between two tensors of any types that can be decoded."""
    total, kinds = Distance(), (_kind(a[1]), _kind(b[1]))
    native = direct(kinds[0]) and direct(kinds[1])
    values = _VALUES if native else _DECODED
    for left, right in zip(_pieces(*a, values), _pieces(*b, values), strict=True):
        if native:
            total += compare_tensors(kinds, left, right, threads=job.threads).distance
        else:
            x = _decode(kinds[0], left.reshape(-1, _sizes(a[1])[1]), job.threads)
            y = _decode(kinds[1], right.reshape(-1, _sizes(b[1])[1]), job.threads)
            total += distance(x, y, threads=job.threads)
        job.told(a[1].name, left.size + right.size)
    return total


def _compare_reference(
    job: Job, reference: GgufFile, found: Found, pair: tuple[TensorInfo, TensorInfo]
) -> None:
    source = reference.tensors.get(pair[0].name)
    if source is None or source.shape != pair[0].shape or not _decodable(source):
        found.note = "the reference does not have this tensor in this shape"
        return
    of = reference, source
    found.against = _between((job.a, pair[0]), of, job), _between((job.b, pair[1]), of, job)
