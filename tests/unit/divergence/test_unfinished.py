"""A base while it is computed: interrupted, on a full disk, of a model that is not finite."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from bitloss.divergence import basewrite
from bitloss.divergence.basefile import BaseHeader, TextSource
from bitloss.divergence.basewrite import write_base
from bitloss.divergence.unfinished import ShardPlan, journal_path, unfinished_folder
from bitloss.engine.base import EngineOptions
from bitloss.engine.llama import LlamaEngine
from bitloss.errors import DiskFull, EngineError, FileProblem
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.model.text import Chunks, cut_chunks
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store.atomic import open_alone

SHAPE = RandomShape(n_vocab=300, n_embd=64, n_layer=1, n_head=2, n_head_kv=1, head_dim=32, n_ff=64)
N_CHUNKS, N_CTX, WIDTH = 9, 16, 64
ROW = 4 * WIDTH


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf(tmp_path_factory.mktemp("model") / "m.gguf", SHAPE, seed=5, dtype="f32")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basewrite, "SHARD_BYTES", 4 * 7 * ROW)


@pytest.fixture(params=[False, True], ids=["plain", "masked"])
def chunks(request: pytest.FixtureRequest) -> Chunks:
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 300, N_CHUNKS * N_CTX).astype(np.int32)
    cut = cut_chunks(tokens, n_ctx=N_CTX, n_chunks=None, bos=1, where="t")
    if not request.param:
        return cut
    scored = rng.random((N_CHUNKS, N_CTX)) < 0.5
    scored[:, 5], scored[:, -1] = True, False
    return Chunks(cut.tokens, cut.add_bos, cut.bos, scored)


def make(model: Path, chunks: Chunks, out: Path, progress: ProgressCallback = silent) -> BaseHeader:
    # two chunks side by side
    with LlamaEngine(model, EngineOptions(threads=1, batch=2 * N_CTX, ubatch=2 * N_CTX)) as engine:
        return write_base(engine, chunks, text=TextSource("t", "0" * 64), out=out, progress=progress)


def interrupt_after(n_chunks: int, kind: type[BaseException] = KeyboardInterrupt) -> ProgressCallback:
    def told(progress: Progress) -> None:
        if progress.done == n_chunks:
            raise kind

    return told


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shape", [(3, 7, 64), (21, 64), (1, 127, 64)])
def test_a_shard_is_what_safetensors_writes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    save_file({"hidden": values}, tmp_path / "s")
    plan = ShardPlan("s", 0, (21,), shape)
    assert plan.header + values.tobytes() == (tmp_path / "s").read_bytes()
    assert plan.size == (tmp_path / "s").stat().st_size


@pytest.mark.parametrize("done", [1, 4, 5, 8, 9])
def test_an_interrupted_base_goes_on_and_comes_out_the_same(
    model: Path, tmp_path: Path, chunks: Chunks, done: int
) -> None:
    make(model, chunks, tmp_path / "whole")
    out = tmp_path / "base"
    with pytest.raises(KeyboardInterrupt):
        make(model, chunks, out, interrupt_after(done))
    assert not out.exists()
    assert unfinished_folder(out).is_dir()
    computed: list[int] = []
    make(model, chunks, out, lambda progress: computed.append(progress.done))
    # a group of chunks computed side by side is computed whole
    again = done if done == N_CHUNKS else done // 2 * 2
    assert computed == list(range(again + 1, N_CHUNKS + 1))
    assert files(out) == files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "whole"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "second shard flipped": (lambda out: _flip(unfinished_folder(out) / "hidden-000004.safetensors"), 4),
    "first shard flipped": (lambda out: _flip(unfinished_folder(out) / "hidden-000000.safetensors"), 2),
    "first shard gone": (lambda out: (unfinished_folder(out) / "hidden-000000.safetensors").unlink(), 0),
    "journal gone": (lambda out: journal_path(out).unlink(), 0),
    "journal cut": (lambda out: os.truncate(journal_path(out), journal_path(out).stat().st_size - 1), 4),
    "folder gone": (lambda out: shutil.rmtree(unfinished_folder(out)), 0),
    "a stranger": (lambda out: (unfinished_folder(out) / "x").write_bytes(b"x"), 6),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("chunks", [False], indirect=True)
def test_what_is_damaged_meanwhile_is_computed_again(
    model: Path, tmp_path: Path, chunks: Chunks, damage: str
) -> None:
    make(model, chunks, tmp_path / "whole")
    out = tmp_path / "base"
    with pytest.raises(KeyboardInterrupt):
        make(model, chunks, out, interrupt_after(6))
    harm, kept = DAMAGES[damage]
    harm(out)
    computed: list[int] = []
    make(model, chunks, out, lambda progress: computed.append(progress.done))
    assert computed[0] == kept + 1
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("chunks", [False], indirect=True)
def test_another_text_starts_anew(model: Path, tmp_path: Path, chunks: Chunks) -> None:
    out = tmp_path / "base"
    with pytest.raises(KeyboardInterrupt):
        make(model, chunks, out, interrupt_after(6))
    fewer = chunks.pick(np.arange(8))
    computed: list[int] = []
    make(model, fewer, out, lambda progress: computed.append(progress.done))
    assert computed[0] == 1
    make(model, fewer, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("chunks", [False], indirect=True)
def test_the_same_tensors_under_another_graph_start_anew(model: Path, tmp_path: Path, chunks: Chunks) -> None:
    """Metadata decides what is computed as well: half a base of each would be of no model."""
    mine, out = tmp_path / "m.gguf", tmp_path / "base"
    shutil.copy(model, mine)
    with pytest.raises(KeyboardInterrupt):
        make(mine, chunks, out, interrupt_after(6))
    reader = gguf.GGUFReader(mine, "r+")
    epsilon = reader.fields["llama.attention.layer_norm_rms_epsilon"]
    epsilon.parts[epsilon.data[0]][0] = 0.5
    del reader, epsilon
    make(mine, chunks, out)
    make(mine, chunks, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("chunks", [False], indirect=True)
def test_two_at_once(model: Path, tmp_path: Path, chunks: Chunks) -> None:
    out = tmp_path / "base"
    held = open_alone(journal_path(out), out, "folder")
    with pytest.raises(FileProblem, match="base: another process is writing this folder"):
        make(model, chunks, out)
    os.close(held)
    make(model, chunks, out)


# -------------------------------------------------------------------------------------------------- full disks


def test_room_is_looked_up_before_anything_is_computed(
    model: Path, tmp_path: Path, chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = make(model, chunks, tmp_path / "whole")
    taken = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, taken - 1))
    seen: list[Progress] = []
    with pytest.raises(DiskFull, match=r"base: not enough space on the disk: expected \S+ KiB free, found"):
        make(model, chunks, tmp_path / "base", seen.append)
    assert seen == []
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, taken + 8192))
    assert make(model, chunks, tmp_path / "base") == header


def test_what_is_there_needs_no_room_again(
    model: Path, tmp_path: Path, chunks: Chunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(model, chunks, tmp_path / "whole")
    taken = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    with pytest.raises(KeyboardInterrupt):
        make(model, chunks, tmp_path / "base", interrupt_after(8))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, taken - 4096))
    make(model, chunks, tmp_path / "base")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_disk_that_fills_up_leaves_nothing(
    model: Path, tmp_path: Path, chunks: Chunks, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.write, [10_000]

    def full(descriptor: int, data: memoryview) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(FileProblem, match=r"base: (the disk is full|File too large)\."):
        make(model, chunks, tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_grow_ends_in_one_line(model: Path, tmp_path: Path) -> None:
    """The system itself says no, in the process that does the work."""
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g " * 400)
    command = ["base", str(model), "--text", str(text), "--ctx", "16", "-o", str(tmp_path / "base"), "-q"]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, {resource.RLIM_INFINITY}));"
    program = f"{limit} import sys; from bitloss.cli import main; sys.exit(main({command!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "base: File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


# -------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", ["blk.0.ffn_down.weight", "output.weight", "token_embd.weight"])
@pytest.mark.parametrize("chunks", [False], indirect=True)
def test_a_model_that_is_not_finite_is_named(
    model: Path, tmp_path: Path, chunks: Chunks, value: float, tensor: str
) -> None:
    broken = tmp_path / "m.gguf"
    shutil.copy(model, broken)
    info = GgufFile.open(broken).tensors[tensor]
    rare = next(int(token) for token in chunks.tokens[5] if token not in chunks.tokens[:5])
    with broken.open("r+b") as file:
        file.seek(info.offset + (rare * ROW if tensor == "token_embd.weight" else 0))
        file.write(np.float32(value).tobytes())
    with pytest.raises(EngineError, match="not finite") as caught:
        make(broken, chunks, tmp_path / "base")
    assert "bitloss audit" in str(caught.value)
    if tensor == "token_embd.weight":
        assert "m.gguf[chunk 6 of 9]: hidden states are not finite: found" in str(caught.value)
        assert "of 7 scored tokens" in str(caught.value)
    else:
        assert "m.gguf[first 16 tokens of the text]: logits are not finite" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
