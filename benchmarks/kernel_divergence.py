"""Speed of the divergence kernel per core, beside plainly reading the same logits; asserts the answers too.

    uv run python benchmarks/kernel_divergence.py [--rows 512] [--vocabulary 131072] [--threads 1]

One entry is a pair of logits (8 bytes). Logits are drawn to look like a language model's: a bulk of unlikely
entries and some 50 likely ones; the candidate adds noise of three strengths. 512 rows are 512 MB, more than caches
hold: both sides read from memory.

Asserted: at noise as Q8_0 to Q5_K make it (a mean KLD below 1e-3) the best kernel does 60 % of reading, or more. With
more noise some rows are read twice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from bitloss import _native
from bitloss.divergence.metrics import token_metrics, token_metrics_reference

LEAST = 0.6


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the least processor time of several runs, all threads: what else the machine does only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print a table of million entries a second and core."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    rng = np.random.default_rng(1)
    shape = (args.rows, args.vocabulary)
    base = 2.5 * rng.standard_normal(shape, np.float32)
    base[:, :50] += 15 + 3 * rng.standard_normal((args.rows, 50), np.float32)
    targets = rng.integers(0, 50, args.rows, np.int32)
    entries = args.rows * args.vocabulary

    def rate(seconds: float) -> float:
        return entries / seconds / 1e6

    # np.max over float32 is a vectorised loop that does next to nothing but read.
    other = base.copy()
    read = rate(best_seconds(lambda: (base.max(), other.max()), args.repeats))
    print(f"{args.rows} rows of {args.vocabulary}, {args.threads} thread(s)")
    print(f"{'reading both rows':<28}{read:8.0f} M entries/s {read * 8e-3:6.1f} GB/s")
    slow = []
    for noise in (0.05, 0.2, 1.0):
        cand = base + np.float32(noise) * rng.standard_normal(shape, np.float32)
        few = slice(0, 4)
        expected = token_metrics_reference(base[few], cand[few], targets[few])
        for isa in _native.divergence_isas():
            found = token_metrics(base[few], cand[few], targets[few], isa=isa)  # type: ignore[arg-type]
            for name in ("nll", "kld", "kld_reverse", "js", "entropy"):
                np.testing.assert_allclose(
                    *(getattr(found, name), getattr(expected, name)),
                    rtol=1e-8,
                    atol=1e-8 if name == "entropy" else 0.0,
                    err_msg=name,
                )
            for name in ("same_top", "top5_overlap", "top10_overlap"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            seconds = best_seconds(
                lambda isa=isa, cand=cand: token_metrics(base, cand, targets, threads=args.threads, isa=isa),
                args.repeats,
            )
            worst = np.max(np.abs(found.kld / expected.kld - 1))
            name = f"{isa}, mean KLD {np.mean(found.kld):.1e}"
            print(
                f"{name:<28}{rate(seconds):8.0f} M entries/s {rate(seconds) / read:6.0%} of reading", end=""
            )
            print(f"   KLD within {worst:.0e} of the definition")
            if (
                isa == _native.divergence_isas()[0]
                and np.mean(found.kld) < 1e-3
                and rate(seconds) < LEAST * read
            ):
                slow.append(name)
    assert not slow, f"slower than {LEAST:.0%} of reading: {slow}"


if __name__ == "__main__":
    main()
