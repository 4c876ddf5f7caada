"""Laws that hold for any two rows of logits."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitloss import _native
from bitloss.divergence.metrics import TokenMetrics, token_metrics, token_metrics_reference

Logits = npt.NDArray[np.float32]
PATHS = ["reference", *_native.divergence_isas()]

# Relative error of a divergence that consists of entries below e^-10 alone, which the kernel takes in float, where an
# exponent of -20 has an error of up to 2e-6. Rows like a model's are at 1e-9 (tests/unit/divergence/test_metrics.py).
UNLIKELY = 5e-6

pytestmark = pytest.mark.parametrize("path", PATHS)


def score(path: str, base: Logits, cand: Logits) -> TokenMetrics:
    targets = np.zeros(len(base), np.int32)
    if path == "reference":
        return token_metrics_reference(base, cand, targets)
    return token_metrics(base, cand, targets, isa=path)  # type: ignore[arg-type]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Logits, Logits]:
    """Two rows of 1 to 80 logits, from nearly equal to far apart, some of them past what the kernel takes."""
    n_vocab = draw(st.integers(1, 80))
    size = draw(st.sampled_from([1e-3, 1.0, 10.0, 300.0, 3e4]))
    apart = draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 3.0, 100.0, 2e4]))
    unit = hnp.arrays(np.float32, (1, n_vocab), elements=st.floats(-1, 1, width=32))
    base = (size * draw(unit)).astype(np.float32)
    return base, (base + apart * draw(unit)).astype(np.float32)


# derandomized: the same examples every time, so that a tolerance is met or not met for good
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


@EXAMPLES
@given(pair=pairs())
def test_bounds(path: str, pair: tuple[Logits, Logits]) -> None:
    found = score(path, *pair)
    ln_vocab = math.log(pair[0].shape[1])
    assert found.nonfinite[0] == 0
    assert found.kld[0] >= 0
    assert found.kld_reverse[0] >= 0
    assert 0 <= found.js[0] <= math.log(2)
    for name in ("nll", "nll_base"):
        assert getattr(found, name)[0] >= -1e-12
    for name in ("entropy", "entropy_base"):
        assert -1e-9 <= getattr(found, name)[0] <= ln_vocab + 1e-9
    for name in ("p", "p_base", "top5_overlap", "top10_overlap"):
        assert 0 <= getattr(found, name)[0] <= 1 + 1e-12


@EXAMPLES
@given(pair=pairs())
def test_zero_on_equal_logits(path: str, pair: tuple[Logits, Logits]) -> None:
    for row in pair:
        found = score(path, row, row)
        assert found.kld[0] == found.kld_reverse[0] == found.js[0] == found.dp[0] == 0.0
        assert found.same_top[0]
        assert found.top10_overlap[0] == 1.0


@EXAMPLES
@given(pair=pairs())
def test_exchange(path: str, pair: tuple[Logits, Logits]) -> None:
    """Exchanging the sides exchanges KLD with its reverse, and leaves Jensen-Shannon alone."""
    there, back = score(path, *pair), score(path, *pair[::-1])
    assert there.kld_reverse[0] == pytest.approx(back.kld[0], rel=UNLIKELY, abs=1e-20)
    assert there.kld[0] == pytest.approx(back.kld_reverse[0], rel=UNLIKELY, abs=1e-20)
    assert there.js[0] == pytest.approx(back.js[0], rel=UNLIKELY, abs=1e-20)
    assert there.nll[0] == pytest.approx(back.nll_base[0], rel=1e-8, abs=1e-10)
    assert there.entropy[0] == pytest.approx(back.entropy_base[0], rel=1e-6, abs=1e-9)
    assert there.same_top[0] == back.same_top[0]
    assert there.top5_overlap[0] == back.top5_overlap[0]


@EXAMPLES
@given(pair=pairs(), shift=st.sampled_from([1.0, -4.0, 64.0]))
def test_adding_a_constant_changes_nothing(path: str, pair: tuple[Logits, Logits], shift: float) -> None:
    # on a grid of 2^-10 below 2^10 the shift itself does not round
    base, cand = ((np.round(np.clip(row, -1000, 1000) * 1024) / 1024).astype(np.float32) for row in pair)
    plain, moved = score(path, base, cand), score(path, base, cand + np.float32(shift))
    for name in ("kld", "kld_reverse", "js"):
        assert getattr(moved, name)[0] == pytest.approx(getattr(plain, name)[0], rel=UNLIKELY, abs=1e-20), (
            name
        )
    assert moved.nll[0] == pytest.approx(plain.nll[0], rel=1e-8, abs=1e-10)


@EXAMPLES
@given(pair=pairs(), seed=st.integers(0, 2**32 - 1))
def test_order_of_the_vocabulary_does_not_matter(path: str, pair: tuple[Logits, Logits], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(pair[0].shape[1])
    plain, moved = score(path, *pair), score(path, *(row[:, order] for row in pair))
    for name in ("kld", "kld_reverse", "js", "entropy", "entropy_base"):
        assert getattr(moved, name)[0] == pytest.approx(getattr(plain, name)[0], rel=UNLIKELY, abs=1e-9), name


@EXAMPLES
@given(pair=pairs())
def test_kernel_equals_the_definition(path: str, pair: tuple[Logits, Logits]) -> None:
    found, expected = score(path, *pair), score("reference", *pair)
    for name in ("kld", "kld_reverse", "js"):
        assert getattr(found, name)[0] == pytest.approx(
            getattr(expected, name)[0], rel=UNLIKELY, abs=1e-20
        ), name
    for name in ("nll", "nll_base"):
        assert getattr(found, name)[0] == pytest.approx(getattr(expected, name)[0], rel=1e-8, abs=1e-9), name
    for name in ("entropy", "entropy_base"):
        assert getattr(found, name)[0] == pytest.approx(getattr(expected, name)[0], rel=1e-6, abs=1e-9), name
    for name in ("same_top", "top5_overlap", "top10_overlap", "nonfinite"):
        assert getattr(found, name)[0] == getattr(expected, name)[0], name


def test_the_figures_of_the_base_take_no_notice_of_the_candidate(path: str) -> None:
    rng = np.random.default_rng(8)
    base = rng.normal(0, 3, (9, 5003)).astype(np.float32)
    alone = score(path, base, base)
    candidates = [
        (base + rng.normal(0, spread, base.shape)).astype(np.float32) for spread in (1e-6, 0.1, 3.0, 3e4)
    ]
    for number in (np.nan, np.inf, -np.inf):
        candidates.append(base.copy())
        candidates[-1][:, 77] = number
    for cand in candidates:
        beside = score(path, base, cand)
        for column in ("nll_base", "p_base", "entropy_base"):
            assert np.array_equal(getattr(alone, column), getattr(beside, column)), column
