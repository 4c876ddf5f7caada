"""A diff in words: the causes of other bytes, the conclusion, the lines of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitloss.display import many, rough_percent, visible
from bitloss.records.diff import (
    AgainstReference,
    Conclusion,
    Diff,
    NotFinite,
    Share,
    Side,
    TensorDiff,
    Total,
    Values,
)

if TYPE_CHECKING:
    from bitloss.explain.diff_bytes import Account

Sides = tuple[Side, Side]
SHARE_HEAD = ("where", "what", "A", "B", "B - A", "equal")
METADATA_HEAD = ("key", "A", "B", "")
TENSOR_HEAD = ("tensor", "type", "outcome", "blocks", "quants", "scales", "values", "RMS", "largest")
REFERENCE_HEAD = "RMS / error"
_KEY = 80
_NAMED = 3


def share_of(n: int, of: int, word: str) -> str:
    """``12 of 4,096 blocks (0.29 %)``."""
    if not 0 < n < of:
        return f"{n:,} of {many(of, word)}"
    return f"{n:,} of {many(of, word)} ({rough_percent(n / of, digits=3)})"


# ---------------------------------------------------------------------------------------------- causes


def causes(sides: Sides, found: Account, tensors: Sequence[TensorDiff]) -> list[str]:
    """Every reason why the bytes of the files are not the same, in the order of the file."""
    a, b = sides
    told = []
    if a.parts != b.parts:
        told.append(f"A is {many(a.parts, 'file')}, B is {many(b.parts, 'file')}")
    if a.version != b.version:
        told.append(f"A is GGUF version {a.version}, B version {b.version}")
    told += [_key_cause(share) for share in found.shares if share.section == "metadata" and not share.equal]
    if found.key_order:
        told.append("the metadata keys come in another order")
    if found.tensor_order:
        told.append("the tensors come in another order")
    if a.alignment != b.alignment:
        told.append(f"tensors begin at multiples of {a.alignment:,} bytes in A, of {b.alignment:,} in B")
    told += _tensor_causes(tensors) + _retyped(tensors)
    for share in found.shares:
        if share.section in ("padding", "trailing bytes") and not share.equal:
            where = f"{share.section} {share.what}"
            told.append(
                f"{where}: {many(share.a, 'byte')} in A, {share.b:,} in B"
                if share.a != share.b
                else f"{where}: other bytes ({share.a:,})"
            )
    if not told:  # places alone: an offset that is another one, though everything is there in order
        other = [share.section for share in found.shares if not share.equal]
        told += [f"the {section} holds other bytes" for section in dict.fromkeys(other)]
    return told


def _key_cause(share: Share) -> str:
    key = f"metadata key {visible(share.what, _KEY)}"
    if not share.b:
        return f"{key} is only in A ({many(share.a, 'byte')})"
    if not share.a:
        return f"{key} is only in B ({many(share.b, 'byte')})"
    if share.a == share.b:
        return f"{key} has another value ({many(share.a, 'byte')} in both)"
    return f"{key} has another value ({many(share.a, 'byte')} in A, {share.b:,} in B)"


def _tensor_causes(tensors: Sequence[TensorDiff]) -> list[str]:
    told = []
    for state, words in (
        ("different", "holds other weights"),
        ("opaque", "holds other bytes of a type that is not decoded"),
        ("equal values", "holds equal values in other bytes"),
        ("reshaped", "has another shape"),
        ("only in a", "is only in A"),
        ("only in b", "is only in B"),
    ):
        some = [each for each in tensors if _state(each) == state]
        if not some:
            continue
        names = ", ".join(visible(each.name, _KEY) + _where(each) for each in some[:_NAMED])
        more = f" and {len(some) - _NAMED:,} more" if len(some) > _NAMED else ""
        verb = words if len(some) == 1 else _of_many(words)
        told.append(f"{many(len(some), 'tensor')} {verb}: {names}{more}")
    return told


def _state(each: TensorDiff) -> str:
    return "opaque" if each.state == "different" and each.values is None else each.state


def _where(each: TensorDiff) -> str:
    """`` (block 1, 4 bits; block 7, 1 bit)`` where all that differs can be named."""
    if not 0 < len(each.first) == (each.differing_blocks or 0) <= _NAMED:
        return ""
    named = [f"{each.unit} {of.block:,}, {many(of.bits, 'bit')}" for of in each.first]
    return f" ({'; '.join(named)})"


def _retyped(tensors: Sequence[TensorDiff]) -> list[str]:
    """Of each pair of types, the tensors that are of one in A and of the other in B."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in tensors:
        if each.type_a and each.type_b and each.type_a != each.type_b:
            found.setdefault((each.type_a, each.type_b), []).append(visible(each.name, _KEY))
    return [
        f"{many(len(names), 'tensor')} {'is' if len(names) == 1 else 'are'} {a} in A and {b} in B: "
        + ", ".join(names[:_NAMED])
        + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
        for (a, b), names in found.items()
    ]


def _of_many(words: str) -> str:
    first, rest = words.split(" ", 1)
    return f"{ {'holds': 'hold', 'has': 'have', 'is': 'are'}[first] } {rest}"


# ------------------------------------------------------------------------------------------ conclusion


def conclude(sides: Sides, found: Account, total: Total, reasons: Sequence[str]) -> tuple[Conclusion, str]:
    """The outcome in a word, and in a sentence or two."""
    a, b = sides
    if not reasons:
        return "same file", f"the same file: all {many(a.bytes, 'byte')} are equal, and so are the hashes"
    common = total.identical + total.equal_values + total.different
    missing = total.only_in_a + total.only_in_b + total.reshaped
    size = _size_sentence(sides, found, total)
    if a.architecture != b.architecture:
        names = (side.architecture or "an unnamed architecture" for side in (a, b))
        word = "different models: {} and {}".format(*(visible(name) for name in names))
        return "different models", f"{word}. {_common(common, missing, total)}. {size}"
    if missing:
        return "different tensors", f"different tensors: {_common(common, missing, total)}. {size}"
    if not total.different and not total.equal_values:
        n = many(total.identical, "tensor")
        return "same weights", f"same weights, different files: all {n} are equal byte for byte. {size}"
    if not total.different:
        return "same values", f"same values, different files: {_equal_values(total)}. {size}"
    return "different weights", f"different weights: {_different(total)}. {size}"


def _common(common: int, missing: int, total: Total) -> str:
    if not common:
        return "no tensor of one has the name and shape of one of the other"
    parts = [
        many(total.only_in_a, "tensor") + " only in A" if total.only_in_a else "",
        many(total.only_in_b, "tensor") + " only in B" if total.only_in_b else "",
        many(total.reshaped, "tensor") + " of another shape" if total.reshaped else "",
    ]
    rest = ", ".join(part for part in parts if part)
    told = f"; {rest}" if missing else ""
    if not total.different:
        how = _equal_values(total) if total.equal_values else "equal byte for byte"
    else:
        how = _different(total)
    return f"{many(common, 'tensor')} of the same name and shape: {how}{told}"


def _equal_values(total: Total) -> str:
    same = f", {total.identical:,} of them byte for byte" if total.identical else ""
    types = f", {many(total.retyped, 'tensor')} in another type" if total.retyped else ""
    return f"all {many(total.identical + total.equal_values, 'tensor')} hold equal values{same}{types}"


def _different(total: Total) -> str:
    all_of = total.identical + total.equal_values + total.different
    told = [f"{total.different:,} of {many(all_of, 'tensor')} differ{'s' if total.different == 1 else ''}"]
    if total.retyped:
        told.append(f"{total.retyped:,} {'is' if total.retyped == 1 else 'are'} of another type")
    if total.differing_blocks:
        told.append(f"in {share_of(total.differing_blocks, total.blocks, 'block')}")
    if total.quants:
        told.append(
            f"{share_of(total.differing_quants, total.quants, 'quant')} and "
            f"{share_of(total.differing_scales, total.scales, 'scale')} changed"
        )
    values = total.values
    if values is not None:
        if values.values > total.quants:  # else quants tell more
            told.append(f"{share_of(values.differing, values.values, 'value')} changed")
        if values.rms is not None and (values.largest or not values.left_out):
            told.append(f"RMS difference {values.rms:.3g}, largest {values.largest:.3g}")
        told += _odd(values)
    if total.opaque:
        told.append(f"{many(total.opaque, 'tensor')} compared as bytes only")
    text = ", ".join(told)
    return text + (f"; {_against(total.reference)}" if total.reference is not None else "")


def _odd(values: Values) -> list[str]:
    """Values that are in no RMS, by kind."""
    told = [
        f"{kinds} in {name}"
        for name, kinds in (("A", not_finite(values.a_not_finite)), ("B", not_finite(values.b_not_finite)))
        if kinds
    ]
    return (
        [f"values that are not finite are in no error: {' and '.join(told)}"]
        if values.left_out and told
        else []
    )


def _against(of: AgainstReference) -> str:
    if of.ratio is None:
        return "neither is away from the reference"
    errors = f"{_number(of.a_rms)} in A, {_number(of.b_rms)} in B"
    return f"that is {of.ratio:.3g} times the distance to the reference (RMS {errors})"


def _size_sentence(sides: Sides, found: Account, total: Total) -> str:
    """How many bytes one file is larger, and where they are."""
    a, b = sides
    parts: dict[str, int] = {}
    for share in found.shares:
        if share.a != share.b:
            of = f"metadata key {visible(share.what, _KEY)}" if share.section == "metadata" else share.section
            parts[of] = parts.get(of, 0) + share.b - share.a
    data = b.bytes - a.bytes - sum(parts.values())
    if data:
        parts["tensor data"] = data
    parts = {of: n for of, n in parts.items() if n}
    ordered = sorted(parts.items(), key=lambda item: -abs(item[1]))
    where = ", ".join(f"{n:+,} in {of}" for of, n in ordered[:_NAMED])
    if len(ordered) > _NAMED:
        where += f", {sum(n for _, n in ordered[_NAMED:]):+,} elsewhere"
    by = b.bytes - a.bytes
    if not by:
        return f"Both are {many(a.bytes, 'byte')}" + (f" ({where})" if where else "")
    if len(ordered) == 1:
        where = f"all of them in {ordered[0][0]}"
    return f"B is {many(abs(by), 'byte')} {'larger' if by > 0 else 'smaller'}: {where}"


# ---------------------------------------------------------------------------------------------- tables


def share_rows(found: Diff) -> list[tuple[str, ...]]:
    """The account of bytes under `SHARE_HEAD`, the sizes last."""
    rows = [
        (
            each.section,
            visible(each.what, _KEY),
            f"{each.a:,}",
            f"{each.b:,}",
            _signed(each.b - each.a),
            _yes(each.equal),
        )
        for each in found.shares
    ]
    a, b = found.a.bytes, found.b.bytes
    return [*rows, ("all", "", f"{a:,}", f"{b:,}", _signed(b - a), _yes(found.conclusion == "same file"))]


def metadata_rows(found: Diff) -> list[tuple[str, ...]]:
    """Keys that differ, under `METADATA_HEAD`."""
    return [
        (visible(each.key, _KEY), *("(none)" if v is None else v for v in (each.a, each.b)), each.note or "")
        for each in found.metadata
    ]


def tensor_rows(found: Diff, *, identical: bool) -> list[tuple[str, ...]]:
    """Tensors under `TENSOR_HEAD` (and `REFERENCE_HEAD`), those that are identical only on request."""
    return [
        _tensor_row(each, with_reference=found.reference is not None)
        for each in found.tensors
        if identical or each.state != "identical"
    ]


def _tensor_row(each: TensorDiff, *, with_reference: bool) -> tuple[str, ...]:
    kinds = [kind for kind in (each.type_a, each.type_b) if kind is not None]
    outcome: str = each.state
    if each.state == "reshaped":
        outcome += f": {_shape(each.shape_a)} / {_shape(each.shape_b)}"
    if each.note:
        outcome += f" ({each.note})"
    values = each.values
    row = (
        visible(each.name, _KEY),
        " / ".join(dict.fromkeys(kinds)),
        outcome,
        _of(each.differing_blocks, each.blocks) + ("" if each.unit in (None, "block") else f" {each.unit}s"),
        _of(each.differing_quants, each.quants),
        _of(each.differing_scales, each.scales),
        _value_cell(values),
        _number(values.rms) if values else "",
        _number(values.largest) if values else "",
    )
    if not with_reference:
        return row
    return (*row, "" if each.reference is None else _number(each.reference.ratio))


def _value_cell(values: Values | None) -> str:
    if values is None:
        return ""
    odd = [
        f"{name}: {told}"
        for name, told in (("A", not_finite(values.a_not_finite)), ("B", not_finite(values.b_not_finite)))
        if told
    ]
    return _of(values.differing, values.values) + (f" ({'; '.join(odd)})" if odd else "")


def not_finite(of: NotFinite) -> str:
    """``1 NaN, 2 -infinity``; empty without one."""
    counts = ((of.nan, "NaN"), (of.positive_infinities, "+infinity"), (of.negative_infinities, "-infinity"))
    return ", ".join(f"{n:,} {name}" for n, name in counts if n)


def _of(n: int | None, of: int | None) -> str:
    return "" if n is None or of is None else f"{n:,} of {of:,}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape or ())) or "scalar"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _signed(n: int) -> str:
    return f"{n:+,}" if n else "0"


def _yes(equal: bool) -> str:
    return "yes" if equal else "no"
