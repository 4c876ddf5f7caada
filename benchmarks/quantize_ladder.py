"""A ladder of types from one source: one pass of `bitloss quantize` beside a loop over llama-quantize.

    uv run python benchmarks/quantize_ladder.py --work FOLDER [--dtype f32] [--threads 2] [--types Q8_0,...]

A random model of 157 million weights is made (``--layers`` for more), with an importance matrix of made-up numbers.
Both sides write the same files to the same disk with the same threads; bitloss hashes them as well. Prints seconds and
peak memory of both, the ratio, and asserts that every tensor is the same byte for byte. `--alone` adds bitloss with
`--encoder llama.cpp` (one call for each type, read back), for what the pass is worth without the kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from bitloss.display import size
from bitloss.imatrix.file import Imatrix, ImatrixEntry, write_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from llama_tools import Ran, run, tool

LADDER = "Q2_K,Q3_K_S,Q3_K_M,Q3_K_L,Q4_0,Q4_K_S,Q4_K_M,Q5_K_S,Q5_K_M,Q6_K,Q8_0,IQ4_XS,IQ4_NL"


def made_up_matrix(model: Path) -> Imatrix:
    """Importance of the inputs of every layer, spread over three decades."""
    rng = np.random.default_rng(0)
    entries = {
        name: ImatrixEntry(10 ** rng.uniform(-2, 1, (1, info.shape[0])) * 512, np.array([512.0]))
        for name, info in GgufFile.open(model).tensors.items()
        if name.startswith("blk.") and "norm" not in name
    }
    return Imatrix(entries, 1, 512, ("made up",))


def ours(source: Path, matrix: Path, out: Path, args: argparse.Namespace, *more: str) -> Ran:
    """Run `bitloss quantize` for all types; its step runs in a child, whose peak is what is told."""
    command = [
        sys.executable,
        "-m",
        "bitloss",
        "quantize",
        source,
        "--types",
        args.types,
        "--imatrix",
        matrix,
    ]
    (out / "quantization.json").unlink(missing_ok=True)  # else what a run before made is found again
    return run([*command, "-o", out, "--threads", args.threads, "--json", "-q", *more])


def main() -> None:
    """Run both sides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Scratch folder.")
    parser.add_argument("--types", default=LADDER)
    parser.add_argument("--dtype", default="f32", choices=("f32", "f16", "bf16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    shape = RandomShape(
        n_vocab=16000, n_embd=1024, n_layer=args.layers, n_head=16, n_head_kv=4, head_dim=64, n_ff=4096
    )
    source = random_gguf(args.work / f"model-{args.dtype}.gguf", shape, dtype=args.dtype)
    file = GgufFile.open(source)
    weights = sum(info.n_elements for info in file.tensors.values())
    largest = max(4 * info.n_elements for info in file.tensors.values())
    matrix = args.work / "matrix.gguf"
    write_imatrix(made_up_matrix(source), matrix)
    types = args.types.split(",")
    print(f"{weights / 1e6:.1f} million weights, {args.dtype}, {len(types)} types, {args.threads} threads")

    sides = {"bitloss": ours(source, matrix, args.work / "ours", args)}
    if args.alone:
        sides["bitloss --encoder llama.cpp"] = ours(
            source, matrix, args.work / "called", args, "--encoder", "llama.cpp"
        )
    theirs = {
        kind: tool(
            "llama-quantize", "--imatrix", matrix, source, args.work / f"{kind}.gguf", kind, args.threads
        )
        for kind in types
    }
    seconds = sum(one.seconds for one in theirs.values())
    for name, side in sides.items():
        print(f"{name}: {side.seconds:.1f} s, peak {size(side.peak_bytes)}, {seconds / side.seconds:.2f} x")
    peak = max(one.peak_bytes for one in theirs.values())
    print(
        f"loop over llama-quantize: {seconds:.1f} s, peak {size(peak)}; largest tensor in F32 {size(largest)}"
    )
    print("  " + ", ".join(f"{kind} {one.seconds:.1f}" for kind, one in theirs.items()))
    assert sides["bitloss"].peak_bytes < 2 * largest + 500e6, "more memory than was said"

    for row in json.loads(sides["bitloss"].printed):
        other = GgufFile.open(args.work / f"{row['type']}.gguf")
        assert row["tensors_sha256"] == other.tensors_sha256(), f"{row['type']}: other tensors"
    print(f"the tensors of all {len(types)} files are the same")


if __name__ == "__main__":
    main()
