"""Digits as llama-perplexity prints them; nothing measured is shown as zero."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitloss.display import (
    chance,
    correlation,
    decimal,
    duration,
    json_kind,
    many,
    percent,
    plain_fault,
    probability,
    rough_percent,
    size,
    visible,
)


@pytest.mark.parametrize(
    ("value", "se", "shown"),
    [
        (6.344932, 0.038989, "6.344932 ± 0.038989"),
        (0.018110, 0.000112, "0.018110 ± 0.000112"),
        (3.371759, None, "3.371759"),
        (0.0, 0.0, "0.000000 ± 0.000000"),
        (0.0, None, "0.000000"),
        (2.5e-8, 1.2e-9, "2.500e-08 ± 1.2e-09"),
        (-2.9e-5, None, "-2.900e-05"),
        (1.0, 2e-9, "1.000000 ± 2.0e-09"),
        (0.0001, 0.0000006, "0.000100 ± 0.000001"),
        (1e-300, None, "1.000e-300"),
    ],
)
def test_decimal(value: float, se: float | None, shown: str) -> None:
    assert decimal(value, se) == shown


@pytest.mark.parametrize(
    ("value", "se", "shown"),
    [
        (-0.00256, 0.00010, "-0.256 ± 0.010 %"),
        (0.93893, 0.00062, "93.893 ± 0.062 %"),
        (-0.00017, 0.00002, "-0.017 ± 0.002 %"),
        (0.0, None, "0.000 %"),
        (1e-9, 3e-9, "1.000e-07 ± 3.0e-07 %"),
        (1.0, None, "100.000 %"),
    ],
)
def test_percent(value: float, se: float | None, shown: str) -> None:
    assert percent(value, se) == shown


def test_percent_with_other_digits() -> None:
    assert percent(0.3825, 0.0125, digits=1) == "38.2 ± 1.2 %"
    assert percent(0.3825, digits=0) == "38 %"
    assert percent(0.0004, 0.001, digits=1) == "4.000e-02 ± 1.0e-01 %"
    assert percent(0.0, 0.0, digits=1) == "0.0 ± 0.0 %"


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0.0, 2, "0 %"),
        (0.05, 2, "5 %"),
        (0.000029, 2, "0.0029 %"),
        (0.125, 3, "12.5 %"),
        (0.9999, 3, "over 99.9 %"),
        (0.9999, 2, "over 99 %"),
        (1.0, 3, "100 %"),
        (12.345, 2, "1234 %"),
    ],
)
def test_rough_percent(value: float, digits: int, shown: str) -> None:
    assert rough_percent(value, digits=digits) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.9962, "99.62 %"),
        (0.9998, "99.98 %"),
        (1.0, "100.00 %"),
        (0.999999, "99.9999 %"),
        (1 - 1e-16, "100.000000000000 %"),  # nearer to 1 than the digits go
        (-0.5, "-50.00 %"),
    ],
)
def test_correlation(value: float, shown: str) -> None:
    assert correlation(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "1.00"),
        (0.67, "0.67"),
        (0.0499, "0.05"),
        (0.00123, "0.0012"),
        (1e-7, "1.0e-07"),
        (0.0, "< 1e-15"),
    ],
)
def test_probability(value: float, shown: str) -> None:
    assert probability(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "100.000 %"),
        (0.112, "11.200 %"),
        (0.01, "1.000 %"),
        (0.00999, "0.999 %"),
        (4.56e-4, "0.0456 %"),
        (1.04e-5, "0.00104 %"),
        (0.96e-5, "0.000960 %"),
        (1.23e-7, "1.23e-05 %"),
        (0.0, "0.000 %"),
    ],
)
def test_chance(value: float, shown: str) -> None:
    assert chance(value) == shown


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (13_022_372_992, "12.13 GiB"),
        (1 << 80, "1073741824.00 PiB"),
    ],
)
def test_size(n_bytes: int, shown: str) -> None:
    assert size(n_bytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.00 s"),
        (0.423, "0.42 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (412, "6 min 52 s"),
        (3599.6, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_not_zero_never_looks_like_zero(value: float) -> None:
    assert (float(decimal(value)) == 0) == (value == 0)
    share = value / 1000  # 100 x the largest float is no number
    assert (float(percent(share).removesuffix(" %")) == 0) == (share == 0)


@given(st.text(max_size=200), st.integers(8, 40))
def test_visible(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    if text.isprintable() and len(text) <= limit:
        assert shown == text


def test_visible_by_hand() -> None:
    assert visible("a\nb\x1b[2J\u202eevil\U000e0001") == r"a\x0ab\x1b[2J\u202eevil\U000e0001"
    assert visible("abcdefghij", 7) == "abc…hij"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Value error, 'maybe' is not one of 'auto', 'on'.", "'maybe' is not one of 'auto', 'on'"),
        ("Input should be greater than or equal to 1", "should be at least 1"),
        ("Input should be a valid integer, unable to parse string as an integer", "should be a whole number"),
        ("Field required", "missing"),
        ("Invalid JSON: EOF while parsing at line 1", "no JSON"),
    ],
)
def test_faults_in_our_words(message: str, words: str) -> None:
    assert plain_fault(message) == words


def test_counts_and_kinds() -> None:
    assert [many(1, "token"), many(0, "token"), many(4096, "token"), many(2, "matrix", "matrices")] == [
        "1 token",
        "0 tokens",
        "4,096 tokens",
        "2 matrices",
    ]
    values: tuple[object, ...] = (None, True, "x", 1.5, [], {})
    assert [json_kind(value) for value in values] == [
        "null",
        "true",
        "a text",
        "a number",
        "a list",
        "an object",
    ]
