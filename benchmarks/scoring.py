"""Where scoring dominates: one layer, a vocabulary of 131,072, beside llama-perplexity of the same build.

    uv run python benchmarks/scoring.py --work FOLDER --text TEXT [--chunks 8] [--hidden 256]

Both sides compute the base on the text and measure one Q8_0 candidate against it, with the same chunks and threads.
Prints the seconds of each, their ratio, and what both store of the base; asserts that the numbers agree, to 1e-5 of the
perplexity and to what a 16-bit base file resolves of the mean KLD. Then what a base takes at the shape of
Mistral-Nemo (5120 wide, 131,072 entries), from the same formulas, which are asserted on the measured files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from bitloss.model.random_model import RandomShape, random_gguf
from llama_tools import figure, perplexity, run, tool, warm_up

VOCABULARY = 131_072
STEP = 16 / 65535  # of llama.cpp's base file, nats


def kld_file_bytes(n_vocab: int, n_ctx: int, chunks: int) -> int:
    """Size of llama-perplexity's base file: 20 bytes, the tokens, 16 bits an entry (and 8 bytes) a scored token."""
    scored = (n_ctx - 1 - n_ctx // 2) * chunks
    return 20 + 4 * n_ctx * chunks + scored * 2 * (2 * ((n_vocab + 1) // 2) + 4)


def base_bytes(n_embd: int, n_ctx: int, chunks: int) -> int:
    """Size of a base's tensors: the tokens, a float32 hidden state a scored token; headers and names come on top."""
    return 4 * n_ctx * chunks + (n_ctx - 1 - n_ctx // 2) * chunks * 4 * n_embd


def bitloss(*arguments: object) -> float:
    """Seconds a verb takes."""
    return run([sys.executable, "-m", "bitloss", *arguments, "--quiet"]).seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; removed and made anew")
    parser.add_argument("--text", type=Path, required=True)
    for name, default in (("chunks", 8), ("ctx", 512), ("threads", 2), ("hidden", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    warm_up()
    shape = RandomShape(
        n_vocab=VOCABULARY, n_embd=args.hidden, n_layer=1, n_head=args.hidden // 64, n_head_kv=2, head_dim=64,
        n_ff=args.hidden, n_ctx_train=16384,
    )  # fmt: skip
    model = random_gguf(args.work / "model-f16.gguf", shape, seed=1, dtype="f16")
    candidate = args.work / "model-Q8_0.gguf"
    tool("llama-quantize", model, candidate, "Q8_0", args.threads)
    common = ["--ctx", args.ctx, "--chunks", args.chunks, "-t", args.threads]
    base, out = args.work / "base", args.work / "measured"
    ours = {
        "base": bitloss("base", model, "--text", args.text, *common, "-o", base),
        "measure": bitloss("measure", candidate, "--base", base, "-o", out, "-t", args.threads),
    }
    kld = args.work / "base.kld"
    evaluate = ["-f", args.text, "-c", args.ctx, "-t", args.threads, "--chunks", args.chunks]
    evaluate += ["--kl-divergence-base", kld]
    made = tool("llama-perplexity", "-m", model, *evaluate)
    told = perplexity("-m", candidate, *evaluate, "--kl-divergence")
    theirs = {"base": made.seconds, "measure": told.seconds}
    for stage, seconds in ours.items():
        print(f"{stage:8s} {seconds:7.1f} s / {theirs[stage]:7.1f} s = {seconds / theirs[stage]:.2f}")
    total = sum(ours.values()) / sum(theirs.values())
    print(f"together {sum(ours.values()):7.1f} s / {sum(theirs.values()):7.1f} s = {total:.2f}")

    metrics = json.loads((out / "results.json").read_text())["candidates"][0]["metrics"]
    ppl, mean = metrics["ppl"]["value"], metrics["kld_mean"]["value"]
    for name, value, label, tolerance in (
        ("PPL", ppl, "Mean PPL(Q)", 1e-5 * ppl),
        ("mean KLD", mean, "Mean    KLD", STEP / 4 + STEP * mean),
    ):
        other = figure(told.printed, label)
        print(f"{name:8s} ours {value:.6f}  theirs {other:.6f}")
        assert abs(value - other) <= tolerance, name

    stored = sum(path.stat().st_size for path in base.iterdir())
    expected = kld_file_bytes(VOCABULARY, args.ctx, args.chunks)
    assert kld.stat().st_size == expected, (kld.stat().st_size, expected)
    least = base_bytes(args.hidden, args.ctx, args.chunks)
    assert least <= stored <= least + 8192, (stored, least)
    print(f"stored   {stored:,} / {expected:,} bytes = 1/{expected / stored:.1f}")
    nemo = [base_bytes(5120, 512, 564), kld_file_bytes(VOCABULARY, 512, 564)]
    print(f"Mistral-Nemo, 564 chunks: {nemo[0]:,} / {nemo[1]:,} bytes = 1/{nemo[1] / nemo[0]:.1f}")
    assert nemo[1] >= 12 * nemo[0]


if __name__ == "__main__":
    main()
