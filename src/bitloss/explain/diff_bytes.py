"""Where every byte of two GGUF files lies, and in which of them the files differ.

A file is, in this order: header (24 bytes), metadata (a key with its type and value each), tensor list (an entry each),
padding to the alignment, and the tensors' data, each padded in turn. Of a split model the parts are added up, section
by section. What no tensor claims and alignment does not explain is *unused* between tensors and *trailing* behind the
last one. The shares of a file add up to its size: the record checks it.

Two files have the same bytes when all shares are equal and keys and tensors come in the same order: then the headers
are equal, and with them the places of everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, get_args

import numpy as np

from bitloss.display import visible
from bitloss.model.gguf import GgufFile, GgufType, GgufValue, TensorInfo
from bitloss.records.diff import MetadataDifference, SectionName, Share

_HEADER = 24
_READ = 1 << 20
_SHOWN = 160  # characters of a value
_FIRST_ITEMS = 6

_Of = TypeVar("_Of")
Span = tuple[int, int, int]
"""Part, first byte, byte after the last."""


@dataclass(slots=True)
class Layout:
    """Where the bytes of a model lie.

    Attributes:
        parts: its files.
        keys: key -> its bytes in each part that has it.
        values: key -> its value, in the first part that has it.
        spans: (section, what) -> the spans of it, for all but metadata and tensor data.
    """

    parts: list[GgufFile]
    keys: dict[str, list[bytes]] = field(default_factory=dict)
    values: dict[str, GgufValue] = field(default_factory=dict)
    spans: dict[tuple[SectionName, str], list[Span]] = field(default_factory=dict)


class Account(NamedTuple):
    """What `account` finds.

    Attributes:
        shares: of header, metadata, tensor list, padding and trailing bytes.
        metadata: keys that differ.
        key_order: whether the keys of both come in another order.
        tensor_order: whether the tensors of both do, in the list or in the data.
    """

    shares: list[Share]
    metadata: list[MetadataDifference]
    key_order: bool
    tensor_order: bool


def account(a: GgufFile, b: GgufFile) -> Account:
    """Compare all that is not tensor data.

    Raises:
        FileProblem: a file went away meanwhile.
    """
    left, right = layout(a), layout(b)
    shares = [_share(*of, left, right) for of in _merged(left.spans, right.spans) if of[0] == "header"]
    same = [key for key, raw in left.keys.items() if right.keys.get(key) == raw]
    if same:
        n = sum(_total(left.keys[key]) for key in same)
        what = f"{len(same):,} key{'s' if len(same) != 1 else ''} with equal values"
        shares.append(Share(section="metadata", what=what, a=n, b=n, equal=True))
    differing = [key for key in _merged(left.keys, right.keys) if left.keys.get(key) != right.keys.get(key)]
    for key in differing:
        n_a, n_b = _total(left.keys.get(key, ())), _total(right.keys.get(key, ()))
        shares.append(Share(section="metadata", what=key, a=n_a, b=n_b, equal=False))
    shares += [_share(*of, left, right) for of in _merged(left.spans, right.spans) if of[0] != "header"]
    return Account(
        shares=shares,
        metadata=[
            _metadata_difference(key, left.values.get(key), right.values.get(key)) for key in differing
        ],
        key_order=_other_order(left.keys, right.keys),
        tensor_order=_other_order(a.tensors, b.tensors) or _other_order(_by_place(a), _by_place(b)),
    )


# ----------------------------------------------------------------------------------------------- layout


def layout(model: GgufFile) -> Layout:
    """Return where the bytes of a model lie that are not tensor data."""
    parts = [GgufFile.open(path, part_of_split=True, unknown_types=True) for path in model.paths]
    found = Layout(parts)

    def add(section: SectionName, what: str, part: int, start: int, end: int) -> None:
        if end > start:
            found.spans.setdefault((section, what), []).append((part, start, end))

    for index, part in enumerate(parts):
        add("header", "magic, version and counts", index, 0, _HEADER)
        at = _HEADER
        for key, value in part.metadata.items():
            raw = part.key_bytes(key)
            found.keys.setdefault(key, []).append(raw)
            found.values.setdefault(key, value)
            at += len(raw)
        listed = at + sum(_entry_bytes(info) for info in part.tensors.values())
        add("tensor list", "names, types, shapes and places", index, at, listed)
        start = min(part.data_offset, part.size)
        add("padding", "before the first tensor", index, listed, start)
        for section, what, first, end in _gaps(part, start):
            add(section, what, index, first, end)
    return found


def _entry_bytes(info: TensorInfo) -> int:
    return 8 + len(info.name.encode()) + 4 + 8 * len(info.shape) + 4 + 8


def _gaps(part: GgufFile, start: int) -> Iterator[tuple[SectionName, str, int, int]]:
    """Yield what lies between and behind the tensors."""
    at = start
    placed = sorted((info for info in part.tensors.values() if info.n_bytes), key=lambda info: info.offset)
    for i, info in enumerate(placed):
        if i == 0:
            padded = at
        yield "padding", "between tensors, to the alignment", at, min(padded, info.offset)
        yield "padding", "unused between tensors", min(padded, info.offset), info.offset
        at = info.offset + info.n_bytes
        padded = min(-(-at // part.alignment) * part.alignment, part.size)
    if placed:
        yield "padding", "behind the last tensor, to the alignment", at, padded
        at = padded
    yield "trailing bytes", "behind all that the header speaks of", at, part.size


# ------------------------------------------------------------------------------------------- comparing


def _merged(a: Iterable[_Of], b: Iterable[_Of]) -> list[_Of]:
    return list(dict.fromkeys([*a, *b]))


def _share(section: SectionName, what: str, left: Layout, right: Layout) -> Share:
    a, b = left.spans.get((section, what), []), right.spans.get((section, what), [])
    n_a, n_b = (sum(end - start for _, start, end in spans) for spans in (a, b))
    equal = n_a == n_b and len(left.parts) == len(right.parts) and _hash(left, a) == _hash(right, b)
    return Share(section=section, what=what, a=n_a, b=n_b, equal=equal)


def _hash(of: Layout, spans: Sequence[Span]) -> bytes:
    """Read through a file, not through its map: of trailing bytes there may be more than memory."""
    digest = hashlib.blake2b()
    for part, start, end in spans:
        with of.parts[part].path.open("rb") as file:
            file.seek(start)
            for at in range(start, end, _READ):
                digest.update(file.read(min(_READ, end - at)))
    return digest.digest()


def _total(pieces: Iterable[bytes]) -> int:
    return sum(len(piece) for piece in pieces)


def _other_order(a: Iterable[str], b: Iterable[str]) -> bool:
    """Whether what both have comes in another order."""
    names_a, names_b = list(a), list(b)
    in_a, in_b = set(names_a), set(names_b)
    return [n for n in names_a if n in in_b] != [n for n in names_b if n in in_a]


def _by_place(model: GgufFile) -> list[str]:
    with_data = (info for info in model.tensors.values() if info.n_bytes)
    return [info.name for info in sorted(with_data, key=lambda info: (info.part, info.offset))]


# ---------------------------------------------------------------------------------------------- values


def _metadata_difference(key: str, a: GgufValue | None, b: GgufValue | None) -> MetadataDifference:
    types = a is not None and b is not None and (a.value_type, a.item_type) != (b.value_type, b.item_type)
    return MetadataDifference(
        key=key,
        a=None if a is None else value_text(a, with_type=types),
        b=None if b is None else value_text(b, with_type=types),
        note=None if a is None or b is None or types else _items_note(a, b),
    )


def value_text(entry: GgufValue, *, with_type: bool = False) -> str:
    """Return a value in a line: strings shortened, of arrays the length and the first items."""
    value = entry.value
    if entry.value_type is GgufType.ARRAY and entry.item_type is not None:
        some = [_scalar(item) for item in value[:_FIRST_ITEMS]]
        more = ", ..." if len(value) > _FIRST_ITEMS else ""
        return visible(
            f"{len(value):,} x {entry.item_type.name}: {', '.join(some)}{more}"
            if some
            else f"no {entry.item_type.name}",
            _SHOWN,
        )
    text = visible(_scalar(value), _SHOWN)
    return f"{entry.value_type.name} {text}" if with_type else text


def _scalar(value: object) -> str:
    if isinstance(value, float | np.floating):
        return f"{float(value):.9g}"
    return str(value)


def _items_note(a: GgufValue, b: GgufValue) -> str | None:
    """How many items of two arrays of one type differ."""
    if a.value_type is not GgufType.ARRAY:
        return None
    common = min(len(a.value), len(b.value))
    if isinstance(a.value, list):
        places = [i for i in range(common) if a.value[i] != b.value[i]]
    else:
        # By their bits: NaN must not count as a difference.
        left, right = (np.ascontiguousarray(x.value[:common]) for x in (a, b))
        rows = (left.view(np.uint8) != right.view(np.uint8)).reshape(common, -1)
        places = np.flatnonzero(rows.any(axis=1)).tolist()
    lengths = f"{len(a.value):,} against {len(b.value):,} items" if len(a.value) != len(b.value) else ""
    if not places:
        return lengths + (", the shorter one is the beginning of the longer" if lengths else "") or None
    first = places[0]
    told = f"{len(places):,} of {common:,} items differ, the first is {first:,}"
    shown = f" ({visible(_scalar(a.value[first]), 30)} / {visible(_scalar(b.value[first]), 30)})"
    return (f"{lengths}, " if lengths else "") + told + shown


def shares_by_state(sizes: Mapping[str, tuple[int, int, int]]) -> list[Share]:
    """Shares of tensor data, from state -> (tensors, bytes in A, bytes in B)."""
    return [
        Share(
            section="tensor data",
            what=f"{n:,} tensor{'s' if n != 1 else ''} {state}",
            a=a,
            b=b,
            equal=state == "identical",
        )
        for state, (n, a, b) in sizes.items()
        if n
    ]


def in_file_order(shares: Iterable[Share]) -> tuple[Share, ...]:
    """Shares as their sections come in a file."""
    sections = get_args(SectionName)
    return tuple(sorted(shares, key=lambda share: sections.index(share.section)))
