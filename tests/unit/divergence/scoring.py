"""Scoring rows by every path of the kernel, and by the reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitloss.divergence.metrics import (
    TokenMetrics,
    token_metrics,
    token_metrics_reference,
)

Logits = npt.NDArray[np.float32]


def tolerance(path: str, name: str) -> float:
    """Relative error allowed: the kernel takes unlikely entries in float (docstring of ``token_metrics``)."""
    if path == "reference":
        return 1e-11
    return 2e-7 if name == "js" else 4e-9


def score(path: str, base: object, cand: object, targets: object = 0, threads: int = 1) -> TokenMetrics:
    """Metrics of one row or several, by the named path."""
    b = np.atleast_2d(np.asarray(base, np.float32))
    c = np.atleast_2d(np.asarray(cand, np.float32))
    y = np.broadcast_to(np.asarray(targets, np.int32), (len(b),)).copy()
    if path == "reference":
        return token_metrics_reference(b, c, y)
    return token_metrics(b, c, y, threads=threads, isa=path)  # type: ignore[arg-type]
