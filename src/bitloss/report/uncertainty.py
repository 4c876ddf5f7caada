"""Which standard error stands after ±, and how a report says so: one rule for page, Markdown, card and terminal.

The error clustered by chunk (or document) is shown wherever there is one, because tokens of one have much in common and
an error that takes them as independent is too small. With fewer than that takes (see `bitloss.divergence.clusters`)
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
    """Clustered by chunk, or document."""
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


def said(results: Results, shown: Uncertainty) -> str:
    """The same as `said_of`, of a run's figures."""
    text = results.text
    return said_of(shown, usual(results), cluster=text.cluster, stratified=text.stratified)


_TOKENS = "which takes tokens as independent"


def said_of(
    shown: Uncertainty, there: Uncertainty, *, cluster: str = "chunk", stratified: bool = False
) -> str:
    """One or two sentences on what stands after ±.

    Args:
        shown: what does.
        there: what could, see `usual`.
        cluster: what errors are clustered by.
        stratified: whether they are about each text's own mean.
    """
    clustered = f"clustered by {cluster}, because the tokens of a {cluster} have much in common"
    if stratified:
        clustered += ", and taken about each text's own mean"
    if shown is Uncertainty.CLUSTERED:
        return f"± is the standard error {clustered}; it is not the one that llama-perplexity prints."
    if shown is Uncertainty.BOTH:
        return f"± is the standard error {clustered}; in brackets stands llama-perplexity's, {_TOKENS}."
    said = f"± is the standard error that llama-perplexity prints, {_TOKENS}"
    if there is Uncertainty.CLUSTERED:
        return f"{said}; clustered by {cluster}, errors are usually larger."
    return f"{said} and is usually too small: there are too few {cluster}s for errors clustered by {cluster}."
