"""The process steps run in: ``python -m bitloss.run.child``.

Standard input: one step a line, as JSON. Standard output, for each: one JSON object a line, ``{"progress": ...}``,
then ``{"result": ...}`` or ``{"error": ...}``. It ends with its input, or with the first step that fails. C libraries
print to descriptors 1 and 2; both are kept away from this channel.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from pydantic import JsonValue

from bitloss.errors import BitlossError
from bitloss.progress import Progress, ProgressCallback
from bitloss.run.steps import Step, step_from_json
from bitloss.store.atomic import file_problem

_PROGRESS_SECONDS = 0.1
_STOP_SECONDS = 5.0  # as long as the one that started it waits (`bitloss.run.executor`)
_NEEDED = ("bitloss.engine.llama", "bitloss.divergence.basefile", "bitloss.divergence.measure")


def main() -> int:
    """Run the steps read from standard input; returns the exit code."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the C libraries print goes to standard error
    _stop_when_told()
    _die_with_parent()
    _import_ahead()
    for line in sys.stdin.buffer:
        _forget_peak()
        step = step_from_json(line)
        try:
            result = _execute(step, _Reporter(channel))
        except BitlossError as error:
            fields = {name: getattr(error, name) for name in ("what", "where", "expected", "found", "mend")}
            _say(channel, {"error": {"type": type(error).__name__, **fields}})
            return 1
        _say(channel, {"result": result, "peak_bytes": peak_bytes()})
        _give_back()
    return 0


def _execute(step: Step, progress: ProgressCallback) -> JsonValue:
    """Run a step; what the system said that nobody explained is an error of ours as well, not a crash."""
    try:
        return step.execute(progress)
    except OSError as error:
        where = Path(os.fsdecode(error.filename)) if error.filename else step.outs[0]
        raise file_problem(error, where) from error


def _import_ahead() -> None:
    """Import what most steps need, as long as nothing is asked for."""
    with contextlib.suppress(OSError):  # only sockets can be asked, on some systems
        for name in _NEEDED:
            if select.select([0], [], [], 0)[0]:
                return
            importlib.import_module(name)


def _libc() -> ct.CDLL:
    return ct.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """Have Linux end this process when the one that started it is gone, however it went."""
    with contextlib.suppress(AttributeError, OSError):
        _libc().prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _stop_when_told() -> None:
    """Take SIGTERM for Ctrl-C, the first of them only: what is half-written is put in order meanwhile.

    Python acts on a signal when C returns; a library that does not within seconds is ended by the system.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)  # written to at once, whatever runs

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    def watch() -> None:
        while os.read(told, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        time.sleep(_STOP_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=watch, daemon=True).start()


def _give_back() -> None:
    """Return what a step has freed to the system; the next one may need all of it."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        _libc().malloc_trim(0)  # of glibc


def _forget_peak() -> None:
    """Start the count of `peak_bytes` anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident memory of this process since the step began (since its own start, off Linux)."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss of Linux is at least that of the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Reporter:
    """Sends progress, but not more often than a person can see."""

    def __init__(self, channel: TextIO) -> None:
        self._channel = channel
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.done == progress.total or now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            fields = {name: getattr(progress, name) for name in ("stage", "done", "total", "unit")}
            try:
                _say(self._channel, {"progress": fields})
            except BrokenPipeError:
                # The caller is gone, and its end may be seen here before the signal of it: an interrupt like any other,
                # which keeps what can be gone on with, and no fault of the step.
                raise KeyboardInterrupt from None


def _say(channel: TextIO, message: dict[str, object]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    sys.exit(main())
