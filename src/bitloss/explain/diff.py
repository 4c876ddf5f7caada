"""`bitloss diff`: what two GGUF files have in common, and every byte and weight in which they differ.

Tensors go by name (`bitloss.explain.diff_tensors`). Of the same type and shape, they are compared by bytes first, which
is as quick as reading; only what differs is taken apart (`fields`) and decoded (`distance`). Of other types and the
same shape, all values are decoded and compared as float32. Types that are not known here, integers and F64 are
compared as bytes.

With a reference (the source both were made from), tensors that differ are measured against it as well, all their
values: a difference is told beside what quantization itself costs.

All that is not tensor data is accounted for by `bitloss.explain.diff_bytes`; the words are `diff_text`'s.

Memory: a piece of 32 MB of each file, mapped, and values of a few million weights, whatever the files' size.
"""

from __future__ import annotations

import math
from pathlib import Path

from bitloss.engine.llama import usable_cores
from bitloss.errors import FileProblem
from bitloss.explain.diff_bytes import account, in_file_order, shares_by_state
from bitloss.explain.diff_tensors import Found, Job, compare
from bitloss.explain.diff_text import causes, conclude
from bitloss.explain.distance import Distance, Odd
from bitloss.explain.fields import Fields
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import absolute, open_model
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.records.diff import (
    AgainstReference,
    Diff,
    DifferingBlock,
    NotFinite,
    Side,
    TensorDiff,
    TensorState,
    Total,
    Values,
)


def diff(
    a: Path,
    b: Path,
    *,
    reference: Path | None = None,
    threads: int = 0,
    progress: ProgressCallback = silent,
) -> Diff:
    """Compare two GGUF files.

    Args:
        a: a file; of a split model the first part.
        b: another one.
        reference: the source both were made from.
        threads: worker threads; 0 takes all cores.
        progress: told after every piece.

    Raises:
        FileProblem: a file is missing, unreadable or a folder.
        FormatError: a file breaks its format.
        UnsupportedError: a version of GGUF that cannot be read.
        UsageError: a later part of a split model.
    """
    files = [_opened(path) for path in ((a, b) if reference is None else (a, b, reference))]
    left, right = files[0], files[1]
    done, total = (
        0,
        sum(i.n_bytes + right.tensors[n].n_bytes for n, i in left.tensors.items() if n in right.tensors),
    )

    def told(name: str, n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(Progress(f"diff {name}", min(done, total), total, "bytes"))

    job = Job(left, right, files[2] if reference is not None else None, threads or usable_cores(), told)
    compared = [_tensor(job, name) for name in dict.fromkeys([*left.tensors, *right.tensors])]
    tensors = [row for row, _ in compared]
    bytes_of = account(left, right)
    sizes: dict[str, tuple[int, int, int]] = {}
    for each in tensors:
        n, n_a, n_b = sizes.get(each.state, (0, 0, 0))
        sizes[each.state] = n + 1, n_a + each.bytes_a, n_b + each.bytes_b
    sides = _side(left), _side(right)
    summed = _total(compared)
    reasons = causes(sides, bytes_of, tensors)
    conclusion, text = conclude(sides, bytes_of, summed, reasons)
    return Diff(
        conclusion=conclusion,
        text=text,
        a=sides[0],
        b=sides[1],
        reference=None if reference is None else absolute(reference).name,
        causes=tuple(reasons),
        shares=in_file_order([*bytes_of.shares, *shares_by_state(sizes)]),
        metadata=tuple(bytes_of.metadata),
        key_order=bytes_of.key_order,
        tensor_order=bytes_of.tensor_order,
        total=summed,
        tensors=tuple(tensors),
    )


def _opened(path: Path) -> GgufFile:
    if path.is_dir():
        raise FileProblem(
            "a folder, not a GGUF file",
            where=path,
            mend="convert it first: bitloss convert MODEL --to f32 -o DIR",
        )
    return open_model(path, unknown_types=True)


def _side(file: GgufFile) -> Side:
    entry = file.metadata.get("general.architecture")
    return Side(
        name=file.path.name,
        bytes=file.size,
        parts=len(file.paths),
        architecture=entry.value if entry is not None and isinstance(entry.value, str) else None,
        tensors=len(file.tensors),
        version=file.version,
        alignment=file.alignment,
    )


# ------------------------------------------------------------------------------------------- one tensor


def _tensor(job: Job, name: str) -> tuple[TensorDiff, Found]:
    a, b = job.a.tensors.get(name), job.b.tensors.get(name)
    found = Found()
    state: TensorState
    if a is None or b is None:
        state = "only in b" if a is None else "only in a"
    elif a.shape != b.shape:
        state = "reshaped"
        job.told(name, a.n_bytes + b.n_bytes)
    else:
        state, found = compare(job, a, b)
    fields, distance_ = found.fields, found.distance
    row = TensorDiff(
        name=name,
        state=state,
        type_a=None if a is None else a.type_name,
        type_b=None if b is None else b.type_name,
        shape_a=None if a is None else a.shape[::-1],
        shape_b=None if b is None else b.shape[::-1],
        bytes_a=0 if a is None else a.n_bytes,
        bytes_b=0 if b is None else b.n_bytes,
        blocks=found.blocks,
        unit=found.unit,
        differing_blocks=found.differing_blocks,
        first=tuple(DifferingBlock(block=place, bits=bits) for place, bits in found.first),
        quants=None if fields is None else fields.quants,
        differing_quants=None if fields is None else fields.differing_quants,
        scales=None if fields is None else fields.scales,
        differing_scales=None if fields is None else fields.differing_scales,
        values=None if distance_ is None else _values(distance_, found.elements),
        reference=_against(found),
        note=found.note,
    )
    return row, found


# ------------------------------------------------------------------------------------------------ sums


def _values(of: Distance, elements: int) -> Values:
    rms = _rms(of, elements)
    return Values(
        values=elements,
        differing=of.differing,
        left_out=of.left_out,
        rms=rms,
        largest=None if rms is None else of.largest,
        a_not_finite=_not_finite(of.a),
        b_not_finite=_not_finite(of.b),
    )


def _not_finite(odd: Odd) -> NotFinite:
    return NotFinite(nan=odd.nan, positive_infinities=odd.up, negative_infinities=odd.down)


def _rms(of: Distance, elements: int) -> float | None:
    n = elements - of.left_out
    return math.sqrt(of.squares / n) if n > 0 else None


def _against(found: Found) -> AgainstReference | None:
    if found.against is None or found.distance is None:
        return None
    a, b = (_rms(each, found.elements) for each in found.against)
    by = _rms(found.distance, found.elements)
    most = max((x for x in (a, b) if x is not None), default=0.0)
    return AgainstReference(a_rms=a, b_rms=b, ratio=by / most if most and by is not None else None)


def _total(compared: list[tuple[TensorDiff, Found]]) -> Total:
    tensors = [row for row, _ in compared]
    quantized = [found for _, found in compared if found.quantized]
    fields = Fields()
    values, measured = Found(), Found()
    for _, found in compared:
        fields = fields.plus(found.fields or Fields())
        if found.distance is not None:
            values.distance = (values.distance or Distance()) + found.distance
            values.elements += found.elements
        if found.distance is not None and found.against is not None:
            so_far = measured.against or (Distance(), Distance())
            measured.against = so_far[0] + found.against[0], so_far[1] + found.against[1]
            measured.distance = (measured.distance or Distance()) + found.distance
            measured.elements += found.elements

    def count(state: TensorState) -> int:
        return sum(each.state == state for each in tensors)

    return Total(
        identical=count("identical"),
        equal_values=count("equal values"),
        different=count("different"),
        reshaped=count("reshaped"),
        only_in_a=count("only in a"),
        only_in_b=count("only in b"),
        retyped=sum(e.type_a != e.type_b for e in tensors if e.type_a is not None and e.type_b is not None),
        opaque=sum(each.state == "different" and each.values is None for each in tensors),
        blocks=sum(found.blocks or 0 for found in quantized),
        differing_blocks=sum(found.differing_blocks or 0 for found in quantized),
        quants=fields.quants,
        differing_quants=fields.differing_quants,
        scales=fields.scales,
        differing_scales=fields.differing_scales,
        values=None if values.distance is None else _values(values.distance, values.elements),
        reference=_against(measured),
    )
