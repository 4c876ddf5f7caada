"""``RUN/tables/``: everything a report shows as CSV and Parquet, numbers as they are and as they are written.

`figures` has a row for each file and metric (`figures-by-text` for each text as well), with `shown` (as in every
table, the error clustered by chunk first) beside `value`, `se` and `se_clustered` (in the metric's unit: nats,
fractions). The tables behind the pictures hold text as shown. How text stands in CSV says `bitloss.report.sheets`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from bitloss.display import visible
from bitloss.records import Candidate, Metrics, Results
from bitloss.report.looks import FLOOR, Plot
from bitloss.report.pictures import TABLES
from bitloss.report.sheets import csv_text
from bitloss.report.tables import TITLES, Notes, Table, show_figure
from bitloss.report.uncertainty import Uncertainty
from bitloss.report.worst import WorstOf
from bitloss.store import atomic_path, atomic_write_text
from bitloss.store.columns import table_of_rows

Rows = Sequence[Mapping[str, Any]]


def write_tables(
    results: Results, plots: Sequence[Plot], worst: Sequence[WorstOf], folder: Path
) -> list[Path]:
    """Write every table as ``folder/tables/NAME.csv`` and ``.parquet``.

    Returns:
        The files.

    Raises:
        FileProblem: one cannot be written.
    """
    tables: dict[str, Rows] = {
        "figures": figure_rows(results),
        "figures-by-text": text_rows(results),
        "files": [_file(c) for c in results.candidates],
        "comparisons": [
            c.model_dump(mode="json", exclude={"ci95"}) | _interval(c.ci95) for c in results.comparisons
        ],
        "tensor-errors": [
            {"candidate": visible(c.name)} | e.model_dump(mode="json")
            for c in results.candidates
            for e in c.tensor_errors
        ],
        "costs": [c.model_dump(mode="json") for c in results.costs],
        **{plot.id: _plain(plot.table) for plot in plots},
        "worst-tokens": [row for each in worst for row in each.rows],
    }
    written = []
    for name, rows in tables.items():
        if rows:
            target = folder / TABLES / f"{name}.csv"
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(target, _csv(rows))
            parquet = target.with_suffix(".parquet")
            with atomic_path(parquet) as partial:
                pq.write_table(table_of_rows(rows), partial, compression="zstd")
            written += [target, parquet]
    return written


def figure_rows(results: Results) -> Rows:
    """Every figure of every file and of the noise floor, in the order of the tables."""
    columns: list[tuple[str, Metrics]] = [(c.name, c.metrics) for c in results.candidates]
    columns += [(FLOOR, results.noise_floor.metrics)] if results.noise_floor else []
    return [{"candidate": visible(name)} | row for name, metrics in columns for row in _figures(metrics)]


def text_rows(results: Results) -> Rows:
    """The same for each text by itself; empty where there is one."""
    return [
        {"text": visible(part.name), "candidate": visible(each.name)} | row
        for i, part in enumerate(results.texts)
        for each in results.candidates
        if each.by_text
        for row in _figures(each.by_text[i])
    ]


def _figures(metrics: Metrics) -> Iterator[dict[str, Any]]:
    order = {metric: i for i, metric in enumerate(TITLES)}
    for metric in sorted(metrics, key=lambda m: (order.get(m, len(order)), m)):
        figure = metrics[metric]
        notes = Notes()
        shown = show_figure(figure, metric, Uncertainty.BOTH, notes)
        yield {
            "metric": metric,
            "title": TITLES.get(metric, metric),
            "value": figure.value,
            "se": figure.se,
            "se_clustered": figure.se_clustered,
            "shown": "n/a" if notes.reasons else shown,
            "reason": figure.reason,
        }


def _file(c: Candidate) -> dict[str, Any]:
    row = c.model_dump(
        mode="json", exclude={"metrics", "by_text", "tensor_errors", "keys_differ", "importance"}
    )
    return {key: visible(value, 400) if isinstance(value, str) else value for key, value in row.items()}


def _interval(ci95: tuple[float, float] | None) -> dict[str, Any]:
    return {"ci95_low": ci95 and ci95[0], "ci95_high": ci95 and ci95[1]}


def _plain(table: Table) -> Rows:
    return [dict(zip(table.columns, map(visible, row), strict=True)) for row in table.rows]


def _csv(rows: Rows) -> str:
    titles = list(rows[0])
    return csv_text([titles, *([row.get(title) for title in titles] for row in rows)])
