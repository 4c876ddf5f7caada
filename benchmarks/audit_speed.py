"""Speed of `bitloss audit` beside plainly reading the same file; asserts the counts too.

    uv run python benchmarks/audit_speed.py --work W [--megabytes 2000] [--threads 0] [--kinds BF16,F32] [--written]

For each kind of source a GGUF of that size is made and read into the page cache from the disk, as a model is that
somebody keeps; with --written it is left there as it was written, which the system maps more slowly. Then it is plainly
read (1 MB at a time into a buffer of each thread, 1 thread and as many as the audit has) and audited in turn; the best
of several rounds counts. "F32 of BF16" and "F32 of F16" are F32 values that these hold. The files are deleted.

Asserted: counting, with Q8_0's blocks or without, goes at 70 % of the speed of a plain read, by one thread, or more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType

from bitloss.engine.llama import usable_cores
from bitloss.explain.audit import audit
from bitloss.explain.weights import Tally, tally_reference
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan

ROW, ROWS = 4096, 4096
LEAST, BUFFER = 0.7, 1 << 20
KINDS = {
    "BF16": (GGMLQuantizationType.BF16, np.dtype(ml_dtypes.bfloat16)),
    "F16": (GGMLQuantizationType.F16, np.dtype(np.float16)),
    "F32": (GGMLQuantizationType.F32, np.dtype(np.float32)),
    "F32 of BF16": (GGMLQuantizationType.F32, np.dtype(ml_dtypes.bfloat16)),
    "F32 of F16": (GGMLQuantizationType.F32, np.dtype(np.float16)),
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


def read(path: Path, threads: int) -> None:
    """Read a file, each thread through one buffer."""
    places = itertools.count(0, BUFFER)
    size = path.stat().st_size

    def work() -> None:
        buffer = memoryview(bytearray(BUFFER))
        with path.open("rb", buffering=0) as file:
            while (at := next(places)) < size:
                os.preadv(file.fileno(), [buffer], at)

    others = [threading.Thread(target=work) for _ in range(threads - 1)]
    for each in others:
        each.start()
    work()
    for each in others:
        each.join()


def from_disk(path: Path) -> None:
    """Have the page cache hold a file as read from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read(path, 1)


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
    parser.add_argument("--written", action="store_true")
    args = parser.parse_args()
    threads = args.threads or usable_cores()
    slow = []
    args.work.mkdir(parents=True, exist_ok=True)
    print(
        f"{'source':<12}{'read 1':>8}{f'read {threads}':>8}{'count':>8}{'':>12}{'and Q8_0':>10}"
        "   GB/s, shares of reading"
    )
    for kind in args.kinds.split(","):
        path = args.work / "audit-speed.gguf"
        try:
            expected = make(path, kind, args.megabytes)
            if not args.written:
                from_disk(path)
            found = audit(path, threads=threads)
            assert found.total.f16.changed == expected.f16.changed
            assert found.total.f16.zeroed == expected.f16.zeroed
            assert found.total.f16.largest_error == (expected.f16.error or None)
            assert found.total.bf16.changed == expected.bf16.changed
            assert found.total.below == expected.below
            assert sum(found.total.exponents) + found.total.zeros == expected.values
            works = (
                lambda path=path: read(path, 1),
                lambda path=path: read(path, threads),
                lambda path=path: audit(path, formats=(), threads=threads),
                lambda path=path: audit(path, threads=threads),
            )
            rounds = [[seconds(work) for work in works] for _ in range(args.rounds)]
            size = path.stat().st_size
        finally:
            path.unlink(missing_ok=True)
        one, many, *audits = (size / min(times) / 1e9 for times in zip(*rounds, strict=True))
        told = "".join(f"{x:8.2f}{x / one:6.0%}{x / many:6.0%}" for x in audits)
        print(f"{kind:<12}{one:8.2f}{many:8.2f}{told}", flush=True)
        if min(audits) < LEAST * one:
            slow.append(kind)
    assert not slow, f"slower than {LEAST:.0%} of reading: {slow}"


if __name__ == "__main__":
    main()
