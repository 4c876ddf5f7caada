"""Differing blocks of two files, against the definition in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tests.unit.explain.models import BF16, gguf, normal
from tests.unit.quantize.codec_cases import libggml_encode

from bitloss.errors import MismatchError
from bitloss.explain.blocks import TensorBlocks, block_marks, differing_blocks, mark
from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_split import open_model, part_path
from bitloss.progress import Progress

Q4_K, Q8_0 = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q8_0


def opened(*paths: Path) -> list[GgufFile]:
    return [open_model(path) for path in paths]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 18, 34, 144, 210])
@pytest.mark.parametrize("threads", [1, 3])
def test_marks_are_those_of_the_definition(size: int, threads: int) -> None:
    rng = np.random.default_rng(size)
    a = rng.integers(0, 256, 5000 * size, np.uint8)
    b = a.copy()
    flips = rng.choice(a.size, 700, replace=False)
    b[flips[flips > a.size // 2]] ^= np.uint8(4)  # the first half stays equal
    expected = (a != b).reshape(-1, size).any(axis=1)
    assert (mark(a, b, size, threads=threads) == expected).all()
    assert 0 < expected.sum() < expected.size


def test_one_flipped_bit_is_one_block(tmp_path: Path) -> None:
    data = {"q": libggml_encode(Q4_K, normal(4, 512), None), "n": normal(64), "h": normal(2, 32, dtype=BF16)}
    forms = {"q": (Q4_K, (512, 4))}
    one = gguf(tmp_path / "a.gguf", data, blocks=forms)
    data["q"] = data["q"].copy()
    data["q"][2, 144 + 70] ^= 0x10  # the second block of the third row
    data["n"] = data["n"].copy()
    data["n"][[3, 60]] = 1.0, -1.0
    two = gguf(tmp_path / "b.gguf", data, blocks=forms)
    seen: list[Progress] = []
    a, b = opened(one, two)
    assert differing_blocks(a, b, progress=seen.append) == (
        TensorBlocks("q", "Q4_K", 8, 1),
        TensorBlocks("n", "F32", 64, 2),
        TensorBlocks("h", "BF16", 64, 0),
    )
    assert np.flatnonzero(block_marks(a, b, "q")).tolist() == [5]
    assert np.flatnonzero(block_marks(a, b, "n")).tolist() == [3, 60]
    assert (seen[-1].done, seen[-1].unit) == (seen[-1].total, "bytes")


def test_pieces_and_threads_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, other = normal(50, 256), normal(50, 256)
    other[::7, ::5] += 1
    q = [libggml_encode(Q8_0, v, None) for v in (values, other)]
    paths = [
        gguf(tmp_path / f"{i}.gguf", {"q": q[i], "v": (values, other)[i]}, blocks={"q": (Q8_0, (256, 50))})
        for i in range(2)
    ]
    a, b = opened(*paths)
    whole, marks = differing_blocks(a, b, threads=1), block_marks(a, b, "q")
    monkeypatch.setattr("bitloss.explain.blocks._PIECE", 1000)
    assert differing_blocks(a, b, threads=3) == whole
    assert (block_marks(a, b, "q", threads=3) == marks).all()
    assert [each.differing for each in whole] == [int(marks.sum()), 8 * 52]
    assert (q[0] != q[1]).reshape(-1, 34).any(axis=1).sum() == whole[0].differing


def test_only_tensors_of_the_same_form_are_compared(tmp_path: Path) -> None:
    one = gguf(
        tmp_path / "a.gguf", {"a": normal(2, 32), "t": normal(2, 32), "s": normal(2, 32), "e": normal(0)}
    )
    two = gguf(
        tmp_path / "b.gguf",
        {
            "s": normal(32, 2),
            "t": normal(2, 32, dtype=np.float16),
            "x": normal(4),
            "e": normal(0),
            "a": normal(2, 32),
        },
    )
    a, b = opened(one, two)
    assert differing_blocks(a, b) == (TensorBlocks("a", "F32", 64, 0), TensorBlocks("e", "F32", 0, 0))
    assert block_marks(a, b, "e").shape == (0,)
    for name in ("t", "s", "x", "none"):
        with pytest.raises(MismatchError, match="same type and shape"):
            block_marks(a, b, name)


def test_split_and_whole(tmp_path: Path) -> None:
    def keys(no: int) -> dict[str, GgufValue]:
        return {
            "split.no": GgufValue(GgufType.UINT16, no),
            "split.count": GgufValue(GgufType.UINT16, 2),
            "split.tensors.count": GgufValue(GgufType.INT32, 2),
        }

    a, b = normal(4, 64), normal(2, 64, seed=1)
    whole = gguf(tmp_path / "m.gguf", {"a": a, "b": b})
    b = b.copy()
    b[1, 1] = 5
    gguf(part_path(tmp_path / "s.gguf", 0, 2), {"a": a}, keys(0))
    gguf(part_path(tmp_path / "s.gguf", 1, 2), {"b": b}, keys(1))
    found = differing_blocks(*opened(whole, part_path(tmp_path / "s.gguf", 0, 2)))
    assert [(each.name, each.differing) for each in found] == [("a", 0), ("b", 1)]


def test_what_is_no_blocks() -> None:
    some = np.zeros(8, np.uint8)
    for a, b, size in ((some, some[:4], 4), (some, some, 3), (some, some, 0), (some[None], some[None], 4)):
        with pytest.raises(MismatchError, match="blocks to compare"):
            mark(a, b, size)
