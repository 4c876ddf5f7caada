"""Rules for question 3: whether one route is better, and what makes the routes' files differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bitloss.display import decimal, many, percent, probability, rough_percent, visible
from bitloss.explain.sameness import sources_of
from bitloss.records import (
    Attribution,
    Blocks,
    Candidate,
    Comparison,
    Confidence,
    Cross,
    Effect,
    Finding,
    ImatrixHalves,
    ImatrixPair,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from bitloss.records import CrossedTensor

_NAMED = 3  # tensors and blocks that are named in a text; all counts are in results.json
_HALF_TO_WHOLE = math.sqrt(2.0)  # see `bitloss.imatrix.likeness`


def ties(comparisons: Sequence[Comparison]) -> Finding | None:
    """Name the rows that are ties by mean KLD; fires when there are any. Equal tensors are no tie."""
    tested = {Verdict.TIE, Verdict.BETTER, Verdict.WORSE}
    rows = [each for each in comparisons if each.metric == "kld_mean" and each.verdict in tested]
    tied = [(visible(each.a), visible(each.b)) for each in rows if each.verdict is Verdict.TIE]
    if not tied:
        return None
    return Finding(
        id="ties",
        title=f"{len(tied)} of {len(rows)} pairs of different files {'is' if len(tied) == 1 else 'are'} a tie by "
        "mean KLD",
        text=f"No difference that this text can show: {'; '.join(f'{a} and {b}' for a, b in tied)}.",
        evidence={"ties": [[a, b] for a, b in tied], "pairs": len(rows)},
        confidence=Confidence.MEASURED,
        question=3,
        rows=(*dict.fromkeys(name for pair in tied for name in pair), "#comparisons"),
    )


# ------------------------------------------------------------------------------------------------ the cross


def why_different(found: Attribution) -> Finding | None:
    """Attribute the difference between the files of two routes.

    Fires when some block differs between the two files, or some value of a tensor that has no blocks.
    """
    blocks, values = found.blocks, found.values
    counted = [(blocks, "block")] if blocks.whole else []
    counted += [(values, "value")] if values is not None and values.whole else []
    if not counted:
        return None
    text = " ".join(_counted(counts, unit, found.tensors) for counts, unit in counted)
    text += f" {_one_matrix(found)} {_divergence(found)}"
    first, unit = counted[0]
    return Finding(
        id="why-different",
        title=_title(found, first, unit),
        text=text,
        evidence={
            "candidates": [found.file_a, found.file_b],
            "blocks": blocks.model_dump(mode="json"),
            "values": None if values is None else values.model_dump(mode="json"),
            f"shares_of_{unit}s": {
                name: getattr(first, name) / first.whole for name in ("weights", "imatrix", "both")
            },
            "kld": {
                name: getattr(found.kld, name).model_dump(mode="json", exclude_none=True)
                for name in ("whole", "weights", "imatrix", "both")
            },
        },
        confidence=Confidence.PROVEN,
        question=3,
        rows=(found.file_a, found.file_b, found.weights_of_b, found.imatrix_of_b, "#cross"),
    )


def _counted(counts: Blocks, unit: str, tensors: Sequence[CrossedTensor]) -> str:
    """How many blocks (or values) differ, and to how many of them what matters."""
    text = (
        f"{counts.whole:,} of {counts.total:,} {unit}s {'differs' if counts.whole == 1 else 'differ'} "
        f"({percent(counts.whole / counts.total)}), in {_tensors(tensors, unit)}. Of these only the weights matter to "
        f"{counts.weights:,}, only the importance matrix to {counts.imatrix:,}, and {counts.both:,} "
        f"take{'s' if counts.both == 1 else ''} both."
    )
    if counts.undone:
        text += (
            f" {counts.undone:,} more change{'s' if counts.undone == 1 else ''} with one alone, and "
            f"{'is' if counts.undone == 1 else 'are'} the same in the two files."
        )
    return text


def _title(found: Attribution, counts: Blocks, unit: str) -> str:
    files = f"{found.file_a} and {found.file_b}"
    everything = [each for each in (found.blocks, found.values) if each is not None]
    if all(each.whole == each.imatrix for each in everything):
        return f"{files} differ through the importance matrix alone"
    if all(each.whole == each.weights for each in everything):
        return f"{files} differ through the weights alone"
    shares = ", ".join(
        f"{percent(count / counts.whole, digits=1)} through {what}"
        for count, what in (
            (counts.weights, "the weights"),
            (counts.imatrix, "the importance matrix"),
            (counts.both, "both"),
        )
        if count
    )
    return f"{files} differ in {many(counts.whole, unit)}: {shares}"


def _tensors(tensors: Sequence[CrossedTensor], unit: str) -> str:
    differing = [t for t in tensors if t.blocks.whole and t.unit == unit]
    differing.sort(key=lambda t: -t.blocks.whole)
    shown = [
        f"{each.name} {each.blocks.whole:,}"
        + (
            f" ({unit} {', '.join(map(str, each.first[:_NAMED]))}{', …' if each.blocks.whole > _NAMED else ''})"
        )
        for each in differing[:_NAMED]
    ]
    return f"{many(len(differing), 'tensor')} ({'most in' if len(differing) > _NAMED else 'in'} {', '.join(shown)})"


def _one_matrix(found: Attribution) -> str:
    """What weights alone do: the plain answer to "is it the weights?"."""
    pairs = (
        (found.a, "weights_with_a", f"{found.file_a} and {found.weights_of_b}"),
        (found.b, "weights_with_b", f"{found.imatrix_of_b} and {found.file_b}"),
    )
    said = []
    for matrix, which, files in pairs:
        counted = [
            many(getattr(counts, which), unit)
            for counts, unit in ((found.blocks, "block"), (found.values, "value"))
            if counts is not None and getattr(counts, which)
        ]
        told = f"they differ in {' and '.join(counted)}" if counted else "they give the same bytes"
        said.append(f"with that of {matrix} {told} ({files})")
    return (
        f"With one importance matrix for both, {found.type} from weights of {found.a} and {found.b}: "
        f"{', '.join(said)}.{_where_weights(found.tensors)}"
    )


def _where_weights(tensors: Sequence[CrossedTensor]) -> str:
    """The first blocks that weights alone change, with either matrix."""
    blocks = [f"{each.name} {each.unit} {index}" for each in tensors for index in each.first_weights]
    shown = ", ".join(blocks[:_NAMED])
    return f" Changed by the weights: {shown}{', …' if len(blocks) > _NAMED else ''}." if shown else ""


def _divergence(found: Attribution) -> str:
    kld = found.kld
    if kld.whole.difference is None:
        return f"Their KLD cannot be compared: {kld.whole.reason}."
    parts = (("weights", kld.weights), ("importance matrix", kld.imatrix), ("only both together", kld.both))
    said = (
        f"Mean KLD of {found.file_b} less that of {found.file_a}: {_effect(kld.whole)}, which is "
        + ", ".join(f"{_effect(part)} by {name}" for name, part in parts)
        + "."
    )
    if kld.whole.p_value is None:
        return f"{said} Too little text to test it or to give errors."
    if kld.whole.share is None:
        p_value = probability(kld.whole.p_value)
        said += f" The whole cannot be told from 0 (p = {p_value}), so shares of it mean nothing."
    else:
        said += " Shares: " + ", ".join(f"{name} {_share(part)}" for name, part in parts)
        said += (
            f" (the whole is not 0 by a test of its own, p = {probability(kld.whole.p_value)}, not Holm's)."
        )
    if kld.weights.scatter is not None:
        said += " Of the token-by-token difference: " + ", ".join(
            f"{name} {_percent(part.scatter, part.scatter_se)}" for name, part in parts
        )
        said += "."
    return said


def _effect(effect: Effect) -> str:
    if effect.difference is None:
        return "not known"
    return "0" if effect.difference == 0 and not effect.se else decimal(effect.difference, effect.se)


def _share(effect: Effect) -> str:
    return _percent(effect.share, effect.share_se)


def _percent(share: float | None, se: float | None) -> str:
    if share is None:
        return "not known"
    return percent(share, se, digits=1)


def not_crossed(candidates: Sequence[Candidate], cross: Cross | None) -> Finding | None:
    """Say that weights and importance matrix were changed together; fires when files of one type differ in both.

    Silent when the run crossed them, or when either was the same for both files.
    """
    if cross is not None:
        return None
    pairs = [
        (a, b)
        for i, a in enumerate(candidates)
        for b in candidates[i + 1 :]
        if a.type == b.type
        and a.tensors_sha256 != b.tensors_sha256
        and a.weights_from != b.weights_from
        and a.imatrix_from != b.imatrix_from
        and None not in {a.weights_from, b.weights_from, a.imatrix_from, b.imatrix_from}
    ]
    if not pairs:
        return None
    return Finding(
        id="not-crossed",
        title="Whether weights or importance matrix make the files differ was not looked at",
        text=f"{'; '.join(f'{a.name} and {b.name}' for a, b in pairs)}: both changed at once, so this run cannot tell. "
        "Run it again with --cross.",
        evidence={"pairs": [[a.name, b.name] for a, b in pairs]},
        confidence=Confidence.PROVEN,
        question=3,
        rows=tuple(dict.fromkeys(each.name for pair in pairs for each in pair)),
    )


# ------------------------------------------------------------------------------------- importance matrices


def imatrix_route(pair: ImatrixPair, halves: Sequence[ImatrixHalves]) -> Finding | None:
    """Set what the route does to the importance matrix beside what another text of the length would do.

    Fires when the two matrices have columns to compare. Without halves it says that the text's noise is not known.
    """
    like = pair.likeness
    if like.spread is None or like.largest_ratio is None:
        return None
    own = [
        each.likeness.spread
        for each in halves
        if each.likeness is not None and each.source in {pair.a, pair.b}
    ]
    known = [spread for spread in own if spread is not None]
    text = (
        f"Of {like.columns:,} columns the mean squares differ by {percent(like.spread)} (root mean square of the "
        f"logarithm of their ratio); the largest ratio is {like.largest_ratio:.6g} ({like.largest_ratio_at})"
    )
    if like.correlation_lowest is not None:
        text += (
            f", the lowest correlation of a weight's columns {like.correlation_lowest:.8g} "
            f"({like.correlation_lowest_at})"
        )
    text += "."
    if like.left_out:
        text += f" {like.left_out:,} columns that are 0 in one of them or in both are left out."
    evidence: dict[str, JsonValue] = {"route": like.model_dump(mode="json")}
    names = f"the importance matrices of {sources_of(pair.a, pair.b)}"
    if like.spread == 0:
        title = f"{names[0].upper()}{names[1:]} are equal"
    elif not known:
        reason = next((each.reason for each in halves if each.reason), "no halves were kept")
        title = f"{names[0].upper()}{names[1:]} differ by {percent(like.spread)}"
        text += f" Whether that is more than the choice of the text does is not known: {reason}."
    else:
        noise = min(known) / _HALF_TO_WHOLE
        evidence |= {
            "halves": list(known),
            "text_noise": noise,
            "route_over_text": like.spread / noise if noise else None,
        }
        less = like.spread < noise
        title = (
            f"The route changes the importance matrix {'less' if less else 'more'} than another text of the same "
            "length would (judged by one pair of halves)"
        )
        text += (
            f" The two halves of the calibration text differ by {percent(min(known))}, so "
            f"two texts of its length by about {percent(noise)}: the route's effect is {_times(like.spread, noise)} of "
            "that."
        )
    return Finding(
        id="imatrix-route",
        title=title,
        text=text,
        evidence=evidence,
        confidence=Confidence.PROVEN if like.spread == 0 else Confidence.MEASURED,
        question=3,
        rows=("#imatrices",),
    )


def _times(part: float, whole: float) -> str:
    return "more than all" if not whole else rough_percent(part / whole, digits=3)
