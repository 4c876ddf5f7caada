"""The founding experiment by `bitloss run` and by llama.cpp's tools of the same build, in one go.

    uv run python benchmarks/founding_experiment.py --work FOLDER --text TEXT --calibration TEXT [--chunks 8]

A random Mistral of 156 million weights (``--vocab``, ``--hidden``, ... for another) is made; bitloss runs the whole
experiment; then the same sources are put through llama-imatrix, llama-quantize and llama-perplexity with the same
chunks and threads. Prints seconds per stage, the ratio, and asserts that the numbers agree on llama.cpp's files:
perplexities to 1e-5 relative, mean KLD to what a 16-bit base file resolves; and that both sides find the tensors of the
two routes equal, or not, alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

from bitloss.model.gguf import GgufFile
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint
from bitloss.model.random_model import RandomShape
from llama_tools import figure, perplexity, run, tool, warm_up

TYPES = ("Q8_0", "Q4_K_M")
SOURCES = ("f32", "f16")
STEP = 16 / 65535  # of llama.cpp's base file, nats


def theirs(
    work: Path, sources: dict[str, Path], args: argparse.Namespace
) -> tuple[dict[str, float], dict[str, str]]:
    """Run llama.cpp's tools; returns seconds per stage and what llama-perplexity printed for each candidate."""
    seconds: dict[str, float] = defaultdict(float)
    printed: dict[str, str] = {}
    common = ["-c", args.ctx, "-t", args.threads]
    for name, source in sources.items():
        matrix = work / f"{name}.imatrix.gguf"
        seconds["imatrix"] += tool(
            "llama-imatrix",
            "-m",
            source,
            "-f",
            args.calibration,
            "-o",
            matrix,
            *common,
            "--chunks",
            args.chunks,
        ).seconds
        for kind in TYPES:
            candidate = work / f"{name}-{kind}.gguf"
            seconds["quantize"] += tool(
                "llama-quantize", "--imatrix", matrix, source, candidate, kind, args.threads
            ).seconds
    kld = work / "base.kld"
    evaluate = ["-f", args.text, *common, "--chunks", args.chunks, "--kl-divergence-base", kld]
    base = tool("llama-perplexity", "-m", sources["f32"], *evaluate)
    seconds["base"] += base.seconds
    for kind in TYPES:
        for name in SOURCES:
            done = perplexity("-m", work / f"{name}-{kind}.gguf", *evaluate, "--kl-divergence")
            seconds["measure"] += done.seconds
            printed[f"{kind}/{name}"] = done.printed
    print(f"base file: {kld.stat().st_size:,} bytes")
    return seconds, printed


def check(work: Path, run_folder: Path, printed: dict[str, str]) -> None:
    """Assert that both sides say the same of the same files: llama.cpp's own, measured by bitloss as well.

    The files of the two sides need not be equal: importance sums in float32 and in float64 differ in their last digits,
    and a scale search can tip over on them.
    """
    files = {f"{name}-{kind}": f"{kind}/{name}" for kind in TYPES for name in SOURCES}
    out = work / "measured"
    run(
        [
            *(sys.executable, "-m", "bitloss", "measure", *(work / f"{stem}.gguf" for stem in files)),
            *("--base", run_folder / "base", "-o", out, "--quiet"),
        ]
    )
    results = json.loads((out / "results.json").read_text())
    for candidate in results["candidates"]:
        told = printed[files[candidate["name"]]]
        ppl, kld = (candidate["metrics"][key]["value"] for key in ("ppl", "kld_mean"))
        for ours, label, tolerance in (
            (ppl, "Mean PPL(Q)", 1e-5 * ppl),
            (kld, "Mean    KLD", STEP / 4 + STEP * kld),
        ):
            value = figure(told, label)
            print(f"  {candidate['name']:12s} {label:12s} ours {ours:.6f}  theirs {value:.6f}")
            assert abs(ours - value) <= tolerance, f"{candidate['name']} {label}: {ours} and {value}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; removed and made anew")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    for name, default in (("layers", 17), ("hidden", 768), ("ff", 2048), ("vocab", 32000), ("heads", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    warm_up()
    shape = RandomShape(
        n_layer=args.layers,
        n_embd=args.hidden,
        n_ff=args.ff,
        n_vocab=args.vocab,
        n_head=args.heads,
        n_head_kv=args.heads // 3,
        head_dim=64,
    )
    model, out = args.work / "model", args.work / "run"
    # a spread at which activations keep their size from layer to layer
    random_checkpoint(model, CheckpointOptions(shape=shape, std=args.hidden**-0.5))
    ran = run(
        [
            *(
                sys.executable,
                "-m",
                "bitloss",
                "run",
                model,
                "--from",
                ",".join(SOURCES),
                "--quants",
                ",".join(TYPES),
            ),
            *("--text", args.text, "--calibration", args.calibration, "--chunks", args.chunks),
            *(
                "--imatrix-chunks",
                args.chunks,
                "--ctx",
                args.ctx,
                "-t",
                args.threads,
                "--out",
                out,
                "--quiet",
            ),
        ]
    )
    results = json.loads((out / "results.json").read_text())
    weights = results["model"]["parameters"]
    print(f"{weights / 1e6:.1f} million weights, {args.chunks} chunks of {args.ctx}, {args.threads} threads")
    ours: dict[str, float] = defaultdict(float)
    for cost in results["costs"]:
        ours[cost["kind"]] += cost["seconds"]
    ours["results, report"] = ran.seconds - sum(ours.values())
    sources = {name: out / "sources" / f"model-{name}.gguf" for name in SOURCES}
    tools, printed = theirs(args.work, sources, args)
    check(args.work, out, printed)
    for kind in TYPES:
        a, b = (GgufFile.open(args.work / f"{name}-{kind}.gguf").tensors_sha256() for name in SOURCES)
        made = {c["name"]: c["tensors_sha256"] for c in results["candidates"]}
        print(
            f"  {kind}: llama.cpp's files of both routes have equal tensors: {a == b}; ours: "
            f"{made[f'{kind}/f32'] == made[f'{kind}/f16']}"
        )
        assert (a == b) == (made[f"{kind}/f32"] == made[f"{kind}/f16"])
    conversion = ours.pop("convert")
    print(
        f"{'stage':16s} {'ours s':>9s} {'theirs s':>9s}  ratio   (conversion of both sources, ours: {conversion:.1f} s)"
    )
    for stage in sorted({*ours, *tools}):
        ratio = f"{ours[stage] / tools[stage]:6.2f}" if tools.get(stage) else ""
        print(f"{stage:16s} {ours.get(stage, 0):9.1f} {tools.get(stage, 0):9.1f} {ratio}")
    a, b = sum(ours.values()), sum(tools.values())
    print(f"{'all':16s} {a:9.1f} {b:9.1f} {a / b:6.2f}")


if __name__ == "__main__":
    main()
