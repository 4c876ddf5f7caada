"""The second seam: steps in, results out.

`LocalExecutor` runs each step in a child process, so that a crash in the C library fails one step and not the run, and
every step's memory is given back. `InlineExecutor` runs it in this process (tests, debugging).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, Any, Protocol

from pydantic import JsonValue

from bitloss import errors
from bitloss.errors import BitlossError, EngineCrash
from bitloss.progress import Progress, ProgressCallback
from bitloss.run.steps import Step
from bitloss.store import clean_partials

_LAST_LINES = 3


@dataclass(frozen=True, slots=True)
class StepResult:
    """What running a step gave.

    Attributes:
        value: the step's own result.
        seconds: wall time, the child's start included.
        peak_bytes: largest resident memory of the child; None when not known.
    """

    value: JsonValue
    seconds: float
    peak_bytes: int | None


class Executor(Protocol):
    """Runs steps."""

    def run(self, step: Step, progress: ProgressCallback) -> StepResult:
        """Run one step.

        Raises:
            BitlossError: what the step raised, with its own type.
            EngineCrash: the process died.
        """
        ...


class InlineExecutor:
    """Runs steps in this process."""

    def run(self, step: Step, progress: ProgressCallback) -> StepResult:
        """See `Executor.run`."""
        started = time.perf_counter()
        value = step.execute(progress)
        return StepResult(value, time.perf_counter() - started, None)


class LocalExecutor:
    """Runs every step in a process of its own."""

    def run(self, step: Step, progress: ProgressCallback) -> StepResult:
        """See `Executor.run`."""
        started = time.perf_counter()
        with tempfile.TemporaryFile() as log:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "bitloss.run.child",
                ],  # -P: no module from the folder one stands in
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # else an abort of ggml starts a debugger, where one is installed, and waits for it
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
            try:
                last = _talk(child, step, progress)
                code = child.wait()
            except BaseException:
                _stop(child)
                _clean_up(step)
                raise
            if "result" in last and code == 0:
                return StepResult(last["result"], time.perf_counter() - started, last.get("peak_bytes"))
            if "error" in last:
                raise _error(last["error"])
            _clean_up(step)
            raise EngineCrash(
                f"the process of step {step.kind} died ({_cause(code)})",
                found=_tail(log) or "no message",
                mend="finished steps are kept; run the same command again to go on",
            )


def _talk(child: subprocess.Popen[bytes], step: Step, progress: ProgressCallback) -> dict[str, Any]:
    """Hand the step over and listen until the child closes the channel; returns its last word."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # a child that dies at once is reported by its exit code
        child.stdin.write(step.model_dump_json().encode())
        child.stdin.close()
    last: dict[str, Any] = {}
    for line in child.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # cut short by a crash
        if "progress" in message:
            progress(Progress(**message["progress"]))
        else:
            last = message
    return last


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Stop a child that is no longer wanted, without leaving half-written files if it can help it."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _clean_up(step: Step) -> None:
    """Remove what a child that died left half-written."""
    for folder in (step.out, step.out.parent):
        if folder.is_dir():
            clean_partials(folder)


def _error(fields: dict[str, Any]) -> BitlossError:
    kind = getattr(errors, fields.pop("type"), BitlossError)
    assert issubclass(kind, BitlossError)
    error: BitlossError = kind(fields.pop("what"), **fields)
    return error


def _cause(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
        return f"signal {name}; out of memory?" if name == "SIGKILL" else f"signal {name}"
    return f"exit code {code}"


def _tail(log: IO[bytes]) -> str:
    """The last lines of what the child printed, as one."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 4096))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:])
