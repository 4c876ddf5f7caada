"""Shared windows are counted exactly, whatever the hashes do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitloss.model import overlap
from bitloss.model.overlap import WINDOW, Shared, shared_windows

Streams = list[NDArray[np.int32]]


def _by_hand(text: Streams, other: Streams, window: int) -> Shared:
    theirs = {tuple(s[i : i + window]) for s in other for i in range(len(s) - window + 1)}
    mine = [tuple(s[i : i + window]) for s in text for i in range(len(s) - window + 1)]
    return Shared(len(mine), sum(each in theirs for each in mine))


_streams = st.lists(st.lists(st.integers(0, 2), max_size=40), max_size=4).map(
    lambda lists: [np.array(each, np.int32) for each in lists]
)


@given(text=_streams, other=_streams, window=st.integers(1, 5))
def test_it_is_the_count_by_hand(text: Streams, other: Streams, window: int) -> None:
    assert shared_windows(text, other, window=window) == _by_hand(text, other, window)


@given(text=_streams, other=_streams, window=st.integers(1, 4))
def test_hits_are_confirmed_token_by_token(text: Streams, other: Streams, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:  # every window has one of three hashes
        patch.setattr(overlap, "_hashes", lambda tokens, w: tokens[: len(tokens) - w + 1].astype(np.uint64))
        assert shared_windows(text, other, window=window) == _by_hand(text, other, window)


def test_a_copied_stretch_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    text, other = (rng.integers(0, 50_000, n).astype(np.int32) for n in (20_000, 30_000))
    assert shared_windows([text], [other]) == (20_000 - 31, 0)
    text[700:800] = other[5000:5100]
    assert shared_windows([text], [other]) == (20_000 - 31, 100 - WINDOW + 1)
    assert shared_windows([text], [text]) == (20_000 - 31, 20_000 - 31)
    assert shared_windows([text], [text[:31]]) == (20_000 - 31, 0)
    assert shared_windows([text[:31]], [text]) == (0, 0)


def test_repeated_tokens_do_not_slow_it_down() -> None:
    same = np.zeros(300_000, np.int32)
    other = np.concatenate([same, np.arange(300_000, dtype=np.int32)])
    assert shared_windows([same], [other]) == (300_000 - 31, 300_000 - 31)
