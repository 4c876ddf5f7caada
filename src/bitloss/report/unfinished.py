"""A run that has not come to its end: the steps done, and figures of the candidates measured so far, marked as such."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bitloss.display import duration, many, size, visible
from bitloss.divergence.clusters import Clusters, clusters_of_chunks
from bitloss.divergence.measure import TokenTable, read_tokens
from bitloss.divergence.statistics import summarize
from bitloss.errors import BaseError, FileProblem, FormatError, MismatchError
from bitloss.model.documents import Splitting
from bitloss.records import RESULTS_NAME, Metrics
from bitloss.report.page import PAGE_NAME, render_unfinished
from bitloss.report.render import REPORT_NAME
from bitloss.report.tables import FOUNDING, Table, figures_table, markdown_text, to_markdown
from bitloss.report.uncertainty import said_of, usual_of
from bitloss.store import StepRecord, atomic_write_text
from bitloss.store.atomic import explained

if TYPE_CHECKING:
    from bitloss.divergence.basefile import BaseHeader

_NOTHING = "Nothing yet."


def is_unfinished(folder: Path) -> bool:
    """Whether a folder is a run without results yet."""
    return (folder / "run.json").is_file() and not (folder / RESULTS_NAME).exists()


def write_unfinished(folder: Path, out: Path | None = None) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html`` of what there is, into `out` or the run's folder.

    Raises:
        FileProblem: one cannot be written.
    """
    header = _header(folder)
    steps, figures = _steps(folder), _figures(folder, header)
    left_out = [name for name, metrics in figures.items() if metrics is None]
    measured = [(name, metrics) for name, metrics in figures.items() if metrics is not None]
    shown = usual_of(metrics for _, metrics in measured)
    table = figures_table(measured, FOUNDING, uncertainty=shown)
    files = f"{many(len(measured), 'file')} measured" if measured else "no candidates measured yet"
    note = (
        f"This run has not finished. {many(len(steps.rows), 'step')} done, {files}; "
        "no comparisons are made and nothing is concluded before its end."
    )
    if left_out:
        note += f" Could not be read: {', '.join(left_out[:5])}."
    if measured:
        cluster, stratified = _noun(header), header is not None and len(header.texts) > 1
        note += f" {said_of(shown, shown, cluster=cluster, stratified=stratified)}"
    where = out or folder
    with explained(where):
        where.mkdir(parents=True, exist_ok=True)
    markdown, page = where / REPORT_NAME, where / PAGE_NAME
    title = f"{visible(folder.resolve().name)}: not finished"
    parts = [
        f"# {markdown_text(title)}",
        f"**{markdown_text(note, 900)}**",
        "## Measured so far",
        to_markdown(table) if measured else _NOTHING,
        "## Steps done",
        to_markdown(steps) if steps.rows else _NOTHING,
    ]
    atomic_write_text(markdown, "\n\n".join(parts) + "\n")
    atomic_write_text(
        page, render_unfinished(title, note, [("Measured so far", table), ("Steps done", steps)])
    )
    return markdown, page


def _steps(folder: Path) -> Table:
    found = []
    for path in (folder / "steps").glob("*.json"):
        try:
            found.append(StepRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValueError):  # a step that is just being written, or is damaged: it is not done
            continue
    found.sort(key=lambda step: step.started)
    rows = tuple(
        (
            step.kind,
            ", ".join(Path(output.path).name for output in step.outputs[:3]),
            duration(step.seconds),
            size(sum(output.bytes for output in step.outputs)),
        )
        for step in found
    )
    return Table(("Step", "Made", "Time", "Disk"), rows, right=frozenset({2, 3}))


def _header(folder: Path) -> BaseHeader | None:
    """What the run's base says of its texts; None where there is none, or where it was to stop by a rule."""
    from bitloss.divergence.basefile import read_header  # brings the engine along

    try:
        return read_header(folder / "base")
    except (BaseError, FileProblem):
        return None


def _noun(header: BaseHeader | None) -> str:
    if header is None or not _documents(header):
        return "chunk"
    return "conversation" if header.documents == Splitting.CONVERSATIONS else "document"


def _documents(header: BaseHeader) -> list[int]:
    """Chunks of each document; empty where the base does not say."""
    each = [text.document_chunks for text in header.texts]
    return [n for chunks in each for n in chunks or ()] if None not in each else []


def _clusters(table: TokenTable, header: BaseHeader | None) -> Clusters:
    # of the noise floor some chunks, in an order of their own
    if header is None or len(np.unique(table.chunk)) < header.n_chunks:
        return Clusters.of(table.chunk)
    return clusters_of_chunks(
        table.chunk,
        texts=[text.chunks for text in header.texts],
        documents=_documents(header),
        noun=_noun(header),
    )


def _figures(folder: Path, header: BaseHeader | None) -> dict[str, Metrics | None]:
    """Figures of each file of tokens, by its name; None where it cannot be read."""
    found: dict[str, Metrics | None] = {}
    for path in sorted((folder / "tokens").glob("*.parquet")):
        try:
            table, _ = read_tokens(path)
            clusters = _clusters(table, header)
        except (FormatError, FileProblem, MismatchError):
            found[path.stem] = None
        else:
            found[path.stem] = dict(summarize(table.metrics, clusters)) if len(table) else None
    return found
