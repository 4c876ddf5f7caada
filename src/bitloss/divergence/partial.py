"""Metrics against a base that is known in part: rounded log-probabilities, the least likely entries left out.

For one scored position the base gives ln p of the entries it holds, K, rounded, so that Z = Σ_K p is 1 less what was
left out, give or take the rounding; entries outside K are -inf. The target always has a value. With q the candidate's
softmax over the whole vocabulary and p|K, q|K both made to add up to 1 over K:

| column                         | definition                                                                      |
|--------------------------------|---------------------------------------------------------------------------------|
| kld                            | Z · KL(p|K ‖ q|K)                                                               |
| js                             | Z · JS(p|K, q|K)                                                                |
| kld_reverse                    | +inf where something is left out, else as ever                                  |
| nll_base, p_base               | -ln p_y, p_y as given                                                           |
| entropy_base, overlaps         | of p|K                                                                          |
| nll, p, entropy, same_top      | of the whole vocabulary, as ever                                                |
| nonfinite                      | 4 (`LEFT_OUT`) in place of 1 where something is left out: no fault of the base  |

**Why not Σ_K p ln(p/q)**, which is what llama-perplexity takes. With r = 1 - Σ_K p and s = 1 - Σ_K q, both true,

    KLD = (1 - r) KL(p|K ‖ q|K) + [(1 - r) ln((1 - r)/(1 - s)) + r ln(r/s)] + r · (KLD within what is left out)

The first term is what the file can tell; an error e in ln p adds to it only Σ p·e·(ln(p/q) - KLD) and half the
variance of e. The second is ≥ 0 and of the order (r - s)²/r, but one half of it without the other, as in Σ_K p ln(p/q),
is of the order s - r + Σ p·e: as large as the file's steps, of either sign, and no divergence at all. Left aside are
therefore two terms that are ≥ 0 and small with r: KLD is a lower bound, up to the rounding, and 0 for equal
distributions. (A target that stands at an upper bound of its probability adds p·ln(p/q) at most, with p < 1.2e-7.)

    Σ_K p ln(p/q) = Z · (KL(p|K ‖ q|K) + ln(Z / Σ_K q))           what llama-perplexity adds up, from ours
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from bitloss.divergence.metrics import (
    LEFT_OUT,
    NONFINITE_CANDIDATE,
    TokenMetrics,
    token_metrics,
)

_NOTHING = -1000.0
"""Nats below the top at which e^x is 0 in float64, and within what the kernel takes 16 entries at a time."""


def partial_metrics(
    base: NDArray[np.float32], cand: NDArray[np.float32], targets: NDArray[np.int32], *, threads: int
) -> TokenMetrics:
    """Metrics of every row; definitions in the module docstring.

    Args:
        base: float32 [rows, n_vocab], log-probabilities, -inf where none is known; finite at the target.
        cand: float32 [rows, n_vocab], logits of the candidate.
        targets: int32 [rows], the token that follows each position.
        threads: worker threads.

    Raises:
        MismatchError: shapes, types or targets do not belong together.
    """
    unknown = np.isneginf(base)
    left = unknown.any(axis=1)
    # no probability either way, but the kernel takes rows with -inf entry by entry, 40 times slower; a candidate that
    # has -inf itself needs it, so that an entry neither has is no fault
    nothing = np.float32(_NOTHING if np.isfinite(cand).all() else -np.inf)
    whole = within = token_metrics(np.where(unknown, nothing, base), cand, targets, threads=threads)
    if left.any():
        top = cand.max(axis=1, keepdims=True)
        within = token_metrics(
            np.where(unknown, nothing, base), np.where(unknown, top + nothing, cand), targets, threads=threads
        )
    given = -base[np.arange(len(targets)), targets].astype(np.float64)
    held = np.exp(whole.nll_base - given)
    own = whole.nonfinite & NONFINITE_CANDIDATE
    return dataclasses.replace(
        whole,
        nll_base=given,
        p_base=np.exp(-given),
        kld=np.where(own, whole.kld, within.kld * held),
        js=np.where(own, whole.js, within.js * held),
        kld_reverse=np.where(left, np.inf, whole.kld_reverse),
        nonfinite=np.where(left, own | LEFT_OUT, own).astype(np.uint8),
    )
