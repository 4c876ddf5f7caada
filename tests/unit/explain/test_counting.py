"""Counting by the kernels, on every instruction set, against the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.unit.explain.weight_cases import BOUNDS, EDGES, ISAS, TABLES, by_words, facts

from bitloss.errors import MismatchError
from bitloss.explain.audit import compare_blocks
from bitloss.explain.counting import (
    Counter,
    marks_of_floats,
    marks_of_words,
    scratch_for,
    tally_floats,
    tally_words,
)
from bitloss.explain.weights import (
    ValueTable,
    WordTable,
    tally_reference,
)

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


@pytest.mark.parametrize("table", TABLES, ids=["F16", "BF16"])
def test_a_table_of_words_is_the_definition(table: WordTable) -> None:
    words = np.random.default_rng(5).integers(0, 1 << 16, 70_001).astype(np.uint16)
    values = words.view(table.dtype).astype(np.float32)
    assert by_words(table, words) == facts(tally_reference(values))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("table", TABLES, ids=["F16", "BF16"])
def test_words_of_every_value_in_any_order(table: WordTable, isa: str) -> None:
    """Upwards every word sets a record, downwards hardly one; shuffled, each comes again when all records are set."""
    every = np.arange(1 << 16, dtype=np.uint16)
    shuffled = np.tile(every, 3)
    np.random.default_rng(6).shuffle(shuffled)
    for words in (every, every[::-1].copy(), np.concatenate([shuffled, every]), np.repeat(every, 2)):
        for threads in (1, 3):
            assert facts(tally_words(table, words, threads=threads, isa=isa)) == by_words(table, words)
    for n in (0, 1, 3, 31, 32, 63, 64, 65, 127, 129, 2047, 4096, 4097):
        assert facts(tally_words(table, shuffled[:n], isa=isa)) == by_words(table, shuffled[:n])


def runs(of: list[int], length: int = 128) -> npt.NDArray[np.uint32]:
    """Return a run of each, one after the other: whole vectors hold nothing else, and the last is whole."""
    return np.repeat(np.array(of, np.uint32), length)


def many(of: list[int], seed: int, length: int = 128) -> npt.NDArray[np.uint32]:
    """Return runs, and then all of them at random."""
    return np.concatenate(
        [runs(of, length), np.random.default_rng(seed).choice(np.array(of, np.uint32), 704)]
    )


# F16: the last three bits are what BF16 cuts off.
WORDS = st.builds(
    lambda field, mantissa: field << 10 | mantissa,
    st.integers(1, 30),
    st.one_of(
        st.sampled_from([0, 1, 3, 4, 5, 7, 8, 12, 20, 0x1F4, 0x200, 0x204, 0x3F8, 0x3FC]),
        st.integers(0, 0x3FF),
    ),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("table", TABLES, ids=["F16", "BF16"])
@given(
    st.lists(st.one_of(WORDS, WORDS, st.integers(0, (1 << 16) - 1)), min_size=1, max_size=12),
    st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_few_words_again_and_again(table: WordTable, isa: str, few: list[int], seed: int) -> None:
    words = many(few, seed, 1024).astype(np.uint16)
    assert facts(tally_words(table, words, isa=isa)) == by_words(table, words)


# Near the errors that count most: mantissas around half a place of F16 and of BF16.
MANTISSAS = st.one_of(
    st.integers(0, (1 << 23) - 1),
    st.builds(
        lambda places, of, by: (places * of + by) & 0x7FFFFF,
        st.integers(0, 15),
        st.sampled_from([0x800, 0x1000, 0x4000, 0x8000]),
        st.integers(-3, 3),
    ),
)
NORMAL = st.builds(lambda field, mantissa: field << 23 | mantissa, st.integers(113, 142), MANTISSAS)
TINY = 0x32000000  # 2^-27: all of it is lost in F16


def settled(field: int, *, shares: bool = True) -> list[int]:
    """Return numbers of one exponent with the largest errors in F16 and BF16, and with the largest shares."""
    errors = [field << 23 | 0x7F1000, field << 23 | 0x7F8000]
    return [*errors, field << 23 | 0x1000, field << 23 | 0x8000] if shares else errors


@pytest.mark.parametrize("isa", ISAS)
@given(
    st.sampled_from([[], [TINY], [142 << 23 | 0x7F0001]]),
    st.one_of(
        st.just([]),
        st.builds(settled, st.integers(113, 142)),
        st.builds(lambda f: settled(f)[:2], st.integers(113, 142)),
    ),
    st.lists(st.one_of(NORMAL, NORMAL, NORMAL, st.sampled_from([0, *BOUNDS])), min_size=1, max_size=8),
    st.integers(0, 99),
    st.sampled_from([0, 0, 0, 0x1FFF, 0xFFFF]),
)
@settings(max_examples=300, deadline=None)
def test_few_floats_again_and_again(
    isa: str, ends: list[int], before: list[int], few: list[int], seed: int, cut: int
) -> None:
    """Values seen before, and larger and smaller errors after them; `cut` leaves what F16 or BF16 holds."""
    values = (many([*ends, *before, *few], seed) & np.uint32(0xFFFFFFFF ^ cut)).view(np.float32)
    assert facts(tally_floats(values, isa=isa)) == facts(tally_reference(values))


@pytest.mark.parametrize("isa", ISAS)
def test_larger_errors_smaller_numbers_and_larger_shares_are_seen_at_last(isa: str) -> None:
    """When all records seem to be set, each is broken once more, by numbers that come alone or beside a zero."""
    for field in range(114, 141):
        largest, before = (field + 1) << 23 | 0x7F0001, settled(field)
        for last in (0x7000, 0x9001, 0x207000, 0x0801, 0x6801, 0x6001, 0x20A001):
            for few in (
                [(field + 1) << 23 | last],
                [(field - 1) << 23 | last],
                [0, (field + 1) << 23 | last],
            ):
                values = np.concatenate([runs([largest, *before]), np.tile(np.array(few, np.uint32), 256)])
                values = values.view(np.float32)
                assert facts(tally_floats(values, isa=isa)) == facts(tally_reference(values))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("last", [0x33000000, 0x33000001, 0x33800000, 0x32FFFFFF])
def test_what_f16_makes_zero_is_counted_when_all_records_are_set(isa: str, last: int) -> None:
    values = runs([TINY, 126 << 23, *settled(120), last, last]).view(np.float32)
    assert facts(tally_floats(values, isa=isa)) == facts(tally_reference(values))
    assert tally_floats(values, isa=isa).f16.zeroed == (128 if last > 0x33000000 else 384)


@pytest.mark.parametrize("isa", ISAS)
def test_shares_of_error_of_f16_words_that_grow(isa: str) -> None:
    """Between the smallest and the largest seen, of any exponent: mantissas with an ever larger share of error."""
    for before in (0x3FC, 0x204, 0x1F4, 20, 12, 4):
        for mantissa in (3, 4, 5, 12, 19, 0x1EC, 0x1FB, 0x3F4):
            words = runs([30 << 10 | before, 1 << 10, 10 << 10 | mantissa], 4096).astype(np.uint16)
            assert facts(tally_words(TABLES[0], words, isa=isa)) == by_words(TABLES[0], words)


@pytest.mark.parametrize("isa", ISAS)
def test_errors_of_f16_words_that_grow_beyond_a_larger_exponent(isa: str) -> None:
    """Within a piece: all records are set, a larger exponent comes with a small error, and then with the largest."""
    for n in (64, 512, 700, 4096):
        before = runs([1 << 10 | 4, 14 << 10 | 4, 14 << 10 | 0x3FC], 4096)
        after = runs([15 << 10 | 0x3F9, 15 << 10 | 4], n)
        words = np.concatenate([before, after]).astype(np.uint16)
        assert facts(tally_words(TABLES[0], words, isa=isa)) == by_words(TABLES[0], words)


def mixed(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Values of some pieces: of one size or many, sorted or not, with zeros and bounds, some exact in a type."""
    n = int(rng.choice([512, 4096, 8704, 65536 + 4096 + 96]))
    size = 10.0 ** rng.uniform(-8, 4, (n // 32, 1))
    size[:] = size[0] if rng.random() < 0.6 else size
    with np.errstate(over="ignore", invalid="ignore"):
        values = (rng.standard_normal((n // 32, 32)) * size).astype(np.float32).reshape(-1)
        if rng.random() < 0.2:
            values = np.sort(np.abs(values))[:: rng.choice([-1, 1])].copy()
        for few in (np.zeros(1, np.float32), EDGES):
            at = rng.random(n) < 10.0 ** rng.uniform(-5, 1)
            if rng.random() < 0.5:
                values[at] = rng.choice(few, int(at.sum()))
        for table in TABLES:
            first, end = np.sort(rng.integers(0, n + 1, 2))
            if rng.random() < 0.5:
                values[first:end] = values[first:end].astype(table.dtype)
    return values


@pytest.mark.parametrize("isa", ISAS)
def test_whole_pieces_of_mixed_values(isa: str) -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        values = mixed(rng)
        cut = values[: values.size - rng.integers(0, 70)]
        assert facts(tally_floats(cut, isa=isa)) == facts(tally_reference(cut))
        for table in TABLES:
            with np.errstate(over="ignore", invalid="ignore"):
                words = values.astype(table.dtype).view(np.uint16)
            assert facts(tally_words(table, words[: cut.size], isa=isa)) == by_words(table, words[: cut.size])
            expected = compare_blocks(GGMLQuantizationType.Q8_0, words, table, 1)
            counter = Counter(table, blocks=True, isa=isa)
            counter.add(words)
            assert counter.q8_0 == expected
            assert facts(counter.tally()) == by_words(table, words)
        counter = Counter(None, blocks=True, isa=isa)
        counter.add(values)
        assert counter.q8_0 == compare_blocks(GGMLQuantizationType.Q8_0, values, None, 1)


@pytest.mark.parametrize("isa", ISAS)
def test_scratch_is_zero_again_and_can_be_shared(isa: str) -> None:
    scratch = scratch_for(3)
    every = np.arange(1 << 16, dtype=np.uint16)
    for table in TABLES:
        values = every.view(table.dtype).astype(np.float32)
        for of, some in ((table, every), (None, values)):
            counter = Counter(of, threads=3, isa=isa, scratch=scratch)
            for _ in range(2):
                counter.add(np.tile(some, 3))
                assert not scratch.any()
            assert facts(counter.tally()) == facts(tally_reference(np.tile(values, 6)))
    with pytest.raises(ValueError, match="two rows"):
        Counter(None, threads=1, isa=isa, scratch=scratch[:1]).add(np.zeros(1, np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("half", [0x1000, 0x8000])
def test_shares_of_error_that_grow_little_by_little(isa: str, half: int) -> None:
    other = [TINY] if half == 0x8000 else [126 << 23 | 0x8000]
    for k in (0, 1, 5, 60, 126):
        by = [half // 3, -half // 4, 900, -900, 200, -200, 40, -40, 5, -5, 2, -2, 1]
        few = [field << 23 | (2 * half * k + half + j) for field in (120, 125) for j in by]
        values = runs([*other, *settled(126, shares=False), *few]).view(np.float32)
        assert facts(tally_floats(values, isa=isa)) == facts(tally_reference(values))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spread", [0.02, 1e-3, 1e-4, 1e-6])
def test_floats_that_f16_or_bf16_holds(isa: str, spread: float) -> None:
    values = (np.random.default_rng(4).standard_normal(40_000) * spread).astype(np.float32)
    values[::1000] = 0
    for dtype in (np.float16, WordTable.bf16().dtype):
        held = values.astype(dtype).astype(np.float32)
        assert facts(tally_floats(held, isa=isa)) == facts(tally_reference(held))
        held[20_000] = values[20_000] = 1.0000001  # one piece that it does not hold
        assert facts(tally_floats(held, isa=isa)) == facts(tally_reference(held))


# --------------------------------------------------------------------------------------------- blocks


def blocks_of_all_kinds(seed: int) -> npt.NDArray[np.float32]:
    """Blocks of 32 of every size, some with a value at a bound, some of zeros, some of values of one size."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(1e-40), np.log(1e38), (1500, 1)))
    sizes[:700] = np.exp(rng.uniform(np.log(1e-9), np.log(1e-1), (700, 1)))
    with np.errstate(over="ignore", under="ignore"):
        values = (rng.standard_normal((1500, 32)) * sizes).astype(np.float32)
    values[700:800, 5] = np.resize(EDGES, 100)
    values[800:810] = 0
    values[810:900] = np.resize(EDGES, (90, 1))
    values[rng.random(1500) < 0.05] = 0
    rng.shuffle(values)
    return values.reshape(-1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F32 of F16", "F32 of BF16"])
def test_blocks_are_those_whose_bytes_the_encoder_changes(isa: str, kind: str) -> None:
    table = {"F16": WordTable.f16(), "BF16": WordTable.bf16()}.get(kind)
    values: npt.NDArray[Any] = blocks_of_all_kinds(seed=len(kind))
    with np.errstate(over="ignore", invalid="ignore"):
        if kind != "F32":
            words = values.astype(WordTable.f16().dtype if "BF16" not in kind else WordTable.bf16().dtype)
            values = words.view(np.uint16) if table else words.astype(np.float32)
    expected = compare_blocks(GGMLQuantizationType.Q8_0, values, table, 1)
    assert expected.not_finite > 10
    assert (expected.f16 > 100) == (kind in ("F32", "BF16", "F32 of BF16"))
    assert (expected.bf16 > 100) == (kind in ("F32", "F16", "F32 of F16"))
    for threads in (1, 3):
        counter = Counter(table, blocks=True, threads=threads, isa=isa)
        for at in range(0, values.size, 960):
            counter.add(values[at : at + 960])
        assert counter.q8_0 == expected
        counter = Counter(table, blocks=True, threads=threads, isa=isa)
        counter.add(np.tile(values, 9))
        assert (counter.q8_0.f16, counter.q8_0.bf16) == (9 * expected.f16, 9 * expected.bf16)


def test_blocks_must_be_whole() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        Counter(None, blocks=True).add(np.zeros(33, np.float32))
    with pytest.raises(ValueError, match="whole blocks"):
        Counter(WordTable.f16(), blocks=True).add(np.zeros(31, np.uint16))


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


@pytest.mark.parametrize("table", TABLES, ids=["F16", "BF16"])
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
