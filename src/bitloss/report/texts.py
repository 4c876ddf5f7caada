"""The table of each text by itself, where a run measured on several."""

from __future__ import annotations

from bitloss.records import Metrics, Results
from bitloss.report.tables import TITLES, Notes, Table, show_figure
from bitloss.report.uncertainty import Uncertainty, said_of, usual_of

_OF_TEXTS = ("ppl", "ppl_base", "kld_mean", "kld_p99", "same_top")


def texts_table(results: Results) -> Table:
    """Every text with every candidate: how much was scored, and the figures that say most.

    A text with too few chunks (or documents) for clustered errors has the other ones; `texts_said` says which.
    """
    kinds = list(map(usual_of, _by_text(results)))
    notes = Notes()
    rows = tuple(
        (
            part.name,
            f"{part.chunks:,}",
            f"{part.scored_tokens:,}",
            candidate.name,
            *(show_figure(candidate.by_text[i].get(m), m, kinds[i], notes) for m in _OF_TEXTS),
        )
        for i, part in enumerate(results.texts)
        for candidate in results.candidates
        if candidate.by_text
    )
    titles = ("Text", "Chunks", "Tokens", "Candidate", *(TITLES[m] for m in _OF_TEXTS))
    return Table(titles, rows, tuple(notes.reasons), frozenset({1, 2, *range(4, len(titles))}))


def _by_text(results: Results) -> list[list[Metrics]]:
    return [[c.by_text[i] for c in results.candidates if c.by_text] for i in range(len(results.texts))]


def texts_said(results: Results) -> str:
    """What stands after ± in `texts_table`."""
    kinds = list(map(usual_of, _by_text(results)))
    few = [part.name for part, kind in zip(results.texts, kinds, strict=True) if kind is Uncertainty.TOKENS]
    if len(few) == len(kinds):
        return said_of(Uncertainty.TOKENS, Uncertainty.TOKENS, cluster=results.text.cluster)
    said = said_of(Uncertainty.CLUSTERED, Uncertainty.CLUSTERED, cluster=results.text.cluster)
    if not few:
        return said
    return (
        f"{said} For {', '.join(few)}, with too few {results.text.cluster}s for that, "
        "it is the one that llama-perplexity prints."
    )
