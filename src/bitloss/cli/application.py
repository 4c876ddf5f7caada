"""The application that verbs are added to."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

app = typer.Typer(
    name="bitloss",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="What the bits you drop cost: convert, quantize and measure GGUF language models, and say why two files "
    "differ or do not.",
)


def _version(asked: bool) -> None:
    if not asked:
        return
    from importlib.metadata import version

    from bitloss.run.machine import this_llama_cpp

    engine = this_llama_cpp()
    sys.stdout.write(
        f"bitloss {version('bitloss')} (llama.cpp commit {engine.commit}, llama-cpp-python {engine.version})\n"
    )
    raise typer.Exit


@app.callback()
def _every_verb(
    _asked: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Tell the versions, llama.cpp's as well."
        ),
    ] = False,
) -> None:
    pass


def command_line(argv: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(["bitloss", *argv])
