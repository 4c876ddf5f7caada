"""``report.md``: what a run found out, for people."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from bitloss.display import visible
from bitloss.report.crossed import cross_table, imatrices_table, sensitivity_table, tensors_table
from bitloss.report.making import made_rows, opening, reservations
from bitloss.report.missing import NO_AUDIT, NOTHING_TO_SAY, answered, no_candidates, no_comparisons
from bitloss.report.tables import (
    comparisons_table,
    costs_table,
    files_table,
    founding_table,
    full_table,
    markdown_text,
    to_markdown,
)
from bitloss.report.texts import texts_said, texts_table
from bitloss.report.uncertainty import ALONE, Uncertainty, fullest, said
from bitloss.report.worst import WorstOf, worst_table
from bitloss.store import atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitloss.records import Results
    from bitloss.report.looks import Plot

REPORT_NAME = "report.md"
_TEMPLATES = Path(__file__).parent / "templates"
_MANY_COMPARISONS = 100


def render_markdown(
    results: Results,
    *,
    uncertainty: Uncertainty | None = None,
    plots: Sequence[Plot] = (),
    worst: Sequence[WorstOf] = (),
    warnings: Sequence[str] = (),
) -> str:
    """Return the report as Markdown.

    Args:
        results: what to report.
        uncertainty: which standard error stands after ±; both, where there are both, when None.
        plots: the pictures, which lie in ``plots/`` beside it.
        worst: the worst tokens of each candidate.
        warnings: said at the top.
    """
    uncertainty = uncertainty or fullest(results)
    many = len(results.comparisons) > _MANY_COMPARISONS
    return template().render(
        results=results,
        alone=ALONE,
        errors=said(results, uncertainty),
        no_audit=NO_AUDIT,
        nothing=no_candidates(results),
        nothing_to_say=NOTHING_TO_SAY,
        no_comparisons=no_comparisons(results),
        texts_said=texts_said(results),
        opening=opening(results),
        said=(*reservations(results), *warnings),
        made=made_rows(results),
        plots=plots,
        worst=to_markdown(worst_table(worst)) if worst else "",
        founding=to_markdown(founding_table(results, uncertainty=uncertainty)),
        everything=to_markdown(full_table(results, uncertainty=uncertainty)),
        texts=to_markdown(texts_table(results)),
        files=to_markdown(files_table(results)),
        comparisons=to_markdown(comparisons_table(results, metrics=("kld_mean",) if many else None)),
        many=many,
        costs=to_markdown(costs_table(results)),
        answers=answered(results),
        cross=to_markdown(cross_table(results)),
        tensors=to_markdown(tensors_table(results)),
        imatrices=to_markdown(imatrices_table(results)),
        sensitivity=to_markdown(sensitivity_table(results)),
    )


@functools.cache
def template() -> Template:
    """The template of `render_markdown`, compiled."""
    # Markdown, not HTML: texts from outside go through the filter `md`, tables through to_markdown.
    environment = Environment(  # noqa: S701 - as said above
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = lambda text: markdown_text(str(text), 2000)
    environment.filters["code"] = _code
    environment.filters["rows"] = _rows
    return environment.get_template("report.md.j2")


# Sections a finding may name (`Finding.rows`), under the anchors that Markdown gives their headings here.
_SECTIONS = {
    "#measurements": "Measurements",
    "#comparisons": "Comparisons",
    "#cross": "Cross",
    "#imatrices": "Importance matrices",
    "#sensitivity": "Sensitivity",
    "#files": "Files",
    "#costs": "Time and disk",
}


def _rows(rows: tuple[str, ...]) -> str:
    """Where a finding's numbers stand: names of candidates, then links to sections; in brackets, behind a space."""
    names = [markdown_text(row) for row in rows if not row.startswith("#")]
    links = [
        f"[{_SECTIONS[row]}](#{_SECTIONS[row].lower().replace(' ', '-')})" for row in rows if row in _SECTIONS
    ]
    places = "; ".join(each for each in (", ".join(names), ", ".join(links)) if each)
    return f" ({places})" if places else ""


def _code(lines: tuple[str, ...]) -> str:
    """Return lines as an indented code block: nothing in them can end it."""
    return "\n".join(f"    {visible(line, 2000)}" for line in lines)


def write_markdown(
    results: Results,
    folder: Path,
    *,
    plots: Sequence[Plot] = (),
    worst: Sequence[WorstOf] = (),
    warnings: Sequence[str] = (),
) -> Path:
    """Write ``report.md`` into `folder`, atomically; see `render_markdown`.

    Returns:
        The file.

    Raises:
        FileProblem: it cannot be written.
    """
    path = folder / REPORT_NAME
    atomic_write_text(path, render_markdown(results, plots=plots, worst=worst, warnings=warnings))
    return path
