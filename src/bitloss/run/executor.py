"""The second seam: steps in, results out.

`LocalExecutor` runs steps in a child process, so that a crash in the C library fails one step and not the run. The
child is kept for the next step (starting one and importing takes about a second), unless a step failed in it.
`InlineExecutor` runs steps in this process (tests, debugging). Both are context managers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Protocol, Self

from pydantic import JsonValue

from bitloss import errors
from bitloss.errors import BitlossError, EngineCrash
from bitloss.progress import Progress, ProgressCallback
from bitloss.run.starting import start_child, take
from bitloss.run.steps import Step
from bitloss.store import clean_partials

_LAST_LINES = 3
_COMPILED_AT = re.compile(r"(?<!\S)/\S*/(?=[\w.-]+:\d+: )")  # folders of the machine that compiled ggml


@dataclass(frozen=True, slots=True)
class StepResult:
    """What running a step gave.

    Attributes:
        value: the step's own result.
        seconds: wall time, the child's start included.
        peak_bytes: largest resident memory of the child during the step; None when not known.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""


class LocalExecutor:
    """Runs steps in a child process, one after another.

    As a context manager it starts the child at once, so that it imports while the caller looks at what there is to do.
    """

    def __init__(self) -> None:
        self._asked = False  # whether the child has been given anything
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the executor

    def run(self, step: Step, progress: ProgressCallback) -> StepResult:
        """See `Executor.run`."""
        started = time.perf_counter()
        log_begins = os.fstat(self._log.fileno()).st_size
        child = self._child if self._child and self._child.poll() is None else self._start()
        self._child, self._asked = None, True  # no child until the step is known to have gone well
        try:
            last = _talk(child, step, progress)
            if "result" in last:
                self._child = child
                return StepResult(last["result"], time.perf_counter() - started, last.get("peak_bytes"))
            code = child.wait()
        except BaseException:
            _stop(child)
            _clean_up(step)
            raise
        finally:
            if self._child is None:
                _close_pipes(child)
        if "error" in last:
            raise _error(last["error"])
        _clean_up(step)
        raise EngineCrash(
            f"the process of step {step.kind} died ({_cause(code)})",
            found=_tail(self._log, log_begins) or "no message",
            mend=_mend(code),
        )

    def _start(self) -> subprocess.Popen[bytes]:
        return start_child(self._log)

    def close(self) -> None:
        """Let the child end. Twice is harmless."""
        child, self._child = self._child, None
        if child is not None:
            if not self._asked:
                child.kill()
            _close_pipes(child)
            child.wait()
        self._log.close()

    def __enter__(self) -> Self:
        ahead = take()
        if ahead is None:
            self._child = self._start()
        else:
            self._log.close()
            self._child, self._log = ahead
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _talk(child: subprocess.Popen[bytes], step: Step, progress: ProgressCallback) -> dict[str, Any]:
    """Hand the step over and listen for its last word, or until the child closes the channel."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # a child that dies at once is reported by its exit code
        child.stdin.write(step.model_dump_json().encode() + b"\n")
        child.stdin.flush()
    for line in child.stdout:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # cut short by a crash
        if "progress" not in message:
            return message
        progress(Progress(**message["progress"]))
    return {}


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not written to a dead child is lost on purpose
                pipe.close()


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
    for out in step.outs:
        for folder in (out, out.parent):
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


def _mend(code: int) -> str:
    if code == -signal.SIGABRT:  # an assertion of ggml: not chance, the same step ends like this again
        return (
            "finished steps are kept, but the same command ends here again: ask for something else in this step (where "
            "it quantizes with --encoder llama.cpp, the default encoder gives up single types and makes the others)"
        )
    return "finished steps are kept; run the same command again to go on"


def _tail(log: IO[bytes], begin: int) -> str:
    """The last lines of what the child printed from there on, as one."""
    log.seek(0, os.SEEK_END)
    log.seek(max(begin, log.tell() - 4096))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return " | ".join(_COMPILED_AT.sub("", line) for line in lines[-_LAST_LINES:])
