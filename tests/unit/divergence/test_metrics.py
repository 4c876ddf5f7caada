"""Per-token metrics against hand-worked values and 60-digit arithmetic, on every path of the kernel."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.divergence.scoring import Logits, score, tolerance

from bitloss import _native
from bitloss.divergence.metrics import (
    COLUMNS,
    NONFINITE_BASE,
    NONFINITE_CANDIDATE,
    TokenMetrics,
    token_metrics,
    token_metrics_reference,
)
from bitloss.errors import MismatchError

INF, NAN = np.inf, np.nan
PATHS = ["reference", *_native.divergence_isas()]


def exact(base: Logits, cand: Logits, target: int) -> dict[str, float]:
    """The textbook definitions in 60 digits: Σ p ln(p/q) and the like, no rearrangement."""
    with mpmath.workdps(60):
        ln_p, ln_q = (_log_softmax([mpmath.mpf(float(v)) for v in x]) for x in (base, cand))
        kld = mpmath.fsum(mpmath.exp(u) * (u - v) for u, v in zip(ln_p, ln_q, strict=True))
        reverse = mpmath.fsum(mpmath.exp(v) * (v - u) for u, v in zip(ln_p, ln_q, strict=True))
        js = mpmath.fsum(_js_term(mpmath.exp(u), mpmath.exp(v)) for u, v in zip(ln_p, ln_q, strict=True))
        values = {
            "nll_base": -ln_p[target],
            "nll": -ln_q[target],
            "kld": kld,
            "kld_reverse": reverse,
            "js": js,
            "p_base": mpmath.exp(ln_p[target]),
            "p": mpmath.exp(ln_q[target]),
            "entropy_base": -mpmath.fsum(mpmath.exp(u) * u for u in ln_p),
            "entropy": -mpmath.fsum(mpmath.exp(v) * v for v in ln_q),
        }
        return {name: float(value) for name, value in values.items()}


def _log_softmax(x: list[mpmath.mpf]) -> list[mpmath.mpf]:
    top = max(x)
    log_sum = mpmath.log(mpmath.fsum(mpmath.exp(v - top) for v in x))
    return [v - top - log_sum for v in x]


def _js_term(p: mpmath.mpf, q: mpmath.mpf) -> mpmath.mpf:
    m = (p + q) / 2
    return (p * mpmath.log(p / m) + q * mpmath.log(q / m)) / 2


def assert_close(path: str, found: TokenMetrics, row: int, expected: dict[str, float], least: float) -> None:
    for name, value in expected.items():
        # -ln p of a sure thing is rounding of 1: absolute, not relative, accuracy is what there is.
        slack = 1e-10 if name.startswith("entropy") else 1e-14 if name.startswith("nll") else 1e-290
        got = float(getattr(found, name)[row])
        assert got == pytest.approx(value, rel=max(least, tolerance(path, name)), abs=slack), name


@pytest.mark.parametrize("path", PATHS)
def test_two_entries_by_hand(path: str) -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4)
    found = score(path, [[0, 0]], [[math.log(3), 0]], 1)
    q = math.exp(float(np.float32(math.log(3))))
    q0, q1 = q / (1 + q), 1 / (1 + q)
    assert found.nll_base[0] == pytest.approx(math.log(2), rel=1e-15)
    assert found.nll[0] == pytest.approx(-math.log(q1), rel=1e-14)
    assert found.kld[0] == pytest.approx(0.5 * math.log(0.5 / q0) + 0.5 * math.log(0.5 / q1), rel=1e-13)
    assert found.kld_reverse[0] == pytest.approx(q0 * math.log(2 * q0) + q1 * math.log(2 * q1), rel=1e-13)
    assert found.entropy_base[0] == pytest.approx(math.log(2), rel=1e-14)
    assert found.p_base[0] == pytest.approx(0.5, rel=1e-15)
    assert found.dp[0] == pytest.approx(q1 - 0.5, rel=1e-14)
    # a tie in the base goes to the lower index, which is the candidate's top as well
    assert found.same_top[0]
    assert found.top5_overlap[0] == 1.0  # all of a vocabulary of two
    assert found.nonfinite[0] == 0


@pytest.mark.parametrize("path", PATHS)
def test_same_logits_give_exactly_zero(path: str) -> None:
    x = np.random.default_rng(1).normal(size=(7, 1021)).astype(np.float32) * 4
    found = score(path, x, x, 5)
    for name in ("kld", "kld_reverse", "js", "dp"):
        assert np.all(getattr(found, name) == 0.0), name
    assert np.all(found.same_top)
    assert np.all(found.top10_overlap == 1.0)
    assert np.array_equal(found.nll, found.nll_base)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 0.3, 1.0, 5.0, 60.0])
def test_against_sixty_digits(path: str, scale: float) -> None:
    rng = np.random.default_rng(int(1e6 * scale))
    base = (4 * rng.normal(size=(3, 397))).astype(np.float32)
    cand = (base + scale * rng.normal(size=base.shape)).astype(np.float32)
    found = score(path, base, cand, 11)
    for row in range(len(base)):
        # differences of 1e-6 leave 2e-9 of t to the rounding of the reference itself
        assert_close(path, found, row, exact(base[row], cand[row], 11), 2e-9 if scale < 1e-5 else 0.0)


HARD = {
    "tiny difference of one entry": ([3.0, 1.0, -2.0, 0.5], [3.0, 1.000001, -2.0, 0.5]),
    "shift by a constant": ([3.0, 1.0, -2.0, 0.5], [13.0, 11.0, 8.0, 10.5]),
    "logits of ±1e4, opposite tops": ([1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]),
    "one-hot against flat": ([1e4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
    "flat against one-hot": ([0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]),
    "one-hot, the same": ([1e4, -1e4, -1e4], [1e4, -1e4, -9999.0]),
    "probability below the smallest double": ([0.0, -800.0], [0.0, -801.0]),
    "t just below and above 1": ([0.0, 0.0, 0.0], [0.6666, -0.3334, 0.6667]),
    "largest floats": ([3.4e38, -3.4e38, 0.0], [3.4e38, 0.0, -3.4e38]),
    "one entry": ([7.0], [-7.0]),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", HARD)
def test_hard_cases_against_sixty_digits(path: str, case: str) -> None:
    base, cand = (np.array(x, np.float32) for x in HARD[case])
    found = score(path, base, cand, 0)
    expected = exact(base, cand, 0)
    for name, value in expected.items():
        got = float(getattr(found, name)[0])
        assert got == pytest.approx(value, rel=1e-9, abs=1e-30), name
    assert found.nonfinite[0] == 0
    for name in ("kld", "kld_reverse", "js"):
        assert getattr(found, name)[0] >= 0.0


@pytest.mark.parametrize("path", PATHS)
def test_entries_masked_on_both_sides_add_nothing(path: str) -> None:
    base, cand = [1.0, 2.0, 0.5], [1.5, 2.0, 0.25]
    masked = score(path, [*base, -INF, -INF], [*cand, -INF, -INF], 1)
    plain = score(path, base, cand, 1)
    for name in ("nll_base", "nll", "kld", "kld_reverse", "js", "entropy_base", "entropy"):
        assert getattr(masked, name)[0] == pytest.approx(getattr(plain, name)[0], rel=1e-9), name
    assert masked.nonfinite[0] == 0


@pytest.mark.parametrize("path", PATHS)
def test_masked_on_one_side(path: str) -> None:
    found = score(path, [[0, 0, 0], [0, 0, -INF]], [[0, 0, -INF], [0, 0, 0]], 0)
    assert found.kld.tolist() == [INF, pytest.approx(math.log(1.5), rel=1e-14)]
    assert found.kld_reverse.tolist() == [pytest.approx(math.log(1.5), rel=1e-14), INF]
    p, q = 1 / 3, 1 / 2
    m = (p + q) / 2
    js = 0.5 * (2 * p * math.log(p / m) + p * math.log(2) + 2 * q * math.log(q / m))
    assert found.js == pytest.approx([js, js], rel=1e-14)
    assert found.nonfinite.tolist() == [NONFINITE_CANDIDATE, NONFINITE_BASE]


@pytest.mark.parametrize("path", PATHS)
def test_masked_target(path: str) -> None:
    found = score(path, [0, 0, -INF], [0, 1, -INF], 2)
    assert found.nll[0] == found.nll_base[0] == INF
    assert found.p[0] == found.p_base[0] == 0.0
    assert math.isfinite(found.kld[0])
    assert found.nonfinite[0] == NONFINITE_BASE | NONFINITE_CANDIDATE


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [[0.0, NAN, 1.0], [NAN, NAN, NAN], [0.0, INF, 1.0], [-INF, -INF, -INF]])
@pytest.mark.parametrize("position", [0, 40, 100])
def test_undefined_softmax(path: str, bad: list[float], position: int) -> None:
    fill = bad[0] if all(np.isneginf(bad)) else 0.0
    broken = np.full(103, fill, np.float32)
    broken[position : position + 3] = bad
    good = np.arange(103, dtype=np.float32) / 50
    found = score(path, [good, broken, broken], [broken, good, broken], 50)
    plain = score(path, good, good, 50)
    assert found.nonfinite.tolist() == [NONFINITE_CANDIDATE, NONFINITE_BASE, 3]
    for name in ("kld", "kld_reverse", "js", "top5_overlap", "top10_overlap", "dp"):
        assert np.all(np.isnan(getattr(found, name))), name
    assert not found.same_top.any()
    assert np.isnan(found.nll).tolist() == np.isnan(found.p).tolist() == [True, False, True]
    assert np.isnan(found.nll_base).tolist() == np.isnan(found.entropy_base).tolist() == [False, True, True]
    assert found.nll_base[0] == found.nll[1] == pytest.approx(plain.nll[0], rel=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_largest_ten_wherever_they_are(path: str) -> None:
    rng = np.random.default_rng(9)
    for n_vocab in (10, 11, 63, 64, 65, 200, 1025):
        base = rng.integers(-3, 4, (8, n_vocab)).astype(np.float32)  # full of ties
        base[:, 0] = 9.0  # the very first entry on top
        base[1, -1] = 10.0  # and the very last
        cand = rng.integers(-3, 4, (8, n_vocab)).astype(np.float32)
        found, expected = score(path, base, cand), token_metrics_reference(base, cand, np.zeros(8, np.int32))
        for name in ("same_top", "top5_overlap", "top10_overlap"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist(), (n_vocab, name)


@pytest.mark.parametrize("path", PATHS)
def test_ties_go_to_the_lower_index(path: str) -> None:
    base = np.zeros(64, np.float32)
    cand = base.copy()
    cand[63] = -1.0  # still the same ten lowest indices
    found = score(path, base, cand)
    assert found.same_top[0]
    assert found.top10_overlap[0] == 1.0
    cand[40] = 1.0  # displaces index 9 from the ten, index 4 from the five, index 0 from the top
    found = score(path, base, cand)
    assert not found.same_top[0]
    assert found.top10_overlap[0] == np.float32(0.9)
    assert found.top5_overlap[0] == np.float32(0.8)


@pytest.mark.parametrize("path", PATHS)
def test_zero_and_negative_zero_tie(path: str) -> None:
    found = score(path, [-0.0, 0.0, -1.0], [0.0, -0.0, -1.0])
    assert found.same_top[0]
    assert found.kld[0] == 0.0


@pytest.mark.parametrize("path", _native.divergence_isas())
@pytest.mark.parametrize("n_vocab", [1, 2, 7, 15, 16, 17, 31, 33, 64, 127, 255, 257, 1000, 4099])
def test_every_width_equals_the_reference(path: str, n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    base = (5 * rng.normal(size=(5, n_vocab))).astype(np.float32)
    cand = (base + np.logspace(-5, 1, 5)[:, None] * rng.normal(size=base.shape)).astype(np.float32)
    targets = rng.integers(0, n_vocab, 5, np.int32)
    found, expected = score(path, base, cand, targets), token_metrics_reference(base, cand, targets)
    # in a row of a few entries one unlikely entry, taken in float, can be all of a divergence
    least = 0.0 if n_vocab > 100 else 2e-7
    for name in COLUMNS:
        np.testing.assert_allclose(
            *(getattr(found, name), getattr(expected, name)),
            rtol=max(least, tolerance(path, name)),
            atol=1e-10 if name.startswith("entropy") else 1e-28,
            err_msg=name,
        )


@pytest.mark.parametrize("path", _native.divergence_isas())
def test_thread_count_changes_no_bit(path: str) -> None:
    rng = np.random.default_rng(5)
    base = (3 * rng.normal(size=(53, 777))).astype(np.float32)
    cand = (base + 0.1 * rng.normal(size=base.shape)).astype(np.float32)
    targets = rng.integers(0, 777, 53, np.int32)
    one = score(path, base, cand, targets)
    for threads in (2, 3, 7, 64):
        assert score(path, base, cand, targets, threads).equals(one)
    # nor does the company a row is in
    assert score(path, base[17:20], cand[17:20], targets[17:20], 2).equals(one[17:20])


def test_no_rows() -> None:
    none = np.empty((0, 5), np.float32)
    assert len(token_metrics(none, none, np.empty(0, np.int32))) == 0
    assert len(token_metrics_reference(none, none, np.empty(0, np.int32))) == 0
    assert len(TokenMetrics.concat([])) == 0


def test_concat_undoes_slicing() -> None:
    x = np.random.default_rng(2).normal(size=(9, 50)).astype(np.float32)
    whole = score("portable", x, x[::-1], 3)
    assert TokenMetrics.concat([whole[:4], whole[4:5], whole[5:]]).equals(whole)
    assert not whole[:4].equals(whole[4:8])
    assert whole[whole.kld > 1.0].kld.tolist() == [v for v in whole.kld if v > 1.0]


ROWS = np.zeros((2, 4), np.float32)
TARGETS = np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("base", "cand", "targets", "says"),
    [
        (ROWS.astype(np.float64), ROWS, TARGETS, "base logits"),
        (ROWS, ROWS[0], TARGETS, "candidate logits"),
        (ROWS, ROWS, TARGETS.astype(np.int64), "targets"),
        (ROWS, ROWS[:, :3], TARGETS, "differ in shape"),
        (ROWS, ROWS, TARGETS[:1], "do not fit"),
        (ROWS[:, :0], ROWS[:, :0], TARGETS, "vocabulary"),
        (ROWS, ROWS, TARGETS + 4, "outside the vocabulary"),
        (ROWS, ROWS, TARGETS - 1, "outside the vocabulary"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    base: Logits, cand: Logits, targets: npt.NDArray[np.int32], says: str
) -> None:
    for function in (token_metrics, token_metrics_reference):
        with pytest.raises(MismatchError, match=says):
            function(base, cand, targets)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(MismatchError, match="threads"):
        token_metrics(ROWS, ROWS, TARGETS, threads=0)
    with pytest.raises(MismatchError, match="instruction set"):
        token_metrics(ROWS, ROWS, TARGETS, isa="sse9")  # type: ignore[arg-type]


def test_strided_input_is_read_right() -> None:
    x = np.random.default_rng(3).normal(size=(6, 40)).astype(np.float32)
    strided = token_metrics(x[::2, ::2], x[1::2, 1::2], np.zeros(6, np.int32)[::2])
    copied = token_metrics(x[::2, ::2].copy(), x[1::2, 1::2].copy(), np.zeros(3, np.int32))
    assert strided.equals(copied)
