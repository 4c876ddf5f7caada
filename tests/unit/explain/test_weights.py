"""The definition of what is counted, against values worked by hand and NumPy's and libggml's own casts."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType
from tests.unit.explain.weight_cases import EDGES, facts, floats
from tests.unit.quantize.codec_cases import libggml_decode, libggml_encode

from bitloss.explain.counting import (
    tally_floats,
)
from bitloss.explain.weights import (
    EXPONENTS,
    LOWEST_EXPONENT,
    CastTally,
    Tally,
    tally_reference,
)


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
