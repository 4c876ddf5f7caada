"""Rules for question 1: files that differ and yet hold the same weights, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitloss.display import visible
from bitloss.explain.routes import is_whole
from bitloss.records import Audit, Candidate, Confidence, Cross, Finding, KeyDifference, Results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from bitloss.records import Attribution

_HASH_DIGITS = 12
_MANY_KEYS = 4


def sources_of(a: str | None, b: str | None) -> str:
    """``f32 and f16``."""
    return f"{a or 'none'} and {b or 'none'}"


def identical_tensors(first: Candidate, second: Candidate) -> Finding | None:
    """Point out two files with equal tensors that are not the same file.

    Fires when the tensor hashes are equal and the file hashes are not.
    """
    if first.tensors_sha256 != second.tensors_sha256 or first.sha256 == second.sha256:
        return None
    by_bytes = abs(first.bytes - second.bytes)
    sizes = f"{by_bytes} bytes apart ({first.bytes} and {second.bytes})" if by_bytes else "equal in size"
    text = (
        f"Every tensor of {second.name} has the name, type, shape and bytes of the one in {first.name} "
        f"(tensor hash {first.tensors_sha256[:_HASH_DIGITS]}…), so they were measured once. The files are "
        f"{sizes} and their sha256 differ ({first.sha256[:_HASH_DIGITS]}… and "
        f"{second.sha256[:_HASH_DIGITS]}…): all that differs lies outside the tensors, in the metadata or in "
        "the layout of the file."
    )
    text += _keys(second)
    weights = f"weights from {sources_of(first.weights_from, second.weights_from)}"
    imatrix = f"importance matrices from {sources_of(first.imatrix_from, second.imatrix_from)}"
    changed = [weights] if first.weights_from != second.weights_from else []
    changed += [imatrix] if first.imatrix_from != second.imatrix_from else []
    if changed:
        text += f" Thus {' with '.join(changed)} gave the same {first.type} bytes."
    evidence: dict[str, JsonValue] = {
        "candidates": [first.name, second.name],
        "tensors_sha256": first.tensors_sha256,
        "sha256": [first.sha256, second.sha256],
        "bytes": [first.bytes, second.bytes],
    }
    if second.keys_differ is not None:
        evidence["metadata"] = {each.key: [each.twin_bytes, each.bytes] for each in second.keys_differ}
    return Finding(
        id="identical-tensors",
        title=f"{first.name} and {second.name} are the same weights in different files",
        text=text,
        evidence=evidence,
        confidence=Confidence.PROVEN,
        question=1,
        rows=(first.name, second.name, "#files"),
    )


def _keys(second: Candidate) -> str:
    """Which metadata keys differ, and by how many bytes."""
    keys = second.keys_differ
    if keys is None:
        return ""
    if not keys:
        return " No metadata key differs: it is the layout alone."
    shown = ", ".join(f"{each.key} ({_values(each)})" for each in keys[:_MANY_KEYS])
    more = f" and {len(keys) - _MANY_KEYS} more" if len(keys) > _MANY_KEYS else ""
    return f" Metadata keys that differ: {shown}{more}."


def _values(key: KeyDifference) -> str:
    """Both values where they are short, else how many bytes they take."""
    if key.value is None and key.twin_value is None:
        return f"{key.twin_bytes} and {key.bytes} bytes"
    return " and ".join("nothing" if text is None else visible(text) for text in (key.twin_value, key.value))


def why_identical(
    pair: tuple[Candidate, Candidate], audit: Audit | None, cross: Cross | None
) -> Finding | None:
    """Say what made files of two routes come out the same.

    Args:
        pair: files of one type with equal tensors.
        audit: what a cast to F16 (or BF16) changes, and which blocks see it.
        cross: whether the importance matrix matters for this type.

    Fires when the files' weights come from two sources and the audit counted blocks of the type, or the cross has it.
    """
    a, b = pair
    if a.type != b.type or a.weights_from == b.weights_from or a.tensors_sha256 != b.tensors_sha256:
        return None
    said: list[str] = []
    evidence: dict[str, JsonValue] = {"candidates": [a.name, b.name]}
    through = next((each for each in audit.blocks if each.type == a.type), None) if audit else None
    route = next((name for name in ("f16", "bf16") if name in {a.weights_from, b.weights_from}), None)
    if audit is not None and through is not None and route is not None:
        to, changed, n = (
            route.upper(),
            getattr(audit.matrices, route).changed,
            getattr(through, route).changed,
        )
        said.append(
            f"Rounding to {to} changes {changed:,} of {audit.matrices.values:,} weights, and "
            f"{n:,} of {through.blocks:,} {a.type} blocks would come out with other bytes (every block counted, "
            "without an importance matrix)."
            + (f" What {to} loses, a block of this type does not see." if changed and not n else "")
        )
        evidence |= {"cast": to, "values_changed": changed, "blocks_changed": n, "blocks": through.blocks}
    square = _square(cross, a, b)
    if square is not None and all(c.whole == c.undone == 0 for c in (square.blocks, square.values) if c):
        said.append(
            f"Crossed, all four files ({square.file_a}, {square.weights_of_b}, {square.imatrix_of_b}, "
            f"{square.file_b}) have the same tensors: neither the weights' route nor the importance matrix's makes a "
            f"difference to {a.type}."
        )
        evidence["blocks_that_differ"] = square.blocks.whole
    if not said:
        return None
    return Finding(
        id="why-identical",
        title=f"Why {a.type} comes out the same by way of {sources_of(a.weights_from, b.weights_from)}",
        text=" ".join(said),
        evidence=evidence,
        confidence=Confidence.PROVEN,
        question=1,
        rows=(a.name, b.name, "#cross") if square is not None else (a.name, b.name),
    )


def _square(cross: Cross | None, a: Candidate, b: Candidate) -> Attribution | None:
    for each in cross.attributions if cross else ():
        if {each.file_a, each.file_b} == {a.name, b.name}:
            return each
    return None


def none_identical(results: Results) -> Finding | None:
    """Say that no type comes out the same by two routes; fires when files of several routes were measured and none do.

    Files that were made to be crossed are not counted: those of one source and several matrices are often the same.
    """
    whole = [each for each in results.candidates if is_whole(each)]
    crossed = len(results.candidates) - len(whole)
    routes = [(each.type, each.weights_from) for each in whole if each.weights_from]
    several = len(set(routes)) > len({kind for kind, _ in routes})
    hashes: Sequence[str] = [each.tensors_sha256 for each in whole]
    if not several or len(set(hashes)) < len(hashes):
        return None
    return Finding(
        id="none-identical",
        title="No type comes out the same by two routes"
        if crossed
        else "No two files of this run hold the same weights",
        text=f"The tensors of the {len(hashes)} files{' made by one route throughout' if crossed else ''} have "
        f"{len(set(hashes))} different hashes: where they score alike, it is by chance or because they differ little, "
        "not because they are the same."
        + (f" Files made only to be crossed ({crossed}) are told of with the cross." if crossed else ""),
        evidence={"files": len(hashes), "different_tensors": len(set(hashes))},
        confidence=Confidence.PROVEN,
        question=1,
        rows=("#files",),
    )
