"""Distances of values and differing quants and scales: kernels against the definitions, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from tests.unit.quantize.codec_cases import libggml_decode

from bitloss import _native
from bitloss.errors import MismatchError
from bitloss.explain.distance import (
    Distance,
    Floats,
    compare_tensors,
    direct,
    distance,
    distance_reference,
)
from bitloss.explain.fields import (
    SCALES,
    Bytes,
    compare_fields,
    quants_by_value,
    scales_by_layout,
    told_apart,
)

ISAS = _native.compare_isas()
KINDS = sorted(SCALES, key=int)
DIRECT = [kind for kind in KINDS if direct(kind)]


def near(found: Distance, expected: Distance) -> None:
    assert found.squares == pytest.approx(expected.squares, rel=2e-7)
    assert found.largest == pytest.approx(expected.largest, rel=1e-7)
    for name in ("values", "differing", "left_out", "a", "b"):
        assert getattr(found, name) == getattr(expected, name), name


def pair(n: int, seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    a = (rng.standard_normal(n) * np.exp(rng.uniform(-40, 40, n))).astype(np.float32)
    b = np.where(rng.random(n) < 0.5, a, a * np.float32(1.001)).astype(np.float32)
    return a, b


def blocks(kind: Kind, n: int, seed: int = 0) -> tuple[Bytes, Bytes]:
    """Random blocks, and a copy in which some bits are flipped in some of them."""
    rng = np.random.default_rng(seed)
    size = int(GGML_QUANT_SIZES[kind][1])
    a = rng.integers(0, 256, (n, size), np.uint8)
    flips = (rng.random(a.shape) < 0.02) & (rng.random((n, 1)) < 0.6)
    bits = np.uint8(1) << rng.integers(0, 8, a.shape, np.uint8)
    return a, np.where(flips, a ^ bits, a)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [0, 1, 3, 4, 15, 16, 17, 1000, 70_001])
def test_kernels_equal_the_definition(isa: str, n: int) -> None:
    a, b = pair(n, n)
    near(distance(a, b, isa=isa), distance_reference(a, b))
    near(distance(b, a, isa=isa, threads=3), distance_reference(b, a))


@pytest.mark.parametrize("isa", ISAS)
def test_values_that_are_not_finite_or_far_apart(isa: str) -> None:
    a, b = pair(200)
    nan, inf, most = np.nan, np.inf, np.finfo(np.float32).max
    a[[3, 50, 90, 91, 120, 121, 150]] = nan, nan, inf, inf, -inf, 1, most
    b[[3, 50, 90, 91, 120, 121, 150]] = nan, 2, inf, -inf, 0, nan, -most
    a[199], b[199] = 0.0, -0.0
    expected = distance_reference(a, b)
    assert (expected.left_out, expected.a, expected.b) == (6, (2, 2, 1), (2, 1, 1))
    assert expected.largest == 2 * float(most)  # more than a float32 holds
    near(distance(a, b, isa=isa), expected)
    same = distance(a, a, isa=isa)
    assert (same.differing, same.squares, same.left_out) == (0, 0.0, 5)


def test_the_number_of_threads_changes_no_bit() -> None:
    a, b = pair(1 << 18)
    assert distance(a, b, threads=1) == distance(a, b, threads=2) == distance(a, b, threads=5)


def test_sums_of_distances() -> None:
    a, b = pair(1000)
    near(distance(a[:300], b[:300]) + distance(a[300:], b[300:]), distance(a, b))


def test_what_is_no_values() -> None:
    some = np.zeros(4, np.float32)
    with pytest.raises(MismatchError, match="one length"):
        distance(some, some[:2])
    with pytest.raises(MismatchError, match="one length"):
        distance(some, some.astype(np.float64))
    with pytest.raises(MismatchError, match="instruction set"):
        distance(some, some, isa="none")


# ------------------------------------------------------------------------------------ quants and scales


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_quants_and_scales_told_apart_by_layout_and_by_value_agree(kind: Kind) -> None:
    a, b = blocks(kind, 300)
    assert told_apart(kind)
    weights = int(GGML_QUANT_SIZES[kind][0])
    for isa in ISAS if int(kind) in _native.field_kinds() else ["auto"]:
        found = compare_fields(kind, a, b, isa=isa)
        assert found == (
            300 * weights,
            300 * len(SCALES[kind]),
            quants_by_value(kind, a, b),
            scales_by_layout(kind, a, b),
        )
    assert found.differing_quants > 0
    assert compare_fields(kind, a, a)[2:] == (0, 0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_bit_of_a_block_is_of_a_quant_or_of_a_scale(kind: Kind) -> None:
    """Flipping one bit changes at least one quant, or exactly one scale."""
    weights, size = (int(n) for n in GGML_QUANT_SIZES[kind])
    rng = np.random.default_rng(1)
    a = np.repeat(rng.integers(0, 256, (1, size), np.uint8), 8 * size, axis=0)
    b = a.copy()
    places = np.arange(8 * size)
    b[places, places // 8] ^= np.uint8(1) << (places % 8).astype(np.uint8)
    of_scales = sum(mask.bit_count() for field in SCALES[kind] for _, mask in field)
    for x, y in zip(np.split(a, 8 * size), np.split(b, 8 * size), strict=True):
        found = compare_fields(kind, x, y)
        assert (found.quants, found.scales) == (weights, len(SCALES[kind]))
        assert found.differing_scales in (0, 1)
        of_scales -= found.differing_scales
        if kind is not Kind.TQ1_0:  # several bytes stand for the same five trits
            assert (found.differing_quants > 0) != (found.differing_scales == 1)
    assert of_scales == 0


@pytest.mark.parametrize("kind", DIRECT, ids=lambda kind: kind.name)
@pytest.mark.parametrize("isa", ISAS)
def test_tensors_in_one_pass(kind: Kind, isa: str) -> None:
    """Blocks, quants, scales and values together; libggml decodes for the witness."""
    weights = int(GGML_QUANT_SIZES[kind][0])
    n = 40_000 // weights
    a, b = blocks(kind, n, seed=3)
    a[n // 2 :] = b[n // 2 :]  # the second half is equal, and passed over
    x, y = (libggml_decode(kind, z, weights).reshape(-1) for z in (a, b))
    found = compare_tensors((kind, kind), a.reshape(-1), b.reshape(-1), threads=2, isa=isa)
    assert found.blocks == int((a != b).any(axis=1).sum())
    assert (found.quants, found.scales) == (quants_by_value(kind, a, b), scales_by_layout(kind, a, b))
    expected = distance_reference(x, y)
    assert found.distance.differing == expected.differing
    assert found.distance.squares == pytest.approx(expected.squares, rel=2e-7)
    assert found.distance.largest == pytest.approx(expected.largest, rel=1e-7)
    against = compare_tensors((kind, Kind.F32), a.reshape(-1), y.view(np.uint8), threads=2, isa=isa)
    near(against.distance, expected)
    assert against[:3] == (0, 0, 0)


@pytest.mark.parametrize("isa", ISAS)
def test_floats_of_two_types(isa: str) -> None:
    rng = np.random.default_rng(5)
    wide = (rng.standard_normal(9001) * 1e-3).astype(np.float32)
    half = wide.astype(np.float16)
    found = compare_tensors((Kind.F32, Kind.F16), wide.view(np.uint8), half.view(np.uint8), isa=isa)
    near(found.distance, distance_reference(wide, half.astype(np.float32)))
    other = half.copy()
    other[[1, 8999]] += np.float16(1)
    found = compare_tensors((Kind.F16, Kind.F16), half.view(np.uint8), other.view(np.uint8), isa=isa)
    assert (found.blocks, found.distance.differing) == (2, 2)
    # Values that do not lie at a multiple of four bytes.
    odd = np.empty(4 * wide.size + 1, np.uint8)
    odd[1:] = wide.view(np.uint8)
    found = compare_tensors((Kind.F32, Kind.F16), odd[1:], half.view(np.uint8), isa=isa)
    near(found.distance, distance_reference(wide, half.astype(np.float32)))
