"""The verbs that look at finished runs: report, card, pick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bitloss.cli.options import Json, Quiet, size
from bitloss.cli.show import output_console, print_json
from bitloss.cli.verbs import app
from bitloss.errors import RunFolderError, UsageError
from bitloss.records import Results, read_results
from bitloss.report.terminal import Fitted

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a results.json.")]


def read_finished(run: Path) -> tuple[Results, Path]:
    """Results and folder of a run.

    Raises:
        RunFolderError: it has not finished.
        FileProblem, RecordError: it holds no results that can be read.
    """
    from bitloss.report.unfinished import is_unfinished

    if is_unfinished(run):
        raise RunFolderError(
            "the run has not finished: there are no results yet",
            where=run,
            mend="wait for it or run it again; bitloss report shows what there is so far",
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
        if out is None:
            raise UsageError("several runs need a folder of their own", where="--out", mend="give --out DIR")
        markdown, html = _side_by_side(runs, out)
    elif is_unfinished(runs[0]):
        finished = False
        markdown, html = write_unfinished(runs[0], out)
    else:
        results, folder = read_finished(runs[0])
        written = write_report(results, folder, out=out)
        markdown, html = written.markdown, written.html
    if json:
        print_json({"report": markdown.name, "html": html.name, "finished": finished})
    elif not quiet:
        sys.stdout.write(f"{markdown}\n{html}\n")
        if not finished:
            sys.stderr.write("the run has not finished: the report shows what there is\n")


def _side_by_side(folders: list[Path], out: Path) -> tuple[Path, Path]:
    from bitloss.report.side import Run, labelled, side_by_side
    from bitloss.report.write import gather, write_gathered

    runs = [
        Run(label, folder, results)
        for label, (results, folder) in zip(labelled(folders), map(read_finished, folders), strict=True)
    ]
    together = side_by_side(runs)
    gathered = gather(together.results, together.files, together.noise)
    written = write_gathered(together.results, out, gathered, warnings=together.warnings)
    return written.markdown, written.html


@app.command(epilog="Example: bitloss card runs/mistral -o README.md")
def card(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File. [default: README.md in the run]", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model card: front matter for the hub, files with their measurements, which one for which memory."""
    from bitloss.report.card import CARD_NAME, render_card
    from bitloss.store import atomic_write_text

    results, folder = read_finished(run)
    path = out or folder / CARD_NAME
    atomic_write_text(path, render_card(results, folder))
    if json:
        print_json({"card": str(path)})
    elif not quiet:
        sys.stdout.write(f"{path}\n")


@app.command(epilog="Example: bitloss pick runs/mistral --vram 8GiB --ctx 8192")
def pick(
    run: RunFolder,
    vram: Annotated[str, typer.Option("--vram", help="Memory there is, e.g. 8GiB.")],
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=2, help="Context to make room for.")] = 8192,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="A GGUF file of the model, when the run's are gone.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Name the best file for a memory: weights, cache and buffers counted, ties named."""
    from bitloss.model.gguf import GgufFile
    from bitloss.report.pick import files_of, shape_of
    from bitloss.report.pick import pick as choose

    results, folder = read_finished(run)
    budget = size(vram, "--vram")
    if model is not None:
        GgufFile.open(model)  # says by name what is wrong with it
    shape = shape_of([model] if model else files_of(results, folder), ctx)
    chosen = choose(results, budget=budget, n_ctx=ctx, besides=shape.besides if shape else None)
    if json:
        print_json(
            {
                "best": chosen.best.name if chosen.best else None,
                "file": chosen.best.file if chosen.best else None,
                "lowest": chosen.lowest.name if chosen.lowest else None,
                "tied": list(chosen.tied),
                "budget": budget,
                "ctx": ctx,
                "besides_weights": chosen.besides,
                "told_by": shape.told_by if shape else None,
                "fits": [
                    {"candidate": c.name, "file": c.file, "takes": taken, "fits": fits}
                    for c, taken, fits in chosen.fits
                ],
            }
        )
        return
    console = output_console()
    console.print(Fitted(chosen.table()))
    console.print(chosen.words(), markup=False)
