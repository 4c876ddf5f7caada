"""Interrupted passes go on where they stopped; finished files of the same inputs are not made again."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitloss.errors import DiskFull, FileProblem
from bitloss.imatrix.file import Imatrix, ImatrixEntry, write_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.progress import Progress, silent
from bitloss.quantize.quantize import How, QuantizeSpec, plan_candidates, quantize, quantize_all
from bitloss.store import sha256_file

SHAPE = RandomShape(n_embd=256, n_head=2, n_head_kv=1, head_dim=128, n_ff=256, n_layer=1, n_vocab=300)
TYPES = ("Q8_0", "Q4_K_M", "F16")
RESUME = How(resume=True, threads=2)
# Stands for whatever ends a pass: signals itself when so many tensors are done.
CHILD = """
import os, sys
from pathlib import Path
from bitloss.quantize.quantize import How, QuantizeSpec, quantize_all
source, folder, types, number, at, split = sys.argv[1:]
def stop(step):
    if step.stage.startswith("quantize") and step.done == int(at):
        os.kill(os.getpid(), int(number))
specs = [
    QuantizeSpec(Path(source), kind, Path(folder) / f"{kind}.gguf", split_max_bytes=int(split) or None)
    for kind in types.split(",")
]
quantize_all(specs, stop, How(resume=True, threads=2))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf(tmp_path_factory.mktemp("source") / "model-f32.gguf", SHAPE, dtype="f32")


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of what an uninterrupted pass makes."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: sha256_file(quantize(spec(source, folder, kind)).out) for kind in TYPES}


def spec(source: Path, folder: Path, kind: str) -> QuantizeSpec:
    return QuantizeSpec(source, kind, folder / f"{kind}.gguf")


def specs(source: Path, folder: Path) -> list[QuantizeSpec]:
    return [spec(source, folder, kind) for kind in TYPES]


def interrupted(
    source: Path,
    folder: Path,
    *,
    by: int = signal.SIGKILL,
    at: int = 5,
    types: str = ",".join(TYPES),
    split: int = 0,
) -> None:
    command: list[str | Path] = [
        sys.executable,
        "-c",
        CHILD,
        source,
        folder,
        types,
        str(int(by)),
        str(at),
        str(split),
    ]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode != 0, done.stderr


def hashes(folder: Path) -> dict[str, str]:
    return {kind: sha256_file(folder / f"{kind}.gguf") for kind in TYPES}


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def encoded(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make the rest; return how many values were encoded."""
    from bitloss.quantize import codec

    counts: list[int] = []
    true = codec.encode_into

    def counting(*args: object, **named: object) -> None:
        counts.append(args[1].size)  # type: ignore[attr-defined]
        true(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(codec, "encode_into", counting)
    quantize_all(specs(source, folder), how=RESUME)
    monkeypatch.setattr(codec, "encode_into", true)
    return sum(counts)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("at", [0, 1, 6, 12])
def test_it_goes_on_where_it_stopped(
    source: Path, whole: dict[str, str], tmp_path: Path, by: int, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(source, tmp_path, by=by, at=at)
    assert only(tmp_path) == sorted(
        f".{kind}.gguf.{end}" for kind in TYPES for end in ("journal", "unfinished")
    )
    total = sum(info.n_elements for info in GgufFile.open(source).tensors.values() if len(info.shape) > 1)
    n = encoded(source, tmp_path, monkeypatch)
    assert n == len(TYPES) * total if at == 0 else 0 <= n < len(TYPES) * total
    assert (n == 0) == (at == 12)
    assert hashes(tmp_path) == whole
    assert only(tmp_path) == sorted([*(f"{kind}.gguf" for kind in TYPES), "quantization.json"])


def test_a_damaged_prefix_is_not_gone_on_with(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    for place in (10, 20_000, 100_000, -40):
        interrupted(source, tmp_path, at=8)
        unfinished = tmp_path / ".Q8_0.gguf.unfinished"
        content = bytearray(unfinished.read_bytes())
        content[place] ^= 1
        unfinished.write_bytes(content)
        (tmp_path / ".F16.gguf.unfinished").write_bytes(b"")
        journal = tmp_path / ".Q4_K_M.gguf.journal"
        journal.write_bytes(journal.read_bytes()[:-20] + b"\xff\xff{}\n[]\n")
        quantize_all(specs(source, tmp_path), how=RESUME)
        assert hashes(tmp_path) == whole
        for path in tmp_path.iterdir():
            path.unlink()


def test_other_values_of_the_source_are_not_gone_on_with(source: Path, tmp_path: Path) -> None:
    """Same header, same place, same time: only the values tell."""
    other = tmp_path / "m.gguf"
    other.write_bytes(source.read_bytes())
    out = tmp_path / "out"
    interrupted(other, out, at=8)
    name = list(plan_candidates([spec(other, out, "Q8_0")])[0].plan.tensors)[1]
    with other.open("r+b") as file:
        file.seek(GgufFile.open(source).tensors[name].offset)
        file.write(np.float32(0.5).tobytes())
    made = quantize_all(specs(other, out), how=RESUME)
    alone = quantize_all(specs(other, tmp_path / "alone"))
    assert [each.sha256 for each in made] == [each.sha256 for each in alone]
    assert not any(each.reused for each in made)


def importance(source: Path, path: Path, scale: float) -> Path:
    entries = {}
    for name, info in GgufFile.open(source).tensors.items():
        if name.startswith("blk.") and "norm" not in name:
            sums = 1 + np.arange(info.shape[0], dtype=np.float64)[np.newaxis] ** scale
            entries[name] = ImatrixEntry(sums, np.array([64.0]))
    write_imatrix(Imatrix(entries, 2, 32, ("text.txt",)), path)
    return path


def test_another_matrix_starts_anew(source: Path, tmp_path: Path) -> None:
    one, other = (importance(source, tmp_path / f"{n}.gguf", n) for n in (1, 2))

    def stop(step: Progress) -> None:
        if step.stage.startswith("quantize") and step.done == 8:
            raise KeyboardInterrupt

    wanted = replace(spec(source, tmp_path / "out", "Q4_K_M"), imatrix=one)
    with pytest.raises(KeyboardInterrupt):
        quantize(wanted, stop, RESUME)
    assert only(tmp_path / "out") == [".Q4_K_M.gguf.journal", ".Q4_K_M.gguf.unfinished"]
    second = replace(wanted, imatrix=other)
    made = quantize(second, how=RESUME)
    assert made.sha256 == quantize(replace(second, out=tmp_path / "alone.gguf")).sha256
    assert not quantize(wanted, how=RESUME).reused
    assert quantize(wanted, how=RESUME).reused


def test_a_repeat_makes_only_what_is_not_there(source: Path, whole: dict[str, str], tmp_path: Path) -> None:
    first = quantize_all(specs(source, tmp_path)[:2], how=RESUME)
    told: list[Progress] = []
    made = quantize_all(specs(source, tmp_path), told.append, RESUME)
    assert [each.reused for each in made] == [True, True, False]
    assert [replace(a, seconds=0, reused=True) for a in first] == [replace(b, seconds=0) for b in made[:2]]
    assert hashes(tmp_path) == whole
    # neither name nor time: a changed byte, a shorter file, a damaged record
    content = bytearray((tmp_path / "Q8_0.gguf").read_bytes())
    content[-100] ^= 1
    times = os.stat(tmp_path / "Q8_0.gguf")
    (tmp_path / "Q8_0.gguf").write_bytes(content)
    os.utime(tmp_path / "Q8_0.gguf", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "F16.gguf").write_bytes(b"GGUF")
    assert [each.reused for each in quantize_all(specs(source, tmp_path), how=RESUME)] == [False, True, False]
    record = json.loads((tmp_path / "quantization.json").read_text())
    assert record["candidates"]["Q8_0.gguf"]["files"][0]["sha256"] == whole["Q8_0"]
    (tmp_path / "quantization.json").write_text("{")
    assert not any(each.reused for each in quantize_all(specs(source, tmp_path), how=RESUME))
    assert not any(each.reused for each in quantize_all(specs(source, tmp_path)))  # only when asked for
    assert hashes(tmp_path) == whole


def test_errors_are_kept_too(source: Path, tmp_path: Path) -> None:
    how = How(resume=True, errors=True)
    wanted = spec(source, tmp_path, "Q4_K_M")
    quantize(wanted, how=RESUME)
    first = quantize(wanted, how=how)
    again = quantize(wanted, how=how)
    assert (first.reused, again.reused) == (False, True)
    assert first.errors
    assert first.errors == again.errors == quantize(replace(wanted, out=tmp_path / "b.gguf"), how=how).errors


def test_parts(source: Path, tmp_path: Path) -> None:
    wanted = replace(spec(source, tmp_path / "a", "F16"), split_max_bytes=10**6)
    alone = quantize(replace(wanted, out=tmp_path / "b" / "F16.gguf"))
    interrupted(source, tmp_path / "a", at=9, types="F16", split=10**6)
    made = quantize(wanted, how=RESUME)
    assert len(made.parts) > 1
    assert [part.sha256 for part in made.parts] == [part.sha256 for part in alone.parts]
    assert [sha256_file(part.path) for part in made.parts] == [part.sha256 for part in made.parts]
    assert quantize(wanted, how=RESUME).reused


def test_through_llama_cpp(source: Path, tmp_path: Path) -> None:
    how = How("llama.cpp", resume=True)
    wanted = spec(source, tmp_path, "Q8_0")
    assert [quantize(wanted, how=how).reused for _ in range(2)] == [False, True]
    assert not quantize(wanted, how=RESUME).reused  # another encoder


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.pwrite

    def full(descriptor: int, data: bytes, at: int) -> int:
        if at > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, data, at)

    interrupted(source, tmp_path, at=2)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull):
        quantize_all(specs(source, tmp_path), how=RESUME)
    assert only(tmp_path) == []


def test_what_is_there_counts_as_space(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leftovers of dead processes go first, what is gone on with is not needed twice."""
    usage = namedtuple("usage", "total used free")
    needed = sum(each.bytes for each in plan_candidates(specs(source, tmp_path)))
    interrupted(source, tmp_path, at=8)
    there = sum(path.stat().st_blocks * 512 for path in tmp_path.glob(".*.unfinished"))
    assert there > 0
    dead = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.5)  # a zombie: nobody has asked how it ended
    from bitloss.store.atomic import _HOST

    left = tmp_path / f".Q8_0.gguf.partial-{dead.pid}-{_HOST}00000000"
    left.write_bytes(b"x" * 1000)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: usage(10**9, 0, needed - there - (1 if left.exists() else 0))
    )
    quantize_all(specs(source, tmp_path), how=RESUME)
    assert hashes(tmp_path) == whole
    assert not left.exists()
    dead.wait()


def test_two_at_once(source: Path, tmp_path: Path) -> None:
    held = os.open(tmp_path / ".Q8_0.gguf.unfinished", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(FileProblem, match=r"Q8_0\.gguf: another process is writing this file. Wait"):
        quantize_all(specs(source, tmp_path), silent, RESUME)
    assert only(tmp_path) == [".Q8_0.gguf.unfinished"]  # not ours
    os.close(held)
    assert len(quantize_all(specs(source, tmp_path), silent, RESUME)) == 3
