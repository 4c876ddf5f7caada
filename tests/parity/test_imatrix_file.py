"""Our importance matrix files and llama-imatrix's are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitloss.imatrix.file import (
    Imatrix,
    ImatrixEntry,
    merge_imatrices,
    read_imatrix,
    with_raw_sums,
    write_imatrix,
    write_legacy_imatrix,
)
from bitloss.model.random_model import RandomShape, random_gguf

pytestmark = pytest.mark.parity
Tool = Callable[..., str]

# The tool asks for a model even where it opens none; its chunk size is -c as long as -b is no multiple of it.
MERGE = ("-m", "unused.gguf", "-c", 64, "-b", 64)
WORDS = "the quick brown fox jumps over the lazy dog and thinks of nothing in particular "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imatrix")


@pytest.fixture(scope="module")
def collected(folder: Path, llama_tool: Tool) -> list[Path]:
    """Two matrices of an expert model in both formats: a.gguf, b.gguf, a.dat, b.dat."""
    shape = RandomShape(n_expert=8, n_expert_used=2, n_ff=64)
    model = random_gguf(folder / "model.gguf", shape, dtype="f32")
    made = []
    for suffix in ("gguf", "dat"):
        for name, chunks in (("a", 2), ("b", 3)):
            # The second text is short of some experts' words on purpose.
            text = folder / f"{name}.txt"
            text.write_text(WORDS * 40 if name == "a" else "abc " * 400)
            out = folder / f"{name}.{suffix}"
            args = ("-c", 64, "--chunks", chunks, "--no-ppl", "-t", 1, "--output-format", suffix)
            llama_tool("llama-imatrix", "-m", model, "-f", text, "-o", out, *args)
            made.append(out)
    return made


def without_folders(path: Path) -> Imatrix:
    """Read a file of the tool, whose dataset is the path it was given."""
    imatrix = read_imatrix(path)
    assert all(text.startswith("/") for text in imatrix.datasets)
    return imatrix


def assert_same(a: Imatrix, b: Imatrix) -> None:
    assert (a.chunk_count, a.chunk_size) == (b.chunk_count, b.chunk_size)
    assert [Path(text).name for text in a.datasets] == [Path(text).name for text in b.datasets]
    assert sorted(a.entries) == sorted(b.entries)
    for name, entry in a.entries.items():
        np.testing.assert_array_equal(entry.counts, b.entries[name].counts)
        np.testing.assert_array_equal(
            entry.stored_sums().astype(np.float32), b.entries[name].stored_sums().astype(np.float32)
        )


def test_read_what_the_tool_collected(collected: list[Path]) -> None:
    a, b, *_ = (without_folders(path) for path in collected)
    assert (a.chunk_count, a.chunk_size, a.is_legacy) == (2, 64, False)
    assert b.chunk_count == 3
    assert a.entries["blk.0.attn_q.weight"].counts.tolist() == [128.0]
    experts = a.entries["blk.1.ffn_down_exps.weight"]
    assert experts.sums.shape == (8, 64)
    assert experts.counts.sum() == 256


def test_the_same_content_gives_the_same_bytes(collected: list[Path], folder: Path, llama_tool: Tool) -> None:
    # The tool keeps the dataset it read, so a matrix that names a bare file comes back with the same name.
    for path in collected[:2]:
        ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
        write_imatrix(without_folders(path), ours)
        llama_tool("llama-imatrix", *MERGE, "--in-file", ours, "-o", theirs)
        assert ours.read_bytes() == theirs.read_bytes()
        assert ours.stat().st_size < path.stat().st_size  # by the folder of the dataset


def test_legacy_bytes(collected: list[Path], folder: Path, llama_tool: Tool) -> None:
    for path in collected[:2]:
        bare, ours, theirs = folder / "bare.gguf", folder / "ours.dat", folder / "theirs.dat"
        write_imatrix(without_folders(path), bare)
        write_legacy_imatrix(read_imatrix(bare), ours)
        llama_tool("llama-imatrix", *MERGE, "--in-file", bare, "-o", theirs, "--output-format", "dat")
        assert ours.read_bytes() == theirs.read_bytes()


def test_read_the_tools_legacy_file(collected: list[Path], folder: Path) -> None:
    for as_gguf, as_dat in zip(collected[:2], collected[2:], strict=True):
        write_legacy_imatrix(without_folders(as_gguf), folder / "ours.dat")
        ours, theirs = read_imatrix(folder / "ours.dat"), without_folders(as_dat)
        assert theirs.is_legacy
        assert_same(ours, theirs)


@pytest.mark.parametrize("kinds", [("gguf", "gguf"), ("dat", "dat"), ("gguf", "dat"), ("dat", "gguf")])
def test_merge(collected: list[Path], folder: Path, llama_tool: Tool, kinds: tuple[str, str]) -> None:
    parts = [folder / f"a.{kinds[0]}", folder / f"b.{kinds[1]}"]
    theirs = folder / f"merged-{'-'.join(kinds)}.gguf"
    llama_tool("llama-imatrix", *MERGE, "--in-file", parts[0], "--in-file", parts[1], "-o", theirs)
    assert_same(merge_imatrices([read_imatrix(part) for part in parts], chunk_size=64), read_imatrix(theirs))


def test_merge_of_files_with_bare_names_is_the_same_file(
    collected: list[Path], folder: Path, llama_tool: Tool
) -> None:
    parts = []
    for path in collected[:2]:
        parts.append(folder / f"bare-{path.name}")
        write_imatrix(without_folders(path), parts[-1])
    theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
    llama_tool("llama-imatrix", *MERGE, "--in-file", parts[0], "--in-file", parts[1], "-o", theirs)
    write_imatrix(merge_imatrices([read_imatrix(part) for part in parts]), ours)
    assert ours.read_bytes() == theirs.read_bytes()


def test_legacy_turned_into_gguf(collected: list[Path], folder: Path, llama_tool: Tool) -> None:
    theirs = folder / "from-dat.gguf"
    llama_tool("llama-imatrix", *MERGE, "--in-file", collected[2], "-o", theirs)
    assert_same(with_raw_sums(read_imatrix(collected[2]), chunk_size=64), read_imatrix(theirs))


def test_names_are_sorted_as_the_tool_sorts(folder: Path, llama_tool: Tool) -> None:
    names = ["blk.10.a.weight", "blk.2.a.weight", "blk.2.B.weight", "ünï.weight", "z_.weight", "z.weight"]
    entries = {name: ImatrixEntry(np.ones((1, 3)), np.array([64.0])) for name in names}
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    write_imatrix(Imatrix(entries, 1, 64, ()), ours)
    llama_tool("llama-imatrix", *MERGE, "--in-file", ours, "-o", theirs)
    assert ours.read_bytes() == theirs.read_bytes()
