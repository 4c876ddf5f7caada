"""Importance matrices, collected in one pass of the engine.

For every weight matrix of a layer: per input column the sum of squared activations over a calibration text, and how
many rows were summed. Sums are float64 (llama-imatrix sums in float32, whose last digits depend on the order of rows).

Formula: ``in_sum2[m, j] = sum over rows r that matrix m multiplied of x[r, j]^2``; ``counts[m]`` = number of such rows.
For a dense tensor m = 0 and all rows count; for experts a row counts for the experts it is routed to.

Source: IMatrixCollector::collect_imatrix in tools/imatrix/imatrix.cpp, whose rules are followed: tensors named
``blk.*`` in a plain product of at least 16 rows with F32 activations, and every product by chosen experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitloss import _native
from bitloss.engine.base import Engine, Outputs
from bitloss.engine.finite import CAUSES
from bitloss.errors import EngineError
from bitloss.imatrix.file import Imatrix, ImatrixEntry
from bitloss.model.text import Chunks
from bitloss.progress import Progress, ProgressCallback, silent


@dataclass(slots=True)
class Collector:
    """An `bitloss.engine.base.Observer` that sums squares.

    Attributes:
        sums: weight name -> float64 [n_mat, n_in].
        counts: weight name -> float64 [n_mat].
    """

    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def wants(self, weight: str) -> bool:
        """Weights of layers; embeddings and the output get no importance in llama.cpp."""
        return weight.startswith("blk.")

    def dense(self, weight: str, x: NDArray[np.float32]) -> None:
        """Add the rows of each matrix: float32 [n_mat, rows, n_in]."""
        n_mat, rows, n_in = x.shape
        sums, counts = self._entry(weight, n_mat, n_in, dense=True)
        for m in range(n_mat):
            _native.add_squares(sums[m], np.ascontiguousarray(x[m]))
        counts += rows

    def experts(self, weight: str, n_expert: int, x: NDArray[np.float32], ids: NDArray[np.int32]) -> None:
        """Add each row to the expert it was routed to: float32 [rows, n_in], int32 [rows]."""
        sums, counts = self._entry(weight, n_expert, x.shape[1], dense=False)
        if ids.size and (ids.min() < 0 or ids.max() >= n_expert):
            raise EngineError(
                "expert number out of range",
                where=weight,
                expected=f"0..{n_expert - 1}",
                found=int(ids.min() if ids.min() < 0 else ids.max()),
            )
        _native.add_squares_rows(sums, np.ascontiguousarray(x), np.ascontiguousarray(ids, np.int32))
        counts += np.bincount(ids, minlength=n_expert)

    def rows(self) -> int:
        """Rows seen by the matrix that saw most: all positions computed so far."""
        return int(max((counts.max() for counts in self.counts.values()), default=0))

    def copy(self) -> Collector:
        """What was summed so far, to be kept."""
        return Collector(
            {name: sums.copy() for name, sums in self.sums.items()},
            {name: counts.copy() for name, counts in self.counts.items()},
        )

    def _entry(
        self, weight: str, n_mat: int, n_in: int, *, dense: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if weight not in self.sums:
            self.sums[weight] = np.zeros((n_mat, n_in))
            # llama.cpp keeps a single count for a dense tensor, whatever its number of matrices
            self.counts[weight] = np.zeros(1 if dense else n_mat)
        sums = self.sums[weight]
        if sums.shape != (n_mat, n_in):
            raise EngineError(
                "inputs of changing shape", where=weight, expected=sums.shape, found=(n_mat, n_in)
            )
        return sums, self.counts[weight]


class Collected(NamedTuple):
    """What one pass over a calibration text gave.

    Attributes:
        imatrix: of the whole text.
        halves: of its first and of its second half, from the same pass; None where the engine computed all of the text
            at once, or where something was seen in one half only.
    """

    imatrix: Imatrix
    halves: tuple[Imatrix, Imatrix] | None


def collect_imatrix(
    engine: Engine, chunks: Chunks, *, dataset: str, progress: ProgressCallback = silent
) -> Imatrix:
    """Run a calibration text through the engine and sum; see `collect_halves`."""
    return collect_halves(engine, chunks, dataset=dataset, progress=progress).imatrix


def collect_halves(
    engine: Engine, chunks: Chunks, *, dataset: str, progress: ProgressCallback = silent
) -> Collected:
    """Run a calibration text through the engine and sum, and keep what the sums were halfway.

    The first half ends where the chunks computed side by side are complete that reach half of the text: the beginnings
    of chunks are unlike their ends, so none may be cut.

    Args:
        engine: holds the source model.
        chunks: the calibration text.
        dataset: name of the text, kept in the file (a name, not a path).
        progress: told after every chunk.

    Raises:
        EngineError: the engine failed, or an activation was not finite (the tensor is named).
    """
    collector = Collector()
    halfway: Collector | None = None
    tokens = chunks.as_computed()
    for rows in engine.evaluate(tokens, Outputs.NOTHING, collector):
        _check_finite(collector)
        complete = collector.rows() == (rows.chunk + 1) * chunks.n_ctx
        if halfway is None and complete and 2 * (rows.chunk + 1) >= len(tokens):
            halfway = collector.copy()
        progress(Progress("imatrix", rows.chunk + 1, len(tokens), "chunks"))
    if not collector.sums:
        raise EngineError(
            "no weight of a layer was seen",
            where="imatrix",
            mend="products of fewer than 16 rows are left out, as in llama-imatrix: give a larger "
            "--ubatch-size, or a longer text",
        )
    return Collected(_imatrix(collector, chunks, dataset), _halves(collector, halfway, chunks, dataset))


def _imatrix(collector: Collector, chunks: Chunks, dataset: str) -> Imatrix:
    return Imatrix(
        entries={
            name: ImatrixEntry(sums=collector.sums[name], counts=collector.counts[name])
            for name in sorted(collector.sums)
        },
        chunk_count=chunks.n_chunks,
        chunk_size=chunks.n_ctx,
        datasets=(dataset,),
        is_legacy=False,
    )


def _halves(
    whole: Collector, first: Collector | None, chunks: Chunks, dataset: str
) -> tuple[Imatrix, Imatrix] | None:
    if first is None or first.sums.keys() != whole.sums.keys():
        return None
    second = Collector(
        # sums of squares only grow, but a difference of sums may lose its last bits
        {name: np.maximum(sums - first.sums[name], 0.0) for name, sums in whole.sums.items()},
        {name: counts - first.counts[name] for name, counts in whole.counts.items()},
    )
    if not all(counts.any() for counts in second.counts.values()):
        return None
    return _imatrix(first, chunks, dataset), _imatrix(second, chunks, dataset)


def _check_finite(collector: Collector) -> None:
    for name, sums in collector.sums.items():
        if not np.isfinite(sums).all():
            column = int(np.argwhere(~np.isfinite(sums))[0][1])
            raise EngineError(
                f"activations are not finite at column {column}",
                where=name,
                mend=f"nothing can be learned of this model: {CAUSES}",
            )
