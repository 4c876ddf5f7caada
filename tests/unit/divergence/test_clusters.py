"""Clustered errors against the textbook's formulas in fractions, and how often their intervals cover."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bitloss.divergence.clusters import Clusters, clusters_of_chunks
from bitloss.divergence.comparison import Metric, compare
from bitloss.divergence.factorial import Cells, attribute
from bitloss.divergence.metrics import COLUMNS, TokenMetrics
from bitloss.divergence.statistics import mean_with_errors, summarize
from bitloss.errors import MismatchError
from bitloss.records import Verdict


def tokens(n: int, **columns: Any) -> TokenMetrics:
    """Token metrics of zeros with the given columns filled in."""
    return TokenMetrics(
        **{name: np.asarray(columns.get(name, np.zeros(n)), dtype) for name, dtype in COLUMNS.items()}
    )


def values(n: int) -> list[Fraction]:
    return [Fraction(k * k % 17, 8) for k in range(n)]


def ratio_variance(y: list[Fraction], m: list[int]) -> Fraction:
    """Variance of r = Σy/Σm, clusters of size m_g and total y_g drawn (Cochran, section 9A.1; no finite correction)."""
    g = len(y)
    r = sum(y, Fraction(0)) / sum(m)
    residuals = sum(((t - r * n) ** 2 for t, n in zip(y, m, strict=True)), Fraction(0)) / (g - 1)
    return residuals * g / Fraction(sum(m)) ** 2


def test_documents_are_the_clusters_of_a_ratio_estimator() -> None:
    windows = [1, 3, 1, 2, 5, 1, 1, 2, 1, 4, 1]  # of 11 documents
    chunk = np.repeat(np.arange(sum(windows)), [1 + k % 4 for k in range(sum(windows))])
    x = values(len(chunk))
    document = np.repeat(np.arange(11), windows)[chunk]
    members = [[v for v, d in zip(x, document, strict=True) if d == g] for g in range(11)]
    variance = ratio_variance([sum(each, Fraction(0)) for each in members], [len(each) for each in members])
    clusters = clusters_of_chunks(chunk, documents=windows)
    assert (clusters.total, clusters.degrees, clusters.noun) == (11, 10, "document")
    figure = mean_with_errors(np.array([float(v) for v in x]), clusters)
    assert figure.se_clustered == pytest.approx(math.sqrt(variance), rel=1e-12)
    by_chunk = mean_with_errors(np.array([float(v) for v in x]), chunk)
    assert (by_chunk.value, by_chunk.se) == (figure.value, figure.se)
    assert by_chunk.se_clustered != figure.se_clustered


def test_texts_are_the_strata_of_a_stratified_mean() -> None:
    """Σ W_h² s_h² / G_h where chunks are of one length (Cochran, theorem 5.3), in fractions."""
    counts, length = [5, 8, 4], 3
    chunk = np.repeat(np.arange(17), length)
    x = [v + 100 * int(c >= 5) for v, c in zip(values(51), chunk, strict=True)]
    means = [sum(x[k * length : (k + 1) * length], Fraction(0)) / length for k in range(17)]
    variance, at = Fraction(0), 0
    for g in counts:
        mine, at = means[at : at + g], at + g
        middle = sum(mine, Fraction(0)) / g
        spread = sum(((v - middle) ** 2 for v in mine), Fraction(0)) / (g - 1)
        variance += Fraction(g, 17) ** 2 * spread / g
    clusters = clusters_of_chunks(chunk, texts=counts)
    assert (clusters.total, clusters.texts, clusters.degrees) == (17, 3, 14)
    figure = mean_with_errors(np.array([float(v) for v in x]), clusters)
    assert figure.se_clustered == pytest.approx(math.sqrt(variance), rel=1e-12)
    plain = mean_with_errors(np.array([float(v) for v in x]), chunk)
    assert (plain.value, plain.se) == (figure.value, figure.se)
    assert plain.se_clustered is not None
    assert plain.se_clustered > 10 * math.sqrt(variance)  # most of it is the gap between the texts


def test_documents_of_several_texts() -> None:
    """The variances of each text's ratio add up, weighted by the squares of their shares."""
    windows, texts = [2, 1, 1, 3, 1, 2, 1, 1, 1, 4, 1, 1], [8, 11]  # 5 documents, 7 documents
    chunk = np.repeat(np.arange(19), [1 + k % 3 for k in range(19)])
    x = values(len(chunk))
    document = np.repeat(np.arange(12), windows)[chunk]
    variance = Fraction(0)
    for mine in (range(5), range(5, 12)):
        members = [[v for v, d in zip(x, document, strict=True) if d == g] for g in mine]
        share = Fraction(sum(map(len, members)), len(x))
        variance += share**2 * ratio_variance([sum(e, Fraction(0)) for e in members], list(map(len, members)))
    clusters = clusters_of_chunks(chunk, texts=texts, documents=windows, noun="conversation")
    assert (clusters.total, clusters.degrees, clusters.noun) == (12, 10, "conversation")
    figure = mean_with_errors(np.array([float(v) for v in x]), clusters)
    assert figure.se_clustered == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_one_text_is_what_it_was_bit_for_bit() -> None:
    rng = np.random.default_rng(3)
    chunk = np.repeat(np.arange(24), 7)
    t = tokens(168, nll=rng.gamma(2, 1, 168), nll_base=rng.gamma(2, 1, 168), kld=rng.gamma(0.5, 1, 168))
    plain = summarize(t, chunk)
    assert summarize(t, clusters_of_chunks(chunk, texts=[24])) == plain
    assert summarize(t, Clusters.of(chunk, texts=np.zeros(168, int))) == plain
    # documents of one chunk each are those chunks
    assert summarize(t, clusters_of_chunks(chunk, documents=[1] * 24)) == plain


def test_a_gap_between_texts_enters_no_error_and_no_test() -> None:
    rng = np.random.default_rng(4)
    chunk, texts = np.repeat(np.arange(30), 8), [18, 12]
    clusters = clusters_of_chunks(chunk, texts=texts)
    second = chunk >= 18
    a, b = rng.gamma(1, 0.1, 240), rng.gamma(1, 0.1, 240)
    near = tokens(240, kld=a, nll=a, p=a), tokens(240, kld=b, nll=b, p=b)
    far = tuple(tokens(240, kld=x + 9 * second, nll=x + 2 * second, p=x) for x in (a, b))
    for metric in (Metric.KLD_MEAN, Metric.LN_PPL):
        one = compare(*near, clusters, metric)
        other = compare(far[0], near[1], clusters, metric)
        assert one.se is not None
        assert other.se == pytest.approx(one.se, rel=1e-12)
        assert one.difference is not None
        assert one.ci95 is not None
        quantile = stats.t.ppf(0.975, 28)
        assert one.ci95[1] - one.difference == pytest.approx(quantile * one.se, rel=1e-10)
        assert one.p_value == pytest.approx(2 * stats.t.sf(abs(one.difference) / one.se, 28), rel=1e-8)
    # perplexity: its error grows with its value alone
    ppl = [summarize(t, clusters)["ppl"] for t in (near[0], far[0])]
    relative = [f.se_clustered / f.value for f in ppl if f.se_clustered and f.value]
    assert relative[0] == pytest.approx(relative[1], rel=1e-12)
    # split between weights and importance matrix: the same design
    effects = attribute(Cells(a, b, a, b), clusters)
    assert effects.whole.se == pytest.approx(compare(*near, clusters, Metric.KLD_MEAN).se, rel=1e-12)
    assert effects.whole.p_value == pytest.approx(compare(*near, clusters, Metric.KLD_MEAN).p_value, rel=1e-8)


def test_a_difference_that_is_one_number_in_each_text_is_not_tested() -> None:
    chunk = np.repeat(np.arange(20), 3)
    shift = np.where(chunk < 10, 0.25, 0.5)
    found = compare(
        tokens(60, kld=shift), tokens(60), clusters_of_chunks(chunk, texts=[10, 10]), Metric.KLD_MEAN
    )
    assert found.verdict is None
    assert found.reason == "no test: the difference is the same in every chunk of a text"


@pytest.mark.parametrize(
    ("texts", "documents", "told"),
    [
        ([], [20, 1, 1, 1, 1, 1, 1, 1, 1], "9 documents, at least 10 needed"),
        ([14, 14], [9, 5, 9, 1, 1, 1, 1, 1], "8 documents of 2 texts, at least 11 needed"),
        ([5, 5, 1], [], "11 chunks of 3 texts, at least 12 needed"),
        ([15, 1], [], "a text with a single chunk, at least 2 of each text needed"),
    ],
)
def test_too_few_clusters_withhold_what_rests_on_them(
    texts: list[int], documents: list[int], told: str
) -> None:
    chunks = sum(texts) or sum(documents)
    chunk = np.repeat(np.arange(chunks), 4)
    clusters = clusters_of_chunks(chunk, texts=texts, documents=documents)
    x = np.random.default_rng(0).gamma(1, 1, 4 * chunks)
    figure = mean_with_errors(x, clusters)
    assert figure.se is not None
    assert figure.se_clustered is None
    assert figure.reason == f"no clustered standard error: {told}"
    found = compare(tokens(len(x), kld=x), tokens(len(x)), clusters, Metric.KLD_MEAN)
    assert (found.verdict, found.ci95, found.reason) == (None, None, figure.reason)


def test_chunks_that_are_of_no_document_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"not of the text.*0 \.\. 2.*0 \.\. 3"):
        clusters_of_chunks(np.arange(4), documents=[1, 2])
    with pytest.raises(MismatchError, match="do not fit"):
        Clusters.of(np.arange(4), texts=np.zeros(3, int))
    with pytest.raises(MismatchError, match="do not fit"):
        mean_with_errors(np.zeros(3), Clusters.of(np.arange(4)))


# ------------------------------------------------------------------------------------------------- coverage

DRAWS = 700


def covered(x: np.ndarray, truth: float, clusters: Clusters) -> bool:
    """Whether the 95 % interval holds the truth."""
    figure = mean_with_errors(x, clusters)
    assert figure.value is not None
    assert figure.se_clustered is not None
    return bool(abs(figure.value - truth) <= stats.t.ppf(0.975, clusters.degrees) * figure.se_clustered)


def test_intervals_cover_where_windows_share_a_document() -> None:
    """60 documents of 1 to 6 windows, half of the variance between documents."""
    rng = np.random.default_rng(21)
    hits = {"document": 0, "window": 0}
    for _ in range(DRAWS):
        windows = rng.integers(1, 7, 60)
        chunk = np.repeat(np.arange(windows.sum()), 6)
        document = np.repeat(np.arange(60), windows)[chunk]
        x = rng.normal(size=60)[document] + rng.normal(size=len(chunk))
        hits["document"] += covered(x, 0.0, clusters_of_chunks(chunk, documents=windows.tolist()))
        hits["window"] += covered(x, 0.0, Clusters.of(chunk))
    assert 0.925 * DRAWS <= hits["document"] <= 0.97 * DRAWS
    assert hits["window"] < 0.8 * DRAWS


def test_intervals_cover_the_mean_of_two_texts_that_are_far_apart() -> None:
    """Chunks of ln PPL about 3.7 and 5.5: the mean of these two texts, each the process its chunks are drawn from."""
    rng = np.random.default_rng(22)
    texts, length = [25, 14], 6
    chunk = np.repeat(np.arange(39), length)
    middle = np.where(chunk < 25, 3.7, 5.5)
    spread = np.where(chunk < 25, 0.2, 0.35)
    truth = float(middle.mean())
    clusters = clusters_of_chunks(chunk, texts=texts)
    hits = pooled = 0
    for _ in range(DRAWS):
        x = middle + spread * rng.normal(size=39)[chunk] + rng.normal(size=len(chunk)) / 2
        hits += covered(x, truth, clusters)
        pooled += covered(x, truth, Clusters.of(chunk))
    assert 0.93 * DRAWS <= hits <= 0.97 * DRAWS
    assert pooled == DRAWS  # taken as one population the interval is far too wide to ever miss


def test_equal_candidates_on_two_texts_of_documents_are_rarely_told_apart() -> None:
    """Verdicts at 5 % hold their level with documents in strata, and texts of other difficulty."""
    rng = np.random.default_rng(23)
    wrong = 0
    for _ in range(400):
        windows = rng.integers(1, 5, 40)
        texts = [int(windows[:22].sum()), int(windows[22:].sum())]
        chunk = np.repeat(np.arange(windows.sum()), 4)
        document = np.repeat(np.arange(40), windows)[chunk]
        shared = rng.gamma(2, 1, len(chunk)) * np.where(document < 22, 1.0, 5.0)
        own = [shared * rng.gamma(4, 0.25, 40)[document] for _ in range(2)]
        clusters = clusters_of_chunks(chunk, texts=texts, documents=windows.tolist())
        a, b = (tokens(len(chunk), kld=each) for each in own)
        found = compare(a, b, clusters, Metric.KLD_MEAN)
        wrong += found.verdict is not Verdict.TIE
    assert 0.02 * 400 <= wrong <= 0.08 * 400
