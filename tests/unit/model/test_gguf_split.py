"""Models in several files: joined in order, refused when the parts do not belong together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bitloss.errors import FileProblem, GgufError, UnsupportedError, UsageError
from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_split import COUNT, NO, TENSORS, open_model, part_path, whole_stem
from bitloss.model.gguf_writer import GgufStream, TensorPlan


def write(folder: Path, parts: list[str], *, count: int | None = None, tensors: int | None = None) -> Path:
    """A model of one-letter tensors, a string of them per part; returns the first part."""
    whole, count = folder / "m.gguf", count or len(parts)
    for index, names in enumerate(parts):
        metadata = {
            "general.architecture": GgufValue(GgufType.STRING, "llama"),
            NO: GgufValue(GgufType.UINT16, index),
            COUNT: GgufValue(GgufType.UINT16, count),
            TENSORS: GgufValue(GgufType.INT32, sum(map(len, parts)) if tensors is None else tensors),
        }
        plans = [TensorPlan(name, (8,), 0) for name in names]
        with GgufStream(part_path(whole, index, count), metadata, plans) as out:
            for name in names:
                out.write(np.full(8, ord(name), np.float32))
    return part_path(whole, 0, count)


def test_parts_are_one_model(tmp_path: Path) -> None:
    first = write(tmp_path, ["ab", "c", "d"])
    file = open_model(first)
    assert first.name == "m-00001-of-00003.gguf"
    assert whole_stem(first) == "m"
    assert list(file.tensors) == list("abcd")
    assert [info.part for info in file.tensors.values()] == [0, 0, 1, 2]
    assert [path.name for path in file.paths] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert file.size == sum(path.stat().st_size for path in file.paths)
    for name in "abcd":
        assert (file.tensor_f32(name) == ord(name)).all()
        file.forget(name)
        assert (file.tensor_f32(name) == ord(name)).all()
    whole = open_model(write(tmp_path, ["abcd"]))
    assert whole.tensors_sha256() == file.tensors_sha256()
    assert whole.paths == (tmp_path / "m-00001-of-00001.gguf",)


def test_a_part_alone_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path, ["ab", "c"])
    with pytest.raises(UnsupportedError, match="one of 2 parts"):
        GgufFile.open(first)
    second = tmp_path / "m-00002-of-00002.gguf"
    with pytest.raises(UsageError, match=r"not the first part.*expected m-00001-of-00002"):
        open_model(second)
    renamed = Path(shutil.copy(first, tmp_path / "other.gguf"))
    with pytest.raises(UsageError, match="not the first part"):
        open_model(renamed)
    second.unlink()
    with pytest.raises(FileProblem, match=r"m-00002-of-00002\.gguf: a part of a split model is missing"):
        open_model(first)


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    first = write(tmp_path, ["ab", "c"])
    shutil.copy(first, tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(GgufError, match=r"split\.no\]: a part of another model: expected 1, found 0"):
        open_model(first)
    with pytest.raises(GgufError, match=r"m-00002-of-00002.gguf\[a\]: duplicate tensor"):
        open_model(write(tmp_path, ["ab", "a"]))
    with pytest.raises(GgufError, match="the parts do not hold all tensors: expected 4, found 3"):
        open_model(write(tmp_path, ["ab", "c"], tensors=4))
    other = tmp_path / "other"
    other.mkdir()
    write(other, ["xyz", "w"])
    first = write(tmp_path, ["ab", "c"])
    shutil.copy(other / "m-00002-of-00002.gguf", tmp_path)
    with pytest.raises(GgufError, match=r"split\.tensors\.count\]: a part of another model"):
        open_model(first)
