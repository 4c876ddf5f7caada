"""What a person sees while a verb works: a line a step, bars that fit the terminal, nothing when quiet."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from bitloss.cli import show
from bitloss.progress import Progress
from bitloss.run.stepping import StepProgress

LABEL = "measure Q8_0/f32, Q4_K_M/f32, Q4_K_M/f16, Q4_K_M/f32+f16"
PLAN = "one pass, about 421.89 MiB"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What is written for one step of a run, on a terminal of that width or on none."""

    def run(*, width: int | None, quiet: bool = False) -> list[str]:
        out = io.StringIO()
        monkeypatch.setattr(show, "_LINE_SECONDS", 0.0)

        def console(**given: object) -> Console:
            return Console(
                file=out,
                force_terminal=width is not None,
                width=width,
                highlight=False,
                quiet=bool(given["quiet"]),
                soft_wrap=bool(given["soft_wrap"]),
            )

        monkeypatch.setattr(show, "Console", console)
        with show.Screen(quiet=quiet) as screen:
            screen.step(StepProgress(LABEL, 16, plan=PLAN))
            for done in (50, 100):
                screen.step(StepProgress(LABEL, 16, detail=Progress("measure", done, 152, "chunks")))
                if screen._bars:
                    screen._bars.refresh()
            screen.step(StepProgress(LABEL, 16, seconds=61.0))
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
        return [line.rstrip() for line in plain.splitlines() if line.strip()]

    return run


def test_lines_where_there_is_no_terminal(shown: Callable[..., list[str]]) -> None:
    assert shown(width=None) == [
        f" 16  {LABEL}: {PLAN}",
        f" 16  {LABEL}: 50 of 152 chunks",
        f" 16  {LABEL}: 100 of 152 chunks",
        f" 16  {LABEL}  (1 min 01 s)",
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_bars_stand_on_one_line_of_a_terminal(shown: Callable[..., list[str]], width: int) -> None:
    lines = shown(width=width)
    bars = [line for line in lines if "100/152" in line]
    assert bars
    assert all(len(line) <= width and "16  measure" in line for line in bars)
    assert any("chunks/s" in line for line in bars)
    said = " ".join(" ".join(lines).split())
    assert f"{LABEL} (1 min 01 s; {PLAN})" in said  # the plan once, behind the time


def test_quiet_says_nothing(shown: Callable[..., list[str]]) -> None:
    assert shown(width=None, quiet=True) == shown(width=100, quiet=True) == []
