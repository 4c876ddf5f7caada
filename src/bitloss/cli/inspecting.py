"""The verbs that look into files and need no engine: audit, diff."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from bitloss.cli.options import Json, Quiet, listed
from bitloss.cli.show import Screen, output_console, print_json
from bitloss.cli.verbs import app

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
    summary: Annotated[bool, typer.Option("--summary", help="The model only, no table of tensors.")] = False,
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count what a model's weights would lose in F16 and BF16, and which quantized blocks would see it."""
    from bitloss.explain import audit as room
    from bitloss.explain import audit_text

    with Screen(quiet=quiet) as screen:
        found = room.audit(
            model, formats=listed(formats, "--formats"), threads=threads, progress=screen.stage
        )
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


def _plain(text: str) -> str:
    from bitloss.display import visible

    return visible(text, limit=1000)
