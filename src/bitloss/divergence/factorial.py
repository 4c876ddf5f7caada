"""What the difference of two files' KLD is due to, when weights and importance matrix were crossed.

Four files of one type: y_wi is the per-token KLD with weights from w and the importance matrix of i, each a or b. The
files of the two routes are y_aa and y_bb. Token by token:

* ``weights  = y_ba - y_aa``, the weights' route alone;
* ``imatrix  = y_ab - y_aa``, the importance matrix's route alone;
* ``both     = (y_bb - y_ba) - (y_ab - y_aa)``, what comes only when both change (the interaction of a 2x2 design);
* ``whole    = y_bb - y_aa = weights + imatrix + both``.

Parts are means over tokens; the whole that is told is the float sum (weights + imatrix) + both, so that they add up to
the bit. It is the comparison's difference to within rounding. From the other end (b first) the parts are
-(weights + both), -(imatrix + both) and both. The effects averaged over both settings of the other factor do not depend
on the end one starts from: ``weights + both/2`` and ``imatrix + both/2`` (main effects; they too add up to the whole).

Two shares of each part, with the delta method's error, all errors clustered as in ``clusters``:

* ``share = mean(part) / mean(whole)``, influence (part - share·whole) / mean(whole). Only where the whole can be told
  from 0 (its p-value is at most 0.05): a share of nothing means nothing.
* ``scatter = mean(part·whole) / mean(whole²)``, influence (part·whole - scatter·whole²) / mean(whole²): how much of the
  token-by-token difference a part makes. It adds up to 1 as well, and means something where the means are a tie.

With fewer than 10 clusters there are differences and shares, no errors and no tests.

Source: the parts are the textbook's (Montgomery, Design and Analysis of Experiments, the 2² design, in treatment
coding); the ratio's error is the linearized one of a ratio estimator (Cochran, Sampling Techniques, ch. 6).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bitloss.divergence.clusters import ChunkIds, Clusters
from bitloss.divergence.comparison import ALPHA
from bitloss.divergence.metrics import FloatArray
from bitloss.divergence.statistics import mean_with_errors
from bitloss.errors import MismatchError
from bitloss.records.cross import Effect, Effects

_NOTHING = "the whole difference cannot be told from 0 on this text: it has no shares"


class Cells(NamedTuple):
    """Per-token KLD [n] of the four files: weights' source first, importance matrix's source second."""

    aa: FloatArray
    ba: FloatArray
    ab: FloatArray
    bb: FloatArray


def attribute(cells: Cells, chunk_ids: ChunkIds | Clusters) -> Effects:
    """Split the difference of mean KLD between the files of two routes; see the module.

    Args:
        cells: KLD of the same n tokens under the four files, in nats.
        chunk_ids: integer [n], the chunk of each token; or how they are clustered otherwise.

    Raises:
        MismatchError: not all of one length.
    """
    lengths = {len(each) for each in cells}
    if len(lengths) != 1:
        raise MismatchError("cells of a cross were scored on different tokens", found=sorted(lengths))
    with np.errstate(invalid="ignore"):
        weights, imatrix = cells.ba - cells.aa, cells.ab - cells.aa
        # in this order, so that equal files make it 0 and not what rounding leaves of it
        both, whole = (cells.bb - cells.ba) - (cells.ab - cells.aa), cells.bb - cells.aa
    found = _Whole(whole, Clusters.fitting(chunk_ids, len(whole)))
    parts = [found.effect(part) for part in (weights, imatrix, both)]
    differences = [part.difference for part in parts]
    all_of_it = found.effect(whole)
    if all(each is not None for each in differences):
        w, i, x = (each or 0.0 for each in differences)
        all_of_it = all_of_it.model_copy(update={"difference": (w + i) + x})
    return Effects(
        whole=all_of_it,
        weights=parts[0],
        imatrix=parts[1],
        both=parts[2],
        weights_averaged=found.effect(weights + both / 2),
        imatrix_averaged=found.effect(imatrix + both / 2),
    )


class _Whole:
    """The per-token difference, and how parts are set beside it."""

    def __init__(self, values: FloatArray, clusters: Clusters) -> None:
        self.values = values
        self.clusters = clusters
        self.finite = bool(len(values)) and bool(np.isfinite(values).all())
        self.mean = float(np.mean(values)) if self.finite else 0.0
        self.square = float(np.mean(values * values)) if self.finite else 0.0
        _, p_value = _test(self.mean, _error_of(values, clusters), clusters.degrees)
        self.has_shares = p_value is not None and p_value <= ALPHA

    def effect(self, part: FloatArray) -> Effect:
        figure = mean_with_errors(part, self.clusters)
        if figure.value is None or not self.finite:
            return Effect(difference=None, reason=figure.reason or "a token has no finite value")
        interval, p_value = _test(figure.value, figure.se_clustered, self.clusters.degrees)
        share = scatter = share_se = scatter_se = None
        reasons = [figure.reason] if figure.reason else []
        if self.has_shares:
            share = float(np.mean(part)) / self.mean + 0.0  # no -0
            share_se = self._error((part - share * self.values) / self.mean)
        else:
            reasons.append(_NOTHING)
        if self.square > 0:
            scatter = float(np.mean(part * self.values)) / self.square
            influence = (part * self.values - scatter * self.values * self.values) / self.square
            scatter_se = self._error(influence)
        else:
            reasons.append("every token is equal")
        return Effect(
            difference=figure.value,
            se=figure.se_clustered,
            ci95=interval,
            p_value=p_value,
            share=share,
            share_se=share_se,
            scatter=scatter,
            scatter_se=scatter_se,
            reason="; ".join(reasons) or None,
        )

    def _error(self, influence: FloatArray) -> float | None:
        return self.clusters.error(influence) if self.clusters.missing is None else None


def _error_of(values: FloatArray, clusters: Clusters) -> float | None:
    return mean_with_errors(values, clusters).se_clustered


def _test(value: float, se: float | None, degrees: int) -> tuple[tuple[float, float] | None, float | None]:
    """Interval and p-value by Student's t with these degrees of freedom; None where there is no error."""
    if not se:
        return None, None
    from scipy import special  # a fifth of a second to import, which only crossed runs need

    margin = float(special.stdtrit(degrees, 0.975)) * se
    return (value - margin, value + margin), float(2.0 * special.stdtr(degrees, -abs(value) / se))
