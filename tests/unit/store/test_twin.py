"""Two digests of the same bytes against hashlib, wherever the pieces are cut."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitloss._native import Sha256, sha_available
from bitloss.store import twin

# Around the ends of blocks of 64 bytes, and of the 56 after which a length does not fit any more.
sizes = st.one_of(
    st.integers(0, 300), st.sampled_from([0, 1, 31, 32, 55, 56, 63, 64, 65, 119, 120, 127, 128])
)


@given(steps=st.lists(st.tuples(sizes, st.sampled_from(["one", "other", "both"])), max_size=8))
def test_digests_are_those_of_hashlib(steps: list[tuple[int, str]]) -> None:
    one, other = twin.sha256(), twin.sha256()
    expected = hashlib.sha256(), hashlib.sha256()
    for number, (size, whom) in enumerate(steps):
        data = (np.arange(size) * 7 + number).astype(np.uint8)
        if whom == "both":
            twin.update_both(one, other, data)
        else:
            (one if whom == "one" else other).update(data)
        for which, digest in zip(("one", "other"), expected, strict=True):
            if whom in (which, "both"):
                digest.update(data.data)
        assert (one.digest(), other.digest()) == tuple(digest.digest() for digest in expected)


def test_known_answers() -> None:
    """Those of FIPS 180-4's examples."""
    digest = twin.sha256()
    assert digest.digest().hex().startswith("e3b0c44298fc1c14")
    digest.update(np.frombuffer(b"abc", np.uint8))
    assert digest.digest().hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_machine_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "sha_available", lambda: False)
    one, other = twin.sha256(), twin.sha256()
    twin.update_both(one, other, np.zeros(1000, np.uint8))
    assert one.digest() == other.digest() == hashlib.sha256(bytes(1000)).digest()


@pytest.mark.skipif(not sha_available(), reason="no SHA instructions")
def test_a_digest_cannot_be_its_own_twin() -> None:
    digest = Sha256()
    with pytest.raises(ValueError, match="two digests"):
        digest.update_with(digest, np.zeros(3, np.uint8))
