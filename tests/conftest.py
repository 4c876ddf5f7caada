"""Shared fixtures."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from bitloss.records import Figure, Results

# Whoever starts the tests in the background may have told them to ignore Ctrl-C, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The table a publisher of GGUF files printed: (value, standard error) as llama-perplexity prints them.
BASE_PPL = (6.337070, 0.038896)
Q4_F32 = {
    "ppl": (6.445459, 0.039767),
    "cor_ln_ppl": (0.9962, None),
    "ppl_ratio": (1.017104, 0.000548),
    "kld_mean": (0.018110, 0.000112),
    "kld_max": (3.371759, None),
    "kld_median": (0.009176, None),
    "dp_mean": (-0.00256, 0.0001),
    "dp_rms": (0.03966, 0.00033),
    "same_top": (0.93893, 0.00062),
}
Q4_F16 = {
    "ppl": (6.445574, 0.039771),
    "cor_ln_ppl": (0.9962, None),
    "ppl_ratio": (1.017122, 0.000549),
    "kld_mean": (0.018119, 0.000114),
    "kld_max": (2.833701, None),
    "kld_median": (0.009167, None),
    "dp_mean": (-0.00251, 0.0001),
    "dp_rms": (0.03978, 0.00033),
    "same_top": (0.93864, 0.00062),
}
Q8 = {
    "ppl": (6.344932, 0.038989),
    "cor_ln_ppl": (0.9998, None),
    "ppl_ratio": (1.001241, 0.000131),
    "kld_mean": (0.000859, 0.000005),
    "kld_max": (0.377813, None),
    "kld_median": (0.000549, None),
    "dp_mean": (-0.00017, 2e-05),
    "dp_rms": (0.00848, 7e-05),
    "same_top": (0.98515, 0.00031),
}
FLOOR = {
    "ppl": (6.337071, 0.038896),
    "cor_ln_ppl": (0.999999996, None),
    "ppl_ratio": (1.0000002, 0.0000021),
    "kld_mean": (2.5e-8, 1.25e-9),
    "kld_max": (1.9e-6, None),
    "kld_median": (8e-9, None),
    "dp_mean": (1e-09, 3e-09),
    "dp_rms": (2.1e-06, 4e-08),
    "same_top": (0.99999, 1e-05),
}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def figures(table: dict[str, tuple[float, float | None]]) -> dict[str, Figure]:
    made = {name: Figure(value=v, se=se, se_clustered=se and se * 1.5) for name, (v, se) in table.items()}
    made["ppl_base"] = Figure(value=BASE_PPL[0], se=BASE_PPL[1], se_clustered=BASE_PPL[1] * 1.5)
    made["kld_p99_9"] = Figure(value=None, reason="fewer than 1000 tokens")
    made["nonfinite_tokens"] = Figure(value=0)
    return made


def candidate(
    name: str, n_bytes: int, bits: float, table: dict[str, tuple[float, float | None]], tensors: str
) -> dict[str, Any]:
    kind, source = name.split("/")
    return {
        "name": name,
        "type": kind,
        "weights_from": source,
        "imatrix_from": source,
        "file": f"Mistral-Nemo-Instruct-2407-{source}-{kind}.gguf",
        "bytes": n_bytes,
        "bits_per_weight": bits,
        "sha256": sha(name),
        "tensors_sha256": sha(tensors),
        "metrics": figures(table),
    }


def cost(
    step: str, route: str | None, seconds: float, n_bytes: int, *, reused: bool = False
) -> dict[str, Any]:
    kind = step.split(maxsplit=1)[0]
    return {
        "step": step,
        "kind": kind,
        "route": route,
        "seconds": seconds,
        "bytes": n_bytes,
        "reused": reused,
    }


@pytest.fixture
def sample_document() -> dict[str, Any]:
    """The founding experiment as it would stand in results.json, before validation."""
    return founding_document()


def founding_document() -> dict[str, Any]:
    """See `sample_document`."""
    return {
        "schema": "bitloss/results@1",
        "bitloss": "0.1.0",
        "llama_cpp": {
            "version": "0.3.36",
            "commit": "0c1e570",
            "build_flags": ("CPU : AVX2 = 1", "AVX512 = 1"),
        },
        "machine": {
            "cpu": "AMD EPYC 9354",
            "cores": 32,
            "memory_bytes": 137_438_953_472,
            "os": "Linux 6.1",
            "python": "3.11.7",
            "backend": "CUDA",
            "accelerator": "NVIDIA H200",
        },
        "model": {
            "name": "Mistral-Nemo-Instruct-2407",
            "architecture": "MistralForCausalLM",
            "parameters": 12_247_782_400,
            "dtype": "BF16",
            "sha256": sha("model"),
        },
        "text": {
            "name": "wiki.test.raw",
            "sha256": sha("text"),
            "tokens_sha256": sha("tokens"),
            "n_ctx": 512,
            "chunks": 642,
            "scored_tokens": 642 * 255,
            "add_bos": True,
        },
        "texts": (),
        "sources": (),
        "calibration": {"name": "calibration.txt", "sha256": sha("cal"), "n_ctx": 512, "chunks": 128},
        "base": {
            "name": "f32",
            "file": "Mistral-Nemo-Instruct-2407-f32.gguf",
            "bytes": 49_004_000_000,
            "sha256": sha("base"),
            "stored_bytes": 3_353_000_000,
        },
        "stopping": None,
        "noise_floor": {"how": "micro-batch of 128 instead of 512 tokens", "metrics": figures(FLOOR)},
        "candidates": (
            candidate("Q4_K_M/f32", 7_477_208_192, 4.88, Q4_F32, "q4 f32"),
            candidate("Q4_K_M/f16", 7_477_208_160, 4.88, Q4_F16, "q4 f16"),
            candidate("Q8_0/f32", 13_022_372_992, 8.5, Q8, "q8"),
            candidate("Q8_0/f16", 13_022_372_960, 8.5, Q8, "q8") | {"identical_to": "Q8_0/f32"},
        ),
        "comparisons": (
            {
                "a": "Q4_K_M/f32",
                "b": "Q4_K_M/f16",
                "metric": "kld_mean",
                "difference": -9e-6,
                "ci95": (-5.1e-5, 3.3e-5),
                "p_value": 0.67,
                "p_holm": 1.0,
                "verdict": "tie",
            },
            {
                "a": "Q8_0/f32",
                "b": "Q4_K_M/f32",
                "metric": "kld_mean",
                "difference": -0.017251,
                "ci95": (-0.0175, -0.017),
                "p_value": 0.0,
                "p_holm": 0.0,
                "verdict": "better",
            },
            {
                "a": "Q8_0/f32",
                "b": "Q8_0/f16",
                "metric": "kld_mean",
                "difference": 0.0,
                "ci95": None,
                "p_value": None,
                "p_holm": None,
                "verdict": "identical",
                "reason": "the same tensors",
            },
        ),
        "audit": None,
        "cross": None,
        "sensitivity": None,
        "findings": (),
        "costs": (
            cost("convert f32", "f32", 412.0, 49_004_000_000),
            cost("convert f16", "f16", 301.0, 24_504_000_000),
            cost("imatrix f32", "f32", 1960.0, 7_300_000, reused=True),
            cost("imatrix f16", "f16", 1012.0, 7_300_000),
            cost("quantize Q4_K_M/f32", "f32", 500.5, 7_477_208_192),
            cost("quantize Q4_K_M/f16", "f16", 490.0, 7_477_208_160),
            cost("quantize Q8_0/f32", "f32", 60.0, 13_022_372_992),
            cost("quantize Q8_0/f16", "f16", 55.0, 13_022_372_960),
            cost("base f32", None, 900.0, 3_353_000_000),
            cost("measure Q4_K_M/f32", None, 600.0, 12_000_000),
        ),
        "commands": ("bitloss run founding.toml",),
    }


@pytest.fixture
def sample_results(sample_document: dict[str, Any]) -> Results:
    """Results with the numbers of the founding experiment."""
    return Results.model_validate(sample_document)


@pytest.fixture(scope="session")
def llama_tool(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a tool of llama.cpp of the installed build: `llama_tool("llama-quantize", *args)` -> what it printed.

    The tools come with llama-cpp-python as this project builds it; without them a parity test fails. They print from a
    thread of their own and may leave without waiting for it (see common_log_main in common/log.cpp), so the last lines
    can be missing on a busy machine: scripts/linger.c makes them wait where it can be preloaded, and with ``until`` a
    tool that did not print that is run again.
    """
    site = Path(llama_cpp.__file__).parent.parent
    linger = tmp_path_factory.mktemp("linger") / "linger.so"
    compiler = shutil.which("cc")
    if sys.platform == "linux" and compiler is not None:
        source = Path(__file__).parents[1] / "scripts" / "linger.c"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", linger, source], check=True)

    def run(name: str, *args: object, check: bool = True, until: str = "") -> str:
        for _ in range(4):
            printed = once(name, *args, check=check)
            if until in printed:
                return printed
        pytest.fail(f"{name} did not print {until!r}:\n{printed[-3000:]}")

    def once(name: str, *args: object, check: bool) -> str:
        tool = site / "bin" / name
        if not tool.is_file():
            pytest.fail(f"{tool} is missing: install llama-cpp-python with the CMAKE_ARGS of pyproject.toml")
        env = {**os.environ, "LD_LIBRARY_PATH": str(site / "lib"), "DYLD_LIBRARY_PATH": str(site / "lib")}
        # what llama-quantize prints is hardly read, and it is run hundreds of times
        if linger.is_file() and name != "llama-quantize":
            env["LD_PRELOAD"] = str(linger)
        done = subprocess.run(
            [tool, *map(str, args)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=240,
        )
        printed = done.stdout.decode(errors="replace")
        if check and done.returncode != 0:
            pytest.fail(f"{name} ended with {done.returncode}:\n{printed[-3000:]}")
        return printed

    return run
