"""Counting: the definition against NumPy's and libggml's own casts, the kernels against the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.unit.quantize.codec_cases import libggml_decode, libggml_encode

from bitloss import _native
from bitloss.errors import MismatchError
from bitloss.explain.counting import marks_of_floats, marks_of_words, tally_floats, tally_words
from bitloss.explain.weights import (
    EXPONENTS,
    LOWEST_EXPONENT,
    CastTally,
    Tally,
    ValueTable,
    WordTable,
    tally_reference,
)

ISAS = ["auto", *_native.audit_isas()]


def floats(*bits: int) -> npt.NDArray[np.float32]:
    return np.array(bits, np.uint32).view(np.float32)


def facts(tally: Tally) -> dict[str, Any]:
    """Everything a tally says, to be compared."""
    named = {name: getattr(tally, name) for name in Tally.__slots__ if name != "histogram"}
    there = np.flatnonzero(tally.histogram)
    return named | {"histogram": {int(i) + LOWEST_EXPONENT: int(tally.histogram[i]) for i in there}}


# Every bound of the definition with its neighbours, both signs.
BOUNDS = [
    *(0x00000000, 0x00000001, 0x00000002, 0x00007FFF, 0x00008000, 0x00008001, 0x00010000, 0x00017FFF),
    *(0x007FFFFF, 0x00800000, 0x00800001, 0x32FFFFFF, 0x33000000, 0x33000001, 0x33800000, 0x33C00000),
    *(
        0x387BA881,
        0x387BA882,
        0x387BA883,
        0x387BA884,
        0x387FFFFF,
        0x38800000,
        0x38800001,
        0x38801000,
        0x38803000,
    ),
    *(0x3F800000, 0x3F801000, 0x3F803000, 0x3F808000, 0x3F818000, 0x477FDFFF, 0x477FE000, 0x477FE001),
    *(0x477FEFFF, 0x477FF000, 0x477FF001, 0x47800000, 0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF),
    *(0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFF0000, 0x7FFFFFFF),
]
EDGES = floats(*BOUNDS, *(bits | 0x80000000 for bits in BOUNDS))


# ------------------------------------------------------------------------------------- the definition


def test_counts_worked_by_hand() -> None:
    values = np.array(
        [0, -0.0, 1, 1e-7, 1e-8, 70000, 65504, 65519, np.nan, np.inf, -np.inf, -np.inf], np.float32
    )
    tally = tally_reference(values)
    assert (tally.values, tally.zeros) == (12, 2)
    assert (tally.nans, tally.positive_infinities, tally.negative_infinities) == (1, 1, 2)
    assert (tally.below, tally.above) == (2, 2)
    assert (tally.largest, tally.smallest) == (70000.0, float(np.float32(1e-8)))
    # 1e-7 lies between 2^-24 and 2^-23, 65519 is rounded to 65504.
    assert tally.f16 == CastTally(changed=4, overflowed=1, zeroed=1, error=15.0, relative=1.0)
    assert (tally.bf16.overflowed, tally.bf16.zeroed) == (0, 0)
    assert int(tally.histogram.sum()) == 6
    assert tally.histogram[0 - LOWEST_EXPONENT] == 1  # 1 = 2^0
    assert tally.histogram[-27 - LOWEST_EXPONENT] == 1  # 1e-8
    assert tally.histogram[16 - LOWEST_EXPONENT] == 1  # 70000


def test_nothing_has_neither_largest_nor_smallest() -> None:
    for tally in (tally_reference(np.zeros(0, np.float32)), tally_floats(np.zeros(0, np.float32))):
        assert facts(tally) == facts(Tally())


def test_exponents_go_from_the_least_subnormal_to_the_largest_number() -> None:
    tally = tally_reference(floats(1, 0x7F7FFFFF))
    assert (tally.histogram[0], tally.histogram[EXPONENTS - 1]) == (1, 1)


def test_casts_are_those_of_libggml() -> None:
    """Every F16 word is hit from both sides; what counts as changed is what libggml's own conversion changes."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)), EDGES[np.isfinite(EDGES)]])
    values = np.concatenate([values, (halves[:-1] + halves[1:]) / 2]).astype(np.float32)
    for kind, ours in ((GGMLQuantizationType.F16, "f16"), (GGMLQuantizationType.BF16, "bf16")):
        back = libggml_decode(kind, libggml_encode(kind, values[None], None), values.size)[0]
        tally: CastTally = getattr(tally_reference(values), ours)
        assert tally.changed == int((back != values).sum())
        assert tally.overflowed == int(np.isinf(back).sum()) > 0
        assert tally.zeroed == int(((back == 0) & (values != 0)).sum()) > 0


def test_tallies_add_up() -> None:
    whole = tally_reference(EDGES)
    parts = tally_reference(EDGES[:20]) + tally_reference(EDGES[20:]) + Tally()
    assert facts(parts) == facts(whole)


# -------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("isa", ISAS)
def test_floats_at_every_bound(isa: str) -> None:
    for repeat in (1, 3, 700):  # 700: more than one piece of the kernel
        values = np.repeat(EDGES, repeat)
        np.random.default_rng(repeat).shuffle(values)
        assert facts(tally_floats(values, isa=isa)) == facts(tally_reference(values))


@pytest.mark.parametrize("isa", ISAS)
@given(
    hnp.arrays(np.uint32, st.integers(0, 70), elements=st.integers(0, 2**32 - 1)),
    st.sampled_from(BOUNDS),
    st.booleans(),
)
@example(np.array([32769] + 16 * [0], np.uint32), 1, False)  # a share whose test underflows
@settings(max_examples=60, deadline=None)
def test_floats_of_any_bits(isa: str, bits: npt.NDArray[np.uint32], bound: int, exact: bool) -> None:
    values = np.append(bits, np.uint32(bound))
    if exact:
        values &= 0xFFFF0000
    found = tally_floats(values.view(np.float32), isa=isa)
    assert facts(found) == facts(tally_reference(values.view(np.float32)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spread", [1e-2, 1e-6, 1e-39, 1e30])
def test_many_floats_on_any_number_of_threads(isa: str, spread: float) -> None:
    rng = np.random.default_rng(3)
    with np.errstate(over="ignore"):
        values = (rng.standard_normal(300_007) * spread).astype(np.float32)
    values[100_000:200_000] = values[100_000:200_000].view(np.uint32) & np.uint32(0xFFFF0000)
    values[:100_000].view(np.uint32)[::7] &= np.uint32(0xFFFF0000)
    values[150_000] = 0
    expected = facts(tally_reference(values))
    for threads in (1, 2, 3):
        assert facts(tally_floats(values, threads=threads, isa=isa)) == expected


@pytest.mark.parametrize("table", [WordTable.f16(), WordTable.bf16()], ids=["F16", "BF16"])
def test_words_of_every_value(table: WordTable) -> None:
    rng = np.random.default_rng(5)
    words = np.concatenate([np.arange(1 << 16), rng.integers(0, 1 << 16, 200_001)]).astype(np.uint16)
    expected = facts(tally_reference(words.view(table.dtype).astype(np.float32)))
    for threads in (1, 3):
        assert facts(tally_words(table, words, threads=threads)) == expected
    assert facts(tally_words(table, words[:3])) == facts(
        tally_reference(words[:3].view(table.dtype).astype(np.float32))
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("block", [32, 256])
def test_marks_say_what_values_of_a_block_do(isa: str, block: int) -> None:
    values = np.ones(len(EDGES) * block, np.float32)
    at = np.arange(len(EDGES)) * (block + 7) % block + np.arange(len(EDGES)) * block
    values[at] = EDGES
    expected = ValueTable(EDGES).flags
    np.testing.assert_array_equal(marks_of_floats(values, block, isa=isa), expected)
    # Every flag is there in both states, alone at least once where it can be.
    for flag in (1, 2, 4, 8, 16):
        assert 0 < (expected & flag != 0).sum() < len(expected)


@pytest.mark.parametrize("table", [WordTable.f16(), WordTable.bf16()], ids=["F16", "BF16"])
def test_marks_of_words(table: WordTable) -> None:
    words = np.random.default_rng(7).integers(0, 1 << 16, 4096 * 32).astype(np.uint16)
    flags = ValueTable(words.view(table.dtype).astype(np.float32)).flags.reshape(-1, 32)
    expected = np.bitwise_or.reduce(flags, axis=1)
    for threads in (1, 3):
        np.testing.assert_array_equal(marks_of_words(table, words, 32, threads=threads), expected)


def test_what_is_no_vector_of_floats_is_refused() -> None:
    with pytest.raises(MismatchError, match="contiguous vector of float32"):
        tally_floats(np.zeros((2, 2), np.float32))
    with pytest.raises(MismatchError, match="instruction set"):
        tally_floats(np.zeros(2, np.float32), isa="none")
    with pytest.raises(ValueError, match="mark for each"):
        marks_of_floats(np.zeros(33, np.float32), 32)
