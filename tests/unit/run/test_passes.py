"""Candidates share a pass as far as memory goes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitloss.cli.options import size
from bitloss.errors import UsageError
from bitloss.run.passes import plan_passes


@given(st.lists(st.integers(1, 100), min_size=1, max_size=12), st.integers(-10, 300))
def test_groups_keep_order_and_limit(needed: list[int], limit: int) -> None:
    groups = plan_passes(needed, limit)
    assert [i for group in groups for i in group] == list(range(len(needed)))
    for group in groups:
        assert len(group) == 1 or sum(needed[i] for i in group) <= limit
    for before, after in itertools.pairwise(groups):  # no pass ends while the next one would fit
        assert sum(needed[i] for i in before) + needed[after[0]] > limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GiB", 8 << 30), ("500M", 500_000_000), ("1.5 gb", 1_500_000_000), ("123", 123), ("2KiB", 2048)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(text, "--max-memory") == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "1e9", "0", "8 Gigs", "9999999999T", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--max-memory"):
        size(text, "--max-memory")
