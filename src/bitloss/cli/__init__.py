"""The command line: ``bitloss VERB``.

A user's mistake gets one line on standard error and exit code 1 (failed) or 2 (wrong use); ``--debug`` shows the
traceback.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError
from typer.exceptions import TyperException

from bitloss.display import plain_fault
from bitloss.errors import BitlossError, UsageError
from bitloss.store.atomic import file_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTERRUPTED = 130
_STEPS = frozenset({"demo", "run", "measure", "sensitivity"})
_PIECES = {"base": "chunks", "quantize": "tensors"}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (`bitloss` exits with it)."""
    from bitloss.cli.application import app

    arguments = list(sys.argv[1:] if argv is None else argv)
    for others in ("verbs", "experiments", "inspecting", "reports"):  # they add their verbs to the app
        if arguments and arguments[0] in _verbs(app):
            break  # the rest takes up to half a second to import, and only `--help` shows it
        importlib.import_module(f"bitloss.cli.{others}")
    _let_help_flow(app)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # hours of work must not end in a sign the terminal lacks
    try:
        _refuse_other_than_utf8(arguments)
        with _terminated_as_interrupted():
            code = app(arguments, prog_name="bitloss", standalone_mode=False, obj=arguments)
        sys.stdout.flush()  # a full disk behind a redirection is found out here, not when the interpreter ends
    except BitlossError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except TyperException as failure:
        said = _plain(getattr(failure, "format_message", lambda: "")())
        return _fail(f"{said}{_found(failure)} (see bitloss --help)" if said else "see bitloss --help", 2)
    except OSError as error:  # whatever was not explained where it happened
        if debug:
            raise
        return _system_said(error)
    if code == _INTERRUPTED:  # typer turns Ctrl-C into this code and says nothing
        return _fail(f"interrupted; {_kept(arguments)}", _INTERRUPTED)
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that nothing half-written is left; the first of them only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(arguments: list[str]) -> str:
    """What the same command finds when it is given again."""
    verb = arguments[0] if arguments else ""
    if verb in _STEPS:
        return "finished steps are kept, the same command goes on from there (a measurement under way starts anew)"
    if verb in _PIECES:
        return f"finished {_PIECES[verb]} are kept, the same command goes on from there"
    return "nothing half-written was left, the same command starts anew"


def _system_said(error: OSError) -> int:
    """End with the system's error in one line; without one where nobody reads the output any more."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())  # else Python tries once more when it ends
        os.close(nothing)
    if isinstance(error, BrokenPipeError):
        return 1
    if error.filename:
        return _fail(str(file_problem(error, error.filename)), 1)
    return _fail(f"the output cannot be written: {error.strerror or error}", 1)


def _verbs(app: typer.Typer) -> set[str]:
    """Names of the verbs an app has so far."""
    return {verb.callback.__name__ for verb in app.registered_commands if verb.callback is not None}


def _let_help_flow(app: typer.Typer) -> None:
    """Join the lines of each paragraph of a docstring, which the help would break where the source does."""
    for verb in app.registered_commands:
        text = inspect.getdoc(verb.callback) if verb.callback is not None else None
        verb.help = "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _refuse_other_than_utf8(arguments: list[str]) -> None:
    """Records are JSON and TOML, which cannot hold a name that is no text."""
    for text in (*arguments, os.getcwd()):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UsageError("a name that is not UTF-8", where=ascii(text), mend="rename the file or folder")


def _found(failure: BaseException) -> str:
    """What was given for an option: typer's own message leaves it out."""
    cause = failure.__cause__ or failure.__context__
    if isinstance(cause, ValidationError):
        return f", found {cause.errors()[0]['input']!r}"
    return ""


def _plain(said: str) -> str:
    """What typer says, with what pydantic said inside it in our words."""
    head, mark, fault = said.partition(": ")
    return f"{head}: {plain_fault(fault)}" if mark and head.startswith("Invalid value") else said


def _fail(line: str, code: int) -> int:
    sys.stderr.write(f"bitloss: {' '.join(line.split())}\n")
    return code
