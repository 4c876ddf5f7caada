"""What stands between figures and their plain reading: a text seen before, a base of something else, faulty logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bitloss.display import many, percent, visible
from bitloss.model.source import FULL_PRECISION
from bitloss.records import Base, Candidate, Confidence, Finding, Results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from bitloss.records import Text, TextPart

TELLING_SHARE: Final = 0.001
"""Share of a text's windows from which on an overlap is a finding: of a text of 640 chunks, a page."""
_HASH_DIGITS = 12
_NAMED = 5
_UNKNOWN = "unknown"
"""Type of a base that is a file of llama-perplexity, which does not say."""


def calibrated_on_the_measured_text(results: Results) -> Finding | None:
    """Warn that the importance matrices have seen the text that was measured on, or part of it.

    Fires when some candidate was made with an importance matrix, and a text is the calibration text by its hash, or
    shares at least `TELLING_SHARE` of its windows of tokens with it.
    """
    calibration, text = results.calibration, results.text
    made = [candidate.name for candidate in results.candidates if candidate.imatrix_from is not None]
    if calibration is None or not made:
        return None
    fitted = (
        "Types that use the importance matrix were fitted to {}, so their figures here may be better than on "
    )
    fitted += "a text they have not seen."
    same = [each.name for each in (results.texts or (text,)) if each.sha256 == calibration.sha256]
    overlap = text.overlap
    evidence: dict[str, JsonValue] = {"candidates": list(made)}
    if overlap is not None:
        evidence |= {"window": overlap.window, "windows": overlap.windows, "shared": overlap.shared}
    if same:
        return Finding(
            id="calibrated-on-the-measured-text",
            title="The importance matrices were computed on the text that was measured on",
            text=f"{calibration.name} and {same[0]} have the same content (sha256 "
            f"{calibration.sha256[:_HASH_DIGITS]}…). {fitted.format('this text')}",
            evidence={"sha256": calibration.sha256, **evidence},
            confidence=Confidence.PROVEN,
        )
    everything: tuple[Text | TextPart, ...] = (*results.texts, text)
    shares = {each.name: each.overlap.share for each in everything if each.overlap is not None}
    if overlap is None or max(shares.values()) < TELLING_SHARE:
        return None
    shown = [f"{percent(share)} of {name}" for name, share in shares.items() if share >= TELLING_SHARE]
    return Finding(
        id="calibrated-on-the-measured-text",
        title=f"The importance matrices have seen {percent(max(shares.values()))} of a text that was measured on",
        text=f"Windows of {overlap.window:,} tokens that occur in {calibration.name} as well: {', '.join(shown)} "
        f"({overlap.shared} of {overlap.windows} in all). {fitted.format('these passages')}",
        evidence={**evidence, "share": dict(shares)},
        confidence=Confidence.PROVEN,
    )


def base_of_something_else(base: Base) -> Finding | None:
    """Repeat what ``--force`` accepted; fires when it accepted something."""
    if not base.forced:
        return None
    return Finding(
        id="base-of-something-else",
        title="The base was made from something else than what was measured",
        text=f"Accepted with --force: {'; '.join(base.forced)}. Figures against this base hold that as well.",
        evidence={"differences": list(base.forced)},
        confidence=Confidence.PROVEN,
    )


def quantized_base(results: Results) -> Finding | None:
    """Say that the base is itself quantized; fires when most of its weights are, and it was not made in this run."""
    kind = results.model.dtype
    if results.sources or kind in {*FULL_PRECISION, _UNKNOWN}:
        return None
    return Finding(
        id="base-is-quantized",
        title=f"The base is quantized itself ({kind})",
        text=f"{results.base.file} stores most of its weights as {kind}. Divergences are from this file, not from the "
        "model of full precision: what the base itself has lost is not in them, and a file that is nearer to it need "
        "not be nearer to the model.",
        evidence={"type": kind, "base": results.base.file},
        confidence=Confidence.PROVEN,
    )


def not_finite(candidates: Sequence[Candidate]) -> Finding | None:
    """Name the candidates, and the base, with NaN or infinite logits; fires when there are any."""
    counts: dict[str, int] = {
        each.name: count for each in candidates if (count := _count(each, "nonfinite_tokens"))
    }
    if not counts:
        return None
    base: int = max(_count(each, "nonfinite_base") for each in candidates)
    said = ", ".join(f"{name} ({many(count, 'token')})" for name, count in counts.items())
    whose = (
        f"Of the base itself in {many(base, 'token')}: against those nothing can be measured. "
        if base
        else ""
    )
    return Finding(
        id="logits-not-finite",
        title="Logits of the base are NaN or infinite"
        if base
        else "Logits that are NaN or infinite were computed",
        text=f"{whose}{said}. Figures that need these tokens are left out rather than averaged over the others, and "
        "no verdict rests on them.",
        evidence={"tokens": dict(counts), "base": base},
        confidence=Confidence.PROVEN,
    )


def _count(candidate: Candidate, key: str) -> int:
    figure = candidate.metrics.get(key)
    return 0 if figure is None or figure.value is None else int(figure.value)


def importance_left_open(candidates: Sequence[Candidate]) -> Finding | None:
    """Name the tensors of which the importance matrices do not say which columns matter, and llama.cpp's rule for them.

    Fires when a matrix lacks a tensor of a layer, has experts that no token reached, or importance 0 throughout. That
    it lacks the two tables of tokens is as usual. Files of one matrix are told of together.
    """
    lacking, unused, lost, zeros = (dict[str, None]() for _ in range(4))
    files = []
    for each in candidates:
        told = each.importance
        if told is None:
            continue
        missing = [name for name in told.missing if name.startswith("blk.")]
        lacking |= dict.fromkeys(missing)
        unused |= dict.fromkeys(_experts(told.unused_experts))
        lost |= dict.fromkeys(_experts({name: told.zero_weights.get(name, ()) for name in told.lost}))
        zeros |= dict.fromkeys(_experts(told.zero_weights))
        if missing or told.unused_experts or told.zero_weights:
            files.append(each.name)
    if not files:
        return None
    harmless = [name for name in zeros if name not in lost]
    said = [
        f"{words}: {_some(list(names))}."
        for words, names in (
            ("Not in the matrix, encoded as without one", lacking),
            ("Experts no token reached, every column counts 1", unused),
            (
                "Importance 0 throughout, and with it some types store zeros or noise: such files are broken there",
                lost,
            ),
            ("Importance 0 throughout, which the types used take no harm from", harmless),
        )
        if names
    ]
    return Finding(
        id="importance-left-open",
        title="Importance of 0 emptied tensors"
        if lost
        else "The importance matrix leaves tensors or experts open",
        text=f"{' '.join(said)} The rules are llama.cpp's. A longer calibration text, or another, reaches more.",
        evidence={
            "candidates": list(files),
            "missing": list(lacking),
            "unused_experts": list(unused),
            "lost": list(lost),
            "zero_importance": list(zeros),
        },
        confidence=Confidence.PROVEN,
    )


def _experts(which: Mapping[str, Sequence[int]]) -> list[str]:
    return [
        name if "_exps" not in name else f"{name}[{', '.join(map(str, at))}]" for name, at in which.items()
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(visible(name) for name in names[:_NAMED]) + more
