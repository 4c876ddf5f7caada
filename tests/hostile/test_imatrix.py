"""Damaged importance matrices end in one clear line, whatever is damaged."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bitloss.errors import BitlossError, ImatrixError
from bitloss.imatrix.file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix, write_legacy_imatrix
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan
from bitloss.model.random_model import random_gguf

if TYPE_CHECKING:
    from pathlib import Path


def small() -> Imatrix:
    rng = np.random.default_rng(0)
    return Imatrix(
        {
            "blk.0.a.weight": ImatrixEntry(rng.random((1, 5)), np.array([64.0])),
            "blk.0.b.weight": ImatrixEntry(rng.random((2, 3)), np.array([40.0, 24.0])),
        },
        2,
        32,
        ("text.txt",),
    )


def read_or_refuse(path: Path, content: bytes) -> Imatrix | None:
    path.write_bytes(content)
    try:
        return read_imatrix(path)
    except BitlossError as error:
        line = str(error)
    assert str(path) in line
    assert "\n" not in line
    return None


def test_gguf_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write_imatrix(small(), tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    last_value = len(whole.rstrip(b"\0"))  # only padding follows
    for size in range(len(whole)):
        back = read_or_refuse(tmp_path / "cut.gguf", whole[:size])
        assert back is None or size >= last_value, size


def test_legacy_cut_anywhere_but_before_its_tail_is_refused(tmp_path: Path) -> None:
    write_legacy_imatrix(small(), tmp_path / "whole.dat")
    whole = (tmp_path / "whole.dat").read_bytes()
    tail = 8 + len("text.txt")
    good = {size for size in range(len(whole)) if read_or_refuse(tmp_path / "cut.dat", whole[:size])}
    # Whole entries without a tail are a file of early versions; so is a chunk count without a dataset.
    assert good == {len(whole) - tail, len(whole) - tail + 4}


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_flipped_bits_give_a_value_or_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"whole.{suffix}"
    (write_imatrix if suffix == "gguf" else write_legacy_imatrix)(small(), path)
    whole = path.read_bytes()
    # Two bits of every byte, the sign and exponent bits of floats and the high bits of lengths among them.
    for place in (8 * byte + bit for byte in range(len(whole)) for bit in (byte % 7, 7)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        back = read_or_refuse(path, bytes(flipped))
        if back is not None:
            for entry in back.entries.values():
                assert np.isfinite(entry.sums).all()
                assert (entry.sums >= 0).all()
                assert (entry.counts >= 0).all()


def test_random_bytes(tmp_path: Path) -> None:
    rng = random.Random(1)
    for start in (b"", b"GGUF", b"GGUF\3\0\0\0", struct.pack("<ii", 1, 1) + b"w"):
        for size in range(0, 120, 3):
            read_or_refuse(tmp_path / "noise", start + rng.randbytes(size))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it ends inside number of entries: expected at least 4 bytes, found 0 bytes"),
        (struct.pack("<i", 0), "impossible number of entries: expected at least 1, found 0"),
        (struct.pack("<i", 2**31 - 1) + bytes(64), "more entries than the file can hold"),
        (struct.pack("<ii", 1, 2**31 - 1) + bytes(64), "it ends inside the name.*Copy or fetch it again, if"),
        (struct.pack("<ii", 1, -1) + bytes(64), "impossible length of the name"),
        (struct.pack("<ii", 1, 1) + b"\xff" + bytes(16), "not UTF-8"),
        (struct.pack("<ii", 1, 2) + b"a\0" + struct.pack("<iif", 1, 1, 1.0), "zero byte"),
        (struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, 2**29) + bytes(64), "inside the values"),
        (struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 1, 1, float("nan")), "impossible sum.*nan"),
        (struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 1, 1, -1.0), "impossible sum"),
        (struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", -1, 1, 1.0), "impossible number of calls"),
        (
            struct.pack("<i", 2) + 2 * (struct.pack("<i", 1) + b"w" + struct.pack("<iif", 1, 1, 1.0)),
            "duplicate",
        ),
        (struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iifiii", 1, 1, 1.0, 1, 0, 7), "bytes after the end"),
    ],
)
def test_each_legacy_fault_has_its_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "evil.dat"
    path.write_bytes(content)
    with pytest.raises(ImatrixError, match=words):
        read_imatrix(path)


KEYS = {
    "general.architecture": GgufValue(GgufType.STRING, "imatrix"),
    "general.type": GgufValue(GgufType.STRING, "imatrix"),
    "imatrix.datasets": GgufValue(GgufType.ARRAY, ["a.txt"], GgufType.STRING),
    "imatrix.chunk_count": GgufValue(GgufType.UINT32, 1),
    "imatrix.chunk_size": GgufValue(GgufType.UINT32, 512),
}
Tensors = list[tuple[str, tuple[int, ...], int, list[float]]]
GOOD: Tensors = [("w.in_sum2", (2, 1), 0, [1.0, 2.0]), ("w.counts", (1, 1), 0, [3.0])]


def gguf(path: Path, keys: dict[str, GgufValue], tensors: Tensors) -> Path:
    plans = [TensorPlan(name, shape, kind) for name, shape, kind, _ in tensors]
    with GgufStream(path, keys, plans) as out:
        for _, _, kind, values in tensors:
            out.write(np.array(values, dtype=np.float32 if kind == 0 else np.float16))
    return path


def test_the_good_file_of_the_cases_below_is_read(tmp_path: Path) -> None:
    assert read_imatrix(gguf(tmp_path / "a.gguf", KEYS, GOOD)).entries["w"].sums.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("key", ["imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"])
def test_missing_and_mistyped_keys(tmp_path: Path, key: str) -> None:
    keys = {k: v for k, v in KEYS.items() if k != key}
    where = key.replace(".", r"\.")
    words = (
        "not an importance matrix" if key == "imatrix.datasets" else rf"\[{where}\]: metadata key is missing"
    )
    with pytest.raises(ImatrixError, match=words):
        read_imatrix(gguf(tmp_path / "a.gguf", keys, GOOD))
    with pytest.raises(ImatrixError, match=rf"\[{where}\]: wrong value type"):
        read_imatrix(gguf(tmp_path / "b.gguf", {**KEYS, key: GgufValue(GgufType.FLOAT32, 1.0)}, GOOD))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([], "no entries"),
        ([("other", (1, 1), 0, [1.0])], "no entries"),
        (GOOD[:1], r"\[w\]: no \.counts tensor"),
        (GOOD[1:], r"\[w\]: no \.in_sum2 tensor"),
        ([("w.in_sum2", (2, 1), 1, [1.0, 2.0]), GOOD[1]], "wrong type: expected F32, found F16"),
        ([GOOD[0], ("w.counts", (2, 1), 0, [1.0, 2.0])], r"counts do not fit the sums: expected \[1, 1\]"),
        ([("w.in_sum2", (1, 1, 2), 0, [1.0, 2.0]), GOOD[1]], "wrong shape"),
        ([GOOD[0], ("w.counts", (1, 1), 0, [float("inf")])], "impossible count"),
        ([GOOD[0], ("w.counts", (1, 1), 0, [-1.0])], "impossible count"),
        ([GOOD[0], ("w.counts", (1, 1), 0, [1e30])], "impossible count"),
        ([("w.in_sum2", (2, 1), 0, [1.0, float("nan")]), GOOD[1]], r"\[w\]: impossible sum.*nan at index 1"),
    ],
)
def test_each_gguf_fault_has_its_name(tmp_path: Path, tensors: Tensors, words: str) -> None:
    with pytest.raises(ImatrixError, match=words):
        read_imatrix(gguf(tmp_path / "a.gguf", KEYS, tensors))


def test_a_model_is_not_an_importance_matrix(tmp_path: Path) -> None:
    with pytest.raises(ImatrixError, match=r"not an importance matrix: found general\.type 'model'"):
        read_imatrix(random_gguf(tmp_path / "model.gguf"))
