"""The verbs that look at finished runs: report, compare, card, pick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitloss.cli.application import app
from bitloss.cli.options import Force, Json, Quiet, size
from bitloss.cli.show import output_console, print_json, warn
from bitloss.display import visible
from bitloss.errors import FileProblem, RunFolderError, UsageError
from bitloss.records import RESULTS_NAME, Results, read_results
from bitloss.report.terminal import Fitted

if TYPE_CHECKING:
    from bitloss.report.write import Report

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a results.json.")]


def read_finished(run: Path) -> tuple[Results, Path]:
    """Results and folder of a run.

    Raises:
        RunFolderError: it has not finished.
        UsageError: it is a stored base, which has no results.
        FileProblem, RecordError: it holds no results that can be read.
    """
    from bitloss.report.unfinished import is_unfinished

    if is_unfinished(run):
        raise RunFolderError(
            "the run has not finished: there are no results yet",
            where=run,
            mend="wait for it or run it again; bitloss report shows what there is so far",
        )
    if (run / "base.json").is_file() and not (run / RESULTS_NAME).exists():
        raise UsageError(
            "a stored base, nothing measured against it yet",
            where=run,
            expected=f"a run folder or a {RESULTS_NAME}",
            mend=f"measure files against it: bitloss measure FILE.gguf --base {run} -o DIR",
        )
    return read_results(run), run if run.is_dir() else run.parent


@app.command(epilog="Example: bitloss report runs/mistral")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; several are laid side by side, with --out."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for it. [default: the run's]", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the report again from results.json and tokens/: pages, pictures, tables; needs no model and no engine."""
    from bitloss.report.unfinished import is_unfinished, write_unfinished
    from bitloss.report.write import write_report

    finished = True
    if len(runs) > 1:
        _refuse_twice(runs)
        if out is None:
            raise UsageError("several runs need a folder of their own", where="--out", mend="give --out DIR")
        written = _side_by_side(runs, out)
    elif is_unfinished(runs[0]):
        finished = False
        markdown, html = write_unfinished(runs[0], out)
    else:
        results, folder = read_finished(runs[0])
        written = write_report(results, folder, out=out)
    if finished:
        markdown, html = written.markdown, written.html
        for line in written.warnings:
            warn(line)
    if json:
        print_json({"report": markdown.name, "html": html.name, "finished": finished})
    elif not quiet:
        sys.stdout.write(f"{markdown}\n{html}\n")
        if not finished:
            sys.stderr.write("the run has not finished: the report shows what there is\n")


def _refuse_twice(runs: list[Path]) -> None:
    folders: dict[Path, Path] = {}
    for run in runs:
        folder = (run.parent if run.is_file() else run).resolve()
        if folder in folders:
            raise UsageError(
                "the same run twice",
                where=run,
                found=f"{folders[folder]} and {run}" if folders[folder] != run else None,
                mend="name each run once",
            )
        folders[folder] = run


def _side_by_side(folders: list[Path], out: Path) -> Report:
    from bitloss.report.side import Run, labelled, side_by_side
    from bitloss.report.write import gather, write_gathered

    runs = [
        Run(label, folder, results)
        for label, (results, folder) in zip(labelled(folders), map(read_finished, folders), strict=True)
    ]
    together = side_by_side(runs)
    gathered = gather(together.results, together.files, together.noise)
    return write_gathered(together.results, out, gathered, warnings=together.warnings)


@app.command(epilog="Example: bitloss compare runs/mistral")
def compare(run: RunFolder, json: Json = False) -> None:
    """Show which candidates of a run differ beyond chance (paired, clustered by chunk or document, Holm-adjusted)."""
    from bitloss.report.missing import no_comparisons
    from bitloss.report.tables import comparisons_table
    from bitloss.report.uncertainty import ALONE

    results, _ = read_finished(run)
    if json:
        print_json([row.model_dump(mode="json") for row in results.comparisons])
    elif (nothing := no_comparisons(results)) is not None:
        output_console().print(visible(f"No comparisons{nothing.removeprefix('None')}", 300), markup=False)
    else:
        console = output_console()
        console.print(Fitted(comparisons_table(results)))
        console.print(ALONE, markup=False)


@app.command(epilog="Example: bitloss card runs/mistral -o README.md")
def card(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File. [default: README.md in the run]", show_default=False),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="OWNER/NAME",
            help="Hub id of the model the files were made from. [default: that of a model the run fetched]",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model card: front matter for the hub, files with their measurements, which one for which memory.

    An earlier card is replaced, any other file only with --force.
    """
    from bitloss.model.hub import is_hub_id
    from bitloss.report.card import CARD_NAME, is_card, render_card
    from bitloss.store import atomic_write_text

    if base_model is not None and not is_hub_id(base_model):
        raise UsageError("no id of the hub", where="--base-model", expected="owner/name", found=base_model)
    results, folder = read_finished(run)
    path = out or folder / CARD_NAME
    if path.is_file() and not force and not is_card(path):
        raise FileProblem(
            "already there, and not a card that bitloss made",
            where=path,
            mend="choose another --out, or replace it with --force",
        )
    atomic_write_text(path, render_card(results, folder, base_model=base_model))
    if json:
        print_json({"card": str(path)})
    elif not quiet:
        sys.stdout.write(f"{path}\n")


@app.command(epilog="Example: bitloss pick runs/mistral --vram 8GiB --ctx 8192")
def pick(
    run: RunFolder,
    vram: Annotated[
        str, typer.Option("--vram", help="Memory there is, e.g. 8GiB or 24GB; bytes without a unit.")
    ],
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            "-c",
            min=2,
            max=2**31 - 1,
            help="Context to make room for. [default: 8192, or the model's longest]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="A GGUF file of the model, when the run's are gone.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Name the best file for a memory: weights, cache and buffers counted, ties named.

    Exit code 0 when a file is named, 1 when none fits; the answer is printed either way.

    Where no GGUF file is left to tell the size of the cache, weights alone are counted and no file is said to fit.
    """
    from bitloss.model.gguf import GgufFile
    from bitloss.report.pick import CONTEXT, files_of, shape_of
    from bitloss.report.pick import pick as choose

    results, folder = read_finished(run)
    budget = size(vram, "--vram")
    if model is not None:
        GgufFile.open(model)  # says by name what is wrong with it
    files = [model] if model else files_of(results, folder)
    shape = shape_of(files, ctx or CONTEXT, or_longest=ctx is None)
    n_ctx = shape.n_ctx if shape else ctx or CONTEXT
    chosen = choose(results, budget=budget, n_ctx=n_ctx, besides=shape.besides if shape else None)
    if json:
        print_json(
            {
                "best": chosen.best.name if chosen.best else None,
                "file": chosen.best.file if chosen.best else None,
                "lowest": chosen.lowest.name if chosen.lowest else None,
                "tied": list(chosen.tied),
                "same_tensors": list(chosen.same_tensors()),
                "budget": budget,
                "ctx": n_ctx,
                "besides_weights": chosen.besides,
                "told_by": shape.told_by if shape else None,
                "fits": [
                    {"candidate": c.name, "file": c.file, "takes": taken, "fits": fits}
                    for (c, taken, _), fits in zip(chosen.fits, chosen.surely_fits(), strict=True)
                ],
                "left_out": list(chosen.left_out),
            }
        )
    else:
        console = output_console()
        if chosen.fits:
            console.print(Fitted(chosen.table()))
        console.print(visible(chosen.words(), 2000), markup=False)
    if chosen.best is None:
        raise typer.Exit(1)
