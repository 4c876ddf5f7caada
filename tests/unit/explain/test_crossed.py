"""Blocks of crossed files: each class by a file made for it, totals against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tests.unit.explain.models import gguf, normal

from bitloss.errors import MismatchError
from bitloss.explain.crossed import Files, compare_blocks, nothing_differs, sum_blocks
from bitloss.explain.diff import diff
from bitloss.records import Blocks

N = 64
ROWS = (GGMLQuantizationType.Q8_0, (32 * N, 1))
BLOCK = 34


def _file(path: Path, changes: dict[int, int], name: str = "blk.0.ffn_up.weight", norm: int = 0) -> Path:
    """A tensor of N blocks of Q8_0, whose block k has the byte ``changes[k]`` in its middle."""
    data = np.zeros((N, BLOCK), np.uint8)
    for block, value in changes.items():
        data[block, 17] = value
    return gguf(path, {name: data.reshape(-1), "norm": normal(8, seed=norm)}, blocks={name: ROWS})


def _four(folder: Path, *cells: dict[int, int]) -> Files:
    return Files(*(_file(folder / f"{k}.gguf", cell) for k, cell in enumerate(cells)))


def test_each_class_has_its_block(tmp_path: Path) -> None:
    # block 1: weights, 2: imatrix, 3: both (each alone, all four different), 4: only together, 5 and 6: undone
    aa: dict[int, int] = {}
    ba = {1: 9, 3: 1, 5: 1}
    ab = {2: 9, 3: 2, 6: 1}
    bb = {1: 9, 2: 9, 3: 3, 4: 9}
    found = compare_blocks(_four(tmp_path, aa, ba, ab, bb))
    assert found.blocks == Blocks(
        total=N,
        whole=4,
        weights=1,
        imatrix=1,
        both=2,
        undone=2,
        weights_with_a=3,  # 1, 3, 5
        weights_with_b=4,  # 1, 3, 4, 6
        imatrix_with_a=3,  # 2, 3, 6
        imatrix_with_b=4,  # 2, 3, 4, 5
    )
    (tensor,) = found.tensors
    assert (tensor.name, tensor.type, tensor.first) == ("blk.0.ffn_up.weight", "Q8_0", (1, 2, 3, 4))
    assert tensor.first_weights == (1, 3, 4, 5, 6)
    assert tensor.blocks.total == N


def test_the_routes_may_change_places(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = [{k: int(rng.integers(0, 3)) for k in range(N)} for _ in range(4)]
    files = _four(tmp_path, *cells)
    found = compare_blocks(files).blocks
    swapped = compare_blocks(Files(files.bb, files.ab, files.ba, files.aa)).blocks
    assert (found.whole, found.weights, found.imatrix, found.both) == (
        swapped.whole,
        swapped.weights,
        swapped.imatrix,
        swapped.both,
    )
    exchanged = compare_blocks(Files(files.aa, files.ab, files.ba, files.bb)).blocks
    assert (exchanged.weights, exchanged.imatrix) == (found.imatrix, found.weights)
    aa, ba, ab, bb = (np.array([cell[k] for k in range(N)]) for cell in cells)
    assert found.whole == int((aa != bb).sum())
    assert found.weights == int(((aa != bb) & (aa == ab) & (ba == bb)).sum())
    assert found.imatrix == int(((aa != bb) & (aa == ba) & (ab == bb)).sum())
    assert found.undone == int(((aa == bb) & ((aa != ba) | (aa != ab))).sum())


def test_one_flipped_bit_is_one_block(tmp_path: Path) -> None:
    files = _four(tmp_path, {}, {}, {40: 1}, {40: 1})
    found = compare_blocks(files)
    assert found.blocks.whole == found.blocks.imatrix == 1
    assert found.tensors[0].first == (40,)


def test_equal_files_have_no_blocks_that_differ(tmp_path: Path) -> None:
    one = _file(tmp_path / "a.gguf", {3: 3})
    found = compare_blocks(Files(one, one, one, one))
    assert found == nothing_differs(one)
    assert (found.tensors, found.blocks.total, found.values.total) == ((), N, 8)


def test_a_pair_has_the_share_of_blocks_that_diff_gives_it(tmp_path: Path) -> None:
    """The 8 values of the norm are no blocks, whether they differ or not; they are told apart."""
    a, b = _file(tmp_path / "a.gguf", {}), _file(tmp_path / "b.gguf", {3: 1, 9: 7}, norm=1)
    crossed, told = compare_blocks(Files(a, b, a, b)), diff(a, b).total
    assert (crossed.blocks.whole, crossed.blocks.total) == (told.differing_blocks, told.blocks) == (2, N)
    assert crossed.blocks.weights == 2
    assert (crossed.values.whole, crossed.values.weights, crossed.values.total) == (8, 8, 8)
    assert [(each.name, each.unit) for each in crossed.tensors] == [
        ("blk.0.ffn_up.weight", "block"),
        ("norm", "value"),
    ]


@pytest.mark.parametrize("where", [1, 3])
def test_files_of_other_models_are_refused(tmp_path: Path, where: int) -> None:
    files = list(_four(tmp_path, {}, {}, {}, {}))
    files[where] = _file(tmp_path / "other.gguf", {}, name="blk.1.ffn_up.weight")
    with pytest.raises(MismatchError, match="other tensors"):
        compare_blocks(Files(*files))


def test_counts_that_do_not_add_up_are_refused() -> None:
    counts = dict.fromkeys(Blocks.model_fields, 1) | {"total": 9, "whole": 3, "undone": 2}
    doubled = sum_blocks([Blocks.model_validate(counts)] * 2)
    assert doubled.model_dump() == {name: 2 * count for name, count in counts.items()}
    for change in ({"both": 2}, {"total": 4}, {"weights_with_b": 10}):
        with pytest.raises(ValueError, match=r"add up|more blocks"):
            Blocks.model_validate(counts | change)
