"""A model card for the files of a run: Markdown with the hub's YAML front matter.

The YAML holds only what is known; values are JSON strings, which YAML reads as they are. The licence is the source
model's own (``general.license`` of a GGUF of the run); where no file tells, it is left out and the card says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bitloss.display import size
from bitloss.errors import FileProblem, FormatError, UnsupportedError
from bitloss.explain.routes import routes_only
from bitloss.model.gguf import GgufFile
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
_GIB = 1 << 30
BUDGETS = tuple(n * _GIB for n in (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192))


def render_card(results: Results, folder: Path) -> str:
    """Return the card; `folder` is the run's, whose files tell licence and hyperparameters while they are there.

    That of a run without candidates says so, and has no tables.
    """
    results = routes_only(results)
    files = files_of(results, folder)
    licence = _licence(files)
    if (nothing := no_candidates(results)) is not None:
        title = f"# {markdown_text(results.model.name)}: no GGUF files measured yet"
        return "\n\n".join([_front_matter(results, licence), title, markdown_text(nothing, 300)]) + "\n"
    parts = [
        _front_matter(results, licence),
        f"# {markdown_text(results.model.name)}: GGUF files, measured",
        _opening(results, licence),
        "## Files",
        to_markdown(_files(results)),
        f"KLD is the mean Kullback-Leibler divergence from the base in nats, {_error_said(results)}; "
        "same top p is how often a file's likeliest token is the base's. Files with the same tensors differ in metadata"
        " alone.",
        "## Which one",
        _recommendations(results, files),
        "## How it was measured",
        _how(results),
    ]
    if results.findings:
        parts += ["## What was found", _findings(results)]
    return "\n\n".join(parts) + "\n"


def _front_matter(results: Results, licence: str | None) -> str:
    lines = [f"base_model: {_yaml(results.model.name)}"]
    if results.candidates:
        lines += ["base_model_relation: quantized", "library_name: gguf"]
    if licence:
        lines.append(f"license: {_yaml(licence)}")
    if results.candidates:
        lines += ["pipeline_tag: text-generation", "tags:", "  - gguf", "  - quantized"]
    if any(c.imatrix_from for c in results.candidates):
        lines.append("  - imatrix")
    return "\n".join(["---", *lines, "---"])


def _yaml(text: str) -> str:
    return json.dumps(text, ensure_ascii=True)


def _opening(results: Results, licence: str | None) -> str:
    said = (
        f"Made from {markdown_text(results.model.name)} ({markdown_text(results.model.architecture)}, "
        f"{results.model.parameters:,} weights in {markdown_text(results.model.dtype)}) and measured against "
        f"{markdown_text(results.base.name)} with bitloss {markdown_text(results.bitloss)}."
    )
    if licence:
        return f"{said} Licence of the source model: {markdown_text(licence)}."
    return f"{said} The licence is the source model's; it is not recorded in its files, so state it here."


def _error_said(results: Results) -> str:
    if usual(results) is Uncertainty.CLUSTERED:
        return "its standard error clustered by chunk"
    return "its standard error with tokens taken as independent (too few chunks to cluster by)"


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
            c.identical_to or "",
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
        others = [name for name in found.tied if name != found.best.name]
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
        f"{to_markdown(table)}\n\n{counted} Each line is the file with the lowest mean KLD that fits, or the smallest "
        "of those that the paired test does not tell from it."
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
