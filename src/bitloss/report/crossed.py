"""The tables of what was crossed, and of groups of tensors raised one at a time."""

from __future__ import annotations

from bitloss.display import correlation, decimal, percent, probability
from bitloss.records import Attribution, Effect, Likeness, Results
from bitloss.report.tables import Notes, Table

_PARTS = {
    "weights": "weights alone",
    "imatrix": "importance matrix alone",
    "both": "only both together",
    "whole": "whole",
}


def cross_table(results: Results) -> Table:
    """What of the difference between two routes' files is due to weights, importance matrix, both; parts add up."""
    notes = Notes()
    rows = tuple(
        (f"{each.file_b} less {each.file_a}", words, *_part(each, part, notes))
        for each in (results.cross.attributions if results.cross else ())
        for part, words in _PARTS.items()
    )
    titles = (
        "Files",
        "Through",
        "Blocks that differ",
        "Share of blocks",
        "Mean KLD",
        "95 % interval",
        "p",
        "Share",
        "Share token by token",
    )
    return Table(titles, rows, tuple(notes.reasons), frozenset(range(2, len(titles))))


def _part(each: Attribution, part: str, notes: Notes) -> tuple[str, ...]:
    effect: Effect = getattr(each.kld, part)
    count, whole = getattr(each.blocks, part), each.blocks.whole
    reason = effect.reason or "not tested: the same in every chunk"
    return (
        f"{count:,}",
        percent(count / whole, digits=1) if whole else notes.missing("no block differs"),
        notes.missing(reason) if effect.difference is None else decimal(effect.difference, effect.se),
        notes.missing(reason) if effect.ci95 is None else " .. ".join(decimal(x) for x in effect.ci95),
        notes.missing(reason) if effect.p_value is None else probability(effect.p_value),
        _share(effect.share, effect.share_se, reason, notes),
        _share(effect.scatter, effect.scatter_se, reason, notes),
    )


def _share(share: float | None, se: float | None, reason: str, notes: Notes) -> str:
    if share is None:
        return notes.missing(reason)
    return percent(share, se, digits=1)


def tensors_table(results: Results) -> Table:
    """Tensors in which blocks differ between two routes, and through what."""
    rows = tuple(
        (
            f"{each.file_b} and {each.file_a}",
            tensor.name,
            tensor.type,
            f"{tensor.blocks.total:,}{'' if tensor.unit == 'block' else ' values'}",
            *(
                f"{getattr(tensor.blocks, part):,}"
                for part in ("whole", "weights", "imatrix", "both", "undone")
            ),
            ", ".join(map(str, tensor.first)),
        )
        for each in (results.cross.attributions if results.cross else ())
        for tensor in each.tensors
    )
    titles = ("Files", "Tensor", "Type", "Blocks", "Differ", "Weights", "Importance matrix", "Both", "Undone")
    return Table((*titles, "First that differ"), rows, right=frozenset(range(3, 9)))


def imatrices_table(results: Results) -> Table:
    """Importance matrices of two sources, and the halves of the calibration text beside them."""
    notes = Notes()
    rows = []
    if results.cross:
        for pair in results.cross.imatrices:
            rows.append((f"{pair.a} and {pair.b}", *_likeness(pair.likeness, "", notes)))
        for half in results.cross.halves:
            name = f"two halves of the text, {half.source}"
            rows.append((name, *_likeness(half.likeness, half.reason or "", notes)))
    titles = (
        "Importance matrices",
        "Columns",
        "Difference",
        "Largest ratio",
        "Lowest correlation",
        "Median correlation",
    )
    return Table(titles, tuple(rows), tuple(notes.reasons), frozenset(range(1, len(titles))))


def _likeness(like: Likeness | None, reason: str, notes: Notes) -> tuple[str, ...]:
    if like is None:
        return (notes.missing(reason),) * 5
    none = "no columns to compare"
    return (
        f"{like.columns:,}",
        notes.missing(none) if like.spread is None else percent(like.spread),
        notes.missing(none) if like.largest_ratio is None else f"{like.largest_ratio:.6g}",
        notes.missing(none) if like.correlation_lowest is None else correlation(like.correlation_lowest),
        notes.missing(none) if like.correlation_median is None else correlation(like.correlation_median),
    )


def sensitivity_table(results: Results) -> Table:
    """Groups of tensors by what raising them gains."""
    notes = Notes()
    rows = []
    for each in results.sensitivity.groups if results.sensitivity else ():
        reason = each.reason or "not tested"
        rows.append(
            (
                each.group,
                str(each.tensors),
                f"{each.bits_per_weight_added:.4f}",
                notes.missing(reason) if each.gain is None else decimal(each.gain, each.se),
                notes.missing(reason) if each.ci95 is None else " .. ".join(decimal(x) for x in each.ci95),
                notes.missing(reason) if each.p_holm is None else probability(each.p_holm),
                notes.missing(reason) if each.gain_share is None else percent(each.gain_share),
                notes.missing(reason) if each.gain_per_bit is None else decimal(each.gain_per_bit),
            )
        )
    titles = (
        "Raised",
        "Tensors",
        "Bits per weight added",
        "Gain in mean KLD",
        "95 % interval",
        "p (Holm)",
        "Share of the plain file's",
        "Gain for a bit per weight",
    )
    return Table(titles, tuple(rows), tuple(notes.reasons), frozenset(range(1, len(titles))))
