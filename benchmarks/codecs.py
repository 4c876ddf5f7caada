"""Speed of the encoders on one core, beside ggml_quantize_chunk on the same rows in the same run; asserts the bytes.

    uv run python benchmarks/codecs.py [--kinds Q4_K,Q6_K] [--isas avx2] [--rows 64] [--columns 4096] [--pairs 9]

Ours and theirs take turns; a pair's ratio compares two runs that followed each other, and the median of the pairs is
printed. Processor time of the one thread counts, so that other processes disturb less. Q8_0 stands beside copying the
floats as well, because it does little more than read them: there 4096 rows, as a model's matrix has and caches do not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from bitloss import _native
from bitloss.engine.ggml import ggml
from bitloss.quantize.codec import encode_into, native_kinds, row_bytes

MATRIX = 4096


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call on this thread."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def pair_up(
    ours: Callable[[], object], theirs: Callable[[], object], pairs: int
) -> tuple[float, float, float]:
    """Return the least seconds of each and the median of theirs / ours, after one call of each to warm up."""
    ours()
    theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(pairs)]
    return (
        min(a for a, _ in times),
        min(b for _, b in times),
        statistics.median(b / a for a, b in times if a > 0),
    )


def compare(
    kind: GGMLQuantizationType,
    rows: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32] | None,
    isa: str,
    pairs: int,
) -> None:
    """Print a line for one type."""
    shape = (len(rows), row_bytes(kind, rows.shape[1]))
    out, expected = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    pointer = None if weights is None else weights.ctypes.data

    def ours() -> None:
        encode_into(kind, rows, weights, out, isa=isa)

    def theirs() -> None:
        ggml().ggml_quantize_chunk(int(kind), rows.ctypes.data, expected.ctypes.data, 0, *rows.shape, pointer)

    mine, other, ratio = pair_up(ours, theirs, pairs)
    if not np.array_equal(out, expected):
        raise SystemExit(f"{kind.name}: the bytes differ from libggml's")
    rate = rows.size / 1e6
    name = f"{kind.name}, {'no weights' if weights is None else 'weights'}, {isa}"
    print(f"{name:<28}{rate / mine:9.1f}{rate / other:9.1f} M weights/s{ratio:8.2f} x", flush=True)


def main() -> None:
    """Print a table of million weights a second: ours, theirs, and the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", help="types by name, all that have kernels by default")
    parser.add_argument("--isas", help="instruction sets, all of this machine by default")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=9)
    args = parser.parse_args()

    rng = np.random.default_rng(1)
    rows = (0.02 * rng.standard_normal((args.rows, args.columns))).astype(np.float32)
    weights = rng.gamma(0.5, 2.0, args.columns).astype(np.float32)  # as uneven as activations are
    named = args.kinds.split(",") if args.kinds else [kind.name for kind in sorted(native_kinds())]
    print(f"{args.rows} rows of {args.columns}, one thread; all bytes equal")
    print(f"{'':<28}{'ours':>9}{'libggml':>9}")
    for isa in args.isas.split(",") if args.isas else _native.codec_isas():
        for name in named:
            for columns in (None, weights):
                compare(GGMLQuantizationType[name], rows, columns, isa, args.pairs)
    if "Q8_0" in named:
        rows = np.resize(rows, (max(MATRIX, args.rows), args.columns))
        copy = np.zeros_like(rows)
        kind, isa = GGMLQuantizationType.Q8_0, "auto"
        out = np.zeros((len(rows), row_bytes(kind, rows.shape[1])), np.uint8)
        mine, other, ratio = pair_up(
            lambda: encode_into(kind, rows, None, out, isa=isa), lambda: np.copyto(copy, rows), args.pairs
        )
        rate = rows.size / 1e6
        print(f"{'Q8_0 beside copying':<28}{rate / mine:9.1f}{rate / other:9.1f} M weights/s{ratio:8.2f} x")


if __name__ == "__main__":
    main()
