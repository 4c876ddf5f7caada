"""Time and memory of `bitloss diff` beside plainly reading both files; asserts both, and the answer.

    uv run python benchmarks/diff_speed.py --work W [--megabytes 2000] [--threads 0] [--rounds 3]

Pairs of generated files of that size (`bitloss.model.random_model`; quantized ones repeat one tensor) are read once, so
that they lie in the page cache. In a process of its own each pair is then read (16 MB at a time into one buffer) and
compared in turn; the best of the rounds counts. The files are deleted.

Asserted: less than 500 MB of resident memory at the peak, mapped pages of the files among them; less than 3 times the
reading for files of floats, less than 10 times for quantized files of which nearly every block differs: a byte of Q4_K
stands for 1.8 weights, all to be decoded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from bitloss.explain.diff import diff
from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.codec import encode

MOST_TIME, MOST_TIME_DECODING, MOST_MEMORY = 3.0, 10.0, 500e6
ROW, ROWS = 4096, 1024


def shape(megabytes: int, size: int) -> RandomShape:
    """Return a shape whose file has about so many MB at `size` bytes a weight."""
    width, wide = 2048, 8192
    layer = 3 * width * wide + 2 * width * width + 2 * width * 512
    n = max(1, round((megabytes * 1e6 / size - 2 * 32000 * width) / layer))
    return RandomShape(32000, width, n, 16, 4, 128, wide)


def quantized(path: Path, kind: GGMLQuantizationType, megabytes: int, nudge: float) -> None:
    """Write matrices that repeat one; `nudge` is how far its weights are moved, relative to them."""
    rng = np.random.default_rng(1)
    values = 0.02 * rng.standard_normal((ROWS, ROW), np.float32)
    values *= 1 + np.float32(nudge) * rng.standard_normal((ROWS, ROW), np.float32)
    data = encode(kind, values, None, threads=2)
    plans = [
        TensorPlan(f"blk.{i}.weight", (ROW, ROWS), kind) for i in range(round(megabytes * 1e6 / data.nbytes))
    ]
    with GgufStream(path, {"general.architecture": GgufValue(GgufType.STRING, "llama")}, plans) as out:
        for _ in plans:
            out.write(data)


def make(pair: str, a: Path, b: Path, megabytes: int) -> None:
    """Write the files of a pair."""
    if pair in ("Q8_0, all other", "Q4_K, all other"):
        kind = GGMLQuantizationType[pair[:4]]
        quantized(a, kind, megabytes, 0)
        quantized(b, kind, megabytes, 0.01)
    elif pair == "F32 and F16":
        random_gguf(a, shape(megabytes, 4), dtype="f32")
        random_gguf(b, shape(megabytes, 4), dtype="f16")
    else:
        random_gguf(a, shape(megabytes, 2), dtype="f16")
        if pair == "F16, all other":
            random_gguf(b, shape(megabytes, 2), dtype="f16", seed=1)
            return
        shutil.copyfile(a, b)
        info = next(i for name, i in GgufFile.open(a).tensors.items() if name.endswith("ffn_up.weight"))
        with b.open("r+b") as file:
            file.seek(info.offset + info.n_bytes // 2)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))


def read(*paths: Path) -> None:
    """Read files through one buffer."""
    buffer = bytearray(16 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def peak_memory() -> int:
    """Most resident bytes of this process; ru_maxrss would be its parent's, where that had more."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def child(a: Path, b: Path, threads: int, rounds: int) -> None:
    """Print the best times of reading and of comparing, peak memory, and what was found, as JSON."""
    read(a, b)
    reading, comparing = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        read(a, b)
        middle = time.perf_counter()
        found = diff(a, b, threads=threads)
        comparing.append(time.perf_counter() - middle)
        reading.append(middle - start)
    peak = peak_memory()
    total = found.total
    told = {
        "read": min(reading),
        "diff": min(comparing),
        "peak": peak,
        "conclusion": found.conclusion,
        "different": total.different,
        "identical": total.identical,
        "differing": total.values.differing if total.values else 0,
        "share": total.values.differing / total.values.values if total.values else 0,
    }
    print(json.dumps(told))


def main() -> None:
    """Print a line for each pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--pairs", default="F16, one bit;F16, all other;F32 and F16;Q8_0, all other;Q4_K, all other"
    )
    parser.add_argument("--child", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    a, b = args.work / "diff-a.gguf", args.work / "diff-b.gguf"
    if args.child:
        child(a, b, args.threads, args.rounds)
        return
    print(f"{'pair':<18}{'GB':>6}{'read s':>9}{'diff s':>9}{'':>7}{'peak MB':>9}")
    failed = []
    for pair in args.pairs.split(";"):
        try:
            make(pair, a, b, args.megabytes)
            command = [sys.executable, __file__, "--child", "--work", args.work, "--threads", args.threads]
            command += ["--rounds", args.rounds]
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
            told = json.loads(done.stdout)
            size = a.stat().st_size + b.stat().st_size
        finally:
            a.unlink(missing_ok=True)
            b.unlink(missing_ok=True)
        if pair == "F16, one bit":
            assert (told["different"], told["differing"]) == (1, 1), told
        else:
            assert told["conclusion"] == "different weights", told
            assert told["share"] > 0.5, told
        times = told["diff"] / told["read"]
        print(
            f"{pair:<18}{size / 1e9:6.2f}{told['read']:9.2f}{told['diff']:9.2f}{times:6.2f}x{told['peak'] / 1e6:9.0f}",
            flush=True,
        )
        most = MOST_TIME_DECODING if pair.startswith("Q") else MOST_TIME
        if times >= most or told["peak"] >= MOST_MEMORY:
            failed.append(pair)
    assert not failed, f"too slow or too large: {failed}"


if __name__ == "__main__":
    main()
