"""Speed of `bitloss audit` beside plainly reading the same file; asserts the counts too.

    uv run python benchmarks/audit_speed.py --work W [--megabytes 2000] [--threads 0] [--kinds BF16,F32]

For each kind of source a GGUF of that size is made, read once so that it lies in the page cache, then read (16 MB at
a time into one buffer) and audited in turn; the best of several rounds counts. "F32 of BF16" are F32 values that BF16
holds, as conversions of most models are. The files are deleted.

Asserted: counting goes at 70 % of the speed of reading or more. Looking at blocks takes the longer the more values a
cast changes: nearly all of "F32", hardly any of the others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType

from bitloss.explain.audit import audit
from bitloss.explain.weights import Tally, tally_reference
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan

ROW, ROWS = 4096, 4096
LEAST = 0.7
KINDS = {
    "BF16": (GGMLQuantizationType.BF16, np.dtype(ml_dtypes.bfloat16)),
    "F16": (GGMLQuantizationType.F16, np.dtype(np.float16)),
    "F32": (GGMLQuantizationType.F32, np.dtype(np.float32)),
    "F32 of BF16": (GGMLQuantizationType.F32, np.dtype(ml_dtypes.bfloat16)),
}


def make(path: Path, kind: str, megabytes: int) -> Tally:
    """Write a model of matrices of 4096 x 4096 and a few vectors; returns what its matrices count to."""
    ggml_type, dtype = KINDS[kind]
    size = 4 if ggml_type == GGMLQuantizationType.F32 else 2
    n = max(1, round(megabytes * 1e6 / (ROW * ROWS * size)))
    rng = np.random.default_rng(1)
    values = (0.02 * rng.standard_normal((ROWS, ROW), np.float32)).astype(dtype)
    stored = values.astype(np.float32) if size == 4 else values
    plans = [TensorPlan(f"blk.{i}.weight", (ROW, ROWS), ggml_type) for i in range(n)]
    with GgufStream(path, {"general.architecture": GgufValue(GgufType.STRING, "llama")}, plans) as out:
        for _ in plans:
            out.write(stored)
    once = tally_reference(values.astype(np.float32))
    total = Tally()
    for _ in range(n):
        total += once
    return total


def read(path: Path) -> None:
    """Read a file through one buffer."""
    buffer = bytearray(16 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print a table of GB a second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", default=",".join(KINDS))
    args = parser.parse_args()
    slow = []
    args.work.mkdir(parents=True, exist_ok=True)
    print(f"{'source':<12}{'read':>10}{'count':>10}{'':>7}{'and Q8_0':>11}   GB/s, share of reading")
    for kind in args.kinds.split(","):
        path = args.work / "audit-speed.gguf"
        try:
            expected = make(path, kind, args.megabytes)
            found = audit(path, threads=args.threads)
            assert found.total.f16.changed == expected.f16.changed
            assert found.total.f16.zeroed == expected.f16.zeroed
            assert found.total.f16.largest_error == (expected.f16.error or None)
            assert found.total.bf16.changed == expected.bf16.changed
            assert found.total.below == expected.below
            assert sum(found.total.exponents) + found.total.zeros == expected.values
            works = (
                lambda path=path: read(path),
                lambda path=path: audit(path, formats=(), threads=args.threads),
                lambda path=path: audit(path, threads=args.threads),
            )
            rounds = [[seconds(work) for work in works] for _ in range(args.rounds)]
            size = path.stat().st_size
        finally:
            path.unlink(missing_ok=True)
        best = [size / min(times) / 1e9 for times in zip(*rounds, strict=True)]
        print(
            f"{kind:<12}{best[0]:10.2f}{best[1]:10.2f}{best[1] / best[0]:7.0%}{best[2]:11.2f}{best[2] / best[0]:7.0%}",
            flush=True,
        )
        if best[1] < LEAST * best[0]:
            slow.append(kind)
    assert not slow, f"slower than {LEAST:.0%} of reading: {slow}"


if __name__ == "__main__":
    main()
