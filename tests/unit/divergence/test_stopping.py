"""Confidence sequences: against scipy and the published formula, and how often they err under continuous monitoring."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import integrate, stats

from bitloss.divergence.comparison import Metric, Pair, table_pairs
from bitloss.divergence.metrics import COLUMNS, TokenMetrics
from bitloss.divergence.stopping import (
    BURN_IN,
    Rule,
    anytime_p_values,
    chunk_means,
    chunk_order,
    compare_all_anytime,
    confidence_sequence,
    decided,
    precise,
    prior_variance,
    table_size,
)
from bitloss.errors import MismatchError
from bitloss.records import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from bitloss.divergence.metrics import FloatArray

KLD = Metric.KLD_MEAN


def all_pairs(names: list[str]) -> tuple[Pair, ...]:
    return table_pairs({name: name for name in names})


def misses(x: FloatArray, mean: float, *, alpha: float = 0.05) -> float:
    """Share of the rows of x [paths, n] whose sequence excludes the mean at any time."""
    bounds = confidence_sequence(x, alpha=alpha)
    return float(np.mean(np.any((bounds.low > mean) | (bounds.high < mean), axis=1)))


def naive_misses(x: FloatArray, mean: float, *, alpha: float = 0.05) -> float:
    """The same with the t interval of a fixed n, from the burn-in on."""
    n = np.arange(1, x.shape[1] + 1)
    with np.errstate(all="ignore"):
        m = np.cumsum(x, axis=1) / n
        s = np.sqrt((np.cumsum(x * x, axis=1) - n * m * m) / (n - 1) / n)
        wrong = np.abs(m - mean) > stats.t.ppf(1 - alpha / 2, n - 1) * s
    return float(np.mean(np.any(wrong[:, BURN_IN - 1 :], axis=1)))


# ---------------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("n", [11, 25, 80])
def test_p_value_is_the_bayes_factor_of_the_t_test(n: int) -> None:
    """The e-value is the noncentral t density, averaged over the prior, over the central one."""
    x = np.random.default_rng(n).normal(0.8, 1.3, n)
    g = prior_variance(0.01)
    t = stats.ttest_1samp(x, 0.0).statistic

    def integrand(d: float) -> float:
        return float(stats.nct.pdf(t, n - 1, math.sqrt(n) * d) * stats.norm.pdf(d, 0.0, math.sqrt(g)))

    peak = t / math.sqrt(n)
    evidence = integrate.quad(integrand, peak - 3.0, peak + 3.0, epsabs=0.0, epsrel=1e-10, limit=500)[0]
    expected = stats.t.pdf(t, n - 1) / evidence
    assert anytime_p_values(x, g=g, burn_in=n)[-1] == pytest.approx(min(1.0, expected), rel=1e-6)


def test_many_chunks_give_the_asymptotic_confidence_sequence() -> None:
    """Waudby-Smith et al. (2024), eq. 8 with rho² = g, at 200,000 chunks."""
    x = np.random.default_rng(1).gamma(2.0, 1.0, 200_000)
    n, g, alpha = len(x), prior_variance(0.05), 0.05
    expected = np.std(x) * math.sqrt(2 * (n * g + 1) / (n * n * g) * math.log(math.sqrt(n * g + 1) / alpha))
    bounds = confidence_sequence(x, alpha=alpha)
    assert (bounds.high[-1] - bounds.low[-1]) / 2 == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 45])
def test_bounds_are_where_the_p_value_is_alpha(alpha: float) -> None:
    x = np.random.default_rng(2).normal(3.0, 2.0, 50)
    g = prior_variance(alpha)
    bounds = confidence_sequence(x, alpha=alpha)
    for end in (bounds.low[-1], bounds.high[-1]):
        assert anytime_p_values(x - end, g=g, burn_in=50)[-1] == pytest.approx(alpha, rel=1e-9)


def test_narrowest_at_its_target() -> None:
    x = np.random.default_rng(3).normal(size=64)
    widths = [
        confidence_sequence(x, g=prior_variance(0.05, target)).high[-1] for target in (24, 48, 64, 90, 200)
    ]
    assert np.argmin(widths) == 2


def test_more_chunks_do_not_change_what_was_said() -> None:
    x = np.random.default_rng(4).gamma(2.0, 1.0, 100) + 1e6
    whole, part = confidence_sequence(x), confidence_sequence(x[:40])
    assert np.array_equal(whole.low[:40], part.low)
    assert np.array_equal(whole.high[:40], part.high)


def test_scale_and_sign() -> None:
    x = np.random.default_rng(5).normal(1.0, 1.0, 60)
    plain, turned = confidence_sequence(x), confidence_sequence(-7.0 * x)
    np.testing.assert_allclose(turned.low[BURN_IN:], -7.0 * plain.high[BURN_IN:], rtol=1e-12)


def test_says_nothing_before_the_burn_in_nor_of_equal_values() -> None:
    x = np.random.default_rng(6).normal(size=30)
    bounds = confidence_sequence(x)
    assert np.all(np.isinf(bounds.low[: BURN_IN - 1]))
    assert np.isfinite(bounds.low[BURN_IN - 1])
    assert np.all(np.isinf(confidence_sequence(np.full(50, 0.1)).high))
    assert np.all(anytime_p_values(np.full(50, 0.1), g=0.1) == 1.0)


# ------------------------------------------------------------------------------------ how often it errs


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda r, s: r.normal(size=s), 0.0),
        (lambda r, s: r.gamma(16.0, 1 / 16.0, s), 1.0),  # skew 0.5: mean KLD of chunks of a novel has 0.4
        (lambda r, s: r.lognormal(0, 1, s) - r.lognormal(0, 1, s), 0.0),  # a paired difference, heavy tails
        (lambda r, s: r.gamma(2.0, 1.0, s) - r.gamma(2.0, 1.0, s), 0.0),
        (lambda r, s: r.standard_t(3, size=s), 0.0),
    ],
    ids=["normal", "gamma", "lognormal difference", "gamma difference", "t3"],
)
def test_covers_under_continuous_monitoring(
    draw: Callable[[np.random.Generator, tuple[int, int]], FloatArray], mean: float
) -> None:
    x = draw(np.random.default_rng(7), (1000, 2000))
    assert misses(x, mean) <= 0.05 + 1.64 * math.sqrt(0.05 * 0.95 / 1000)
    assert misses(x, mean, alpha=0.05 / 45) <= 5 / 1000
    # the test can fail: an interval made for one look does
    assert naive_misses(x, mean) > 0.4


def test_strong_skew_is_covered_less_and_the_module_says_how_much() -> None:
    x = np.random.default_rng(8).lognormal(0, 1, (1000, 2000))
    assert misses(x, math.exp(0.5)) == pytest.approx(0.20, abs=0.03)


def test_beginning_of_a_text_is_no_sample_of_it_but_a_random_order_is() -> None:
    rng = np.random.default_rng(9)
    wrong = {"text": 0, "random": 0}
    for seed in range(300):
        topics = np.repeat(rng.normal(0.0, 0.7, 20), 20)  # 20 articles of 20 chunks
        text = np.exp(0.3 * (topics + rng.normal(size=400)))
        wrong["text"] += misses(text[None], float(np.mean(text))) > 0
        wrong["random"] += misses(text[chunk_order(400, seed)][None], float(np.mean(text))) > 0
    assert wrong["random"] <= 0.05 * 300
    assert wrong["text"] > 0.3 * 300


def table(rng: np.random.Generator, shifts: FloatArray, chunks: int) -> dict[Metric, dict[str, FloatArray]]:
    """Per-chunk mean KLD of candidates on one text: a common, skewed difficulty, and noise of each candidate."""
    text = rng.lognormal(0.0, 0.4, chunks)
    own = rng.lognormal(0.0, 0.1, (len(shifts), chunks)) / math.exp(0.005)
    return {KLD: {f"c{i}": 0.02 * shift * text * own[i] for i, shift in enumerate(shifts)}}


def test_ten_equal_candidates_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(10)
    pairs = all_pairs([f"c{i}" for i in range(10)])
    wrong = naive = 0
    for _ in range(200):
        values = table(rng, np.ones(10), 300)
        found = decided(values, pairs, Rule())
        wrong += any(each.outcome is not Outcome.OPEN for each in found.judgements)
        differences = np.stack([values[KLD][a] - values[KLD][b] for a, b in pairs])
        naive += naive_misses(differences, 0.0, alpha=0.05 / 45) > 0
    assert wrong <= 0.05 * 200
    assert naive > 0.2 * 200  # Bonferroni alone does not make looking after every chunk safe


def test_real_differences_are_found_early_and_the_right_way_round() -> None:
    rng = np.random.default_rng(11)
    shifts = np.array([1.0, 1.05, 1.10, 1.15])
    pairs = all_pairs([f"c{i}" for i in range(4)])
    needed, right = [], 0
    for _ in range(100):
        found = decided(table(rng, shifts, 1000), pairs, Rule())
        assert found.done
        needed.append(max(each.at or 0 for each in found.judgements))
        right += all(each.outcome is Outcome.BETTER for each in found.judgements)
    assert right >= 95
    assert np.mean(needed) < 250  # of 1000


def test_equivalence_is_found_within_the_margin_and_rarely_at_its_edge() -> None:
    rng = np.random.default_rng(12)
    pair = (Pair("c0", "c1"),)
    rule = Rule(margins={KLD: 0.05})
    inside = [decided(table(rng, np.array([1.0, 1.0]), 600), pair, rule).judgements[0] for _ in range(200)]
    assert sum(each.outcome is Outcome.EQUIVALENT for each in inside) >= 180
    edge = np.array([1.025, 0.975])  # difference 0.05 of the mean of both
    outside = [decided(table(rng, edge, 600), pair, rule).judgements[0] for _ in range(200)]
    assert sum(each.outcome in {Outcome.EQUIVALENT, Outcome.BETTER} for each in outside) <= 10


@pytest.mark.parametrize("shape", [2.0, 16.0])
def test_precision_holds_where_it_stops(shape: float) -> None:
    x = np.random.default_rng(13).gamma(shape, 1 / shape, (1000, 4000 if shape < 10 else 1000))
    bounds = confidence_sequence(x)
    with np.errstate(invalid="ignore"):
        reached = (bounds.high - bounds.low) / (bounds.high + bounds.low) <= 0.05
    stop = np.argmax(reached, axis=1)
    assert np.all(np.any(reached, axis=1))
    rows = np.arange(len(x))
    wrong = (bounds.low[rows, stop] > 1.0) | (bounds.high[rows, stop] < 1.0)
    assert np.mean(wrong) <= 0.05
    first = precise({"c": x[0, : stop[0] + 1]}, 0.05)
    assert first.done
    assert not precise({"c": x[0, : stop[0]]}, 0.05).done


# ----------------------------------------------------------------------------------------- the rules


def test_identical_pairs_settle_at_once_and_leave_their_share_of_the_level() -> None:
    x = np.random.default_rng(14).gamma(4.0, 1.0, 40)
    pairs = (Pair("a", "b"), Pair("a", "c"))
    values = {KLD: {"a": x, "b": x, "c": x + 1.0 + 0.2 * np.random.default_rng(15).normal(size=40)}}
    found = decided(values, pairs, Rule(), identical={pairs[0]})
    assert [each.outcome for each in found.judgements] == [Outcome.IDENTICAL, Outcome.BETTER]
    assert found.judgements[0].at == 0
    alone = decided(values, pairs[1:], Rule()).judgements[0]
    assert found.judgements[1] == alone
    assert found.done


def test_equal_values_of_different_files_stay_open_without_margin_and_settle_with_one() -> None:
    x = np.random.default_rng(16).gamma(20.0, 1.0, 200)
    values = {KLD: {"a": x, "b": x.copy()}}
    pair = (Pair("a", "b"),)
    assert not decided(values, pair, Rule()).done
    assert decided(values, pair, Rule(margins={KLD: 0.05})).judgements[0].outcome is Outcome.EQUIVALENT


def test_higher_same_top_is_better() -> None:
    rng = np.random.default_rng(17)
    low = rng.binomial(255, 0.90, 100) / 255
    high = rng.binomial(255, 0.97, 100) / 255
    rule = Rule(metrics=(Metric.SAME_TOP,))
    found = decided({Metric.SAME_TOP: {"a": high, "b": low}}, (Pair("a", "b"),), rule)
    assert found.judgements[0].outcome is Outcome.BETTER


def test_a_value_that_is_not_finite_settles_nothing_and_holds_nothing_up() -> None:
    x = np.random.default_rng(18).gamma(4.0, 1.0, 40)
    broken = x.copy()
    broken[20] = np.inf
    found = decided({KLD: {"a": x, "b": broken}}, (Pair("a", "b"),), Rule())
    assert found.done
    assert found.judgements[0] == (Pair("a", "b"), KLD, Outcome.UNDEFINED, None, None, None)
    assert precise({"a": broken}, 0.01).candidates["a"] == (None, None, None, None)


def test_nothing_is_settled_by_no_chunks() -> None:
    empty = np.empty(0)
    assert not decided({KLD: {"a": empty, "b": empty}}, (Pair("a", "b"),), Rule()).done
    assert not precise({"a": empty}, 0.5).done


def test_refuses_candidates_on_different_chunks() -> None:
    with pytest.raises(MismatchError, match="different chunks"):
        decided({KLD: {"a": np.ones(3), "b": np.ones(4)}}, (Pair("a", "b"),), Rule())


def test_chunk_order_is_a_permutation_that_depends_on_its_seed() -> None:
    order = chunk_order(100, 0)
    assert sorted(order) == list(range(100))
    assert np.array_equal(order, chunk_order(100, 0))
    assert not np.array_equal(order, chunk_order(100, 1))


def test_chunk_means_keep_the_order_of_measuring() -> None:
    means = chunk_means(np.array([1.0, 3.0, 10.0, 20.0, 5.0]), np.array([7, 7, 2, 2, 4]))
    assert means.tolist() == [2.0, 15.0, 5.0]


def tokens(n: int, **columns: Any) -> TokenMetrics:
    return TokenMetrics(
        **{name: np.asarray(columns.get(name, np.zeros(n)), dtype) for name, dtype in COLUMNS.items()}
    )


def test_the_table_says_what_was_decided() -> None:
    """Whatever was settled as better or worse at any time is so in the table after all chunks."""
    rng = np.random.default_rng(19)
    names = ["c0", "c1", "c2", "c3"]
    pairs = all_pairs(names)
    seen = 0
    for _ in range(30):
        kld = {k: np.repeat(v, 4) for k, v in table(rng, np.array([1, 1, 1.05, 1.1]), 60)[KLD].items()}
        chunk = np.repeat(np.arange(60), 4)
        family = table_size(pairs, ())
        means = {KLD: {name: chunk_means(x, chunk) for name, x in kld.items()}}
        found = decided(means, pairs, Rule(family=family))
        rows = compare_all_anytime(
            {name: tokens(240, kld=x, nll=rng.random(240)) for name, x in kld.items()},
            pairs,
            chunk,
            family=family,
        )
        for each in found.judgements:
            row = rows[each.pair, KLD]
            assert row.ci95 is not None
            assert row.difference is not None
            assert row.ci95[0] < row.difference < row.ci95[1]
            if each.outcome is not Outcome.OPEN:
                assert row.verdict == Verdict(each.outcome.value)
                seen += 1
    assert seen > 30


def test_the_table_of_few_chunks_is_undecided() -> None:
    rows = compare_all_anytime(
        {"a": tokens(20, kld=np.arange(20)), "b": tokens(20)},
        all_pairs(["a", "b"]),
        np.arange(20) // 4,
        family=3,
    )
    assert rows[Pair("a", "b"), KLD].verdict is None


def test_twins_are_compared_with_their_first_alone() -> None:
    pairs = table_pairs({"a": 1, "b": 1, "c": 2, "d": 2, "e": 3})
    assert pairs == (("a", "b"), ("a", "c"), ("a", "e"), ("c", "d"), ("c", "e"))
