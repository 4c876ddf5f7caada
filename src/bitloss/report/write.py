"""A whole report in a run's folder: pages, pictures, tables; from ``results.json`` and the files of tokens alone."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bitloss.divergence.clusters import clusters_in
from bitloss.errors import FormatError, MismatchError
from bitloss.records import Results
from bitloss.report.export import write_tables
from bitloss.report.looks import Look, series_of
from bitloss.report.page import PAGE_NAME, Page, compile_templates, render_html
from bitloss.report.pictures import remove_stale, write_pictures
from bitloss.report.plots import all_plots
from bitloss.report.render import template, write_markdown
from bitloss.report.summary import TokenSummary, noise_file, read_table, summarize_tokens, token_files
from bitloss.report.worst import WorstOf, worst_of
from bitloss.store import atomic_write_text
from bitloss.store.atomic import explained

_LACKING = "The pictures of tokens and the worst tokens lack {}. Copy the file back, or measure again."


class Report(NamedTuple):
    """Where a report was written.

    Attributes:
        markdown: ``report.md``.
        html: ``report.html``.
        files: pictures and tables.
        warnings: files that were missing or damaged, and what the report lacks without them.
    """

    markdown: Path
    html: Path
    files: list[Path]
    warnings: tuple[str, ...] = ()


class Gathered(NamedTuple):
    """What the files of tokens gave.

    Attributes:
        tokens: by candidate.
        floor: of the noise floor.
        worst: of the candidates measured themselves.
        warnings: what was missing.
    """

    tokens: dict[str, TokenSummary]
    floor: TokenSummary | None
    worst: list[WorstOf]
    warnings: list[str]


def get_ready(*modules: str) -> None:
    """Import and compile, on a thread of its own, what a report needs, while this process waits for a step.

    A fault is left to the report itself, which does the same and says what is wrong.

    Args:
        modules: what else will be imported.
    """

    def work() -> None:
        with contextlib.suppress(Exception):
            for name in ("resvg_py", *modules):
                importlib.import_module(name)
            compile_templates()
            template()

    threading.Thread(target=work).start()


def write_report(results: Results, folder: Path, *, out: Path | None = None) -> Report:
    """Write ``report.md``, ``report.html``, ``plots/`` and ``tables/``.

    A file of tokens that is missing, damaged or of another text costs the pictures made from it, not the report; the
    page says so.

    Args:
        results: of the run.
        folder: the run's, with ``tokens/``.
        out: where to write; `folder` when None.

    Raises:
        FileProblem: something cannot be written.
    """
    gathered = gather(results, token_files(results, folder), noise_file(folder))
    return write_gathered(results, out or folder, gathered)


def write_gathered(
    results: Results,
    folder: Path,
    gathered: Gathered,
    *,
    warnings: tuple[str, ...] = (),
) -> Report:
    """Write a report of what was gathered; see `write_report`."""
    series = series_of(results.candidates)
    plots = all_plots(Look(results, gathered.tokens, gathered.floor, series))
    said = (*warnings, *gathered.warnings)
    page = Page(results, plots, series, gathered.worst, said)
    html = folder / PAGE_NAME
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(html, render_html(page))
    markdown = write_markdown(results, folder, plots=plots, worst=gathered.worst, warnings=said)
    files = write_pictures(plots, folder, model=results.model.name)
    files += write_tables(results, plots, gathered.worst, folder)
    remove_stale(folder, files)
    return Report(markdown, html, files, said)


def gather(results: Results, files: Mapping[str, Path], noise: Path | None) -> Gathered:
    """Read every file of tokens once, one in memory at a time."""
    tokens: dict[str, TokenSummary] = {}
    worst: list[WorstOf] = []
    warnings: list[str] = []
    read: dict[Path, TokenSummary | None] = {}
    for each in results.candidates:
        path = files.get(each.name)
        if path is None:
            continue
        if path not in read:
            try:
                table = read_table(path, results)
                clusters = clusters_in(table.chunk, results.text, results.texts)
            except (FormatError, MismatchError) as error:
                warnings.append(
                    f"Left out of the pictures: {path.name}: {error.what}. {_LACKING.format(each.name)}"
                )
                read[path] = None
                continue
            summary = summarize_tokens(table, clusters)
            read[path] = summary
            if summary.worst:
                worst.append(worst_of(each.name, table, summary, table.worst))
            if summary.left_out:
                warnings.append(
                    f"{each.name}: {summary.left_out} tokens without a finite KLD are left out of pictures."
                )
        if (found := read[path]) is not None:
            tokens[each.name] = found
    missing = [
        f"{c.name} (tokens/{c.tokens})" if c.tokens else c.name
        for c in results.candidates
        if c.name not in files
    ]
    if missing:
        said = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        warnings.append(
            f"Per-token results are not here for {said}: pictures of tokens and the worst tokens "
            "lack them. Copy the files back, or measure again."
        )
    return Gathered(tokens, _floor(noise, warnings), worst, warnings)


def _floor(path: Path | None, warnings: list[str]) -> TokenSummary | None:
    from bitloss.divergence.measure import read_tokens

    if path is None:
        return None
    try:
        return summarize_tokens(read_tokens(path)[0], worst=0)
    except FormatError as error:
        warnings.append(
            f"Left out of the pictures: {path.name}: {error.what}. The noise floor is not drawn beside the candidates."
        )
        return None
