"""The process a step runs in: ``python -m bitloss.run.child``.

Standard input: one step as JSON. Standard output: one JSON object a line, ``{"progress": ...}``, then
``{"result": ...}`` or ``{"error": ...}``. C libraries print to descriptors 1 and 2; both are kept away from this
channel.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TextIO

from bitloss.errors import BitlossError
from bitloss.progress import Progress
from bitloss.run.steps import step_from_json

_PROGRESS_SECONDS = 0.1


def main() -> int:
    """Run the step read from standard input; returns the exit code."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the C libraries print goes to standard error
    step = step_from_json(sys.stdin.buffer.read())
    reporter = _Reporter(channel)
    try:
        result = step.execute(reporter)
    except BitlossError as error:
        fields = {name: getattr(error, name) for name in ("what", "where", "expected", "found", "mend")}
        _say(channel, {"error": {"type": type(error).__name__, **fields}})
        return 1
    _say(channel, {"result": result, "peak_bytes": peak_bytes()})
    return 0


def peak_bytes() -> int:
    """Largest resident memory of this process."""
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
            _say(self._channel, {"progress": fields})


def _say(channel: TextIO, message: dict[str, object]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    sys.exit(main())
