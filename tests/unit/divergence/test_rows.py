"""Rows of many kinds, by every path of the kernel: near, far, likely, masked, and unlike what a sample of them says."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.divergence.scoring import Logits, score

from bitloss import _native
from bitloss.divergence.metrics import (
    COLUMNS,
    token_metrics_reference,
)


def _row_of(kind: str, rng: np.random.Generator, n_vocab: int, noise: float) -> tuple[Logits, Logits]:
    """Base and candidate of two rows of one kind."""
    b = 2.5 * rng.normal(size=(2, n_vocab))
    if kind == "late":  # one entry has nearly all, and comes last: what was likely before it is not
        b[:, -1] += 25
    elif kind == "heavy":
        b = 2 * rng.standard_t(2, b.shape)
    elif kind == "far above":  # no number a float's exponential could take as it is
        b += 900
    elif kind == "peaks":
        b[:, rng.integers(0, n_vocab, 50)] += 15
    c = b + noise * rng.normal(size=b.shape)
    if (
        kind == "drift"
    ):  # the normalizers differ by far more than the entries do, and not by what a sample says
        c = 1.2 * b + 3 + noise * rng.normal(size=b.shape)
    elif kind == "other top":
        c[:, n_vocab // 3] += 100
    elif kind == "far below":  # ... and of the candidate nothing is where the base says it would be
        c = np.where(b > 0, c - 300, c - 200)
    elif kind == "lowest":  # a mask that is a number, the same on both sides
        hidden = rng.integers(0, n_vocab, 100)
        b[:, hidden] = c[:, hidden] = np.finfo(np.float32).min
    elif kind == "masked":
        b, c = (np.where(rng.random(b.shape) < 0.3, -1000, x) for x in (b, c))
    elif kind == "ties":
        b, c = np.round(b), np.round(c)
    return b.astype(np.float32), c.astype(np.float32)


KINDS = [
    "flat",
    "peaks",
    "late",
    "heavy",
    "drift",
    "other top",
    "far above",
    "far below",
    "lowest",
    "masked",
    "ties",
]


@pytest.mark.parametrize("path", _native.divergence_isas())
@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3, 0.05, 0.3, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_equal_the_reference(path: str, kind: str, noise: float) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    for n_vocab in (1500, 20011):
        base, cand = _row_of(kind, rng, n_vocab, noise)
        targets = rng.integers(0, n_vocab, 2, np.int32)
        found, expected = score(path, base, cand, targets), token_metrics_reference(base, cand, targets)
        for name in COLUMNS:
            np.testing.assert_allclose(
                *(getattr(found, name), getattr(expected, name)),
                rtol=3e-7 if name.startswith(("kld", "js")) else 3e-8,
                atol=3e-7 if name.startswith("entropy") else 1e-12 if name.startswith("nll") else 1e-20,
                err_msg=f"{name} of {n_vocab}",
            )


@pytest.mark.parametrize("path", _native.divergence_isas())
@pytest.mark.parametrize("noise", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("lanes", [16, 8, 4])
def test_a_sample_that_tells_nothing_of_the_row(path: str, lanes: int, noise: float) -> None:
    """The kernel looks at 16 vectors first; here they are unlike the rest, and one entry is likely to one side only."""
    n_vocab = 12000
    rng = np.random.default_rng(0)
    starts = n_vocab // lanes * np.arange(16) // 16 * lanes
    seen = np.zeros(n_vocab, np.bool_)
    seen[(starts[:, None] + np.arange(lanes)).ravel()] = True
    base = np.where(seen, -23.0, 0.37)
    base[starts[2:6]] = -9.0
    cand = base + np.where(seen, 0.2, noise * np.sign(rng.normal(size=n_vocab)))
    edge = np.log(64 / lanes) - 19.0
    base[starts[8]], cand[starts[8]] = edge + 0.05, edge + 0.15
    row, other = base[None].astype(np.float32), cand[None].astype(np.float32)
    found, expected = score(path, row, other), token_metrics_reference(row, other, np.zeros(1, np.int32))
    for name in ("kld", "kld_reverse", "js"):
        assert getattr(found, name)[0] == pytest.approx(getattr(expected, name)[0], rel=2e-5), name


@pytest.mark.parametrize("path", _native.divergence_isas())
def test_opposite_rows_leave_the_base_alone(path: str) -> None:
    base = np.random.default_rng(0).normal(size=40) - 9990
    base[-4:] = [9000, 9001, 9002, 9002.5]
    alone, beside = (score(path, base, cand) for cand in (base, -base))
    for name in ("nll_base", "p_base", "entropy_base"):
        assert np.array_equal(getattr(alone, name), getattr(beside, name)), name
