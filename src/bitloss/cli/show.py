"""What a person at the terminal sees while a verb works: bars on a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, Self

from pydantic import JsonValue
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)
from rich.text import Text

from bitloss.display import duration, visible
from bitloss.progress import Progress
from bitloss.run.stepping import StepProgress

_LINE_SECONDS = 5.0
_PIPE_COLUMNS = 10_000
_MIDDLING, _WIDE = 100, 130
"""Columns from which time taken, then a long bar and a long name, stand on one line with rate and time left."""


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text(f"{speed:.1f} {unit}/s" if speed else "", style="progress.data.speed", no_wrap=True)


def warn(line: str) -> None:
    """Write one line of warning on standard error."""
    sys.stderr.write(f"bitloss: warning: {visible(line, 1000)}\n")


class Screen:
    """Shows progress on standard error; a context manager.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bars: Bars | None = None
        self._task: Any = None
        self._label = ""
        self._plan: str | None = None
        self._last_line = 0.0
        self._quiet = quiet
        if self.console.is_terminal and not quiet:
            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=40 if self.console.width >= _WIDE else 12),
                MofNCompleteColumn(),
                _Rate(),
                *([TimeElapsedColumn()] if self.console.width >= _MIDDLING else []),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, markup=False)

    def step(self, progress: StepProgress) -> None:
        """Show where a run is (a `bitloss.run.stepping.RunProgress`)."""
        if progress.seconds is not None:
            self._end()
            took = "done before" if progress.reused else duration(progress.seconds)
            if self._bars and self._plan:
                took = f"{took}; {self._plan}"
            self._plan = None
            self.say(f"{progress.index:3d}  {progress.label}  ({took})")
        elif progress.detail is None:
            self._plan = progress.plan
            if progress.plan and not self._bars:  # on a terminal it stands behind the time, once
                self.say(f"{progress.index:3d}  {progress.label}: {progress.plan}")
            self._begin(f"{progress.index:3d}  {progress.label}")
        else:
            self._update(progress.detail)

    def stage(self, progress: Progress) -> None:
        """Show where a single verb is (a `bitloss.progress.ProgressCallback`)."""
        if self._label != progress.stage:
            self._end()
            self._begin(progress.stage)
        self._update(progress)

    def _begin(self, label: str) -> None:
        self._label = label
        self._last_line = time.monotonic()
        if self._bars:
            self._task = self._bars.add_task(
                visible(label, 60 if self.console.width >= _WIDE else 28), total=None
            )

    def _update(self, detail: Progress) -> None:
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=detail.done, total=detail.total, unit=detail.unit)
        elif not self._bars and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            of = f" of {detail.total}" if detail.total else ""
            self.say(f"{self._label}: {detail.done}{of} {detail.unit}")

    def _end(self) -> None:
        if self._bars and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        self._label = ""


def output_console() -> Console:
    """Standard output; tables keep their full width where there is no terminal to fit them to."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, soft_wrap=True, width=_PIPE_COLUMNS)


def print_json(document: JsonValue) -> None:
    """The one JSON document of ``--json``, on standard output."""
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=plain, allow_nan=False) + "\n")
