"""Where a run was made: processor, memory, system, engine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bitloss.engine.llama import build_flags, engine_version, usable_cores
from bitloss.records import LlamaCpp, Machine


def this_machine(*, n_gpu_layers: int) -> Machine:
    """Describe this machine."""
    return Machine(
        cpu=_cpu(),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        backend=_backend(n_gpu_layers),
    )


def this_llama_cpp() -> LlamaCpp:
    """Describe the installed llama.cpp."""
    version, _, commit = engine_version().partition(" ")
    flags = (part.strip() for part in build_flags().split("|"))
    return LlamaCpp(version=version, commit=commit.strip("()"), build_flags=tuple(f for f in flags if f))


def _backend(n_gpu_layers: int) -> str:
    """The backends compiled in, when they may have been used."""
    names = [part.split(":")[0].strip() for part in build_flags().split("|") if ":" in part]
    return "+".join(names) if n_gpu_layers and names else "CPU"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
