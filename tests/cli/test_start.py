"""Starting is quick: a verb imports what it needs itself, and every verb is there for `--help`."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from importlib.metadata import version

import llama_cpp
import pytest

from bitloss.cli import main, verbs


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


def test_versions_are_told() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bitloss", "--version"], capture_output=True, text=True, check=True
    )
    own = re.escape(version("bitloss"))
    told = rf"bitloss {own} \(llama\.cpp commit \w+, llama-cpp-python {llama_cpp.__version__}\)\n"
    assert re.fullmatch(told, done.stdout)
    assert done.stderr == ""


def test_no_line_of_a_help_ends_where_the_source_does() -> None:
    import_all()
    for verb in verbs.app.registered_commands:
        assert verb.help
        assert all("\n" not in part for part in verb.help.split("\n\n"))


def import_all() -> None:
    """As ``bitloss --help`` does."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["convert", "--help"]) == 0
        assert main(["--help"]) == 0
