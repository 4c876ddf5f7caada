"""Divergence of one distribution over the vocabulary from another, token by token.

For one scored position let b and c be the float32 logits of base and candidate over a vocabulary of V
entries, y the target (the token that follows in the text), and

    ln p = b - max b - ln Σ exp(b - max b)                  base, p = softmax(b)
    ln q = c - max c - ln Σ exp(c - max c)                  candidate, q = softmax(c)
    t    = (c - max c) - (b - max b) - (ln Σ_c - ln Σ_b)    = ln q - ln p, exactly 0 where logits are equal

Everything is evaluated in float64. The columns of :class:`TokenMetrics`, each of shape [rows]:

| column         | unit  | definition                                                                     |
|----------------|-------|--------------------------------------------------------------------------------|
| nll_base, nll  | nats  | -ln p_y, -ln q_y                                                                |
| kld            | nats  | Σ p·φ(t), φ(t) = e^t - 1 - t                            (= Σ p ln(p/q))         |
| kld_reverse    | nats  | Σ q·φ(-t)                                               (= Σ q ln(q/p))         |
| js             | nats  | Σ m·ψ(tanh(t/2)), m = (p+q)/2; at most ln 2 (Jensen-Shannon divergence)         |
| p_base, p      | 0..1  | p_y, q_y; Δp is ``p - p_base``                                                  |
| same_top       | bool  | argmax b = argmax c; the lowest index wins a tie, as in llama-perplexity        |
| top5_overlap   | 0..1  | share of the base's 5 likeliest entries among the candidate's 5; ties as above  |
| top10_overlap  | 0..1  | the same with 10 (with V entries where the vocabulary is smaller)               |
| entropy_base   | nats  | -Σ p ln p                                                                       |
| entropy        | nats  | -Σ q ln q                                                                       |
| nonfinite      | flags | 1: base logits at fault, 2: candidate logits at fault (below), 4: see `partial` |

with ψ(s) = ((1+s) ln(1+s) + (1-s) ln(1-s)) / 2.

**Why these forms.** Σ p ln(p/q) adds terms of both signs that nearly cancel: at KLD = 1e-12 nothing is
left of float64, and a model against itself can come out negative. Since Σ p e^t = Σ q = 1, the sum Σ p
(e^t - 1) is zero and may be added, which makes every term ≥ 0: nothing cancels, equal logits give
exactly 0, no value is negative, and small divergences keep their digits. An error δ in the two
normalizers moves t by δ and KLD by only e^δ - 1 - δ ≈ δ²/2. The same holds for Jensen-Shannon, of which
ψ is the convex form. Terms are taken as

* |t| ≤ 1: the series of φ and ψ (no cancellation inside a term),
* |t| > 1: p·φ(t) = q - p - p·t, which neither overflows (logits of ±1e4 give a KLD of 1e4) nor cancels.

The form log1p(Σ p (expm1(r) - r)) with r = c - b - Σ p (c - b) is the same number (r = t + KLD), but it
overflows for large r.

**Logits that are not finite.** An entry that is -inf on both sides is masked: probability 0 in both, no
term. A row is flagged, never silently repaired:

* NaN, +inf, or no finite logit at all: softmax is undefined. All that depends on that side is NaN,
  ``same_top`` is False, and that side's flag is set.
* -inf where the other side is finite: kld = +inf if the candidate has it, kld_reverse = +inf if the
  base has it; js stays finite; the side with -inf is flagged.
* -inf at the target: that side's nll is +inf and it is flagged.

``nonfinite == 0`` therefore means: every column of this row is finite.

**Against llama-perplexity** (``log_softmax`` in tools/perplexity/perplexity.cpp): the same quantities,
but there the base is stored as 16-bit log-probabilities cut 16 nats below the top, entries with ln p ≤
-16 are left out of KLD, exponentials and nll are float32, and KLD is the alternating sum. Its figures
therefore carry an error of a few 1e-5 a token, which ours do not.

:func:`token_metrics_reference` is the definition in NumPy; :func:`token_metrics` is the native kernel.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bitloss import _native
from bitloss.errors import MismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatArray = npt.NDArray[np.float64]
Isa = Literal["auto", "avx512", "avx2", "portable"]

NONFINITE_BASE: Final = 1
NONFINITE_CANDIDATE: Final = 2
LEFT_OUT: Final = 4
"""The base is known in part (`bitloss.divergence.partial`): kld_reverse is not defined, the rest is finite."""

_LN2: Final = math.log(2.0)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TokenMetrics:
    """Metrics of scored tokens, one array [rows] per column; definitions in the module docstring.

    Attributes:
        nll_base: -ln p of the target under the base, nats.
        nll: the same under the candidate, nats.
        kld: KL(base ‖ candidate), nats.
        kld_reverse: KL(candidate ‖ base), nats.
        js: Jensen-Shannon divergence, nats.
        p_base: probability of the target under the base, 0..1.
        p: the same under the candidate; Δp = p - p_base.
        entropy_base: entropy of the base, nats.
        entropy: entropy of the candidate, nats.
        top5_overlap: share of the base's top 5 in the candidate's, 0..1.
        top10_overlap: the same for the top 10.
        same_top: whether both have the same likeliest token.
        nonfinite: bit flags, :data:`NONFINITE_BASE` | :data:`NONFINITE_CANDIDATE` | :data:`LEFT_OUT`.
    """

    nll_base: FloatArray
    nll: FloatArray
    kld: FloatArray
    kld_reverse: FloatArray
    js: FloatArray
    p_base: FloatArray
    p: FloatArray
    entropy_base: FloatArray
    entropy: FloatArray
    top5_overlap: npt.NDArray[np.float32]
    top10_overlap: npt.NDArray[np.float32]
    same_top: npt.NDArray[np.bool_]
    nonfinite: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        rows = self.nll_base.shape
        for name, dtype in COLUMNS.items():
            column: npt.NDArray[np.generic] = getattr(self, name)
            if column.dtype != dtype or column.ndim != 1 or column.shape != rows:
                raise MismatchError(
                    "column of token metrics is malformed",
                    where=name,
                    expected=f"{np.dtype(dtype)} of shape {rows}",
                    found=f"{column.dtype} of shape {column.shape}",
                )

    def __len__(self) -> int:
        return len(self.nll_base)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> TokenMetrics:
        """Rows picked by a slice, a mask or indices."""
        return TokenMetrics(**{name: getattr(self, name)[rows] for name in COLUMNS})

    @property
    def dp(self) -> FloatArray:
        """Δp = p - p_base of the target, as a fraction (-1..1)."""
        return self.p - self.p_base

    def equals(self, other: TokenMetrics) -> bool:
        """Whether every value of every token is equal (NaN equals NaN)."""
        return all(
            np.array_equal(getattr(self, name), getattr(other, name), equal_nan=np.dtype(dtype).kind == "f")
            for name, dtype in COLUMNS.items()
        )

    @classmethod
    def concat(cls, parts: Sequence[TokenMetrics]) -> TokenMetrics:
        """Join parts in order; no parts give an empty table."""
        return cls(
            **{
                name: np.concatenate([getattr(part, name) for part in parts]) if parts else np.empty(0, dtype)
                for name, dtype in COLUMNS.items()
            }
        )


COLUMNS: Final[dict[str, type[np.generic]]] = {
    **dict.fromkeys(
        ("nll_base", "nll", "kld", "kld_reverse", "js", "p_base", "p", "entropy_base", "entropy"), np.float64
    ),
    "top5_overlap": np.float32,
    "top10_overlap": np.float32,
    "same_top": np.bool_,
    "nonfinite": np.uint8,
}
"""Column name -> dtype, in order (also the order of columns on disk)."""


def token_metrics(
    base: npt.NDArray[np.float32],
    cand: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int32],
    *,
    threads: int = 1,
    isa: Isa = "auto",
) -> TokenMetrics:
    """Metrics of every row, by the native kernel.

    Rows are shared out to threads; the value of a row depends neither on their number nor on the other rows.
    Entries with a probability above e^-10 on either side (e^-8 in rows that have many) are evaluated in double, the
    others in float with sums in double. Relative error of divergences against the definition: around 1e-9 in rows
    like a model's, below 3e-7 where unlikely entries make up the whole, 5e-6 where few of them do, 2e-5 where
    entries have but a few values (a float's few roundings, which then do not average out). t is good to half a place
    of the float c - b: where a candidate's logits are shifted by 10 and its entries differ by 1e-3, that is 4e-6.
    Errors of nll are below 5e-7 nats, those of entropies below 3e-7, or 2e-5 where a row is flat and looks otherwise
    where it is sampled. Exact zeros stay exact.

    Args:
        base: float32 [rows, n_vocab], logits of the base.
        cand: float32 [rows, n_vocab], logits of the candidate.
        targets: int32 [rows], the token that follows each position.
        threads: worker threads, at least 1.
        isa: instruction set; ``auto`` takes the best this machine has.

    Raises:
        MismatchError: shapes, types or targets do not belong together, or this machine lacks ``isa``.
    """
    _check(base, cand, targets)
    if threads < 1:
        raise MismatchError("worker threads", expected="at least 1", found=threads)
    if isa != "auto" and isa not in _native.divergence_isas():
        raise MismatchError(
            "instruction set not available here", expected=", ".join(_native.divergence_isas()), found=isa
        )
    rows = len(targets)
    values = np.empty((9, rows), np.float64)
    overlaps = np.empty((2, rows), np.float32)
    flags = np.empty((2, rows), np.uint8)
    _native.divergence_rows(
        np.ascontiguousarray(base),
        np.ascontiguousarray(cand),
        np.ascontiguousarray(targets),
        values,
        overlaps,
        flags,
        threads,
        isa,
    )
    columns = (*values, *overlaps, flags[0].view(np.bool_), flags[1])
    return TokenMetrics(**dict(zip(COLUMNS, columns, strict=True)))


def token_metrics_reference(
    base: npt.NDArray[np.float32], cand: npt.NDArray[np.float32], targets: npt.NDArray[np.int32]
) -> TokenMetrics:
    """Evaluate the definition: the same as :func:`token_metrics`, in NumPy, one row at a time.

    Raises:
        MismatchError: shapes, types or targets do not belong together.
    """
    _check(base, cand, targets)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        rows = [
            _row(b.astype(np.float64), c.astype(np.float64), int(y))
            for b, c, y in zip(base, cand, targets, strict=True)
        ]
    columns = zip(*rows, strict=True) if rows else ([] for _ in COLUMNS)
    return TokenMetrics(
        **{
            name: np.array(column, dtype)
            for (name, dtype), column in zip(COLUMNS.items(), columns, strict=True)
        }
    )


class _Side(NamedTuple):
    """One softmax: usable?, logits - max [V], ln Σ exp(logits - max), probabilities [V]."""

    usable: bool
    shifted: FloatArray
    log_sum: float
    prob: FloatArray

    def nll(self, target: int) -> float:
        return float(self.log_sum - self.shifted[target]) if self.usable else math.nan

    def entropy(self) -> float:
        if not self.usable:
            return math.nan
        live = self.prob > 0
        return float(np.sum(self.prob[live] * (self.log_sum - self.shifted[live])))


def _side(logits: FloatArray) -> _Side:
    top = float(np.max(logits))  # NaN if any entry is
    if not math.isfinite(top):
        return _Side(False, logits, math.nan, logits)
    shifted = logits - top
    total = float(np.sum(np.exp(shifted)))
    return _Side(True, shifted, math.log(total), np.exp(shifted) / total)


def _row(b: FloatArray, c: FloatArray, target: int) -> tuple[float | bool | int, ...]:
    """One row's values in the order of :data:`COLUMNS`."""
    base, cand = _side(b), _side(c)
    nll_base, nll = base.nll(target), cand.nll(target)
    flags = NONFINITE_BASE * (not math.isfinite(nll_base)) | NONFINITE_CANDIDATE * (not math.isfinite(nll))
    own = (math.exp(-nll_base), math.exp(-nll), base.entropy(), cand.entropy())
    if not (base.usable and cand.usable):
        nan = math.nan
        return (nll_base, nll, nan, nan, nan, *own, nan, nan, False, flags)
    base_masked, cand_masked = np.isneginf(b), np.isneginf(c)
    kld, kld_reverse, js = _divergences(base, cand, live=~(base_masked | cand_masked))
    if np.any(cand_masked & ~base_masked):
        kld, flags = math.inf, flags | NONFINITE_CANDIDATE
    if np.any(base_masked & ~cand_masked):
        kld_reverse, flags = math.inf, flags | NONFINITE_BASE
    same_top = bool(np.argmax(b) == np.argmax(c))
    return (
        *(nll_base, nll, kld, kld_reverse, js, *own),
        *(_overlap(b, c, 5), _overlap(b, c, 10), same_top, flags),
    )


def _divergences(base: _Side, cand: _Side, live: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """KLD, reverse KLD and Jensen-Shannon; ``live`` [V] marks the entries that are finite on both sides."""
    p, q = base.prob[live], cand.prob[live]
    t = cand.shifted[live] - base.shifted[live] - (cand.log_sum - base.log_sum)
    near = np.abs(t) <= 1.0
    u = np.where(near, t, 0.0)
    kld = np.where(near, p * _phi(u), q - p - p * t)
    kld_reverse = np.where(near, q * _phi(-u), p - q + q * t)
    # Far apart: half of p ln(p/m) + q ln(q/m), with ln(1 + e^t) in the form that does not overflow.
    softplus = np.logaddexp(0.0, t)
    js_far = 0.5 * (p * (_LN2 - softplus) + q * (_LN2 + t - softplus))
    js = np.where(near, 0.5 * (p + q) * _psi(np.tanh(0.5 * u)), js_far)
    # An entry masked on one side adds (p + q)·ln 2 / 2 to JS; its p·φ(t) is q, its q·φ(-t) is p.
    alone_p, alone_q = float(np.sum(base.prob[~live])), float(np.sum(cand.prob[~live]))
    js_sum = float(np.sum(js)) + 0.5 * _LN2 * (alone_p + alone_q)
    return float(np.sum(kld)) + alone_q, float(np.sum(kld_reverse)) + alone_p, min(js_sum, _LN2)


def _phi(t: FloatArray) -> FloatArray:
    """e^t - 1 - t for |t| ≤ 1, by its series: t²/2! + t³/3! + ... to full precision."""
    total = np.zeros_like(t)
    for k in range(20, 1, -1):
        total = total * t + 1.0 / math.factorial(k)
    return total * t * t


def _psi(s: FloatArray) -> FloatArray:
    """((1+s) ln(1+s) + (1-s) ln(1-s))/2 for |s| ≤ tanh(1/2), by its series Σ s^(2k) / (2k (2k-1))."""
    total = np.zeros_like(s)
    for k in range(26, 0, -1):
        total = total * s * s + 1.0 / (2 * k * (2 * k - 1))
    return total * s * s


def _overlap(b: FloatArray, c: FloatArray, k: int) -> float:
    """Share of the k largest entries of b that are among the k largest of c; the lower index wins a tie."""
    k = min(k, len(b))
    top_b, top_c = (set(np.argsort(-x, kind="stable")[:k].tolist()) for x in (b, c))
    return len(top_b & top_c) / k


def _check(
    base: npt.NDArray[np.float32], cand: npt.NDArray[np.float32], targets: npt.NDArray[np.int32]
) -> None:
    for name, array, dtype, ndim in (
        ("base logits", base, np.float32, 2),
        ("candidate logits", cand, np.float32, 2),
        ("targets", targets, np.int32, 1),
    ):
        if array.dtype != dtype or array.ndim != ndim:
            raise MismatchError(
                "wrong type of array",
                where=name,
                expected=f"{np.dtype(dtype)} with {ndim} dimensions",
                found=f"{array.dtype} with {array.ndim}",
            )
    if base.shape != cand.shape:
        raise MismatchError(
            "base and candidate logits differ in shape", expected=base.shape, found=cand.shape
        )
    rows, n_vocab = base.shape
    if len(targets) != rows or n_vocab == 0:
        raise MismatchError(
            "targets do not fit the logits", expected=f"{rows} of a vocabulary > 0", found=len(targets)
        )
    if rows and (targets.min() < 0 or targets.max() >= n_vocab):
        raise MismatchError(
            "target outside the vocabulary",
            expected=f"0..{n_vocab - 1}",
            found=f"{targets.min()}..{targets.max()}",
        )
