"""Starting is quick: a verb imports what it needs itself, and every verb is there for `--help`."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _after(*arguments: str) -> list[str]:
    """Run a verb in a process of its own; which of the slow packages it imported."""
    code = (
        "import sys\nfrom bitloss.cli import main\n"
        f"assert main({list(arguments)!r}) == 0\n"
        "print([name for name in ('scipy', 'llama_cpp', 'pyarrow') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [name for name in ("scipy", "llama_cpp", "pyarrow") if f"'{name}'" in done.stderr]


@pytest.mark.parametrize("verb", ["convert", "imatrix", "quantize", "base"])
def test_a_verb_does_not_import_what_others_need(verb: str) -> None:
    assert _after(verb, "--help") == []


def test_help_shows_every_verb() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bitloss", "--help"], capture_output=True, text=True, check=True
    )
    for verb in (
        "convert",
        "imatrix",
        "quantize",
        "base",
        "run",
        "measure",
        "compare",
        "report",
        "audit",
        "demo",
    ):
        assert verb in done.stdout, verb
