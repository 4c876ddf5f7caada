"""What a block of a text is called, and what the rule says of candidates that are broken or are the base itself."""

from __future__ import annotations

import numpy as np
import pytest

from bitloss.divergence.measure import TokenTable
from bitloss.divergence.metrics import COLUMNS, TokenMetrics
from bitloss.records import Outcome
from bitloss.run.sequential import ask, part_label
from bitloss.run.steps import Part
from bitloss.spec import StopSpec

CHUNKS, TOKENS = 40, 8


def test_chunks_are_counted_from_1_to_the_last_one() -> None:
    assert part_label("measure a", None) == "measure a"
    assert part_label("measure a", Part(seed=0, first=0, last=16)) == "measure a, first 16 chunks"
    assert part_label("measure a", Part(seed=0, first=32, last=37)) == "measure a, chunks 33..37"


def _table(mean: float) -> TokenTable:
    """KLD about a mean, or the same value (0, NaN) in every token."""
    n = CHUNKS * TOKENS
    noise = np.random.default_rng(3).normal(0, 0.05 * mean, n) if mean > 0 else np.zeros(n)
    columns = {name: np.zeros(n, dtype) for name, dtype in COLUMNS.items()}
    columns["kld"] = np.asarray(mean + noise, COLUMNS["kld"])
    each = np.arange(n, dtype=np.int32)
    return TokenTable(each // TOKENS, each % TOKENS, each, TokenMetrics(**columns))


TABLES = {
    "a": _table(0.02),
    "b": _table(0.03),
    "base": _table(0.0),
    "nan": _table(np.nan),
    "nan2": _table(np.nan),
}


@pytest.mark.parametrize(
    ("names", "met", "over"),
    [(("a", "b"), True, True), (("a", "base"), True, True), (("nan", "nan2"), False, True),
     (("a", "b", "nan"), False, True)],
)  # fmt: skip
def test_what_cannot_be_compared_is_not_decided(names: tuple[str, ...], *, met: bool, over: bool) -> None:
    tables = {name: TABLES[name] for name in names}
    record, ended = ask(StopSpec(), {name: name for name in names}, tables, CHUNKS)
    assert (record.met, ended) == (met, over)
    undefined = {s.a for s in record.settled if s.outcome is Outcome.UNDEFINED}
    assert bool(undefined) != met


@pytest.mark.parametrize(
    ("names", "met", "over"),
    [(("a", "base"), True, True), (("base",), True, True), (("a", "nan"), False, True), (("nan",), False, True)],
)  # fmt: skip
def test_the_base_itself_is_known_and_what_has_no_mean_is_not(
    names: tuple[str, ...], *, met: bool, over: bool
) -> None:
    tables = {name: TABLES[name] for name in names}
    record, ended = ask(StopSpec(when="precise", precision=0.05), {n: n for n in names}, tables, CHUNKS)
    assert (record.met, ended) == (met, over)
    known = {each.candidate: (each.low, each.high, each.relative) for each in record.known}
    if "base" in names:
        assert known["base"] == (0.0, 0.0, 0.0)
    if "nan" in names:
        assert known["nan"] == (None, None, None)
    if "a" in names:
        low, high, relative = known["a"]
        assert low is not None
        assert high is not None
        assert relative is not None
        assert low < 0.02 < high
