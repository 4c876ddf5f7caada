"""The worst tokens of each candidate in their text, as the page and a table show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bitloss.display import chance, decimal, visible
from bitloss.divergence.measure import TokenTable
from bitloss.divergence.worst import Worst, WorstToken
from bitloss.report.summary import TokenSummary
from bitloss.report.tables import Table

MANY = 50
_IN_TEXT = (12, 5)
"""Tokens of text shown before and after in a table."""


class WorstOf(NamedTuple):
    """The worst tokens of one candidate.

    Attributes:
        name: of the candidate.
        tokens: for the page, worst first; numbers as they are written.
        rows: the same as plain values, for a file.
    """

    name: str
    tokens: list[dict[str, Any]]
    rows: list[dict[str, Any]]

    @property
    def has_words(self) -> bool:
        """Whether the text was kept."""
        return any(token["context"] for token in self.tokens)


def worst_of(name: str, table: TokenTable, summary: TokenSummary, kept: Worst) -> WorstOf:
    """Join the rows with the largest divergence with what was kept of their text.

    Args:
        name: of the candidate.
        table: its per-token results.
        summary: of the table; says which rows.
        kept: what measuring kept; may be empty.
    """
    places = {(t.chunk, t.position): t for t in kept.tokens}
    length = len(table) // max(1, len(set(table.chunk.tolist())))
    shade = _shade(table)
    tokens, rows = [], []
    for row in summary.worst[:MANY]:
        chunk, position = int(table.chunk[row]), int(table.position[row])
        found = places.get((chunk, position))
        entry: dict[str, Any] = {
            "chunk": chunk,
            "position": position,
            "target": int(table.target[row]),
            "kld": decimal(float(table.metrics.kld[row])),
            "p_base": chance(float(table.metrics.p_base[row])),
            "p": chance(float(table.metrics.p[row])),
            "word": f"token {int(table.target[row])}",
            "context": [],
            "at": -1,
            "base": [],
            "file": [],
        }
        if found is not None:
            entry |= _told(found, kept.pieces, table, row - row % length, shade)
        tokens.append(entry)
        rows.append(
            {
                "candidate": name,
                "chunk": chunk,
                "position": position,
                "token": entry["target"],
                "text": entry["word"] if found else None,
                "kld": float(table.metrics.kld[row]),
                "p_base": float(table.metrics.p_base[row]),
                "p": float(table.metrics.p[row]),
            }
        )
    return WorstOf(name, tokens, rows)


def _shade(table: TokenTable) -> tuple[float, float]:
    """Logarithms of the divergences that are tinted least and most: the median and the largest."""
    kld = table.metrics.kld[np.isfinite(table.metrics.kld) & (table.metrics.kld > 0)]
    if not len(kld):
        return 0.0, 1.0
    low, high = math.log10(float(np.median(kld))), math.log10(float(kld.max()))
    return low, max(high, low + 1e-9)


def _told(
    token: WorstToken,
    pieces: Mapping[int, str],
    table: TokenTable,
    first_row: int,
    shade: tuple[float, float],
) -> dict[str, Any]:
    """Text and expectations; `first_row` is the row of the chunk's first scored position."""
    start = int(table.position[first_row])
    context = []
    for k, each in enumerate(token.tokens):
        row = first_row + (token.first + k - 1 - start)  # the row that predicts this token
        inside = 0 <= row < len(table) and int(table.chunk[row]) == token.chunk
        scored = inside and token.first + k - 1 >= start
        kld = float(table.metrics.kld[row]) if scored else math.nan
        share = (math.log10(kld) - shade[0]) / (shade[1] - shade[0]) if kld > 0 else 0.0
        known = scored and math.isfinite(kld)
        context.append(
            [pieces.get(each, f"<{each}>"), round(max(0.0, share), 3), decimal(kld) if known else ""]
        )

    def tops(entries: tuple[tuple[int, float], ...]) -> list[list[Any]]:
        return [[pieces.get(i, f"<{i}>"), chance(p), round(p, 4), i] for i, p in entries]

    at = token.position + 1 - token.first
    return {
        "word": pieces.get(token.tokens[at], f"<{token.tokens[at]}>") if at < len(token.tokens) else "",
        "context": context,
        "at": at,
        "base": tops(token.base),
        "file": tops(token.candidate),
    }


def worst_table(worst: Sequence[WorstOf], *, many: int = 5) -> Table:
    """The first `many` of each candidate in a line of their text, the token in brackets, with what was expected."""
    rows = tuple(
        (each.name, token["kld"], _in_line(token), _likeliest(token["base"]), _likeliest(token["file"]))
        for each in worst
        for token in each.tokens[:many]
    )
    return Table(
        ("File", "KLD", "Token in its text", "The base expects", "The file expects"),
        rows,
        right=frozenset({1}),
    )


def _in_line(token: Mapping[str, Any]) -> str:
    if token["at"] < 0:
        return f"[{token['word']}]"
    before, after = _IN_TEXT
    at, pieces = token["at"], [piece for piece, _, _ in token["context"]]
    line = (
        f"{'…' if at > before else ''}{''.join(pieces[max(0, at - before) : at])}[{token['word']}]"
        f"{''.join(pieces[at + 1 : at + 1 + after])}{'…' if len(pieces) > at + 1 + after else ''}"
    )
    return visible(line.replace("\n", "⏎").strip(), 240)


def _likeliest(entries: Sequence[Sequence[Any]]) -> str:
    return ", ".join(
        f"{visible(piece.strip().replace(chr(10), '⏎') or '␣', 30)} {share}"
        for piece, share, *_ in entries[:3]
    )
