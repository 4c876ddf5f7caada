"""The verbs that look into files and need no engine: audit, diff."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from bitloss.cli.application import app
from bitloss.cli.options import Force, Json, Quiet, listed
from bitloss.cli.show import Screen, output_console, print_json
from bitloss.errors import FileProblem, UsageError
from bitloss.records import Audit

Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="CPU threads; 0 takes all.")]


@app.command(epilog="Example: bitloss audit ./Mistral-7B --formats Q8_0,Q4_K")
def audit(
    model: Annotated[Path, typer.Argument(help="HF folder, or GGUF file (the first part of a split one).")],
    formats: Annotated[
        str, typer.Option("--formats", help="Types of blocks to look at downstream.")
    ] = "Q8_0",
    histogram: Annotated[
        bool, typer.Option("--histogram", help="Show also how the values spread over binary exponents.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Write that spread as a picture, FILE.svg or FILE.png.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="The model only, no table of tensors.")] = False,
    threads: Threads = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count what a model's weights would lose in F16 and BF16, and which quantized blocks would see it."""
    from bitloss.explain import audit as room
    from bitloss.explain import audit_text

    if plot is not None:
        _check_picture(plot, force=force)
    with Screen(quiet=quiet) as screen:
        found = room.audit(
            model, formats=listed(formats, "--formats"), threads=threads, progress=screen.stage
        )
    if plot is not None:
        _draw_exponents(found, plot)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    if not summary:
        table = Table(*audit_text.TABLE_HEAD, *audit_text.block_heads(found), box=None, pad_edge=False)
        for row in audit_text.table_rows(found):
            table.add_row(*(Text(_plain(cell)) for cell in row))
        output_console().print(table)
    lines = audit_text.summary(found)
    if histogram:
        lines += ["", *audit_text.histogram(found.total)]
    sys.stdout.write("".join(f"{_plain(line)}\n" for line in lines))


def _check_picture(path: Path, *, force: bool) -> None:
    """Refuse before hours of counting what could not be written after them, or would replace something else."""
    from bitloss.report.pictures import is_picture

    if path.suffix not in (".svg", ".png"):
        raise UsageError(
            "a picture of that kind cannot be drawn",
            where="--plot",
            expected="FILE.svg or FILE.png",
            found=path.name,
        )
    if not path.parent.is_dir() or path.is_dir():
        raise FileProblem(
            "no place to write the picture to", where=path, expected="a file in a folder that is there"
        )
    if path.is_file() and not force and not is_picture(path):
        raise FileProblem(
            "already there, and not a picture that bitloss drew",
            where=path,
            mend="choose another file with --plot, or replace it with --force",
        )


def _draw_exponents(found: Audit, path: Path) -> None:
    from bitloss.report.exponents import exponents_of
    from bitloss.report.pictures import png
    from bitloss.report.svg import WIDE, standalone
    from bitloss.store import atomic_write_bytes

    picture = exponents_of(found)
    if picture is None:
        raise FileProblem("no matrix has a weight to draw", where=found.model)
    svg = standalone(picture.draw(WIDE), f"{found.model}: how large the weights are", picture.legend)
    atomic_write_bytes(path, png(svg) if path.suffix == ".png" else svg.encode())


@app.command(epilog="Example: bitloss diff m-f32-Q4_K_M.gguf m-f16-Q4_K_M.gguf --reference m-f32.gguf")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A.gguf", help="GGUF file (the first part of a split one).")],
    b: Annotated[Path, typer.Argument(metavar="B.gguf", help="Another one.")],
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", help="GGUF both were made from: tells the difference beside their errors."
        ),
    ] = None,
    identical: Annotated[bool, typer.Option("--all", help="List identical tensors too.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="The conclusion and the causes only.")] = False,
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say in which bytes and weights two GGUF files differ, and why their sizes and hashes do."""
    from bitloss.explain import diff as room
    from bitloss.explain import diff_text as words

    with Screen(quiet=quiet) as screen:
        found = room.diff(a, b, reference=reference, threads=threads, progress=screen.stage)
    if json:
        print_json(found.model_dump(mode="json"))
        return
    lines = [found.text, "", f"A: {found.a.name}", f"B: {found.b.name}"]
    lines += [f"reference: {found.reference}"] if found.reference else []
    lines += ["", "Why the bytes differ:", *(f"- {cause}" for cause in found.causes)] if found.causes else []
    sys.stdout.write("".join(f"{_plain(line)}\n" for line in lines))
    if summary:
        return
    heads = words.TENSOR_HEAD if found.reference is None else (*words.TENSOR_HEAD, words.REFERENCE_HEAD)
    _table("Where the bytes are", words.SHARE_HEAD, words.share_rows(found), right=(2, 3, 4))
    _table("Metadata that differs", words.METADATA_HEAD, words.metadata_rows(found))
    rows = words.tensor_rows(found, identical=identical)
    _table(
        "Tensors" if identical else "Tensors that are not identical",
        heads,
        rows,
        right=tuple(range(3, len(heads))),
    )


def _table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    console = output_console()
    console.print(Text(f"\n{title}"))
    console.print(table)


def _plain(text: str) -> str:
    from bitloss.display import visible

    return visible(text, limit=1000)
