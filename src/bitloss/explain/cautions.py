"""What stands between figures and their plain reading: a text seen before, a base of something else, faulty logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bitloss.display import percent
from bitloss.records import Base, Candidate, Confidence, Finding, Results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from bitloss.records import Text, TextPart

TELLING_SHARE: Final = 0.001
"""Share of a text's windows from which on an overlap is a finding: of a text of 640 chunks, a page."""
_HASH_DIGITS = 12


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
        text=f"Windows of {overlap.window} tokens that occur in {calibration.name} as well: {', '.join(shown)} "
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


def not_finite(candidates: Sequence[Candidate]) -> Finding | None:
    """Name the candidates with NaN or infinite logits; fires when there are any."""
    counts: dict[str, JsonValue] = {
        each.name: int(figure.value)
        for each in candidates
        if (figure := each.metrics.get("nonfinite_tokens")) is not None and figure.value
    }
    if not counts:
        return None
    said = ", ".join(f"{name} ({count} tokens)" for name, count in counts.items())
    return Finding(
        id="logits-not-finite",
        title="Logits that are NaN or infinite were computed",
        text=f"{said}. Figures that need these tokens are left out rather than averaged over the others.",
        evidence={"tokens": counts},
        confidence=Confidence.PROVEN,
    )
