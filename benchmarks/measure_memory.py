"""Peak memory of `bitloss measure` at n_ctx 512, 8192 and 16384 on a 128k vocabulary, beside llama-perplexity's.

    uv run python benchmarks/measure_memory.py --work FOLDER --text TEXT

A random one-layer model with a vocabulary of 131,072 is measured against itself at these lengths. What may grow with
n_ctx is the KV cache, whose size is computed; the rest must not: the difference of the peaks, less the KV cache,
is asserted to be under 5 % of the peak. Prints what both store of the base on the disk as well.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from bitloss.model.random_model import RandomShape, random_gguf
from llama_tools import run, tool

SHAPE = RandomShape(
    n_vocab=131072, n_embd=256, n_layer=1, n_head=4, n_head_kv=2, head_dim=64, n_ff=512, n_ctx_train=16384
)


LENGTHS = (512, 8192, 16384)


def kv_cache_bytes(n_ctx: int) -> int:
    """K and V of one layer, F16; at least 2048 cells, as short chunks are computed side by side."""
    return 2 * 2 * max(n_ctx, 2048) * SHAPE.n_layer * SHAPE.n_head_kv * SHAPE.head_dim


def measured_peak(work: Path, model: Path, text: Path, n_ctx: int) -> int:
    """Peak resident memory of the measuring process, as it reports itself."""
    out = work / f"measured-{n_ctx}"
    chunks = max(2, max(LENGTHS) // n_ctx)
    run(
        [
            *(sys.executable, "-m", "bitloss", "measure", model, "--base", model, "--text", text),
            *("--ctx", n_ctx, "--chunks", chunks, "-o", out, "--quiet"),
        ]
    )
    results = json.loads((out / "results.json").read_text())
    assert results["candidates"][0]["metrics"]["kld_max"]["value"] == 0
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return next(
        e["peak_bytes"] for e in events if e["event"] == "step-finished" and e["step"].startswith("measure")
    )


def _stored(base: Path) -> float:
    return sum(path.stat().st_size for path in base.iterdir())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; removed and made anew")
    parser.add_argument("--text", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    model = random_gguf(args.work / "model.gguf", SHAPE, seed=1, dtype="f16")
    peaks = {n_ctx: measured_peak(args.work, model, args.text, n_ctx) for n_ctx in LENGTHS}
    for n_ctx, peak in peaks.items():
        kld = args.work / f"base-{n_ctx}.kld"
        common = ["-m", model, "-f", args.text, "-c", n_ctx, "--chunks", 2, "--kl-divergence-base", kld]
        tool("llama-perplexity", *common)
        theirs = tool("llama-perplexity", *common, "--kl-divergence").peak_bytes
        scored = 2 * (n_ctx - 1 - n_ctx // 2)
        stored = {
            "bitloss": _stored(args.work / f"measured-{n_ctx}" / "base"),
            "llama-perplexity": kld.stat().st_size,
        }
        # the folder's base has max(LENGTHS) // n_ctx chunks, the file two: bytes a scored token
        stored["bitloss"] *= 2 / max(2, max(LENGTHS) // n_ctx)
        print(", ".join(f"{who} stores {n / scored:,.0f} bytes a scored token" for who, n in stored.items()))
        kld.unlink()
        print(
            f"n_ctx {n_ctx:5d}: bitloss measure {peak / 2**20:8.1f} MiB "
            f"(KV cache {kv_cache_bytes(n_ctx) / 2**20:.1f}), "
            f"llama-perplexity --kl-divergence {theirs / 2**20:8.1f} MiB"
        )
    for n_ctx in LENGTHS[1:]:
        growth = peaks[n_ctx] - peaks[512] - (kv_cache_bytes(n_ctx) - kv_cache_bytes(512))
        print(f"growth beyond the KV cache from 512 to {n_ctx}: {growth / 2**20:.1f} MiB")
        assert abs(growth) < 0.05 * peaks[512], "memory grows with n_ctx"


if __name__ == "__main__":
    main()
