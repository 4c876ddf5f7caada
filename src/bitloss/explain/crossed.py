"""Which blocks differ when weights and importance matrix are crossed, and through what.

Four files of one type: weights from a or b, importance matrix of a or b. Block by block, by its bytes, write f(w, i).
A block differs between the two routes when f(a, a) ≠ f(b, b). Of those

* ``weights``: f(a, a) = f(a, b) and f(b, a) = f(b, b): whichever the matrix, only the weights matter;
* ``imatrix``: f(a, a) = f(b, a) and f(a, b) = f(b, b): only the matrix does;
* ``both``: all others.

The three exclude each other and add up to all that differ; nothing changes when a and b change places. ``undone``
counts blocks that are equal in the two files, f(a, a) = f(b, b), though f(b, a) or f(a, b) is not.

The four single changes are counted by themselves as well: ``weights_with_a`` is f(a, a) ≠ f(b, a), and so on.

A block is one of the tensor's type (256 weights of Q4_K, 32 of Q8_0). Tensors that are not quantized have none: their
values are counted in the same way, apart from the blocks. So a pair of files has the share of blocks that
`bitloss.explain.diff` gives it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitloss.errors import MismatchError
from bitloss.explain.blocks import block_bytes, block_marks, quantized
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import open_model
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.records.cross import Blocks, CrossedTensor

_FIRST = 8

Marks = npt.NDArray[np.bool_]


class Files(NamedTuple):
    """The four files: weights' source first, importance matrix's source second. Equal ones may be named by one path."""

    aa: Path
    ba: Path
    ab: Path
    bb: Path


class Found(NamedTuple):
    """Blocks of all tensors together, values of those without blocks, and the tensors in which anything differs."""

    blocks: Blocks
    values: Blocks
    tensors: tuple[CrossedTensor, ...]


def compare_blocks(files: Files, progress: ProgressCallback = silent) -> Found:
    """Compare four files block by block; see the module.

    Args:
        files: of one source model and type.
        progress: told after every tensor.

    Raises:
        MismatchError: the files do not have the same tensors, of the same types and shapes.
        FileProblem, GgufError, UnsupportedError: a file cannot be read.
    """
    opened = {path: open_model(path) for path in dict.fromkeys(files)}
    cells = [opened[path] for path in files]
    names = list(cells[0].tensors)
    tensors: list[CrossedTensor] = []
    for done, name in enumerate(names):
        tensors.append(_tensor(cells, name))
        for file in opened.values():
            file.forget(name)
        progress(Progress("compare blocks", done + 1, len(names), "tensors"))
    for cell in cells[1:]:
        if more := [name for name in cell.tensors if name not in cells[0].tensors]:
            raise MismatchError("files of a cross with other tensors", where=cell.path, found=more[0])
    differing = tuple(each for each in tensors if each.blocks.whole or each.blocks.undone)
    in_blocks = {name for name in names if quantized(cells[0].info(name))}
    return Found(
        sum_blocks(each.blocks for each in tensors if each.name in in_blocks),
        sum_blocks(each.blocks for each in tensors if each.name not in in_blocks),
        differing,
    )


def sum_blocks(parts: Iterable[Blocks]) -> Blocks:
    """Add counts."""
    every = list(parts)
    return Blocks(**{name: sum(getattr(each, name) for each in every) for name in Blocks.model_fields})


def nothing_differs(file: Path) -> Found:
    """What four files with equal tensors come to: all blocks and values, none that differs."""
    totals = {True: 0, False: 0}
    for info in open_model(file).tensors.values():
        totals[quantized(info)] += info.n_bytes // block_bytes(info)
    none = dict.fromkeys(Blocks.model_fields, 0)
    blocks, values = (Blocks.model_validate(none | {"total": totals[which]}) for which in (True, False))
    return Found(blocks, values, ())


def _tensor(cells: list[GgufFile], name: str) -> CrossedTensor:
    info = cells[0].info(name)
    for cell in cells[1:]:
        other = cell.tensors.get(name)
        if other is None or (other.ggml_type, other.shape) != (info.ggml_type, info.shape):
            raise MismatchError(
                "files of a cross with other tensors",
                where=f"{cell.path}[{name}]",
                expected=f"{info.type_name} {list(info.shape)}",
                found=f"{other.type_name} {list(other.shape)}" if other else "none",
            )
    classes = _classes(cells, name)
    blocks = Blocks(
        total=len(classes.whole), **{key: int(marks.sum()) for key, marks in classes._asdict().items()}
    )
    return CrossedTensor(
        name=name,
        type=info.type_name,
        blocks=blocks,
        first=_first(classes.whole),
        first_weights=_first(classes.weights_with_a | classes.weights_with_b),
    )


def _first(marks: Marks) -> tuple[int, ...]:
    return tuple(int(index) for index in np.flatnonzero(marks)[:_FIRST])


class _Classes(NamedTuple):
    whole: Marks
    weights: Marks
    imatrix: Marks
    both: Marks
    undone: Marks
    weights_with_a: Marks
    weights_with_b: Marks
    imatrix_with_a: Marks
    imatrix_with_b: Marks


def _classes(cells: list[GgufFile], name: str) -> _Classes:
    """What each block of a tensor is; see the module."""
    aa, ba, ab, bb = cells

    def differ(one: GgufFile, other: GgufFile) -> Marks:
        same = one.path == other.path
        return np.zeros(info.n_bytes // block_bytes(info), bool) if same else block_marks(one, other, name)

    info = aa.info(name)
    whole = differ(aa, bb)
    weights_at_a, weights_at_b = differ(aa, ba), differ(ab, bb)
    imatrix_at_a, imatrix_at_b = differ(aa, ab), differ(ba, bb)
    weights = whole & ~imatrix_at_a & ~imatrix_at_b
    imatrix = whole & ~weights_at_a & ~weights_at_b
    undone = ~whole & (weights_at_a | imatrix_at_a)
    both = whole & ~weights & ~imatrix
    alone = (weights_at_a, weights_at_b, imatrix_at_a, imatrix_at_b)
    return _Classes(whole, weights, imatrix, both, undone, *alone)
