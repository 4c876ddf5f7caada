"""llama.cpp's own tools of the installed build, for side-by-side runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import llama_cpp

SITE = Path(llama_cpp.__file__).parent.parent


class Ran(NamedTuple):
    """One run of a tool.

    Attributes:
        printed: what it printed.
        seconds: wall time.
        peak_bytes: largest resident memory.
    """

    printed: str
    seconds: float
    peak_bytes: int


# Linux passes the peak of whoever starts a program on to it: a small process in between keeps ours out.
_BETWEEN = """
import os, resource, sys
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
with open(sys.argv[1], "w") as peak:
    peak.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code if code >= 0 else 128 - code)
"""


def run(command: list[object], *, env: dict[str, str] | None = None) -> Ran:
    """Run a command, timed, with its peak memory; stops the benchmark when it fails."""
    with tempfile.NamedTemporaryFile() as peak:
        between = [sys.executable, "-I", "-S", "-c", _BETWEEN, peak.name]
        ran = _timed([*between, *(str(part) for part in command)], env)
        return ran._replace(peak_bytes=int(Path(peak.name).read_text()) * 1024)


def _timed(command: list[str], env: dict[str, str] | None) -> Ran:
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        # compiled Python is kept, as it is wherever bitloss is installed, even if this machine's environment forbids it
        env={k: v for k, v in (env or os.environ).items() if k != "PYTHONDONTWRITEBYTECODE"},
    ) as child:
        assert child.stdout is not None
        printed = child.stdout.read().decode(errors="replace")
    seconds = time.perf_counter() - started
    if child.returncode:
        raise SystemExit(f"{command[6]} ended with {child.returncode}:\n{printed[-3000:]}")
    return Ran(printed, seconds, 0)


def warm_up() -> None:
    """Import bitloss once, so that its modules are compiled and in memory, as the tools' libraries are."""
    run([sys.executable, "-c", "import bitloss.cli.experiments, bitloss.run.founding, bitloss.run.child"])


def tool(name: str, *arguments: object) -> Ran:
    """Run one of llama.cpp's tools."""
    path = SITE / "bin" / name
    if not path.is_file():
        raise SystemExit(
            f"{name} is not installed: build llama-cpp-python with the CMAKE_ARGS of pyproject.toml"
        )
    return run([path, *arguments], env={**os.environ, "LD_LIBRARY_PATH": str(SITE / "lib")})


def perplexity(*arguments: object, wanted: str = "Same top p:") -> Ran:
    """Run llama-perplexity; again if its log thread was cut off at exit (seen on busy machines, exit code 0)."""
    for _ in range(5):
        done = tool("llama-perplexity", *arguments)
        if wanted in done.printed:
            return done
    raise SystemExit(f"llama-perplexity did not print {wanted!r}:\n{done.printed[-2000:]}")


def figure(printed: str, label: str) -> float:
    """A figure of llama-perplexity's closing tables."""
    match = re.search(rf"^{re.escape(label)}\s*:\s+(-?[\d.]+)", printed, re.MULTILINE)
    if not match:
        raise SystemExit(f"llama-perplexity did not print {label!r}:\n{printed[-2000:]}")
    return float(match[1])
