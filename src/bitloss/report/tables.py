"""The tables of a report, as plain text in rows and columns, and as Markdown.

A :class:`Table` is neutral: :func:`to_markdown` and `bitloss.report.terminal` show the same cells. Names and digits are
llama-perplexity's, so that a table can be laid beside a published one. A figure that is null is shown as
``n/a`` with a numbered note that gives its reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from bitloss.display import (
    correlation,
    decimal,
    duration,
    percent,
    percentage_points,
    probability,
    size,
    visible,
)
from bitloss.explain.routes import is_whole
from bitloss.records import Comparison, Figure, Metrics, Results, Verdict
from bitloss.report.uncertainty import Uncertainty, usual

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH_DIGITS = 12
_FLOOR = "noise floor"
_TIE_TITLE = "Mean KLD a tie with"
_FEW = 2


class Form(StrEnum):
    """How a metric is written."""

    DECIMAL = "decimal"
    PERCENT = "percent"
    CORRELATION = "correlation"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text.

    Attributes:
        columns: their titles.
        rows: cells, as many as columns in each row.
        notes: numbered from 1; a cell refers to them as ``n/a (1)``.
        right: indices of the columns that are aligned to the right.
        sums: how many of the rows, the last ones, add up the others.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    right: frozenset[int] = frozenset()
    sums: int = 0

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)


def _percentiles(prefix: str, title: str, levels: Sequence[str]) -> dict[str, str]:
    return {f"{prefix}_p{level.replace('.', '_')}": f"{level}% {title}" for level in levels}


_HIGH, _LOW = ("99.9", "99", "95", "90"), ("10", "5", "1", "0.1")
# Every metric's title, in the order llama-perplexity prints them; what it does not print comes last.
TITLES: dict[str, str] = {
    "ppl": "Mean PPL(Q)",
    "ppl_base": "Mean PPL(base)",
    "cor_ln_ppl": "Cor(ln(PPL(Q)), ln(PPL(base)))",
    "ln_ppl_ratio": "Mean ln(PPL(Q)/PPL(base))",
    "ppl_ratio": "Mean PPL(Q)/PPL(base)",
    "ppl_difference": "Mean PPL(Q)-PPL(base)",
    "ln_ppl": "ln(PPL(Q))",
    "kld_mean": "Mean KLD",
    "kld_max": "Maximum KLD",
    **_percentiles("kld", "KLD", _HIGH),
    "kld_median": "Median KLD",
    **_percentiles("kld", "KLD", _LOW),
    "kld_min": "Minimum KLD",
    "dp_mean": "Mean Δp",
    "dp_max": "Maximum Δp",
    **_percentiles("dp", "Δp", (*_HIGH, "75")),
    "dp_median": "Median Δp",
    **_percentiles("dp", "Δp", ("25", *_LOW)),
    "dp_min": "Minimum Δp",
    "dp_rms": "RMS Δp",
    "same_top": "Same top p",
    "kld_reverse_mean": "Mean reverse KLD",
    "js_mean": "Mean Jensen-Shannon divergence",
    "top5_overlap": "Top-5 overlap",
    "top10_overlap": "Top-10 overlap",
    "entropy_base": "Mean entropy (base)",
    "entropy": "Mean entropy (Q)",
    "nonfinite_tokens": "Tokens with non-finite logits",
    "nonfinite_base": "of these in the base",
}
FOUNDING = (
    "ppl",
    "ppl_base",
    "cor_ln_ppl",
    "ppl_ratio",
    "kld_mean",
    "kld_max",
    "kld_median",
    "dp_mean",
    "dp_rms",
    "same_top",
)

FAULTS = ("nonfinite_tokens", "nonfinite_base")
"""Rows that are shown as soon as one of them is not 0."""


def form_of(metric: str) -> Form:
    """Return how a metric is written: fractions in percent, the rest as decimals."""
    if metric == "cor_ln_ppl":
        return Form.CORRELATION
    if metric in FAULTS:
        return Form.COUNT
    return Form.PERCENT if metric.startswith(("dp_", "same_top", "top5_", "top10_")) else Form.DECIMAL


@dataclass(slots=True)
class Notes:
    """Reasons met while a table is filled, each numbered once."""

    reasons: list[str] = field(default_factory=list)

    def missing(self, reason: str) -> str:
        """Return the cell of a null."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"n/a ({self.reasons.index(reason) + 1})"


def show_figure(figure: Figure | None, metric: str, uncertainty: Uncertainty, notes: Notes) -> str:
    """Return the cell of one figure, e.g. ``6.344932 ± 0.038989`` or ``n/a (1)``."""
    if figure is None:
        return notes.missing("not measured")
    if figure.value is None:
        return notes.missing(figure.reason or "no reason given")
    form = form_of(metric)
    if form is Form.COUNT:
        return f"{figure.value:.0f}"
    if form is Form.CORRELATION:
        return correlation(figure.value)
    return _with_error(figure.value, figure, uncertainty, points=form is Form.PERCENT)


def _with_error(value: float, figure: Figure, uncertainty: Uncertainty, *, points: bool) -> str:
    write = percentage_points if points else decimal
    if uncertainty is Uncertainty.BOTH and figure.se_clustered is None:
        uncertainty = Uncertainty.TOKENS
    shown = write(value, figure.se if uncertainty is Uncertainty.TOKENS else figure.se_clustered)
    if uncertainty is Uncertainty.BOTH and figure.se is not None:
        shown += f" ({write(value, figure.se).partition('± ')[2]})"
    return f"{shown} %" if points else shown


def founding_table(results: Results, *, uncertainty: Uncertainty | None = None) -> Table:
    """Metrics down, candidates and the noise floor across; below them what identifies the files.

    Crossed files with a twin are left out: they would repeat its column. Tokens with non-finite logits have a row as
    soon as there is one. After ± stands what `usual` says, unless `uncertainty` is given; likewise in other tables.
    """
    uncertainty = uncertainty or usual(results)
    results = without_crossed(results)
    columns = [*(c.metrics for c in results.candidates)]
    columns += [results.noise_floor.metrics] if results.noise_floor else []
    faults = [key for key in FAULTS if any((f := m.get(key)) is not None and f.value != 0 for m in columns)]
    metrics = (*FOUNDING, *faults)
    table = metrics_table(results, metrics, uncertainty=uncertainty)
    floor = ("",) if results.noise_floor else ()
    files = results.candidates
    facts = (
        ("Bits per weight", *(f"{c.bits_per_weight:.4f}" for c in files), *floor),
        ("File size", *(size(c.bytes) for c in files), *floor),
        ("sha256", *(c.sha256[:HASH_DIGITS] for c in files), *floor),
        ("Hash of the tensors", *(c.tensors_sha256[:HASH_DIGITS] for c in files), *floor),
        ("Tensors identical to", *(c.identical_to or "" for c in files), *floor),
    )
    kept = facts if any(c.identical_to for c in files) else facts[:-1]
    ties = _ties(results)
    if any(ties.values()):
        kept = (*kept, (_TIE_TITLE, *(_few(ties[c.name]) for c in files), *floor))
    return Table(table.columns, (*table.rows, *kept), table.notes, table.right)


def _ties(results: Results) -> dict[str, list[str]]:
    """By candidate those whose mean KLD the paired test does not tell from its own; equal tensors are no tie."""
    found: dict[str, list[str]] = {c.name: [] for c in results.candidates}
    for row in results.comparisons:
        if row.metric == "kld_mean" and row.verdict is Verdict.TIE and {row.a, row.b} <= found.keys():
            found[row.a].append(row.b)
            found[row.b].append(row.a)
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < _FEW else f"{len(names)} files"


def without_crossed(results: Results) -> Results:
    """The results without files that were only made to be crossed, where they turned out equal to another."""
    kept = tuple(c for c in results.candidates if is_whole(c) or c.identical_to is None)
    return results.model_copy(update={"candidates": kept})


def full_table(results: Results, *, uncertainty: Uncertainty | None = None) -> Table:
    """Every metric any candidate has; those this version does not know come last under their own names."""
    present = {m for c in results.candidates for m in c.metrics}
    present |= set(results.noise_floor.metrics) if results.noise_floor else set()
    metrics = [m for m in TITLES if m in present] + sorted(present - TITLES.keys())
    return metrics_table(results, metrics, uncertainty=uncertainty or usual(results))


def metrics_table(results: Results, metrics: Sequence[str], *, uncertainty: Uncertainty) -> Table:
    """Rows of metrics, a column for each candidate and one for the noise floor where there is one."""
    columns = [(c.name, c.metrics) for c in results.candidates]
    if results.noise_floor:
        columns.append((_FLOOR, results.noise_floor.metrics))
    return figures_table(columns, metrics, uncertainty=uncertainty)


def figures_table(
    columns: Sequence[tuple[str, Metrics]], metrics: Sequence[str], *, uncertainty: Uncertainty
) -> Table:
    """Rows of metrics, a column for each name."""
    notes = Notes()
    rows = tuple(
        (TITLES.get(m, m), *(show_figure(figures.get(m), m, uncertainty, notes) for _, figures in columns))
        for m in metrics
    )
    right = frozenset(range(1, len(columns) + 1))
    return Table(("Metric", *(name for name, _ in columns)), rows, tuple(notes.reasons), right)


def files_table(results: Results) -> Table:
    """One row per file, the base first: size, bits per weight, hashes, twin."""
    base = results.base
    rows = [
        (
            f"{base.name} (base)",
            base.file,
            size(base.bytes),
            str(base.bytes),
            "",
            base.sha256[:HASH_DIGITS],
            "",
            "",
        )
    ]
    rows += [
        (
            c.name,
            c.file,
            size(c.bytes),
            str(c.bytes),
            f"{c.bits_per_weight:.4f}",
            c.sha256[:HASH_DIGITS],
            c.tensors_sha256[:HASH_DIGITS],
            c.identical_to or "",
        )
        for c in results.candidates
    ]
    titles = (
        "Name",
        "File",
        "Size",
        "Bytes",
        "Bits per weight",
        "sha256",
        "Hash of the tensors",
        "Identical to",
    )
    return Table(titles, tuple(rows), right=frozenset({2, 3, 4}))


_VERDICTS = {Verdict.IDENTICAL: "identical", Verdict.TIE: "tie"}


def comparisons_table(results: Results, *, metrics: Sequence[str] | None = None) -> Table:
    """Candidates against each other on the same tokens; by some metrics only where these are given."""
    notes = Notes()
    rows = tuple(
        _comparison_row(c, notes) for c in results.comparisons if metrics is None or c.metric in metrics
    )
    titles = ("A", "B", "Metric", "A - B", "95 % interval", "p", "p (Holm)", "Verdict")
    return Table(titles, rows, tuple(notes.reasons), frozenset({3, 4, 5, 6}))


def _comparison_row(c: Comparison, notes: Notes) -> tuple[str, ...]:
    reason = c.reason or "not defined"
    write = percent if form_of(c.metric) is Form.PERCENT else decimal
    interval = None if c.ci95 is None else f"{write(c.ci95[0])} .. {write(c.ci95[1])}"
    if c.verdict in {Verdict.BETTER, Verdict.WORSE}:
        verdict: str | None = f"{c.a if c.verdict is Verdict.BETTER else c.b} is better"
    else:
        verdict = None if c.verdict is None else _VERDICTS[c.verdict]
    cells = (
        None if c.difference is None else write(c.difference),
        interval,
        None if c.p_value is None else probability(c.p_value),
        None if c.p_holm is None else probability(c.p_holm),
        verdict,
    )
    shown = (notes.missing(reason) if cell is None else cell for cell in cells)
    return (c.a, c.b, TITLES.get(c.metric, c.metric), *shown)


def costs_table(results: Results) -> Table:
    """Time and disk of each step, and their sums."""
    rows = [
        (c.step, c.route or "", duration(c.seconds), size(c.bytes), "taken over" if c.reused else "run")
        for c in results.costs
    ]
    fresh = [c for c in results.costs if not c.reused]
    sums = [("all", results.costs)] + ([("this run", fresh)] if len(fresh) < len(results.costs) else [])
    for name, costs in sums:
        rows.append(
            (name, "", duration(sum(c.seconds for c in costs)), size(sum(c.bytes for c in costs)), "")
        )
    titles = ("Step", "Route", "Time", "Disk", "How")
    return Table(titles, tuple(rows), right=frozenset({2, 3}), sums=len(sums) if results.costs else 0)


# ------------------------------------------------------------------------------------------- renderings

_SPECIAL = re.compile(r"([\\`*\[\]|~])")
_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("://", ":&#47;&#47;"))


def markdown_text(text: str, limit: int = 80) -> str:
    """Escape `text` so that Markdown shows it as it is, on one line, whatever somebody put into a name."""
    shown = visible(text, limit)
    for plain, entity in _ENTITIES:
        shown = shown.replace(plain, entity)
    return _UNDERSCORE.sub(r"\_", _SPECIAL.sub(r"\\\1", shown))


def to_markdown(table: Table, limit: int = 80) -> str:
    """Render as a GitHub-flavoured Markdown table, columns padded, cells of `limit` characters; notes below it."""
    cells = [tuple(markdown_text(c, limit) for c in row) for row in (table.columns, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.columns))]
    right = [i in table.right for i in range(len(widths))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
    lines = [line(cells[0]), line(rule), *(line(row) for row in cells[1:])]
    if table.notes:
        lines += ["", *(f"({i}) {markdown_text(note, 300)}  " for i, note in enumerate(table.notes, 1))]
    return "\n".join(lines).rstrip()
