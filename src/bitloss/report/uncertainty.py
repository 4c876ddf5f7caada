"""Which standard error stands after ±, and how a report says so: one rule for page, Markdown, card and terminal.

The error clustered by chunk is shown wherever there is one, because tokens of a chunk have much in common and an error
that takes them as independent is too small. With fewer chunks than that takes (see `bitloss.divergence.statistics`)
llama-perplexity's is shown, and said to be. Where both stand, the first is the one to trust.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from bitloss.records import Figure, Metrics, Results


class Uncertainty(StrEnum):
    """Which standard error stands after ±."""

    TOKENS = "tokens"
    """llama-perplexity's: tokens independent."""
    CLUSTERED = "clustered"
    """Clustered by chunk."""
    BOTH = "both"
    """The second, and the first in brackets."""


def usual(results: Results) -> Uncertainty:
    """Which one a run's figures are shown with, where there is room for one."""
    columns = [c.metrics for c in results.candidates]
    if not columns and results.noise_floor:
        columns = [results.noise_floor.metrics]
    return usual_of(columns)


def usual_of(columns: Iterable[Metrics]) -> Uncertainty:
    """The same for figures of several files: clustered, where any has such an error."""
    clustered = any(f.se_clustered is not None for metrics in columns for f in metrics.values())
    return Uncertainty.CLUSTERED if clustered else Uncertainty.TOKENS


def usual_error(figure: Figure) -> float | None:
    """The standard error of one figure by the same rule."""
    return figure.se if figure.se_clustered is None else figure.se_clustered


def fullest(results: Results) -> Uncertainty:
    """Which ones are shown where there is room for both."""
    return Uncertainty.BOTH if usual(results) is Uncertainty.CLUSTERED else Uncertainty.TOKENS


ALONE = (
    "The 95 % interval is for that one comparison alone, while the verdict goes by p after Holm, which takes all pairs "
    "and metrics together: an interval without 0 beside a tie is no contradiction."
)
"""What to know of a table of comparisons."""

_CLUSTERED = "clustered by chunk, because the tokens of a chunk have much in common"
_TOKENS = "which takes tokens as independent"


def said_of(shown: Uncertainty, there: Uncertainty) -> str:
    """One or two sentences on what stands after ±.

    Args:
        shown: what does.
        there: what could, see `usual`.
    """
    if shown is Uncertainty.CLUSTERED:
        return f"± is the standard error {_CLUSTERED}; it is not the one that llama-perplexity prints."
    if shown is Uncertainty.BOTH:
        return f"± is the standard error {_CLUSTERED}; in brackets stands llama-perplexity's, {_TOKENS}."
    said = f"± is the standard error that llama-perplexity prints, {_TOKENS}"
    if there is Uncertainty.CLUSTERED:
        return f"{said}; clustered by chunk, errors are usually larger."
    return f"{said} and is usually too small: there are too few chunks for errors clustered by chunk."
