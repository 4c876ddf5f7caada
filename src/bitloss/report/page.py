"""``report.html``: one file, readable offline, on a phone and by a screen reader.

Everything from outside goes through jinja2's escaping after :func:`~bitloss.display.visible`; data for the script is
JSON whose ``<``, ``>`` and ``&`` are escaped; a content security policy lets this one script run (by its hash) and
nothing be fetched.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bitloss.display import visible
from bitloss.records import Comparison, Finding, Metrics, Results, Verdict
from bitloss.report.colours import HEAT, HEAT_DARK, ink_on
from bitloss.report.crossed import cross_table, imatrices_table, sensitivity_table, tensors_table
from bitloss.report.keys import key_of
from bitloss.report.looks import Plot
from bitloss.report.making import made_rows, opening, reservations
from bitloss.report.missing import NO_AUDIT, NOTHING_TO_SAY, answered, no_candidates, no_comparisons
from bitloss.report.sheets import csv_text
from bitloss.report.svg import Series, shape
from bitloss.report.tables import (
    FAULTS,
    FOUNDING,
    TITLES,
    Table,
    comparisons_table,
    costs_table,
    files_table,
    founding_table,
    full_table,
    to_markdown,
    without_crossed,
)
from bitloss.report.texts import texts_said, texts_table
from bitloss.report.uncertainty import ALONE, Uncertainty, fullest, said, usual
from bitloss.report.words import LONG, cell, prose, sentences, whole_in_title
from bitloss.report.worst import WorstOf

PAGE_NAME = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
_COMPARED_AS = {"kld_mean": "kld_mean", "ln_ppl": "ppl", "same_top": "same_top"}
_MANY_TIES = 2
_MANY_FILES = 6
_THREE_WAYS = (Uncertainty.TOKENS, Uncertainty.CLUSTERED, Uncertainty.BOTH)


class Page(NamedTuple):
    """What a page shows.

    Attributes:
        results: of the run.
        plots: the pictures.
        series: how each candidate looks.
        worst: the worst tokens of each candidate.
        warnings: said at the top.
    """

    results: Results
    plots: Sequence[Plot]
    series: Sequence[Series]
    worst: Sequence[WorstOf] = ()
    warnings: Sequence[str] = ()


def render_html(page: Page) -> str:
    """Return the page."""
    results = page.results
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    tables = {
        "comparisons": comparisons_table(results),
        "cross": cross_table(results),
        "sensitivity": sensitivity_table(results),
        "files": files_table(results),
        "everything": full_table(results, uncertainty=fullest(results)),
    }
    if results.texts:
        tables["texts"] = texts_table(results)
    data = {
        "copies": {"founding": _founding_copies(results)}
        | {name: {"markdown": to_markdown(table), "csv": to_csv(table)} for name, table in tables.items()},
        "worst": [{"name": visible(each.name), "tokens": each.tokens} for each in page.worst],
    }
    template = _environment().get_template("report.html.j2")
    return template.render(
        results=results,
        opening=opening(results),
        css=css(),
        js=Markup(script),  # noqa: S704 - likewise
        script_hash=f"sha256-{digest}",
        data=json_script(data),
        founding=_founding(results, page.series),
        plots=[_plot(plot) for plot in page.plots],
        costs=costs_table(results),
        made=made_rows(results),
        worst=page.worst,
        worst_words=any(each.has_words for each in page.worst),
        warnings=(*reservations(results), *page.warnings),
        verdicts=_verdicts,
        key_of=key_of,
        evidence=_evidence,
        anchors={
            name: f"#file-{i}"
            for i, row in enumerate(tables["files"].rows)
            for name in (row[0], visible(row[0]))
        },
        answers=answered(results),
        no_audit=NO_AUDIT,
        nothing=no_candidates(results),
        nothing_to_say=NOTHING_TO_SAY,
        no_comparisons=no_comparisons(results),
        usual=usual(results).value,
        alone=ALONE,
        errors={u.value: said(results, u) for u in Uncertainty},
        fullest=fullest(results).value,
        texts_said=texts_said(results),
        tensors=tensors_table(results),
        imatrices=imatrices_table(results),
        sections=_sections(page),
        **({"texts": None} | tables),
    )


def _sections(page: Page) -> Mapping[str, str]:
    """Sections of the page that a finding may point at, by anchor."""
    found = {
        "measurements": "Measurements",
        "comparisons": "Comparisons",
        "files": "Files",
        "costs": "Time and disk",
    }
    if page.results.cross:
        found |= {"cross": "Cross", "imatrices": "Importance matrices"}
    if page.results.sensitivity:
        found["sensitivity"] = "Sensitivity"
    return found | {plot.id: plot.title for plot in page.plots}


def compile_templates() -> None:
    """Compile what `render_html` needs, which takes most of its time; once in a process."""
    for name in ("report.html.j2", "table.html.j2", "report.css"):
        _environment().get_template(name)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = visible
    environment.filters |= {"prose": prose, "sentences": sentences, "cell": cell, "whole": whole_in_title}
    environment.globals["LONG"] = LONG
    return environment


def css() -> Markup:
    """The style sheet of every page."""
    amounts = {
        theme: [(fill, ink_on(fill)) for fill in fills]
        for theme, fills in (("light", HEAT), ("dark", HEAT_DARK))
    }
    made = _environment().get_template("report.css").render(amounts=amounts)
    return Markup(made)  # noqa: S704 - ours, nothing from outside


def render_unfinished(title: str, note: str, tables: Sequence[tuple[str, Table]]) -> str:
    """The page of a run that has not come to its end: a note and tables."""
    template = _environment().get_template("unfinished.html.j2")
    return template.render(title=title, note=note, tables=tables, css=css())


def json_script(data: Any) -> Markup:
    """JSON that cannot end the script element it stands in, nor be taken for markup."""
    import json

    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&'":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped above


def to_csv(table: Table) -> str:
    """Render as CSV for a spreadsheet (`bitloss.report.sheets`), cells as everywhere else."""
    return csv_text([tuple(visible(cell, 400) for cell in row) for row in (table.columns, *table.rows)])


def _founding_copies(results: Results) -> dict[str, dict[str, str]]:
    tables = {u.value: founding_table(results, uncertainty=u) for u in Uncertainty}
    return {
        "markdown": {name: to_markdown(table) for name, table in tables.items()},
        "csv": {name: to_csv(table) for name, table in tables.items()},
    }


# -------------------------------------------------------------------------------------- the founding table


class _Cell(NamedTuple):
    """A cell with ± three ways, what it is sorted by, and its badges (class, words, why)."""

    tokens: str
    clustered: str
    both: str
    value: str | None
    fixed: bool
    badges: list[tuple[str, str, str]]


def _founding(results: Results, series: Sequence[Series]) -> dict[str, Any]:
    looks = {c.name: look for c, look in zip(results.candidates, series, strict=False)}
    results = without_crossed(results)
    shown = {u: founding_table(results, uncertainty=u) for u in Uncertainty}
    first = shown[Uncertainty.TOKENS]
    keys = {TITLES[key]: key for key in (*FOUNDING, *FAULTS)}
    columns = [c.metrics for c in results.candidates]
    columns += [results.noise_floor.metrics] if results.noise_floor else []
    ties = dict(_ties(results.comparisons))
    facts = {
        "Bits per weight": [repr(c.bits_per_weight) for c in results.candidates],
        "File size": [str(c.bytes) for c in results.candidates],
    }
    rows = []
    for r, row in enumerate(first.rows):
        key = keys.get(row[0])
        values = [_number(m, key) for m in columns] if key else facts.get(row[0], [])
        cells = []
        for k in range(len(row) - 1):
            name = results.candidates[k].name if k < len(results.candidates) else None
            tokens, clustered, both = (shown[u].rows[r][k + 1] for u in _THREE_WAYS)
            value = values[k] if k < len(values) else None
            badges = _badges(ties.get((key or "", name or ""), []))
            cells.append(_Cell(tokens, clustered, both, value, name is None, badges))
        rows.append({"title": row[0], "sortable": bool(values), "cells": cells})
    titles = []
    for title in first.columns[1:]:
        look = looks.get(title, Series(title, -1, 0))  # the noise floor is grey
        titles.append({"title": title, "css": look.css, "swatch": _swatch(look)})
    return {"columns": [first.columns[0], *titles], "rows": rows, "notes": first.notes}


def _number(metrics: Metrics, key: str) -> str | None:
    figure = metrics.get(key)
    return None if figure is None or figure.value is None else repr(figure.value)


def _ties(comparisons: Sequence[Comparison]) -> Iterator[tuple[tuple[str, str], list[tuple[str, Verdict]]]]:
    """For each row of the table and candidate: whom it is no different from."""
    found: dict[tuple[str, str], list[tuple[str, Verdict]]] = {}
    for c in comparisons:
        row = _COMPARED_AS.get(c.metric)
        if row is not None and c.verdict in {Verdict.TIE, Verdict.IDENTICAL}:
            found.setdefault((row, c.a), []).append((c.b, c.verdict))
            found.setdefault((row, c.b), []).append((c.a, c.verdict))
    yield from found.items()


def _badges(others: Sequence[tuple[str, Verdict]]) -> list[tuple[str, str, str]]:
    made = []
    for verdict, sign, why in (
        (Verdict.IDENTICAL, "=", "every value of every token is equal"),
        (Verdict.TIE, "≈", "a tie: this text shows no difference"),
    ):
        names = [name for name, found in others if found is verdict]
        if names:
            words = names[0] if len(names) < _MANY_TIES else f"{len(names)} files"
            made.append(("even", f"{sign} {words}", f"{why} ({', '.join(names)})"))
    return made


def _verdicts(finding: Finding) -> list[tuple[str, str]]:
    """Badges of a finding: the verdicts of the comparisons it rests on."""
    rows = finding.evidence.get("comparisons")
    if finding.id == "identical-tensors":
        return [("even", "identical")]
    if not isinstance(rows, list):
        return []
    found = {str(row.get("verdict")) for row in rows if isinstance(row, dict)}
    if found <= {"tie"}:
        return [("even", "tie")]
    return [("good", "differ")] if found & {"better", "worse"} else []


def _evidence(rows: Sequence[str]) -> list[str]:
    """Where a finding's numbers stand: sections first, then the files, of many the first few."""
    names = [row for row in rows if not row.startswith("#")]
    more = [f"and {len(names) - _MANY_FILES} more"] if len(names) > _MANY_FILES else []
    return [*(row for row in rows if row.startswith("#")), *names[:_MANY_FILES], *more]


# -------------------------------------------------------------------------------------------- the pictures


def _plot(plot: Plot) -> Mapping[str, Any]:
    wide, narrow = plot.both()
    legend = [
        {"css": series.css, "index": index, "name": series.name, "swatch": _swatch(series)}
        for index, series in enumerate(plot.legend)
    ]
    return {
        "id": plot.id,
        "title": plot.title,
        "caption": plot.caption,
        "table": plot.table,
        "legend": legend,
        "wide": Markup(wide),  # noqa: S704 - names in it went through svg.text
        "narrow": Markup(narrow),  # noqa: S704 - likewise
    }


def _swatch(series: Series) -> Markup:
    return Markup(f'<svg viewBox="0 0 26 12" aria-hidden="true">{shape(series, 13, 6)}</svg>')  # noqa: S704 - no text
