"""Starts the process of steps (`bitloss.run.child`), if need be before the rest of the program is there.

Importing what a verb needs takes this process half a second and that one a whole one. So that they do it side by side,
`start_ahead` may be called before anything else is imported; nothing heavy is imported here.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
from typing import IO, NamedTuple

# Threads of ggml that wait for one another spin some milliseconds by default, and keep a core from the kernel, which
# runs between two products (docs/log.md, "Scoring"). Numbers do not depend on it.
_PATIENCE = {"GOMP_SPINCOUNT": "10000"}


class Child(NamedTuple):
    """The process, and the file its standard error goes to."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]


_ahead: list[Child] = []


def start_child(log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process that waits for steps."""
    # GGML_NO_BACKTRACE: else an abort of ggml starts a debugger, where one is installed, and waits for it
    return subprocess.Popen(
        # -P: no module from the folder one stands in
        [sys.executable, "-P", "-m", "bitloss.run.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**_PATIENCE, **os.environ, "GGML_NO_BACKTRACE": "1"},
    )


def start_ahead() -> None:
    """Start one for the first executor; it is ended with this process if no executor takes it.

    Where that fails the executor will try again, and say so.
    """
    with contextlib.suppress(OSError):
        log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the executor that takes it
        _ahead.append(Child(start_child(log), log))
        atexit.register(_end_unused)


def take() -> Child | None:
    """The process that was started ahead, once."""
    return _ahead.pop() if _ahead else None


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process that was asked for nothing."""
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    child.wait()


def _end_unused() -> None:
    while (child := take()) is not None:
        end(child.process)
        child.log.close()
