"""Paired comparisons: hand-worked, against scipy, and how often they err when nothing differs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bitloss.divergence.comparison import Metric, Pair, compare, compare_all, holm
from bitloss.divergence.metrics import COLUMNS, NONFINITE_BASE, NONFINITE_CANDIDATE, TokenMetrics
from bitloss.errors import MismatchError
from bitloss.records import Verdict


def tokens(n: int, **columns: Any) -> TokenMetrics:
    """Token metrics of zeros with the given columns filled in."""
    return TokenMetrics(
        **{name: np.asarray(columns.get(name, np.zeros(n)), dtype) for name, dtype in COLUMNS.items()}
    )


def test_one_token_a_chunk_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.gamma(1, 1, (2, 30))
    found = compare(tokens(30, kld=x), tokens(30, kld=y), np.arange(30), Metric.KLD_MEAN)
    expected = stats.ttest_rel(x, y)
    interval = expected.confidence_interval(0.95)
    assert found.difference == pytest.approx(np.mean(x - y), rel=1e-12)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.ci95 == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert found.p_holm == found.p_value


def test_chunks_of_copies_count_once() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.gamma(1, 1, (2, 15))
    chunk = np.repeat(np.arange(15), 7)
    few = compare(tokens(15, nll=x), tokens(15, nll=y), np.arange(15), Metric.LN_PPL)
    many = compare(tokens(105, nll=x[chunk]), tokens(105, nll=y[chunk]), chunk, Metric.LN_PPL)
    assert many.p_value == pytest.approx(few.p_value, rel=1e-9)
    assert many.ci95 == pytest.approx(few.ci95, rel=1e-9)


@pytest.mark.parametrize(
    ("metric", "columns", "verdict"),
    [
        (Metric.KLD_MEAN, "kld", Verdict.BETTER),
        (Metric.LN_PPL, "nll", Verdict.BETTER),
    ],
)
def test_lower_is_better(metric: Metric, columns: str, verdict: Verdict) -> None:
    rng = np.random.default_rng(3)
    x = rng.gamma(1, 1, 200)
    low, high = tokens(200, **{columns: x}), tokens(200, **{columns: x + 0.1 * rng.random(200)})
    chunk = np.arange(200) // 10
    found = compare(low, high, chunk, metric)
    assert found.verdict is verdict
    assert found.difference is not None
    assert found.difference < 0
    assert compare(high, low, chunk, metric).verdict is Verdict.WORSE


def test_more_same_tops_are_better() -> None:
    rng = np.random.default_rng(4)
    kept = rng.random(2000) < 0.9
    lost = kept & (rng.random(2000) < 0.9)
    chunk = np.arange(2000) // 50
    found = compare(tokens(2000, same_top=kept), tokens(2000, same_top=lost), chunk, Metric.SAME_TOP)
    assert found.verdict is Verdict.BETTER
    assert found.difference == pytest.approx(
        (np.count_nonzero(kept) - np.count_nonzero(lost)) / 2000, rel=1e-12
    )


def test_identical_and_equal_in_one_metric() -> None:
    rng = np.random.default_rng(5)
    x = rng.gamma(1, 1, 100)
    a = tokens(100, kld=x, nll=x)
    chunk = np.arange(100) // 5
    for metric in Metric:
        same = compare(a, tokens(100, kld=x, nll=x), chunk, metric)
        assert (same.verdict, same.difference, same.p_value) == (Verdict.IDENTICAL, 0.0, None)
    # other tokens differ, this metric does not: no difference, but not identical either
    tie = compare(a, tokens(100, kld=x, nll=x[::-1]), chunk, Metric.KLD_MEAN)
    assert (tie.verdict, tie.difference, tie.p_value) == (Verdict.TIE, 0.0, None)


def test_identical_needs_no_chunks() -> None:
    a = tokens(3, kld=[1, 2, 3])
    assert compare(a, a, np.zeros(3, int), Metric.KLD_MEAN).verdict is Verdict.IDENTICAL


def test_few_chunks_give_the_difference_alone() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.gamma(1, 1, (2, 90))
    found = compare(tokens(90, kld=x), tokens(90, kld=y), np.arange(90) // 10, Metric.KLD_MEAN)
    assert found.difference == pytest.approx(np.mean(x - y), rel=1e-12)
    assert (found.ci95, found.p_value, found.verdict, found.se) == (None, None, None, None)
    assert "9 chunks" in str(found.reason)


def test_a_shift_without_variation_is_not_tested() -> None:
    x = np.arange(20.0)
    found = compare(tokens(20, kld=x), tokens(20, kld=x + 1), np.arange(20), Metric.KLD_MEAN)
    assert found.difference == -1.0
    assert found.verdict is None
    assert "in every chunk" in str(found.reason)


def test_nonfinite_tokens_give_no_verdict() -> None:
    x = np.linspace(0, 1, 40)
    y = x.copy()
    y[3] = np.inf
    found = compare(tokens(40, kld=x), tokens(40, kld=y), np.arange(40), Metric.KLD_MEAN)
    assert (found.difference, found.verdict) == (None, None)
    assert "1 of 40 tokens" in str(found.reason)
    both = compare(tokens(40, kld=y), tokens(40, kld=y * 2), np.arange(40), Metric.KLD_MEAN)
    assert both.difference is None  # inf - inf


@pytest.mark.parametrize("metric", Metric)
def test_equal_tokens_at_fault_are_not_identical(metric: Metric) -> None:
    n = 40
    nan, flags = np.full(n, np.nan), np.full(n, NONFINITE_CANDIDATE)
    floats = dict.fromkeys((c for c, dtype in COLUMNS.items() if np.dtype(dtype).kind == "f"), nan)
    one, other = (tokens(n, **floats, nonfinite=flags) for _ in range(2))
    found = compare(one, other, np.arange(n) // 4, metric)
    assert (found.difference, found.verdict, found.p_value) == (None, None, None)
    assert found.reason == (
        "40 of 40 tokens have no finite value (logits NaN or infinite: A in 40, B in 40, base in 0 tokens)"
    )


def test_a_base_at_fault_is_named_and_no_verdict_given() -> None:
    kld = np.linspace(0, 1, 40)
    kld[5] = np.nan
    flags = np.where(np.isnan(kld), NONFINITE_BASE, 0)
    one, other = (tokens(40, kld=kld, nonfinite=flags) for _ in range(2))
    found = compare(one, other, np.arange(40) // 4, Metric.KLD_MEAN)
    assert (found.difference, found.verdict) == (None, None)
    assert "base in 1 tokens" in str(found.reason)
    # what the fault does not reach is equal, but no longer called identical
    same_top = compare(one, other, np.arange(40) // 4, Metric.LN_PPL)
    assert (same_top.difference, same_top.verdict) == (0.0, Verdict.TIE)


def test_no_tokens_no_verdict() -> None:
    none = tokens(0)
    found = compare(none, none, np.empty(0, int), Metric.KLD_MEAN)
    assert (found.difference, found.verdict) == (None, None)
    assert found.reason == "no tokens"


def test_different_tokens_are_refused() -> None:
    with pytest.raises(MismatchError, match="different tokens"):
        compare(tokens(3), tokens(4), np.arange(3), Metric.KLD_MEAN)


def test_holm_by_hand() -> None:
    # sorted .01 .03 .04 -> 3·.01, 2·.03, then .04 raised to .06
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06], rel=1e-15)
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_table_is_adjusted_as_a_whole() -> None:
    rng = np.random.default_rng(7)
    kld = rng.gamma(1, 1, 400)
    names = {f"c{i}": tokens(400, kld=kld + 0.05 * rng.normal(size=400)) for i in range(4)}
    names["twin"] = names["c0"]
    pairs = [Pair(a, b) for a, b in combinations(names, 2)]
    chunk = np.arange(400) // 20
    table = compare_all(names, pairs, chunk, [Metric.KLD_MEAN])
    twin = table.pop((Pair("c0", "twin"), Metric.KLD_MEAN))
    assert (twin.verdict, twin.p_holm) == (Verdict.IDENTICAL, None)
    raw = [row.p_value for row in table.values()]
    assert [row.p_holm for row in table.values()] == holm([p for p in raw if p is not None])
    assert len(table) == 9


def test_a_table_of_ten_equal_candidates_rarely_errs() -> None:
    """No candidate differs in truth; a table errs when any of its 45 verdicts is better or worse."""
    rng = np.random.default_rng(8)
    chunk = np.repeat(np.arange(30), 8)
    pairs = [Pair(a, b) for a, b in combinations("abcdefghij", 2)]
    wrong = 0
    for _ in range(150):
        # skewed like KLD: a shared difficulty of chunk and token, and an error of each candidate's own
        shared = rng.gamma(1, 1, 30)[chunk] * rng.gamma(0.5, 1, len(chunk))
        table = compare_all(
            {name: tokens(len(chunk), kld=shared * rng.gamma(4, 0.25, len(chunk))) for name in "abcdefghij"},
            *(pairs, chunk, [Metric.KLD_MEAN]),
        )
        wrong += any(row.verdict is not Verdict.TIE for row in table.values())
    assert wrong <= 0.05 * 150


def test_a_shift_known_up_to_rounding_is_not_tested() -> None:
    chunk = np.repeat(np.arange(10), 3)
    ahead = tokens(30, same_top=np.tile([True, False, False], 10))
    found = compare(ahead, tokens(30), chunk, Metric.SAME_TOP)
    assert found.difference == pytest.approx(1 / 3)
    assert (found.verdict, found.p_value, found.ci95) == (None, None, None)
    assert found.reason is not None
