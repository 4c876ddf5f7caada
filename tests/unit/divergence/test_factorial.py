"""The parts of a cross add up; shares against hand-made designs, errors against a bootstrap-free witness."""

from __future__ import annotations

import numpy as np
import pytest
from tests.tokens import token_table

from bitloss.divergence.comparison import Metric, compare
from bitloss.divergence.factorial import Cells, attribute
from bitloss.errors import MismatchError
from bitloss.records import Effects

CHUNKS, PER_CHUNK = 24, 20
CHUNK = np.repeat(np.arange(CHUNKS), PER_CHUNK)


def _cells(seed: int = 0, *, weights: float = 0.0, imatrix: float = 0.0, both: float = 0.0) -> Cells:
    """KLD with known mean effects, each with noise of its own."""
    rng = np.random.default_rng(seed)
    n = len(CHUNK)
    aa = rng.exponential(1.0, n)
    w, i, x = (size + abs(size) * rng.standard_normal(n) for size in (weights, imatrix, both))
    return Cells(aa, aa + w, aa + i, aa + w + i + x)


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_add_up_to_the_whole_to_the_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = Cells(*rng.exponential(10.0 ** rng.integers(-9, 3), (4, len(CHUNK))))
    found = attribute(cells, CHUNK)
    parts = [each.difference for each in (found.weights, found.imatrix, found.both)]
    w, i, x = (each for each in parts if each is not None)
    assert found.whole.difference == (w + i) + x
    assert found.whole.difference == pytest.approx(float(np.mean(cells.bb - cells.aa)), rel=1e-12)
    scatter = [each.scatter for each in (found.weights, found.imatrix, found.both)]
    assert sum(each or 0.0 for each in scatter) == pytest.approx(1.0, abs=1e-12)
    averaged = [each.difference or 0.0 for each in (found.weights_averaged, found.imatrix_averaged)]
    assert sum(averaged) == pytest.approx(found.whole.difference, rel=1e-12)


def test_known_effects_are_found_with_their_shares() -> None:
    found = attribute(_cells(weights=0.1, imatrix=0.3, both=0.6), CHUNK)
    for part, size in ((found.weights, 0.1), (found.imatrix, 0.3), (found.both, 0.6)):
        assert part.difference is not None
        assert part.se is not None
        assert abs(part.difference - size) < 4 * part.se
        assert part.share == pytest.approx(part.difference / (found.whole.difference or 1.0), rel=1e-9)
        assert part.share_se is not None
        assert abs((part.share or 0.0) - size) < 4 * part.share_se
    assert found.whole.share == pytest.approx(1.0)
    assert found.whole.share_se == pytest.approx(0.0, abs=1e-12)


def test_a_share_s_error_is_that_of_repeating_the_experiment() -> None:
    many = [attribute(_cells(seed, weights=0.4, imatrix=0.6), CHUNK).weights for seed in range(300)]
    spread = float(np.std([each.share or 0.0 for each in many]))
    told = float(np.mean([each.share_se or 0.0 for each in many]))
    assert told == pytest.approx(spread, rel=0.15)


def test_one_route_alone_takes_it_all() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.exponential(1.0, (2, len(CHUNK)))
    only_imatrix = attribute(Cells(aa=a, ba=a, ab=b, bb=b), CHUNK)
    assert only_imatrix.weights.difference == 0.0
    assert only_imatrix.both.difference == 0.0
    assert only_imatrix.imatrix.scatter == 1.0
    only_weights = attribute(Cells(aa=a, ba=b, ab=a, bb=b), CHUNK)
    assert only_weights.imatrix.difference == only_weights.both.difference == 0.0
    assert only_weights.weights.scatter == 1.0
    together = attribute(Cells(aa=a, ba=a, ab=a, bb=b), CHUNK)
    assert together.weights.difference == together.imatrix.difference == 0.0
    assert together.both.scatter == 1.0


def test_the_whole_is_the_paired_comparison() -> None:
    one, two = (token_table(24, 20, seed=seed).metrics for seed in (1, 2))
    chunks = np.repeat(np.arange(24), 20)
    compared = compare(two, one, chunks, Metric.KLD_MEAN)
    found = attribute(Cells(one.kld, two.kld, one.kld, two.kld), chunks).whole
    assert found.difference == pytest.approx(compared.difference, rel=1e-12)
    assert found.se == pytest.approx(compared.se, rel=1e-12)
    assert found.p_value == pytest.approx(compared.p_value, rel=1e-9)
    assert found.ci95 == pytest.approx(compared.ci95, rel=1e-9)


def test_no_shares_of_what_cannot_be_told_from_nothing() -> None:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((4, len(CHUNK)))
    found = attribute(Cells(*(noise - noise.mean(axis=1, keepdims=True))), CHUNK)
    assert found.whole.p_value is not None
    assert found.whole.p_value > 0.05
    assert found.weights.share is None
    assert "no shares" in (found.weights.reason or "")
    assert found.weights.scatter is not None


def test_equal_files_and_few_chunks_say_so() -> None:
    a = np.random.default_rng(0).exponential(1.0, len(CHUNK))
    found = attribute(Cells(a, a, a, a), CHUNK)
    assert found.whole.difference == 0.0
    assert found.whole.scatter is None
    assert "every token is equal" in (found.whole.reason or "")
    few = attribute(_cells(weights=1.0), CHUNK % 3)
    assert few.weights.difference is not None
    assert few.weights.se is None
    assert few.weights.p_value is None
    assert few.weights.share is None
    assert "3 chunks" in (few.weights.reason or "")


def test_a_token_without_a_value_leaves_nothing_to_say() -> None:
    cells = _cells(weights=1.0)
    cells.bb[7] = np.nan
    found = attribute(cells, CHUNK)
    assert found.whole.difference is None
    assert found.weights.difference is None
    assert found.whole.reason


def test_other_tokens_are_refused_and_parts_that_do_not_add_up() -> None:
    cells = _cells(weights=1.0)
    with pytest.raises(MismatchError, match="different tokens"):
        attribute(cells._replace(bb=cells.bb[1:]), CHUNK)
    document = attribute(cells, CHUNK).model_dump()
    document["weights"]["difference"] += 1e-9
    with pytest.raises(ValueError, match="do not add up"):
        Effects.model_validate(document)
