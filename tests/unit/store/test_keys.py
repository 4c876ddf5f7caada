"""A key depends on what goes in and on nothing else."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitloss.errors import FileProblem
from bitloss.store import content_key, sha256_file

if TYPE_CHECKING:
    from bitloss.progress import Progress

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_the_form_is_fixed() -> None:
    """Written out: a key that changes would make every old run start again."""
    text = '["quantize",{"a":[1,2.5,null],"type":"Q8_0","\\u0394":true}]'
    key = content_key("quantize", {"type": "Q8_0", "Δ": True, "a": [1, 2.5, None]})
    assert key == hashlib.sha256(text.encode()).hexdigest()


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_order_does_not_matter(parts: dict[str, Any]) -> None:
    assert content_key("k", parts) == content_key("k", dict(reversed(parts.items())))
    assert content_key("k", parts) != content_key("l", parts)
    assert content_key("k", parts) != content_key("k", {**parts, "one more": 1})


@pytest.mark.parametrize(
    ("a", "b"), [(1, 1.0), (1, True), (0, False), ("1", 1), (None, "null"), ([], {}), ([1], 1)]
)
def test_different_values_have_different_keys(a: Any, b: Any) -> None:
    assert content_key("k", {"x": a}) != content_key("k", {"x": b})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_name_nothing(bad: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        content_key("k", {"x": [bad]})


@pytest.mark.parametrize("bad", [Path("x"), b"x", {1: 2}, {"x"}, object()])
def test_what_json_cannot_hold(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"k\.x"):
        content_key("k", {"x": bad})


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 24) - 1, 1 << 24, (1 << 24) + 1])
def test_sha256_of_a_file(tmp_path: Path, size: int) -> None:
    data = bytes(size)
    (tmp_path / "f").write_bytes(data)
    seen: list[Progress] = []
    assert sha256_file(tmp_path / "f", seen.append) == hashlib.sha256(data).hexdigest()
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    if size:
        assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (size, size, "bytes")


def test_a_file_that_cannot_be_hashed(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="gone: No such file"):
        sha256_file(tmp_path / "gone")
    with pytest.raises(FileProblem, match="directory"):
        sha256_file(tmp_path)
