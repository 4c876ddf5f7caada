"""Importance matrices: what is written is read again, and the arithmetic is llama.cpp's."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gguf import GGUFReader

from bitloss.errors import FileProblem, ImatrixError, MismatchError, UsageError
from bitloss.imatrix.file import (
    Imatrix,
    ImatrixEntry,
    merge_imatrices,
    quantize_weights,
    read_imatrix,
    with_raw_sums,
    write_imatrix,
    write_legacy_imatrix,
)

if TYPE_CHECKING:
    from pathlib import Path


def entry(sums: list[list[float]], counts: list[float]) -> ImatrixEntry:
    return ImatrixEntry(np.array(sums, dtype=np.float64), np.array(counts, dtype=np.float64))


def small() -> Imatrix:
    return Imatrix(
        entries={
            "blk.1.ffn_down_exps.weight": entry([[1.5, 2.5], [0.0, 0.0], [8.0, 0.25]], [3, 0, 5]),
            "blk.0.attn_q.weight": entry([[0.5, 1.0, 2.0]], [1024]),
        },
        chunk_count=2,
        chunk_size=512,
        datasets=("texts/calibration.txt", "C:\\private\\more.txt"),
    )


def test_gguf_round_trip_keeps_everything_but_folders(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_imatrix(small(), path)
    back = read_imatrix(path)
    assert (back.chunk_count, back.chunk_size, back.is_legacy) == (2, 512, False)
    assert back.datasets == ("calibration.txt", "more.txt")
    assert list(back.entries) == ["blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight"]
    for name, wanted in small().entries.items():
        np.testing.assert_array_equal(back.entries[name].sums, wanted.sums)
        np.testing.assert_array_equal(back.entries[name].counts, wanted.counts)
    assert b"private" not in path.read_bytes()


def test_the_gguf_package_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_imatrix(small(), path)
    reader = GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    assert [t.name for t in reader.tensors] == [
        "blk.0.attn_q.weight.in_sum2",
        "blk.0.attn_q.weight.counts",
        "blk.1.ffn_down_exps.weight.in_sum2",
        "blk.1.ffn_down_exps.weight.counts",
    ]
    assert reader.tensors[2].data.tolist() == [[1.5, 2.5], [0.0, 0.0], [8.0, 0.25]]
    assert reader.tensors[3].data.tolist() == [[3.0], [0.0], [5.0]]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_imatrix(small(), tmp_path / "a.gguf")
    write_imatrix(read_imatrix(tmp_path / "a.gguf"), tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_legacy_file_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    matrix = Imatrix({"w": entry([[6.0, 3.0], [0.0, 9.0]], [3, 0])}, 1, 2, ("x/t.txt",))
    write_legacy_imatrix(matrix, path)
    # ncall = ceil(3 / 2) = 2; used expert: sum / 3 * 2; unused expert: 1 / 1 * 2
    assert path.read_bytes() == (
        struct.pack("<i", 1)
        + struct.pack("<i", 1)
        + b"w"
        + struct.pack("<ii", 2, 4)
        + struct.pack("<4f", 4.0, 2.0, 2.0, 2.0)
        + struct.pack("<ii", 1, 5)
        + b"t.txt"
    )
    back = read_imatrix(path)
    assert back.is_legacy
    assert back.datasets == ("t.txt",)
    assert back.entries["w"].counts.tolist() == [2.0]
    assert quantize_weights(back)["w"].tolist() == [2.0, 1.0, 1.0, 1.0]


def test_legacy_without_its_optional_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    head = struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 0, 1, 7.0)
    path.write_bytes(head)
    back = read_imatrix(path)
    assert (back.chunk_count, back.datasets) == (0, ())
    assert quantize_weights(back)["w"].tolist() == [7.0]
    path.write_bytes(head + struct.pack("<i", 9))
    assert read_imatrix(path).chunk_count == 9


def test_a_weight_without_counts_is_left_out_of_a_legacy_file(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    write_legacy_imatrix(Imatrix({"a": entry([[0.0]], [0]), "b": entry([[4.0]], [2])}, 1, 2), path)
    assert list(read_imatrix(path).entries) == ["b"]


def test_weights_are_means_in_float32() -> None:
    third = quantize_weights(Imatrix({"w": entry([[1.0, 2.0], [5.0, 5.0]], [3, 0])}, 1, 1))["w"]
    assert third.dtype == np.float32
    assert third.tolist() == [np.float32(1) / np.float32(3), np.float32(2) / np.float32(3), 1.0, 1.0]


def test_matrices_of_a_dense_tensor_share_a_count(tmp_path: Path) -> None:
    matrix = Imatrix({"w": entry([[2.0, 4.0], [6.0, 8.0]], [2])}, 1, 2)
    assert quantize_weights(matrix)["w"].tolist() == [1.0, 2.0, 3.0, 4.0]
    write_imatrix(matrix, tmp_path / "a.gguf")
    assert read_imatrix(tmp_path / "a.gguf").entries["w"].sums.tolist() == [[2.0, 4.0, 6.0, 8.0]]


def test_raw_sums_of_a_legacy_matrix() -> None:
    legacy = Imatrix({"w": entry([[1.5, 3.0]], [2])}, 4, 0, ("t",), is_legacy=True)
    raw = with_raw_sums(legacy, chunk_size=100)
    assert raw.entries["w"].sums.tolist() == [[150.0, 300.0]]
    assert raw.entries["w"].counts.tolist() == [200.0]
    assert (raw.chunk_size, raw.is_legacy) == (100, False)
    assert with_raw_sums(raw) is raw


def test_merge_adds_and_counts_chunks() -> None:
    a = Imatrix({"v": entry([[1.0]], [512]), "w": entry([[1.0, 2.0]], [512])}, 1, 512, ("a",))
    b = Imatrix({"w": entry([[0.5, 0.5]], [1024])}, 2, 512, ("b",))
    merged = merge_imatrices([a, b])
    assert merged.entries["v"].sums.tolist() == [[1.0]]
    assert merged.entries["w"].sums.tolist() == [[1.5, 2.5]]
    assert merged.entries["w"].counts.tolist() == [1536.0]
    assert (merged.chunk_count, merged.chunk_size, merged.datasets) == (3, 512, ("a", "b"))
    assert a.entries["w"].sums.tolist() == [[1.0, 2.0]]


def test_merge_spreads_one_count_over_experts() -> None:
    flat = Imatrix({"w": entry([[1.0, 2.0, 3.0, 4.0]], [10])}, 1, 10)
    experts = Imatrix({"w": entry([[1.0, 1.0], [1.0, 1.0]], [3, 4])}, 1, 10)
    for order in ([flat, experts], [experts, flat]):
        merged = merge_imatrices(order).entries["w"]
        assert merged.sums.tolist() == [[2.0, 3.0], [4.0, 5.0]]
        assert merged.counts.tolist() == [13.0, 14.0]


def test_merge_names_what_does_not_fit() -> None:
    a = Imatrix({"w": entry([[1.0, 2.0]], [1])}, 1, 512)
    with pytest.raises(MismatchError, match=r"matrix 2\[w\].*expected 2 sums, 1 counts, found 3 sums"):
        merge_imatrices([a, Imatrix({"w": entry([[1.0, 2.0, 3.0]], [1])}, 1, 512)])
    with pytest.raises(MismatchError, match=r"different chunk sizes: found \[256, 512\]"):
        merge_imatrices([a, Imatrix({"w": entry([[1.0, 2.0]], [1])}, 1, 256)])
    with pytest.raises(UsageError, match="nothing to merge"):
        merge_imatrices([])
    with pytest.raises(UsageError, match="impossible chunk size"):
        merge_imatrices([a], chunk_size=0)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    legacy = Imatrix({"w": entry([[1.0]], [1])}, 1, 0, is_legacy=True)
    for matrix, kind, words in [
        (legacy, UsageError, "with_raw_sums"),
        (Imatrix({}, 0, 512), UsageError, "empty"),
        (Imatrix({"w" * 60: entry([[1.0]], [1])}, 1, 512), ImatrixError, "too long"),
        (Imatrix({"w": entry([[1e39]], [1])}, 1, 512), ImatrixError, "not finite in float32"),
        (Imatrix({"w": entry([[1.0]], [1])}, 2**31, 512), ImatrixError, "impossible chunk count"),
    ]:
        with pytest.raises(kind, match=words):
            write_imatrix(matrix, path)
    with pytest.raises(UsageError, match="chunk size"):
        write_legacy_imatrix(Imatrix({"w": entry([[1.0]], [1])}, 1, 0), path)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such file"):
        read_imatrix(tmp_path / "none.gguf")
    with pytest.raises(FileProblem, match="not a file"):
        read_imatrix(tmp_path)
