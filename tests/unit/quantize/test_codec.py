"""Every format with kernels of ours: reference = kernel = libggml, byte for byte, on every path of the kernels."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.quantize.codec_cases import (
    CASES,
    WEIGHTS,
    Bytes,
    N,
    column_weights,
    libggml_decode,
    libggml_encode,
    nasty_rows,
    nasty_weights,
    rows,
    trained,
)

from bitloss import _native
from bitloss.errors import MismatchError, UnsupportedError
from bitloss.model.tensor_types import block_of
from bitloss.quantize.codec import (
    NEEDS_WEIGHTS,
    decode,
    encode,
    encode_into,
    isas,
    native_kinds,
    row_bytes,
)
from bitloss.quantize.reference import iq4, k_decode, k_quants, legacy
from bitloss.quantize.types import TENSOR_TYPES

REFERENCES = {**legacy.ENCODERS, **k_quants.ENCODERS, **iq4.ENCODERS}
DECODE_REFERENCES = {**legacy.DECODERS, **k_decode.DECODERS, **iq4.DECODERS}
ENCODED = sorted(native_kinds())
DECODED = [GGMLQuantizationType(kind) for kind in _native.codec_kinds(encoding=False)]
PATHS = _native.codec_isas()
Q8_0, IQ2_XS = GGMLQuantizationType.Q8_0, GGMLQuantizationType.IQ2_XS


def name(kind: GGMLQuantizationType) -> str:
    return str(kind.name)


def assert_same(found: Bytes, expected: Bytes, what: str) -> None:
    different = np.argwhere(found != expected)
    assert found.shape == expected.shape
    assert different.size == 0, f"{what}: {len(different)} bytes differ, the first at {different[0]}"


def test_every_kernel_has_a_definition() -> None:
    assert set(ENCODED) == set(REFERENCES)
    assert set(DECODED) - {GGMLQuantizationType.F16, GGMLQuantizationType.BF16} == set(DECODE_REFERENCES)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ENCODED, ids=name)
def test_encoders_give_the_bytes_of_libggml(kind: GGMLQuantizationType, case: str) -> None:
    x = rows(case)
    for weights_name in WEIGHTS:
        weights = column_weights(weights_name)
        expected = libggml_encode(kind, x, weights)
        for path in PATHS:
            assert_same(encode(kind, x, weights, isa=path), expected, f"{path}, weights {weights_name}")
        assert_same(REFERENCES[kind](x, weights), expected, f"reference, weights {weights_name}")


@pytest.mark.parametrize("kind", ENCODED, ids=name)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.floats(-45, 38), weighted=st.booleans(), n=st.integers(1, 40))
def test_encoders_on_random_blocks(
    kind: GGMLQuantizationType, seed: int, size: float, weighted: bool, n: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, 256)) * 10.0**size).clip(-3.4e38, 3.4e38).astype(np.float32)
    x[rng.random(x.shape) < rng.choice([0, 0.1, 0.9])] = 0
    weights = (rng.random(256) ** 4).astype(np.float32) if weighted else None
    expected = libggml_encode(kind, x, weights)
    for path in PATHS:
        assert_same(encode(kind, x, weights, isa=path), expected, path)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ENCODED, ids=name)
def test_encoders_on_nasty_blocks(kind: GGMLQuantizationType) -> None:
    """Set BITLOSS_FUZZ_BLOCKS for more blocks, BITLOSS_FUZZ_SEED for others."""
    wanted, seed = (
        int(os.environ.get(f"BITLOSS_FUZZ_{what}", n)) for what, n in (("BLOCKS", 5000), ("SEED", 0))
    )
    done = 0
    for case in itertools.count():
        if done >= wanted:
            break
        rng = np.random.default_rng([seed, int(kind), case])
        x, weights = nasty_rows(rng), nasty_weights(rng)
        expected = libggml_encode(kind, x, weights)
        for path in PATHS:
            assert_same(encode(kind, x, weights, isa=path), expected, f"{path}, seed {seed}, case {case}")
        back = libggml_decode(kind, expected, x.shape[1]).view(np.uint32)
        for path in PATHS:
            assert np.array_equal(decode(kind, expected, x.shape[1], isa=path).view(np.uint32), back), (
                path,
                case,
            )
        done += x.size // block_of(kind).weights


@pytest.mark.parametrize("kind", ENCODED, ids=name)
def test_a_negative_scale(kind: GGMLQuantizationType) -> None:
    """One block, weighed so unevenly that a search of Q4_K and Q5_K ends on a negative scale."""
    kept = np.load(Path(__file__).parents[2] / "data" / "negative-scale.npz")
    row, weights = kept["row"][None], kept["weights"]
    expected = libggml_encode(kind, row, weights)
    for path in PATHS:
        assert_same(encode(kind, row, weights, isa=path), expected, path)
    assert_same(REFERENCES[kind](row, weights), expected, "reference")


@pytest.mark.parametrize("kind", DECODED, ids=name)
def test_decoders_give_the_floats_of_libggml(kind: GGMLQuantizationType) -> None:
    rng = np.random.default_rng(3)
    # Any bytes: scales that are subnormal, infinite or NaN too.
    data = rng.integers(0, 256, (999, row_bytes(kind, N)), dtype=np.uint8)
    expected = libggml_decode(kind, data, N).view(np.uint32)
    for path in PATHS:
        assert np.array_equal(decode(kind, data, N, isa=path).view(np.uint32), expected), path
    if kind in DECODE_REFERENCES:  # F16 and BF16 are NumPy's own conversions, or nearly: all patterns below
        assert np.array_equal(DECODE_REFERENCES[kind](data, N).view(np.uint32), expected)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F16, GGMLQuantizationType.BF16], ids=name)
def test_every_pattern_of_16_bits_decodes_as_libggml_does(kind: GGMLQuantizationType) -> None:
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(1, -1)
    expected = libggml_decode(kind, data, 1 << 16).view(np.uint32)
    for path in PATHS:
        assert np.array_equal(decode(kind, data, 1 << 16, isa=path).view(np.uint32), expected), path
        odd = decode(kind, data[:, 2:36], 17, isa=path)  # a last vector that is not full
        assert np.array_equal(odd.view(np.uint32)[0], expected[0, 1:18]), path


@pytest.mark.parametrize("kind", sorted(set(TENSOR_TYPES.values()) - set(ENCODED)), ids=name)
def test_types_left_to_libggml_do_not_depend_on_threads(kind: GGMLQuantizationType) -> None:
    x = trained()[:21]
    for weights in (column_weights("random"), *([] if kind in NEEDS_WEIGHTS else [None])):
        expected = libggml_encode(kind, x, weights)
        for threads in (1, 2, 7):
            assert_same(encode(kind, x, weights, threads=threads), expected, f"{threads} threads")


@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=name)
def test_every_type_goes_there_and_back_on_any_number_of_threads(kind: GGMLQuantizationType) -> None:
    x, weights = rows("normal"), column_weights("random")
    expected = libggml_encode(kind, x, weights)
    for threads in (1, 3, 16):
        data = encode(kind, x, weights, threads=threads)
        assert_same(data, expected, f"{threads} threads")
        back = decode(kind, data, N, threads=threads)
        if kind != GGMLQuantizationType.F32:
            assert np.array_equal(back.view(np.uint32), libggml_decode(kind, data, N).view(np.uint32))
    assert np.square(back - x).sum() < 0.8 * np.square(x).sum()


def test_threads_share_out_uneven_numbers_of_blocks() -> None:
    x = np.random.default_rng(1).standard_normal((331, 256)).astype(np.float32)
    for kind in ENCODED:
        expected = libggml_encode(kind, x, None)
        for threads in (1, 2, 3, 7):
            for path in PATHS:
                assert_same(encode(kind, x, None, threads=threads, isa=path), expected, path)


def test_no_rows_and_no_columns() -> None:
    for kind in (Q8_0, GGMLQuantizationType.IQ4_NL):
        assert encode(kind, np.empty((0, 64), np.float32), None).shape[0] == 0
        assert encode(kind, np.empty((3, 0), np.float32), None, threads=2).shape == (3, 0)
        assert decode(kind, np.empty((3, 0), np.uint8), 0).shape == (3, 0)


def test_a_view_that_is_not_contiguous() -> None:
    x = rows("normal")[::2, 32 : 32 + 512]
    assert not x.flags.c_contiguous
    for kind in (Q8_0, GGMLQuantizationType.IQ4_XS):
        assert_same(encode(kind, x, None), libggml_encode(kind, x, None), kind.name)


def test_the_best_path_comes_first_and_wide_is_not_offered() -> None:
    assert isas()[-1] == "portable"
    assert "wide" not in isas()


def test_input_that_does_not_fit_is_refused() -> None:
    x = rows("normal")
    out = np.empty((len(x), N // 32 * 34), np.uint8)
    with pytest.raises(MismatchError, match="a multiple of 32, found 33"):
        encode(Q8_0, np.zeros((2, 33), np.float32), None)
    with pytest.raises(MismatchError, match="expected float32 with two dimensions"):
        encode(Q8_0, x.astype(np.float64), None)
    with pytest.raises(MismatchError, match="weights and rows differ in width"):
        encode(Q8_0, x, np.zeros(3, np.float32))
    with pytest.raises(MismatchError, match="out: expected"):
        encode_into(Q8_0, x, None, out[:, 1:])
    with pytest.raises(MismatchError, match="worker threads"):
        encode(Q8_0, x, None, threads=0)
    with pytest.raises(MismatchError, match="instruction set not available"):
        encode(Q8_0, x, None, isa="z80")
    with pytest.raises(MismatchError, match="expected 816 bytes"):
        decode(Q8_0, out[:, 1:], N)
    with pytest.raises(UnsupportedError, match="IQ2_XS: this type cannot be encoded without"):
        encode(IQ2_XS, x, None)
    with pytest.raises(UnsupportedError, match="Q8_K: libggml does not encode"):
        encode(GGMLQuantizationType.Q8_K, x, None)


CODEBOOKS = [TENSOR_TYPES[f"IQ{kind}"] for kind in ("1_S", "1_M", "2_XXS", "2_XS", "2_S", "3_XXS", "3_S")]


@pytest.mark.parametrize("kind", CODEBOOKS, ids=name)
def test_values_on_which_ggml_ends_the_process(kind: GGMLQuantizationType) -> None:
    """Its failed assertions end the call: an error, on any thread, and the next call is as good as ever."""
    good, weights = rows("normal"), column_weights("random")
    bad = good.copy()
    bad[3:6] = [np.where(np.arange(N) % 2, 1e30, -1e30), good[4] * 5e31, np.full(N, 1e30)]
    expected = libggml_encode(kind, good, weights)
    for threads in (1, 2, 5):
        with pytest.raises(UnsupportedError) as caught:
            encode(kind, bad, weights, threads=threads)
        assert re.fullmatch(
            rf"{kind.name}: ggml gives up on these values: found ggml-quants\.c:\d+: .*\. A value, or its importance, "
            "is too large for the type; choose another one",
            str(caught.value),
        )
        assert_same(encode(kind, good, weights, threads=threads), expected, f"{threads} threads")


def test_importance_can_be_too_large_too() -> None:
    with pytest.raises(UnsupportedError, match="IQ3_S: ggml gives up"):
        encode(TENSOR_TYPES["IQ3_S"], rows("normal") * np.float32(1e10), np.full(N, 1e30, np.float32))


def test_other_callers_of_ggml_still_end(tmp_path: Path) -> None:
    """Nobody else waits to be told: the process ends, and says why."""
    script = """
import numpy as np
from bitloss.engine.ggml import ggml
from bitloss.errors import UnsupportedError
from bitloss.quantize.codec import encode
from bitloss.quantize.types import TENSOR_TYPES
kind, rows = TENSOR_TYPES["IQ3_S"], np.full((1, 256), 1e30, np.float32)
try:
    encode(kind, rows, None)
except UnsupportedError:
    print("caught", flush=True)
out = np.empty(110, np.uint8)
ggml().ggml_quantize_chunk(int(kind), rows.ctypes.data, out.ctypes.data, 0, 1, 256, None)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGABRT
    assert done.stdout == "caught\n"
    assert "GGML_ASSERT" in done.stderr


def test_the_native_functions_check_sizes_themselves() -> None:
    x = np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match="shapes do not fit"):
        _native.encode_rows(int(Q8_0), x, None, np.empty((2, 33), np.uint8), 1, "auto")
    with pytest.raises(ValueError, match="shapes do not fit"):
        _native.decode_rows(int(Q8_0), np.empty((2, 33), np.uint8), x, 1, "auto")
    for out, weights in ((np.empty((3, 34), np.uint8), None), (np.empty((2, 34), np.uint8), x[0, :16])):
        with pytest.raises(ValueError, match="encode_chunk: shapes do not fit"):
            _native.encode_chunk(0, 0, int(Q8_0), x, weights, out)
    with pytest.raises(ValueError, match="no kernel for type 99"):
        _native.encode_rows(99, x, None, np.empty((2, 34), np.uint8), 1, "auto")
