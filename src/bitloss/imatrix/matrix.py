"""Importance matrices in memory: what they hold, merging, and the weights the quantizer is given.

For each weight tensor and each of its input columns an importance matrix holds the sum of squared activations
over a calibration text, and how many tokens that sum counts. Sums are added in float64 and stored as float32.

Follows llama.cpp's `tools/imatrix` and `tools/quantize`, to the bit for merging two files and for the
weights. Merging three or more files may differ from llama-imatrix in the last bit: it rounds to float32 after
each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitloss.errors import ImatrixError, MismatchError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

DEFAULT_CHUNK_SIZE = 512  # llama-imatrix's

I32_MAX = 2**31 - 1
_MAX_COUNT = 2.0**53


@dataclass(frozen=True, slots=True, eq=False)
class ImatrixEntry:
    """What is known about the inputs of one weight tensor.

    Attributes:
        sums: float64 [n_mat, n_in], sums of squared activations (legacy: their mean times ncall, one long
            row).
        counts: float64 [n_mat], whole numbers: tokens summed over, per expert. [1] when one count holds for
            all matrices, as for every dense tensor (legacy: ncall).
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        assert self.sums.ndim == 2
        assert self.sums.size > 0
        assert self.counts.ndim == 1
        assert self.counts.size in {1, self.sums.shape[0]}

    def stored_sums(self) -> npt.NDArray[np.float64]:
        """Return the sums as files hold them: a row per count, so one for all matrices of a dense tensor."""
        return self.sums.reshape(self.counts.size, -1)


@dataclass(frozen=True, slots=True, eq=False)
class Imatrix:
    """An importance matrix.

    Attributes:
        entries: weight tensor name -> its sums and counts.
        chunk_count: chunks of text it was collected on.
        chunk_size: tokens in a chunk; 0 when read from a legacy file.
        datasets: names of the calibration texts, as the file gives them.
        is_legacy: read from a .dat file, so `sums` are means times ncall; `with_raw_sums` undoes that.
    """

    entries: Mapping[str, ImatrixEntry]
    chunk_count: int
    chunk_size: int
    datasets: tuple[str, ...] = field(default=())
    is_legacy: bool = False


def with_raw_sums(imatrix: Imatrix, *, chunk_size: int = DEFAULT_CHUNK_SIZE) -> Imatrix:
    """Return a legacy matrix as sums and token counts, as llama-imatrix does: both times the chunk size.

    The token counts of a legacy file are rounded up to whole chunks; that cannot be undone. A matrix that is
    not legacy is returned as it is.
    """
    if not imatrix.is_legacy:
        return imatrix
    entries = {
        name: ImatrixEntry(
            (entry.sums.astype(np.float32) * np.float32(chunk_size)).astype(np.float64),
            entry.counts * chunk_size,
        )
        for name, entry in imatrix.entries.items()
    }
    return Imatrix(entries, imatrix.chunk_count, chunk_size, imatrix.datasets)


def merge_imatrices(imatrices: Sequence[Imatrix], *, chunk_size: int | None = None) -> Imatrix:
    """Add sums and counts, as `llama-imatrix --in-file A --in-file B` does.

    An entry with one count meets one with a count per expert when the sums have the same size: the one count
    holds for each expert. Weights of any of the matrices are in the result; datasets are listed one after the
    other. `chunk_count` is the largest count divided by the chunk size.

    Args:
        imatrices: at least one; legacy ones are converted with the chunk size.
        chunk_size: of the result; None takes that of the matrices (512 when all are legacy).

    Raises:
        UsageError: nothing to merge, or a chunk size below 1.
        MismatchError: a weight's sums differ in size, or the chunk sizes differ and none is given.
    """
    if not imatrices:
        raise UsageError("nothing to merge", expected="at least one importance matrix")
    size = chunk_size if chunk_size is not None else _common_chunk_size(imatrices)
    if size < 1:
        raise UsageError("impossible chunk size", expected="at least 1", found=size)
    merged: dict[str, ImatrixEntry] = {}
    for index, imatrix in enumerate(imatrices):
        for name, entry in with_raw_sums(imatrix, chunk_size=size).entries.items():
            merged[name] = (
                _added(merged[name], entry, f"matrix {index + 1}[{name}]") if name in merged else entry
            )
    largest = max((int(entry.counts.max()) for entry in merged.values()), default=0)
    datasets = tuple(text for imatrix in imatrices for text in imatrix.datasets)
    return Imatrix(merged, largest // size, size, datasets)


def quantize_weights(imatrix: Imatrix) -> dict[str, npt.NDArray[np.float32]]:
    """Return what llama-quantize hands to the quantizer: name -> float32 [n_mat * n_in].

    In float32, as llama-quantize computes it: sums / count, 1 for an expert that was never used; legacy:
    values / ncall, or the values themselves where ncall is 0.

    Raises:
        ImatrixError: a sum float32 cannot hold.
    """
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for name, entry in imatrix.entries.items():
        sums = as_float32(name, entry.stored_sums())
        counts = entry.counts.astype(np.float32)[:, np.newaxis]
        used = counts > 0
        mean = sums / np.where(used, counts, np.float32(1))
        chosen = mean if imatrix.is_legacy else np.where(used, mean, np.float32(1))
        weights[name] = chosen.astype(np.float32, copy=False).ravel()
    return weights


def file_name(text: str) -> str:
    """Return the last part of a path of either style ("texts/wiki.txt" -> "wiki.txt")."""
    parts = [part for part in re.split(r"[/\\]", text) if part]
    return parts[-1] if parts else text


def checked_entry(where: str, sums: npt.NDArray[Any], counts: npt.NDArray[Any]) -> ImatrixEntry:
    """Widen sums [n_mat, n_in] and counts [n_mat] from a file; `ImatrixError` if one is impossible."""
    for what, values in (("sum", sums), ("count", counts)):
        good = np.isfinite(values) & (values >= 0)
        if not good.all():
            bad = int(np.flatnonzero(~good.ravel())[0])
            found = f"{float(values.ravel()[bad])} at index {bad}"
            raise ImatrixError(
                f"impossible {what}",
                where=where,
                expected="a finite number from 0 up",
                found=found,
                mend="compute the matrix again: activations overflowed, or the file is damaged",
            )
    # llama.cpp's lround: halves away from zero.
    whole = np.floor(counts.astype(np.float64) + 0.5)
    if whole.max() > _MAX_COUNT:
        raise ImatrixError("impossible count", where=where, expected="at most 2^53", found=float(whole.max()))
    return ImatrixEntry(sums.astype(np.float64), whole)


def sorted_entries(imatrix: Imatrix, path: Path) -> list[tuple[str, ImatrixEntry]]:
    """Return what a file shall hold in std::string order, that of the UTF-8 bytes.

    Raises:
        UsageError: there is nothing to write.
        ImatrixError: a chunk number that files cannot hold.
    """
    for what, value in (("chunk count", imatrix.chunk_count), ("chunk size", imatrix.chunk_size)):
        if not 0 <= value <= I32_MAX:
            raise ImatrixError(f"impossible {what}", where=path, expected=f"0 to {I32_MAX}", found=value)
    if not any(imatrix.is_legacy or entry.counts.any() for entry in imatrix.entries.values()):
        raise UsageError(
            "the importance matrix is empty", where=path, expected="at least one weight with a count"
        )
    return sorted(imatrix.entries.items(), key=lambda item: item[0].encode())


def as_float32(where: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Round to float32, contiguous, little-endian; `ImatrixError` if a value overflows."""
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values, dtype="<f4")
    if not np.isfinite(rounded).all():
        raise ImatrixError("a value is not finite in float32", where=where, found=float(np.max(values)))
    return rounded


def _common_chunk_size(imatrices: Sequence[Imatrix]) -> int:
    sizes = sorted(
        {imatrix.chunk_size for imatrix in imatrices if not imatrix.is_legacy and imatrix.chunk_size > 0}
    )
    if len(sizes) > 1:
        raise MismatchError(
            "importance matrices with different chunk sizes", found=sizes, mend="name the chunk size"
        )
    return sizes[0] if sizes else DEFAULT_CHUNK_SIZE


def _added(a: ImatrixEntry, b: ImatrixEntry, where: str) -> ImatrixEntry:
    n_counts = max(a.counts.size, b.counts.size)
    if a.sums.size != b.sums.size or not {a.counts.size, b.counts.size} <= {1, n_counts}:
        raise MismatchError(
            "importance matrices of different models",
            where=where,
            expected=f"{a.sums.size} sums, {a.counts.size} counts",
            found=f"{b.sums.size} sums, {b.counts.size} counts",
        )
    shape = (n_counts, a.sums.size // n_counts)
    return ImatrixEntry(
        a.sums.reshape(shape) + b.sums.reshape(shape), np.zeros(n_counts) + a.counts + b.counts
    )
