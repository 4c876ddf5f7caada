"""Pictures of mean KLD over groups of tokens: along the context, and by how sure the base is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bitloss.display import decimal, many
from bitloss.report.looks import Look, Plot, distinct, twins
from bitloss.report.summary import Bin, TokenSummary
from bitloss.report.svg import NARROW, Chart, Size, linear, logarithmic
from bitloss.report.tables import Table


class _Grouped(NamedTuple):
    """A picture of means over groups of tokens."""

    id: str
    title: str
    caption: str
    axis: str
    bins: Callable[[TokenSummary], tuple[Bin, ...]]


def by_position(look: Look) -> Plot | None:
    """Mean KLD along the context."""
    scored = "; only its second half is scored" if look.results.text.documents is None else ""
    return _grouped(
        look,
        _Grouped(
            "kld-position",
            "Divergence along the context",
            f"Mean KLD of the tokens by their position in the chunk{scored}.",
            "position in the chunk",
            lambda s: s.by_position,
        ),
    )


def by_entropy(look: Look) -> Plot | None:
    """Mean KLD by how sure the base is."""
    return _grouped(
        look,
        _Grouped(
            "kld-confidence",
            "Divergence by the base's confidence",
            "Tokens in ten groups of equal size by the entropy of the base's distribution: left, where it is "
            "sure of the next token; right, where it is not.",
            "entropy of the base, nats",
            lambda s: s.by_entropy,
        ),
    )


def _grouped(look: Look, what: _Grouped) -> Plot | None:
    found = [
        (look.series[i], what.bins(look.tokens[name]))
        for i in distinct(look)
        if (name := look.results.candidates[i].name) in look.tokens
    ]
    lines = [(s, tuple(b for b in bins if b.kld > 0)) for s, bins in found]
    lines = [(s, bins) for s, bins in lines if len(bins) > 1]
    if not lines:
        return None

    def draw(of: Size) -> Chart:
        centres = [(b.low + b.high) / 2 for _, bins in lines for b in bins]
        klds = [b.kld for _, bins in lines for b in bins]
        x = linear(min(centres), max(centres), count=4 if of is NARROW else 8)
        chart = Chart(
            of, x, logarithmic(min(klds), max(klds), pad=1.5), what.axis, "mean KLD, nats (logarithmic)"
        )
        for k, (series, bins) in enumerate(lines):
            chart.group(series, k)
            chart.line(series, [((b.low + b.high) / 2, b.kld) for b in bins])
            for b in bins:
                group = f"{what.axis} {b.low:.4g} to {b.high:.4g}\n{many(b.tokens, 'token')}"
                tip = f"{series.name}\n{group}\nmean KLD {decimal(b.kld, b.se)}"
                chart.mark(series, (b.low + b.high) / 2, b.kld, tip)
            chart.end()
        return chart

    rows = tuple(
        (series.name, f"{b.low:.4g}", f"{b.high:.4g}", str(b.tokens), decimal(b.kld, b.se))
        for series, bins in lines
        for b in bins
    )
    return Plot(
        what.id,
        what.title,
        what.caption + twins(look),
        draw,
        tuple(series for series, _ in lines),
        Table(("Name", "From", "To", "Tokens", "Mean KLD"), rows, right=frozenset({1, 2, 3, 4})),
    )
