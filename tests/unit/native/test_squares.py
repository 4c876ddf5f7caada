"""Sums of squares against NumPy, bit for bit: both add rows in order in float64."""

from __future__ import annotations

import numpy as np
import pytest

from bitloss import _native


@pytest.mark.parametrize(("rows", "n"), [(0, 5), (1, 1), (3, 17), (50, 1024), (7, 4099)])
def test_sums_of_squares(rows: int, n: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, n)).astype(np.float32)
    acc = rng.random(n)
    expected = acc.copy()
    for row in x.astype(np.float64):
        expected += row * row
    _native.add_squares(acc, x)
    assert np.array_equal(acc, expected)


def test_sums_by_expert() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 33)).astype(np.float32)
    ids = rng.integers(0, 5, 40, np.int32)
    ids[ids == 3] = 0  # one expert sees nothing
    acc = np.zeros((5, 33))
    expected = np.zeros((5, 33))
    for row, matrix in zip(x.astype(np.float64), ids, strict=True):
        expected[matrix] += row * row
    _native.add_squares_rows(acc, x, ids)
    assert np.array_equal(acc, expected)
    assert not acc[3].any()


def test_float64_keeps_what_float32_would_lose() -> None:
    x = np.full((3, 1), 1e-4, np.float32)
    acc = np.ones(1)
    _native.add_squares(acc, x)
    assert acc[0] == pytest.approx(1.0 + 3e-8, rel=1e-15)


def test_misfits_are_refused() -> None:
    acc, x = np.zeros(4), np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match="differ in width"):
        _native.add_squares(acc, x)
    with pytest.raises(ValueError, match="do not fit"):
        _native.add_squares_rows(np.zeros((2, 5)), x, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="id outside"):
        _native.add_squares_rows(np.zeros((2, 5)), x, np.array([0, 2], np.int32))
    with pytest.raises(TypeError):
        _native.add_squares(np.zeros(5, np.float32), x)
    with pytest.raises(TypeError):
        _native.add_squares(np.zeros(10)[::2], x)
