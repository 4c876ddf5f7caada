"""A model card for the files of a run: Markdown with the hub's YAML front matter.

The YAML holds only what is known; values are JSON strings, which YAML reads as they are. ``base_model`` is a hub id:
that of a model a run fetched (conversion.json), or the one given; else it is left out. The licence is the source
model's own (``general.license`` of a GGUF of the run); where no file tells, it is left out and the card says so. Only
of files the run made itself is it said what they were made from.

Every card ends with `MARK`, by which one that may be replaced is told from a file of somebody else's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bitloss.convert.record import NAME as CONVERSION
from bitloss.convert.record import read_record
from bitloss.display import size
from bitloss.errors import FileProblem, FormatError, UnsupportedError
from bitloss.explain.routes import routes_only
from bitloss.model.gguf import GgufFile
from bitloss.model.hub import is_hub_id
from bitloss.records import Candidate, Figure, Results
from bitloss.report.making import made_rows, reservations, scored
from bitloss.report.missing import no_candidates
from bitloss.report.pick import CONTEXT, files_of, pick, shape_of
from bitloss.report.tables import (
    HASH_DIGITS,
    Notes,
    Table,
    markdown_text,
    show_figure,
    to_markdown,
)
from bitloss.report.uncertainty import Uncertainty, usual

CARD_NAME = "README.md"
MARK = "<!-- Written by bitloss card: a file with this line is replaced by the next one. -->"
_GIB = 1 << 30
_MAX_BYTES = 16 << 20  # of a card, with thousands of files
_LIST = 2000  # characters of a cell that lists files
BUDGETS = tuple(n * _GIB for n in (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192))


def is_card(path: Path) -> bool:
    """Whether a file is a card made here, which may be replaced; one that cannot be read is not."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(_MAX_BYTES)
    except OSError:
        return False


def render_card(results: Results, folder: Path, *, base_model: str | None = None) -> str:
    """Return the card, without tables where the run has no candidates.

    Args:
        results: of the run.
        folder: the run's, whose files tell licence, hyperparameters and hub id while they are there.
        base_model: hub id ("owner/name") of the model the files were made from; that in the folder when None.
    """
    results = routes_only(results)
    files = files_of(results, folder)
    licence = _licence(files)
    front = _front_matter(results, licence, base_model or _hub_id(folder))
    if (nothing := no_candidates(results)) is not None:
        title = f"# {markdown_text(results.model.name)}: no GGUF files measured yet"
        return _joined([front, title, markdown_text(nothing, 300)])
    parts = [
        front,
        f"# {markdown_text(results.model.name)}: GGUF files, measured",
        _opening(results, licence),
        "## Files",
        to_markdown(_files(results)),
        f"KLD is the mean Kullback-Leibler divergence from the base in nats, {_error_said(results)}; "
        f"same top p is how often a file's likeliest token is the base's.{_twins_said(results)}",
        "## Which one",
        _recommendations(results, files),
        "## How it was measured",
        _how(results),
    ]
    if results.findings:
        parts += ["## What was found", _findings(results)]
    return _joined(parts)


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join([*filter(None, parts), MARK]) + "\n"


def _hub_id(folder: Path) -> str | None:
    """The model a run fetched from the hub, as its conversion recorded it."""
    record = read_record(folder / "sources" / CONVERSION)
    name = record.hub.partition("@")[0] if record is not None and record.hub else ""
    return name if is_hub_id(name) else None


def _made_here(results: Results) -> bool:
    """Whether the run made every file itself, so that it knows what from."""
    return all(c.weights_from is not None for c in results.candidates)


def _front_matter(results: Results, licence: str | None, base_model: str | None) -> str:
    lines = [f"base_model: {_yaml(base_model)}"] if base_model else []
    if base_model and results.candidates:
        lines.append("base_model_relation: quantized")
    if results.candidates:
        lines.append("library_name: gguf")
    if licence:
        lines.append(f"license: {_yaml(licence)}")
    if results.candidates:
        lines += ["pipeline_tag: text-generation", "tags:", "  - gguf", "  - quantized"]
    if any(c.imatrix_from for c in results.candidates):
        lines.append("  - imatrix")
    return "\n".join(["---", *lines, "---"]) if lines else ""


def _yaml(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)


def _opening(results: Results, licence: str | None) -> str:
    model, made = results.model, _made_here(results)
    facts = (
        f"{markdown_text(model.architecture)}, {model.parameters:,} weights in {markdown_text(model.dtype)}"
    )
    against = markdown_text(results.base.name)
    if made:
        said = f"Made from {markdown_text(model.name)} ({facts}) and measured against {against}"
    else:
        said = f"Measured against {against}" + ("" if model.sha256 is None else f" ({facts})")
    said += f" with bitloss {markdown_text(results.bitloss)}."
    if licence:
        whose = "Licence of the source model" if made else "Licence, as the files state it"
        return f"{said} {whose}: {markdown_text(licence)}."
    return f"{said} The licence is the source model's; it is not recorded in its files, so state it here."


def _error_said(results: Results) -> str:
    if usual(results) is Uncertainty.CLUSTERED:
        return f"its standard error {results.text.clustered}"
    few = f"too few {results.text.cluster}s to cluster by"
    return f"its standard error with tokens taken as independent ({few})"


def _twins_said(results: Results) -> str:
    """What sets files with the same tensors apart; nothing where there are none."""
    pairs = [(c, results.candidate(c.identical_to)) for c in results.candidates if c.identical_to]
    same = any(c.sha256 == twin.sha256 for c, twin in pairs)
    differ = any(c.sha256 != twin.sha256 for c, twin in pairs)
    if same and differ:
        return (
            " Files with the same sha256 are the same file; others with the same tensors differ in metadata or layout"
            " alone."
        )
    if same:
        return " Files with the same sha256 are the same file."
    return " Files with the same tensors differ in metadata or layout alone." if differ else ""


def _files(results: Results) -> Table:
    notes = Notes()
    kind = usual(results)

    def cell(c: Candidate, metric: str) -> str:
        figure: Figure | None = c.metrics.get(metric)
        return show_figure(figure, metric, kind, notes)

    rows = tuple(
        (
            c.file,
            c.type,
            size(c.bytes),
            f"{c.bits_per_weight:.4f}",
            cell(c, "kld_mean"),
            cell(c, "same_top"),
            c.sha256[:HASH_DIGITS],
            results.candidate(c.identical_to).file if c.identical_to else "",
        )
        for c in results.candidates
    )
    titles = (
        "File",
        "Type",
        "Size",
        "Bits per weight",
        "Mean KLD",
        "Same top p",
        "sha256",
        "Same tensors as",
    )
    return Table(titles, rows, tuple(notes.reasons), frozenset({2, 3, 4, 5}))


def _recommendations(results: Results, files: Sequence[Path]) -> str:
    shape = shape_of(files, CONTEXT, or_longest=True)
    n_ctx, besides = (shape.n_ctx, shape.besides) if shape else (CONTEXT, None)
    rows: list[tuple[str, ...]] = []
    for budget in BUDGETS:
        found = pick(results, budget=budget, n_ctx=n_ctx, besides=besides)
        if found.best is None:
            continue
        same = found.same_tensors()
        others = [
            results.candidate(name).file + (" (same tensors)" if name in same else "")
            for name in found.tied
            if name != found.best.name
        ]
        row = (found.best.file, size(found.best.bytes), ", ".join(others))
        if not rows or rows[-1][1:] != row:
            rows.append((f"from {budget // _GIB} GiB", *row))
    if all((figure := c.metrics.get("kld_mean")) is None or figure.value is None for c in results.candidates):
        return "No file has a mean KLD, so none can be recommended."
    if not rows:
        return "No file fits into the memory sizes usual today."
    counted = (
        f"Weights, the cache for {n_ctx} tokens of context and buffers are counted; an estimate."
        if besides is not None
        else "Weights alone are counted, because the files were gone when this was written: leave room for the cache."
    )
    memory = "Memory" if besides is not None else "Memory, for weights alone"
    table = Table((memory, "File", "Size", "No different on this text"), tuple(rows), right=frozenset({2}))
    return (
        f"{to_markdown(table, limit=_LIST)}\n\n{counted} Each line is the file with the lowest mean KLD that fits, "
        "or the smallest of those that the paired test does not tell from it."
    )


def _how(results: Results) -> str:
    text = results.text
    said = (
        f"{text.scored_tokens:,} tokens of {markdown_text(text.name)} ({text.chunks:,} chunks of {text.n_ctx}, "
        f"{scored(results)}), the same for every file."
    )
    floor = results.noise_floor.metrics.get("kld_mean") if results.noise_floor else None
    if floor is not None and floor.value is not None:
        shown = show_figure(floor, "kld_mean", usual(results), Notes())
        said += f" The engine's own noise is a mean KLD of {shown}."
    rows = [f"- {what}: {markdown_text(which, 2000)}" for what, which in made_rows(results)]
    return "\n".join([said, *map(_plain, reservations(results)), "", *rows])


def _plain(text: str) -> str:
    return markdown_text(text, 2000)


def _findings(results: Results) -> str:
    return "\n".join(
        f"- {markdown_text(f.title, 300)} ({f.confidence.value}). {markdown_text(f.text, 2000)}"
        for f in results.findings
    )


def _licence(files: Sequence[Path]) -> str | None:
    for path in files:
        try:
            licence = GgufFile.open(path).value("general.license", None) if path.is_file() else None
        except (FormatError, UnsupportedError, FileProblem):
            continue
        if isinstance(licence, str) and licence:
            return licence
    return None
