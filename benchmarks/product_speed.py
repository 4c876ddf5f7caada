"""Logits from hidden states: our products beside libggml's, same weight, same rows, same threads.

    uv run python benchmarks/product_speed.py [--vocab 131072] [--width 256 --width 1024] [--rounds 5]

For every type with a product of its own a random weight is multiplied with a slice of rows, as measuring does, and by
libggml with 480 of them, nearly a micro-batch, as the engine does; the best round of each counts. The bits of both are
compared: a product that is not libggml's is no product.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitloss.engine import output_layer
from bitloss.engine.output_layer import OutputLayer, rows_per_slice
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.quantize import QuantizeSpec, quantize

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K")
MICRO_BATCH = 480  # nearly; whole slices


def model(folder: Path, kind: str, *, vocab: int, width: int) -> Path:
    """One layer, whose output weight has the type."""
    shape = RandomShape(
        n_vocab=vocab, n_embd=width, n_layer=1, n_head=width // 64, n_head_kv=1, head_dim=64, n_ff=256,
        tied=True,
    )  # fmt: skip
    dtype: Any = kind.lower() if kind in ("F32", "F16", "BF16") else "f32"
    source = random_gguf(folder / "source.gguf", shape, seed=1, dtype=dtype)
    if dtype == kind.lower():
        return source
    made = folder / "quantized.gguf"
    quantize(QuantizeSpec(source, kind, made, token_embedding_type=kind))
    source.unlink()
    return made


def best(rounds: int, run: Callable[[NDArray[np.float32]], object], x: NDArray[np.float32]) -> float:
    """Seconds a row in the fastest round."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        run(x)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(x)


def compared(path: Path, x: NDArray[np.float32], rows: int, *, threads: int, rounds: int) -> str:
    """Speeds with one weight, in words."""
    layer = OutputLayer(path, threads=threads)
    told = layer._by_ggml(x).copy()
    theirs = best(rounds, layer._by_ggml, x)
    if not layer._same.prove(x[:rows], told[:rows]):
        return "no product of its own on this machine"
    ours = best(4 * rounds, layer._same, x[:rows])
    work = 2 * layer.n_embd * layer.n_vocab / 1e9
    layer.close()
    return (
        f"{rows} rows {work / ours:6.0f}   libggml, {len(x)} rows {work / theirs:6.0f}   "
        f"{theirs / ours:.2f} times as fast"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, default=131_072)
    parser.add_argument("--width", type=int, action="append")
    for name, default in (("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rows = rows_per_slice(args.vocab)
    print(f"{args.vocab} entries, {args.threads} threads, GFLOP/s")
    for width in args.width or [256, 1024]:
        x: NDArray[np.float32] = np.random.default_rng(0).standard_normal((MICRO_BATCH, width), np.float32)
        for kind in TYPES:
            with tempfile.TemporaryDirectory() as folder:
                path = model(Path(folder), kind, vocab=args.vocab, width=width)
                output_layer.SLICE_BYTES = 4 * args.vocab * MICRO_BATCH  # room for a micro-batch
                words = compared(path, x, rows, threads=args.threads, rounds=args.rounds)
                print(f"{width:5d} {kind:5s} {words}", flush=True)


if __name__ == "__main__":
    main()
