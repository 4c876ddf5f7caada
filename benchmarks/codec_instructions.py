"""Instructions per weight of the encoders and of ggml_quantize_chunk, counted by valgrind (callgrind).

    uv run python benchmarks/codec_instructions.py [--kinds Q4_K,Q6_K] [--isa avx2] [--rows 4] [--columns 4096]

Other processes do not change these numbers. Every count is a process of its own that encodes the same rows, less one
that encodes nothing; the bytes are compared as well. valgrind knows AVX2, not AVX-512; an instruction on eight floats
counts as one on either side.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = "Q4_K,Q5_K,Q2_K,Q3_K,Q6_K"

# Python without its site and without NumPy, which would be most of what valgrind has to go through.
CHILD = """
import ctypes, sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader

native_path, library_path, folder, side, isa, *numbers = sys.argv[1:]
kind, rows, columns, row_bytes, weighted, repeats = map(int, numbers)
loader = ExtensionFileLoader("_native", native_path)
native = module_from_spec(spec_from_loader("_native", loader))
loader.exec_module(native)
library = ctypes.CDLL(library_path)
chunk = library.ggml_quantize_chunk
chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
x = bytearray(open(folder + "/rows", "rb").read())
w = bytearray(open(folder + "/weights", "rb").read())
out = bytearray(rows * row_bytes)

def pointer(data):
    return ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data))

for _ in range(repeats):
    if side == "ours":
        native.encode_rows(
            kind, memoryview(x).cast("f", (rows, columns)), memoryview(w).cast("f") if weighted else None,
            memoryview(out).cast("B", (rows, row_bytes)), 1, isa,
        )
    else:
        chunk(kind, pointer(x), pointer(out), 0, rows, columns, pointer(w) if weighted else None)
sys.stdout.buffer.write(out)
"""


def count(command: list[str]) -> tuple[int, bytes]:
    """Run Python under valgrind; return the instructions and what it wrote."""
    done = subprocess.run(
        [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            sys.executable,
            "-I",
            "-S",
            *command,
        ],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    found = re.search(rb"Collected : (\d+)", done.stderr)
    if found is None:
        raise SystemExit(f"valgrind counted nothing: {done.stderr[-500:]!r}")
    return int(found[1]), done.stdout


def main() -> None:
    """Print a table of instructions per weight."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", default=KINDS)
    parser.add_argument("--isa", default="avx2")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=4096)
    args = parser.parse_args()

    import llama_cpp
    import numpy as np
    from gguf import GGMLQuantizationType

    from bitloss import _native
    from bitloss.quantize.codec import row_bytes

    library = next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.so"))
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = 0.02 * rng.standard_normal((args.rows, args.columns))
        rows.astype(np.float32).tofile(Path(folder) / "rows")
        rng.gamma(0.5, 2.0, args.columns).astype(np.float32).tofile(Path(folder) / "weights")

        def run(side: str, kind: GGMLQuantizationType, weighted: int, repeats: int) -> tuple[int, bytes]:
            numbers = (int(kind), args.rows, args.columns, row_bytes(kind, args.columns), weighted, repeats)
            paths = [str(_native.__file__), str(library), folder]
            return count(["-c", CHILD, *paths, side, args.isa, *map(str, numbers)])

        print(f"instructions per weight, {args.rows} rows of {args.columns}, {args.isa}; all bytes equal")
        print(f"{'':<20}{'ours':>9}{'libggml':>9}")
        for name in args.kinds.split(","):
            kind = GGMLQuantizationType[name]
            idle = {side: run(side, kind, 0, 0)[0] for side in ("ours", "libggml")}
            for weighted in (0, 1):
                busy = {side: run(side, kind, weighted, 1) for side in idle}
                if busy["ours"][1] != busy["libggml"][1]:
                    raise SystemExit(f"{name}: the bytes differ from libggml's")
                ours, theirs = ((busy[side][0] - idle[side]) / rows.size for side in idle)
                label = f"{name}, {'weights' if weighted else 'no weights'}"
                print(f"{label:<20}{ours:9.1f}{theirs:9.1f}{theirs / ours:9.1f} x", flush=True)


if __name__ == "__main__":
    main()
