"""Figures against hand-worked fractions, scipy, and formulas written out as llama-perplexity has them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bitloss.divergence.metrics import COLUMNS, TokenMetrics
from bitloss.divergence.statistics import mean_with_errors, summarize
from bitloss.errors import MismatchError


def tokens(n: int, **columns: Any) -> TokenMetrics:
    """Token metrics of zeros with the given columns filled in."""
    return TokenMetrics(
        **{name: np.asarray(columns.get(name, np.zeros(n)), dtype) for name, dtype in COLUMNS.items()}
    )


def drawn(n: int, seed: int = 0) -> TokenMetrics:
    """Plausible columns."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(1.0, 2.5, n)
    nll = np.abs(base + 0.1 * rng.normal(size=n))
    return tokens(
        n,
        **{"nll_base": base, "nll": nll, "p_base": np.exp(-base), "p": np.exp(-nll)},
        **{
            "kld": rng.gamma(0.5, 0.02, n),
            "kld_reverse": rng.gamma(0.5, 0.02, n),
            "js": rng.gamma(0.5, 0.01, n),
        },
        **{"same_top": rng.random(n) < 0.94},
        **{"top5_overlap": rng.integers(3, 6, n) / 5, "top10_overlap": rng.integers(7, 11, n) / 10},
    )


def errors_by_hand(x: list[Fraction], chunk: list[int]) -> tuple[Fraction, Fraction, Fraction]:
    """Mean, squared standard error (independent) and squared clustered error, exactly."""
    n, mean = len(x), sum(x, Fraction(0)) / len(x)
    independent = sum(((v - mean) ** 2 for v in x), Fraction(0)) / n / (n - 1)
    groups = sorted(set(chunk))
    sums = [sum((v - mean for v, c in zip(x, chunk, strict=True) if c == g), Fraction(0)) for g in groups]
    clustered = Fraction(len(groups), len(groups) - 1) * sum((s * s for s in sums), Fraction(0)) / n**2
    return mean, independent, clustered


def test_mean_and_errors_by_hand() -> None:
    x = [Fraction(k * k % 17, 8) for k in range(25)]
    chunk = [k // 2 for k in range(24)] + [3]  # uneven, one chunk of three and out of order
    mean, independent, clustered = errors_by_hand(x, chunk)
    figure = mean_with_errors(np.array([float(v) for v in x]), np.array(chunk))
    assert figure.value == pytest.approx(float(mean), rel=1e-14)
    assert figure.se == pytest.approx(math.sqrt(independent), rel=1e-12)
    assert figure.se_clustered == pytest.approx(math.sqrt(clustered), rel=1e-12)
    assert figure.reason is None


def test_means_equal_scipy() -> None:
    t = drawn(500)
    figures = summarize(t, np.arange(500) // 20)
    for key, column in {
        "kld_mean": t.kld,
        "kld_reverse_mean": t.kld_reverse,
        "js_mean": t.js,
        "dp_mean": t.p - t.p_base,
        "ln_ppl_ratio": t.nll - t.nll_base,
        "same_top": t.same_top.astype(float),
        "top5_overlap": t.top5_overlap.astype(float),
        "top10_overlap": t.top10_overlap.astype(float),
    }.items():
        assert figures[key].value == pytest.approx(np.mean(column), rel=1e-12), key
        # llama-perplexity divides the biased variance by n - 1: the usual standard error of the mean
        assert figures[key].se == pytest.approx(stats.sem(column), rel=1e-12), key


def test_formulas_of_llama_perplexity() -> None:
    """Value ± error as its kl_divergence() computes them: raw sums, variances, covariance."""
    t = drawn(3000, seed=4)
    n = 3000
    figures = summarize(t, np.arange(n) // 100)

    def mean_and_uncertainty(x: Any) -> tuple[float, float]:
        f = float(np.sum(x)) / n
        return f, math.sqrt((float(np.sum(x * x)) / n - f * f) / (n - 1))

    def expect(key: str, value: float, error: float | None) -> None:
        assert figures[key].value == pytest.approx(value, rel=1e-11), key
        if error is not None:
            assert figures[key].se == pytest.approx(error, rel=1e-9), key

    ln, ln_unc = mean_and_uncertainty(t.nll)
    ln_base, ln_base_unc = mean_and_uncertainty(t.nll_base)
    cov = (float(np.sum(t.nll * t.nll_base)) / n - ln * ln_base) / (n - 1)
    ratio_unc = math.sqrt(ln_unc**2 + ln_base_unc**2 - 2 * cov)
    ppl, ppl_base = math.exp(ln), math.exp(ln_base)
    expect("ppl", ppl, ppl * ln_unc)
    expect("ppl_base", ppl_base, ppl_base * ln_base_unc)
    expect("cor_ln_ppl", cov / (ln_unc * ln_base_unc), None)
    expect("ln_ppl_ratio", ln - ln_base, ratio_unc)
    expect("ppl_ratio", math.exp(ln - ln_base), math.exp(ln - ln_base) * ratio_unc)
    difference_unc = math.sqrt((ppl * ln_unc) ** 2 + (ppl_base * ln_base_unc) ** 2 - 2 * ppl * ppl_base * cov)
    expect("ppl_difference", ppl - ppl_base, difference_unc)
    mse, mse_unc = mean_and_uncertainty(t.dp**2)
    expect("dp_rms", math.sqrt(mse), 0.5 / math.sqrt(mse) * mse_unc)
    top = float(np.mean(t.same_top))
    expect("same_top", top, math.sqrt(top * (1 - top) / (n - 1)))


def test_correlation_equals_scipy_and_its_error_the_textbook() -> None:
    rng = np.random.default_rng(8)
    z = rng.normal(size=(2, 20000))
    t = tokens(20000, nll_base=z[0], nll=0.8 * z[0] + 0.6 * z[1])
    figure = summarize(t, np.arange(20000))["cor_ln_ppl"]
    assert figure.value == pytest.approx(stats.pearsonr(t.nll, t.nll_base).statistic, rel=1e-12)
    # normal data: (1 - ρ²)/√n
    assert figure.se == pytest.approx((1 - 0.8**2) / math.sqrt(20000), rel=0.03)


def test_quantiles_by_hand() -> None:
    kld = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    dp = np.array([-0.25, 0.5, 0.0, 0.25, -0.5])
    figures = summarize(tokens(5, kld=kld, p=dp), np.zeros(5, int))
    values = {key: figure.value for key, figure in figures.items()}
    assert values["kld_max"] == 5.0
    assert values["kld_min"] == 1.0
    assert values["kld_median"] == 3.0
    assert values["kld_p90"] == pytest.approx(4.6, rel=1e-15)  # position 0.9 · 4 = 3.6
    assert values["kld_p0_1"] == pytest.approx(1.004, rel=1e-15)
    assert values["dp_p75"] == 0.25
    assert values["dp_p25"] == -0.25
    assert values["dp_max"] == 0.5
    assert values["dp_min"] == -0.5
    assert figures["kld_p99"].se is None


def test_one_token_a_chunk_makes_both_errors_equal() -> None:
    t = drawn(40)
    for key, figure in summarize(t, np.arange(40)[::-1]).items():
        if figure.se is not None:
            assert figure.se_clustered == pytest.approx(figure.se, rel=1e-12), key


def test_chunks_of_equal_tokens_count_once() -> None:
    """12 chunks of 30 copies carry the information of 12 tokens."""
    once = drawn(12, seed=3)
    copied = once[np.repeat(np.arange(12), 30)]
    few = summarize(once, np.arange(12))
    many = summarize(copied, np.repeat(np.arange(12), 30))
    for key in ("ppl", "ppl_ratio", "ppl_difference", "cor_ln_ppl", "kld_mean", "dp_rms", "same_top"):
        assert many[key].value == pytest.approx(few[key].value, rel=1e-12), key
        assert many[key].se_clustered == pytest.approx(few[key].se, rel=1e-10), key


def test_identical_candidate() -> None:
    t = drawn(200)
    same = tokens(
        200, nll_base=t.nll_base, nll=t.nll_base, p_base=t.p_base, p=t.p_base, same_top=np.ones(200)
    )
    figures = summarize(same, np.arange(200) // 10)
    assert (figures["kld_mean"].value, figures["kld_mean"].se, figures["kld_mean"].se_clustered) == (0, 0, 0)
    assert (figures["ppl_ratio"].value, figures["ppl_ratio"].se) == (1.0, 0.0)
    assert (figures["same_top"].value, figures["same_top"].se) == (1.0, 0.0)
    assert figures["cor_ln_ppl"].value == pytest.approx(1.0, rel=1e-15)
    # llama-perplexity prints nan here: 0.5/0 · 0
    assert figures["dp_rms"].value == 0.0
    assert figures["dp_rms"].se is None
    assert "0/0" in str(figures["dp_rms"].reason)


def test_undefined_figures_say_why() -> None:
    constant = summarize(tokens(20, nll=np.ones(20), nll_base=np.ones(20)), np.arange(20))
    assert constant["cor_ln_ppl"].value is None
    assert "no variation" in str(constant["cor_ln_ppl"].reason)
    huge = summarize(tokens(20, nll=np.full(20, 1e4)), np.arange(20))
    assert huge["ppl"].value is None
    assert "overflows" in str(huge["ppl"].reason)
    assert huge["ln_ppl_ratio"].value == 1e4


def test_no_tokens() -> None:
    figures = summarize(tokens(0), np.empty(0, int))
    assert figures.pop("nonfinite_tokens").value == figures.pop("nonfinite_base").value == 0
    assert {(figure.value, figure.reason) for figure in figures.values()} == {(None, "no tokens")}


def test_few_tokens_and_few_chunks_withhold_errors() -> None:
    ten = summarize(drawn(10), np.arange(10))["kld_mean"]
    assert ten.value is not None
    assert ten.se is None
    assert "10 tokens" in str(ten.reason)
    assert ten.se_clustered is not None
    nine_chunks = summarize(drawn(90), np.arange(90) // 10)["kld_mean"]
    assert nine_chunks.se is not None
    assert nine_chunks.se_clustered is None
    assert "9 chunks" in str(nine_chunks.reason)


def test_nonfinite_tokens_are_never_averaged_in_nor_left_out() -> None:
    t = drawn(100)
    bad = {name: getattr(t, name).copy() for name in COLUMNS}
    for name in ("nll", "p", "kld", "kld_reverse", "js", "entropy", "top5_overlap", "top10_overlap"):
        bad[name][7] = np.nan
    bad["same_top"][7] = False
    bad["nonfinite"][7] = 2
    figures = summarize(TokenMetrics(**bad), np.arange(100) // 5)
    whole = summarize(t, np.arange(100) // 5)
    assert figures.pop("nonfinite_tokens").value == 1
    assert figures.pop("nonfinite_base").value == 0
    assert figures.pop("ppl_base") == whole["ppl_base"]
    for key, figure in figures.items():
        assert figure.value is figure.se is figure.se_clustered is None, key
        assert "1 of 100 tokens" in str(figure.reason), key
        assert "candidate in 1, base in 0" in str(figure.reason), key


def test_infinite_divergence_leaves_other_figures_alone() -> None:
    t = drawn(100)
    bad = {name: getattr(t, name).copy() for name in COLUMNS}
    bad["kld"][3] = np.inf
    bad["nonfinite"][3] = 2
    figures = summarize(TokenMetrics(**bad), np.arange(100))
    whole = summarize(t, np.arange(100))
    changed = {key for key in figures if figures[key] != whole[key]}
    assert changed == {key for key in figures if key.startswith("kld_")} - {"kld_reverse_mean"} | {
        "nonfinite_tokens"
    }
    assert figures["kld_median"].value is None


def test_chunk_ids_must_fit() -> None:
    with pytest.raises(MismatchError, match="chunk ids"):
        summarize(drawn(10), np.arange(9))


def test_malformed_columns_are_refused() -> None:
    columns = {name: getattr(drawn(4), name) for name in COLUMNS}
    with pytest.raises(MismatchError, match="kld: column"):
        TokenMetrics(**{**columns, "kld": columns["kld"].astype(np.float32)})
    with pytest.raises(MismatchError, match="nll: column"):
        TokenMetrics(**{**columns, "nll": columns["nll"][:2]})


def test_clustered_interval_covers_where_the_independent_one_falls_short() -> None:
    """Tokens of a chunk share an effect: 95 % intervals from 1000 draws of 40 chunks of 12 tokens."""
    rng = np.random.default_rng(20)
    chunk = np.repeat(np.arange(40), 12)
    quantile = stats.t.ppf(0.975, 39)
    covered = {"clustered": 0, "independent": 0}
    for _ in range(1000):
        x = rng.normal(size=40)[chunk] + 2 * rng.normal(size=len(chunk))
        figure = mean_with_errors(x, chunk)
        assert figure.value is not None
        assert figure.se is not None
        assert figure.se_clustered is not None
        covered["clustered"] += abs(figure.value) <= quantile * figure.se_clustered
        covered["independent"] += abs(figure.value) <= quantile * figure.se
    assert 940 <= covered["clustered"] <= 960
    assert covered["independent"] < 800
