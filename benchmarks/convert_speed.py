"""A BF16 checkpoint to F32, F16 and BF16 in one go, beside plainly writing as many bytes to the same disk.

    uv run python benchmarks/convert_speed.py --work FOLDER [--gigabytes 2] [--rounds 2]

A random checkpoint (Mistral's shapes) is converted by the command line, as users do (with the proof) and with
`--no-proof`; before, between and after, files of the same sizes are plainly written, each synced as the conversion
syncs its files. A conversion is held against the mean of the writes on both sides of it.

Memory is looked at every 20 ms, of all processes of the command together. Held: what is theirs alone (`RssAnon`,
`RssShmem`), which the system cannot take back. Mapped: pages of files, which are in memory once for everybody and which
it takes back when it needs them: parts of the checkpoint while it is read and, in the proof, the GGUF file that
llama.cpp maps.

Asserted: the files hold the checkpoint's values; the best of the rounds, with the proof and without, takes at most 1.5
times as long as the writes; memory held stays under 1 GB, with the mapped pages too where nothing is proven. The files
are removed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from bitloss.model.gguf import GgufFile
from bitloss.model.random_checkpoint import (
    CheckpointOptions,
    checkpoint_config,
    tokenizer_json,
    weight_shapes,
)
from bitloss.model.random_model import RandomShape

TYPES = ("f32", "f16", "bf16")
PEAK = 1 << 30


def shape_of(gigabytes: float) -> RandomShape:
    """Shape of a model with that many gigabytes of BF16 weights."""
    block = 2 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 11008)
    layers = max(1, round(gigabytes * 1e9 / block))
    return RandomShape(
        n_vocab=4096, n_embd=4096, n_layer=layers, n_head=32, n_head_kv=8, head_dim=128, n_ff=11008
    )


def write_checkpoint(folder: Path, shape: RandomShape) -> None:
    """Write a random BF16 checkpoint, a tensor at a time."""
    folder.mkdir(parents=True)
    options = CheckpointOptions(shape=shape)
    (folder / "config.json").write_text(json.dumps(checkpoint_config(options)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(shape.n_vocab, "tekken")))
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(specials))
    header, at = {}, 0
    for name, size in weight_shapes(shape).items():
        end = at + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for size in weight_shapes(shape).values():
            values = rng.standard_normal(size, np.float32) * 0.02 + (len(size) == 1)
            file.write(values.astype(ml_dtypes.bfloat16).tobytes())
        file.flush()
        os.fsync(file.fileno())


class Memory(NamedTuple):
    """Peaks in bytes: held, and held with mapped pages of files."""

    held: int
    all: int


class Command(NamedTuple):
    """A command that was run: seconds, and memory of its processes."""

    seconds: float
    memory: Memory


def converted(folder: Path, out: Path, *extra: str) -> Command:
    """Convert by the command line."""
    command = [sys.executable, "-m", "bitloss", "convert", str(folder), "--to", ",".join(TYPES)]
    begun = time.monotonic()
    with subprocess.Popen(
        [*command, "-o", str(out), "-q", *extra], stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        memory = Memory(0, 0)
        while process.poll() is None:
            now = memory_of_session(process.pid)
            memory = Memory(*map(max, memory, now))
            time.sleep(0.02)
    seconds = time.monotonic() - begun
    assert process.returncode == 0, process.returncode
    return Command(seconds, memory)


def memory_of_session(session: int) -> Memory:
    """Return what all processes of a session have in memory now (Linux)."""
    held = mapped = 0
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it may end while it is looked at
            if int((place / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            lines = [line.split() for line in (place / "status").read_text().splitlines()]
            sizes = {
                words[0]: int(words[1]) * 1024 for words in lines if words and words[0].startswith("Rss")
            }
            held += sizes.get("RssAnon:", 0) + sizes.get("RssShmem:", 0)  # one that has ended has none
            mapped += sizes.get("RssFile:", 0)
    return Memory(held, held + mapped)


def written(folder: Path, sizes: list[int]) -> float:
    """Write and sync files of those sizes, one after the other; return seconds."""
    folder.mkdir()
    piece = os.urandom(16 << 20)
    begun = time.monotonic()
    for number, n_bytes in enumerate(sizes):
        with (folder / str(number)).open("wb", buffering=0) as file:
            for start in range(0, n_bytes, len(piece)):
                file.write(piece[: min(len(piece), n_bytes - start)])
            os.fsync(file.fileno())
    seconds = time.monotonic() - begun
    shutil.rmtree(folder)
    return seconds


def check(folder: Path, out: Path) -> list[int]:
    """Compare the files with the checkpoint's values; return their sizes in bytes."""
    from bitloss.model.checkpoint import Checkpoint

    source = Checkpoint.open(folder).tensor("model.layers.0.mlp.down_proj.weight").astype(np.float32)
    sizes = []
    for kind in TYPES:
        file = GgufFile.open(out / f"{folder.name}-{kind}.gguf")
        expected = source.astype(np.float16).astype(np.float32) if kind == "f16" else source
        assert np.array_equal(file.tensor_f32("blk.0.ffn_down.weight"), expected), kind
        sizes.append(file.size)
    return sizes


def rounds_of(given: argparse.Namespace, folder: Path, out: Path) -> None:
    """Time conversions between plain writes, and assert what is wanted."""
    converted(folder, out, "--no-proof")  # compiles Python, warms the checkpoint's pages
    sizes = check(folder, out)
    shutil.rmtree(out)
    plain = [written(given.work / "plain", sizes)]
    print(f"{sum(sizes) / 1e9:.2f} GB in {len(sizes)} files: plain writes {plain[0]:.1f} s", flush=True)
    best: dict[str, float] = {}
    for _ in range(given.rounds):
        for options in (["--no-proof"], []) if given.proof else (["--no-proof"],):
            done = converted(folder, out, *options)
            assert check(folder, out) == sizes
            shutil.rmtree(out)
            plain.append(written(given.work / "plain", sizes))
            ratio = done.seconds / ((plain[-2] + plain[-1]) / 2)
            name = " ".join(["convert", *options])
            held, whole = done.memory
            memory = f"held {held / 1e6:.0f} MB, with mapped pages {whole / 1e6:.0f} MB"
            print(f"{name:20} {done.seconds:.1f} s ({ratio:.2f} x), {memory}", flush=True)
            print(f"plain writes         {plain[-1]:.1f} s", flush=True)
            best[name] = min(best.get(name, ratio), ratio)
            assert held < PEAK, held
            assert whole < PEAK or not options, whole
    assert max(best.values()) < 1.5, best


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the files, on the disk meant")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=2, help="how often")
    parser.add_argument(
        "--proof", action=argparse.BooleanOptionalAction, default=True, help="time the proof too"
    )
    given = parser.parse_args()
    folder, out = given.work / "model", given.work / "out"
    try:
        write_checkpoint(folder, shape_of(given.gigabytes))
        rounds_of(given, folder, out)
    finally:
        for each in (folder, out, given.work / "plain"):
            shutil.rmtree(each, ignore_errors=True)


if __name__ == "__main__":
    main()
