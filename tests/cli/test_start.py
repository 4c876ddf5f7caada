"""Starting is quick: a verb imports what it needs itself, and every verb is there for `--help`."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import pytest

from bitloss.cli import main
from bitloss.cli.application import app


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
    for verb in app.registered_commands:
        assert verb.help
        assert all("\n" not in part for part in verb.help.split("\n\n"))


def import_all() -> None:
    """As ``bitloss --help`` does."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["convert", "--help"]) == 0
        assert main(["--help"]) == 0


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("run", "finished steps are kept"),
        ("measure", "finished steps are kept"),
        ("base", "finished chunks are kept"),
        ("quantize", "finished tensors are kept"),
        ("imatrix", "the same command starts anew"),
        ("convert", "the same command starts anew"),
    ],
)
def test_an_interrupt_says_what_is_kept(
    verb: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app.__class__, "__call__", stopped)
    assert main([verb]) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_an_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bitloss", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "bitloss: the output cannot be written: No space left on device\n"


def test_what_the_system_says_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/file")

    monkeypatch.setattr(app.__class__, "__call__", failing)
    assert main(["audit"]) == 1
    assert capsys.readouterr().err.startswith("bitloss: /data/file: the disk is full. Free some space")
    with pytest.raises(OSError, match="No space"):
        main(["audit", "--debug"])


def test_a_verb_that_starts_a_process_ahead_fails_in_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bitloss",
        "base",
        tmp_path / "no.gguf",
        "--text",
        __file__,
        "-o",
        tmp_path / "b",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"bitloss: .*no\.gguf: no such GGUF file\..*\n", done.stderr), done.stderr
