"""Casts between F32, F16 and BF16 against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitloss import _native
from bitloss.convert.cast import CastCounts, SourceType, cast, counts_of, isas, narrow, widen
from bitloss.errors import CheckpointError, MismatchError

# Bits of the fraction, exponent of the smallest normal number, exponent above the largest.
FORMATS = {SourceType.F16: (10, -14, 16), SourceType.BF16: (7, -126, 128)}


def where(index: int) -> str:
    return f"t[{index}]"


def rounded(value: float, kind: SourceType) -> Fraction | None:
    """Round to nearest, ties to even, by the definition of the format; None is overflow."""
    bits, least, above = FORMATS[kind]
    exact = Fraction(value)
    if exact == 0:
        return exact
    exponent = least
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - bits)
    result = round(exact / step) * step  # Fraction's round() goes to even on ties
    return None if abs(result) >= Fraction(2) ** above else result


def finite_numbers(dtype: Any) -> np.ndarray[Any, Any]:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        finite: np.ndarray[Any, Any] = numbers[np.isfinite(numbers.astype(np.float32))]
    return finite


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
halves = st.integers(0, (1 << 31) - 1).map(
    lambda n: np.uint32(n & 0xFFFFF000 | 0x1000).view(np.float32).item()
)


@pytest.mark.parametrize("kind", FORMATS)
@given(values=st.lists(st.one_of(floats, halves.filter(np.isfinite)), min_size=1, max_size=20))
def test_narrowing_rounds_to_nearest_even(kind: SourceType, values: list[float]) -> None:
    for value in values:
        data = np.array([value], dtype=np.float32)
        expected = rounded(float(data[0]), kind)
        if expected is None:
            with pytest.raises(CheckpointError, match=rf"t\[0\]: weight out of the range of {kind.name}"):
                narrow(data, kind, where)
            assert np.isinf(narrow(data, kind, where, allow_overflow=True))[0]
        else:
            got = narrow(data, kind, where)
            assert got.dtype == kind.dtype
            assert Fraction(float(got[0])) == expected
            assert np.signbit(got)[0] == np.signbit(data)[0]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_number_survives_widening_and_narrowing(dtype: Any) -> None:
    finite = finite_numbers(dtype)
    kind = SourceType.F16 if dtype is np.float16 else SourceType.BF16
    wide = widen(finite, where)
    assert np.array_equal(narrow(wide, kind, where).view(np.uint16), finite.view(np.uint16))
    assert np.array_equal(wide, finite.astype(np.float64).astype(np.float32))


def test_every_bf16_number_becomes_the_f16_number_of_the_definition() -> None:
    finite = finite_numbers(ml_dtypes.bfloat16)
    wide = widen(finite, where)
    got = narrow(wide, SourceType.F16, where, allow_overflow=True)
    sample = np.arange(0, len(finite), 17)
    for value, result in zip(wide[sample].tolist(), got[sample].tolist(), strict=True):
        expected = rounded(value, SourceType.F16)
        assert np.isinf(result) if expected is None else Fraction(result) == expected
    # Exact exactly where the last set bit is at or above 2^-24 and the size at most 65504.
    exact = got.astype(np.float32) == wide
    ticks = wide.astype(np.float64) * 2.0**24
    assert np.array_equal(exact, (ticks == np.floor(ticks)) & (np.abs(wide) <= 65504))


def test_f32_is_passed_through() -> None:
    data = np.array([1.1, -0.0, 1e-45, 3.4e38], dtype=np.float32)
    assert narrow(data, SourceType.F32, where) is data
    assert widen(data, where).tobytes() == data.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_numbers_that_are_none_are_told_with_their_place(bad: float, dtype: Any) -> None:
    data = np.ones((3, 4), dtype=dtype)
    data[1, 2] = bad
    data[2, 0] = bad
    with pytest.raises(CheckpointError, match=rf"t\[6\]: {'NaN' if np.isnan(bad) else 'infinite'} weight"):
        widen(data, where)


def test_types_know_their_numbers() -> None:
    assert [(kind.ggml_type, kind.file_type) for kind in SourceType] == [(0, 0), (1, 1), (30, 32)]


def everything() -> dict[str, np.ndarray[Any, Any]]:
    """Finite values of each type: all of the 16-bit ones, and float32 of any bits and around every boundary."""
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    exponents = rng.integers(-152, 128, 1 << 16).astype(np.float64)
    scaled = (rng.uniform(-1, 1, 1 << 16) * np.exp2(exponents)).astype(np.float32)
    # Ties of F16 and BF16, their neighbours, and the ends of both ranges.
    steps = np.arange(1 << 16, dtype=np.uint32) << 16
    ties = np.concatenate([steps | low for low in (0x8000, 0x7FFF, 0x8001, 0x1000, 0x0FFF, 0x1001, 0x3000)])
    ends = np.array(
        [0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001, 0x7F7F7FFF, 0x7F7F8000, 0x8000, 0x8001, 1]
    )
    wide = np.concatenate([any_bits, scaled.view(np.uint32), ties, ends.astype(np.uint32)]).view(np.float32)
    return {
        "f32": wide[np.isfinite(wide)],
        "f16": finite_numbers(np.float16),
        "bf16": finite_numbers(ml_dtypes.bfloat16),
    }


EVERYTHING = everything()


@pytest.mark.parametrize("isa", _native.cast_isas())
@pytest.mark.parametrize("to", SourceType)
@pytest.mark.parametrize("source", EVERYTHING)
def test_the_kernels_are_the_definition(source: str, to: SourceType, isa: str) -> None:
    values = EVERYTHING[source]
    wide = widen(values, where)
    expected = narrow(wide, to, where, allow_overflow=True)
    got, counts = cast(values, to, where, allow_overflow=True, isa=isa)
    assert got.dtype == expected.dtype
    assert got.tobytes() == expected.tobytes()
    assert counts == counts_of(wide, expected)
    assert (counts.changed > 0) is (to is not SourceType.F32 and source != to)


@pytest.mark.parametrize("isa", _native.cast_isas())
@given(data=st.data())
def test_any_number_of_values_from_any_place(isa: str, data: st.DataObject) -> None:
    """Lengths that are no multiple of the lanes, values that do not begin at a multiple of their size."""
    source, to = data.draw(st.sampled_from(list(EVERYTHING))), data.draw(st.sampled_from(list(SourceType)))
    n, first, shift = data.draw(st.tuples(st.integers(0, 70), st.integers(0, 40000), st.integers(0, 3)))
    chosen = EVERYTHING[source][first : first + n]
    memory = np.zeros(chosen.nbytes + shift, np.uint8)
    values = memory[shift:].view(chosen.dtype) if chosen.size else chosen
    values[:] = chosen
    room = np.full(chosen.size + 16, 7, to.dtype)
    got, counts = cast(values, to, where, allow_overflow=True, out=room[: chosen.size], isa=isa)
    wide = widen(chosen, where)
    expected = narrow(wide, to, where, allow_overflow=True)
    assert got.tobytes() == expected.tobytes()
    assert counts == counts_of(wide, expected)
    assert (room[chosen.size :] == 7).all()


@pytest.mark.parametrize("isa", _native.cast_isas())
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("to", SourceType)
def test_the_kernels_find_numbers_that_are_none(isa: str, bad: float, dtype: Any, to: SourceType) -> None:
    for index in (0, 5, 63, 64, 66):
        data = np.ones(67, dtype=dtype)
        data[index] = bad
        with pytest.raises(CheckpointError, match=rf"t\[{index}\]: {'NaN' if np.isnan(bad) else 'infinite'}"):
            cast(data, to, where, allow_overflow=True, isa=isa)


@pytest.mark.parametrize("isa", _native.cast_isas())
def test_the_kernels_find_what_is_out_of_range(isa: str) -> None:
    data = np.zeros(67, dtype=np.float32)
    data[65], data[66] = -65520, 1e9
    with pytest.raises(CheckpointError, match=r"t\[65\]: weight out of the range of F16: .*found -65520"):
        cast(data, SourceType.F16, where, isa=isa)
    data[65], data[66] = 65519, np.float32(3.4e38)
    with pytest.raises(CheckpointError, match=r"t\[66\]: weight out of the range of F16"):
        cast(data, SourceType.F16, where, isa=isa)
    assert cast(data, SourceType.F16, where, allow_overflow=True, isa=isa)[1] == CastCounts(2, 1, 0)
    with pytest.raises(CheckpointError, match=r"t\[66\]: weight out of the range of BF16"):
        cast(data, SourceType.BF16, where, isa=isa)


def test_what_cannot_be_cast_is_refused() -> None:
    assert isas()[-1] == "portable"
    with pytest.raises(MismatchError, match="no such cast: expected F32, F16, BF16, found float64"):
        cast(np.zeros(3), SourceType.F16, where)
    with pytest.raises(MismatchError, match="by sse9"):
        cast(np.zeros(3, np.float32), SourceType.F16, where, isa="sse9")
