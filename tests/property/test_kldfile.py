"""Laws of the 16-bit log-probabilities."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from bitloss.divergence.kldfile import encode_rows

logit_rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 9)),
    elements=st.floats(-60, 60, width=32, allow_nan=False),
)


def decoded(units: NDArray[np.uint16], n_vocab: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    head = np.ascontiguousarray(units[:, :4]).view("<f4").astype(np.float64)
    return head[:, :1], head[:, :1] * units[:, 4 : 4 + n_vocab] + head[:, 1:]


@settings(deadline=None, max_examples=200)
@given(logit_rows)
def test_stored_within_half_a_step_above_the_cut(logits: NDArray[np.float32]) -> None:
    scale, stored = decoded(encode_rows(logits), logits.shape[1])
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    exact = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    above = wide >= -16
    slack = 2e-5  # float32 logits of up to 60, their differences and products
    assert (np.abs(stored - exact)[above] <= (scale / 2 + slack + 0 * stored)[above]).all()
    assert (stored[~above] >= exact[~above] - slack).all()
    assert (scale <= 16 / 65535 + 1e-9).all()


@settings(deadline=None, max_examples=100)
@given(logit_rows)
def test_order_is_kept_and_the_top_is_at_the_top(logits: NDArray[np.float32]) -> None:
    q = encode_rows(logits)[:, 4 : 4 + logits.shape[1]]
    for row, stored in zip(logits, q, strict=True):
        assert (np.diff(stored[np.argsort(row, kind="stable")].astype(int)) >= 0).all()
        assert stored.max() in ((65535,) if row.max() - row.min() > 1e-30 else (0, 65535))
        assert stored[np.argmax(row)] == stored.max()


@settings(deadline=None, max_examples=100)
@given(logit_rows, st.integers(-64, 64))
def test_a_common_shift_changes_nothing_but_rounding(logits: NDArray[np.float32], shift: int) -> None:
    grid = np.round(logits * 8) / 8  # exact under the shift
    a, b = encode_rows(grid.astype(np.float32)), encode_rows((grid + shift).astype(np.float32))
    assert np.array_equal(a, b)
