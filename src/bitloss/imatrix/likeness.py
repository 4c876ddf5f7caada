"""How alike two importance matrices are, column by column.

For each weight matrix (an expert is one by itself) and each of its input columns let a and b be the mean squares
``in_sum2 / counts`` of the two. Compared are columns where both are above 0; the others are counted as left out, and so
are experts that one of the texts never reached.

* ``correlation``: Pearson's, of a and b over the columns of one weight. Lowest and median over the weights; a weight
  whose columns are all alike has none.
* ``largest_ratio``: of any column, the larger over the smaller.
* ``spread``: sqrt(mean over all columns of ln(a/b)²): 0.01 is a typical difference of 1 %.

The quantizer only uses ratios of columns within a row of weights, so a common factor of a whole weight would change
nothing; it is not taken out here, because texts of one model do not give one.

Sampling noise of the text: the halves of a calibration text, compared like this, differ by the noise of two texts of
half the length. Two texts of the full length would differ by about 1/sqrt(2) of that: variances go with 1/length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitloss.errors import MismatchError
from bitloss.records.cross import Likeness

if TYPE_CHECKING:
    import numpy.typing as npt

    from bitloss.imatrix.matrix import Imatrix, ImatrixEntry

    Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Found:
    """What was seen so far; ``largest`` is the logarithm of a ratio."""

    columns: int = 0
    left_out: int = 0
    squares: float = 0.0
    largest: float = -1.0
    largest_at: str | None = None


def likeness(a: Imatrix, b: Imatrix) -> Likeness:
    """Compare two importance matrices of one model; see the module.

    Raises:
        MismatchError: they are of different weights, or of weights of another shape.
    """
    if other := sorted(a.entries.keys() ^ b.entries.keys()):
        raise MismatchError("importance matrices of different weights", where=other[0])
    found = _Found()
    correlations: dict[str, float] = {}
    for name in sorted(a.entries):
        one, two = _mean_squares(a.entries[name]), _mean_squares(b.entries[name])
        if one.shape != two.shape:
            raise MismatchError(
                "importance matrices of different weights", where=name, expected=one.shape, found=two.shape
            )
        for expert, (x, y) in enumerate(zip(one, two, strict=True)):
            label = name if len(one) == 1 else f"{name}[{expert}]"
            correlation = _compare(found, label, x, y)
            if correlation is not None:
                correlations[label] = correlation
    lowest = min(correlations, key=lambda name: correlations[name]) if correlations else None
    return Likeness(
        columns=found.columns,
        left_out=found.left_out,
        correlation_lowest=correlations[lowest] if lowest else None,
        correlation_lowest_at=lowest,
        correlation_median=float(np.median(list(correlations.values()))) if correlations else None,
        largest_ratio=float(np.exp(found.largest)) if found.columns else None,
        largest_ratio_at=found.largest_at,
        spread=(found.squares / found.columns) ** 0.5 if found.columns else None,
    )


def _mean_squares(entry: ImatrixEntry) -> Floats:
    """[n_mat, n_in], 0 for an expert that was never used."""
    sums = entry.stored_sums()
    counts = entry.counts[:, np.newaxis]
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)


def _compare(found: _Found, label: str, a: Floats, b: Floats) -> float | None:
    """Add the columns of one weight; returns its correlation, None where there is none."""
    kept = (a > 0) & (b > 0)
    x, y = a[kept], b[kept]
    found.columns += len(x)
    found.left_out += len(a) - len(x)
    if not len(x):
        return None
    logs = np.abs(np.log(x / y))
    found.squares += float(np.sum(logs * logs))
    if (largest := float(logs.max())) > found.largest:
        found.largest, found.largest_at = largest, label
    dx, dy = x - x.mean(), y - y.mean()
    scale = float(np.sqrt(np.sum(dx * dx)) * np.sqrt(np.sum(dy * dy)))
    return min(1.0, float(np.sum(dx * dy)) / scale) if scale > 0 else None
