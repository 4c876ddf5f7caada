"""Diffs of doctored files: what differs is named exactly, and every byte is accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from tests.unit.explain.diff_cases import checked, pair, share, tensor, text
from tests.unit.explain.models import BF16, gguf, normal
from tests.unit.quantize.codec_cases import libggml_decode, libggml_encode

Q4_K, Q8_0, IQ2_S = (
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.IQ2_S,
)


# -------------------------------------------------------------------------------------- doctored files


def test_the_same_file(tmp_path: Path) -> None:
    a, b = pair(tmp_path, {"x": normal(2, 32)}, {"x": normal(2, 32)})
    found = checked(a, b)
    assert found.text.startswith("the same file: all ")
    assert found.total.identical == 1
    assert all(each.equal for each in found.shares)


def test_equal_tensors_and_one_key_more(tmp_path: Path) -> None:
    data = {"x": normal(4, 64), "n": normal(8)}
    a = gguf(tmp_path / "a.gguf", data)
    b = gguf(tmp_path / "b.gguf", data, {"quantize.imatrix.file": text("calibration.imatrix")})
    found = checked(a, b)
    key = 8 + len("quantize.imatrix.file") + 4 + 8 + len("calibration.imatrix")
    assert (found.conclusion, found.total.identical) == ("same weights", 2)
    assert (share(found, "quantize.imatrix.file").a, share(found, "quantize.imatrix.file").b) == (0, key)
    assert found.causes[0] == f"metadata key quantize.imatrix.file is only in B ({key} bytes)"
    assert found.text.startswith(
        "same weights, different files: all 2 tensors are equal byte for byte. B is "
    )
    (one,) = found.metadata
    assert (one.key, one.a, one.b) == ("quantize.imatrix.file", None, "calibration.imatrix")
    assert (found.key_order, found.tensor_order) == (False, False)
    assert tensor(found, "x").values is None


def test_a_key_of_the_padding_size_explains_all_bytes(tmp_path: Path) -> None:
    """A key that makes the header longer by whole multiples of the alignment is all there is to tell."""
    data = {"x": normal(1, 32)}
    a = gguf(tmp_path / "a.gguf", data)
    b = gguf(tmp_path / "b.gguf", data, {"k": text("x" * (64 - 8 - 1 - 4 - 8))})
    found = checked(a, b)
    assert found.causes == ("metadata key k is only in B (64 bytes)",)
    assert found.text.endswith("B is 64 bytes larger: all of them in metadata key k")


def test_one_flipped_bit_in_one_block(tmp_path: Path) -> None:
    values = normal(4, 512)
    data = {"q": libggml_encode(Q4_K, values, None), "n": normal(64)}
    other = dict(data, q=data["q"].copy())
    other["q"][2, 144 + 16 + 9] ^= 0x10  # a quant of the second block of the third row
    a, b = pair(tmp_path, data, other, blocks={"q": (Q4_K, (512, 4))})
    found = checked(a, b)
    each = tensor(found, "q")
    assert (each.state, each.blocks, each.differing_blocks) == ("different", 8, 1)
    assert (each.quants, each.differing_quants) == (2048, 1)
    assert (each.scales, each.differing_scales) == (144, 0)
    assert each.values is not None
    x, y = (libggml_decode(Q4_K, z["q"], 512).astype(np.float64) for z in (data, other))
    assert (each.values.values, each.values.differing) == (2048, 1)
    assert each.values.largest == pytest.approx(np.abs(x - y).max(), rel=1e-6)
    assert each.values.rms == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-6)
    assert tensor(found, "n").state == "identical"
    assert found.causes == ("1 tensor holds other weights: q (block 5, 1 bit)",)
    assert found.text.startswith(
        "different weights: 1 of 2 tensors differs, in 1 of 8 blocks (12.5 %), 1 of 2,048 quants (0.0488 %) and "
        "0 of 144 scales changed, RMS difference "
    )


def test_a_scale_alone(tmp_path: Path) -> None:
    data = {"q": libggml_encode(Q8_0, normal(2, 64), None)}
    other = {"q": data["q"].copy()}
    other["q"][1, 34] ^= 1
    a, b = pair(tmp_path, data, other, blocks={"q": (Q8_0, (64, 2))})
    each = tensor(checked(a, b), "q")
    assert (each.differing_blocks, each.differing_quants, each.differing_scales, each.scales) == (1, 0, 1, 4)


@pytest.mark.parametrize("weight", [70000.0, 1e-7, 1e-8])
def test_one_weight_that_f16_cannot_hold(tmp_path: Path, weight: float) -> None:
    values = normal(4, 64)
    values[2, 5] = weight
    with np.errstate(over="ignore"):
        a, b = pair(tmp_path, {"x": values}, {"x": values.astype(np.float16)})
    each = tensor(checked(a, b), "x")
    assert each.state == "different"
    assert each.values is not None
    assert (each.values.values, each.values.differing) == (256, 1)
    if weight > 65504:
        assert (each.values.left_out, each.values.b_not_finite.positive_infinities) == (1, 1)
        assert each.values.largest == 0
    else:
        lost = abs(float(np.float32(weight)) - float(np.float16(np.float32(weight))))
        assert each.values.largest == lost
        assert each.values.rms == pytest.approx(lost / 16)


def test_weights_lost_in_f16_are_invisible_to_q8_0(tmp_path: Path) -> None:
    values = normal(2, 64)
    values[0, 3], values[1, 33] = 1e-7, 1e-8
    by = [libggml_encode(Q8_0, v, None) for v in (values, values.astype(np.float16).astype(np.float32))]
    a, b = pair(tmp_path, {"x": by[0]}, {"x": by[1]}, blocks={"x": (Q8_0, (64, 2))})
    assert checked(a, b).conclusion == "same file"


def test_an_all_zero_tensor_equals_its_negative_by_value_only(tmp_path: Path) -> None:
    zeros = np.zeros((2, 32), np.float32)
    a, b = pair(tmp_path, {"z": zeros}, {"z": -zeros})
    found = checked(a, b)
    each = tensor(found, "z")
    assert (found.conclusion, each.state, each.differing_blocks) == ("same values", "equal values", 64)
    assert each.values is not None
    assert (each.values.differing, each.values.rms, each.values.largest) == (0, 0.0, 0.0)


def test_bf16_values_between_two_f16_subnormals(tmp_path: Path) -> None:
    values = normal(1, 32, dtype=BF16)
    values[0, :4] = np.array([2.5, 3.0, 0.5, -1.5], np.float32) * np.float32(2.0**-24)
    a, b = pair(tmp_path, {"x": values}, {"x": values.astype(np.float16)})
    each = tensor(checked(a, b), "x")
    assert each.values is not None
    assert (each.type_a, each.type_b, each.values.differing) == ("BF16", "F16", 3)
    assert each.values.largest == 2.0**-25


@pytest.mark.parametrize("types", [(np.float32, np.float16), (np.float32, BF16), (BF16, np.float16)])
def test_lossless_casts_are_equal_values(tmp_path: Path, types: tuple[Any, Any]) -> None:
    values = {"x": normal(40, 64), "y": normal(300)}
    a, b = pair(tmp_path, *({n: v.astype(t) for n, v in values.items()} for t in types))
    found = checked(a, b)
    assert (found.conclusion, found.total.equal_values, found.total.retyped) == ("same values", 2, 2)
    assert found.text.startswith(
        "same values, different files: all 2 tensors hold equal values, 2 tensors in another type. "
    )


def test_nan_and_infinity_are_counted_by_kind(tmp_path: Path) -> None:
    values, other = normal(2, 64), normal(2, 64)
    values[0, :3], other[0, :3] = (np.nan, np.inf, 1.0), (np.nan, -np.inf, np.nan)
    a, b = pair(tmp_path, {"x": values}, {"x": other})
    each = tensor(checked(a, b), "x")
    assert each.values is not None
    assert (each.values.differing, each.values.left_out, each.values.rms) == (2, 3, 0.0)
    assert each.values.a_not_finite.model_dump() == {
        "nan": 1,
        "positive_infinities": 1,
        "negative_infinities": 0,
    }
    assert each.values.b_not_finite.model_dump() == {
        "nan": 2,
        "positive_infinities": 0,
        "negative_infinities": 1,
    }
    everything = np.full((1, 32), np.nan, np.float32)
    (tmp_path / "n").mkdir()
    a, b = pair(tmp_path / "n", {"x": everything}, {"x": np.ones((1, 32), np.float32)})
    nothing = tensor(checked(a, b), "x").values
    assert nothing is not None
    assert (nothing.rms, nothing.largest, nothing.left_out) == (None, None, 32)


def test_added_removed_retyped_reshaped(tmp_path: Path) -> None:
    x = normal(4, 64)
    a, b = pair(
        tmp_path,
        {"same": x, "gone": x, "type": x, "shape": x, "q": x},
        {
            "same": x,
            "type": x.astype(np.float16),
            "shape": x.reshape(8, 32),
            "q": libggml_encode(Q8_0, x, None),
            "new": x,
        },
        blocks={"q": (Q8_0, (64, 4))},
    )
    found = checked(a, b)
    assert {each.name: each.state for each in found.tensors} == {
        "same": "identical",
        "gone": "only in a",
        "type": "equal values",
        "shape": "reshaped",
        "q": "different",
        "new": "only in b",
    }
    assert found.conclusion == "different tensors"
    assert (tensor(found, "shape").shape_a, tensor(found, "shape").shape_b) == ((4, 64), (8, 32))
    q = tensor(found, "q")
    assert q.values is not None
    decoded = libggml_decode(Q8_0, libggml_encode(Q8_0, x, None), 64)
    assert q.values.differing == int((decoded != x).sum())
    assert "1 tensor only in A, 1 tensor only in B, 1 tensor of another shape" in found.text
    assert not found.tensor_order


def test_against_a_reference(tmp_path: Path) -> None:
    source = normal(8, 512) * np.float32(1.03)
    moved = source.astype(np.float16).astype(np.float32)
    data = {"q": libggml_encode(Q4_K, source, None), "i": libggml_encode(IQ2_S, source, None)}
    other = {
        "q": libggml_encode(Q4_K, moved, None),
        "i": libggml_encode(IQ2_S, source * np.float32(1.01), None),
    }
    a, b = pair(tmp_path, data, other, blocks={"q": (Q4_K, (512, 8)), "i": (IQ2_S, (512, 8))})
    reference = gguf(tmp_path / "r.gguf", {"q": source, "i": source})
    found = checked(a, b, reference=reference)
    for name, kind in (("q", Q4_K), ("i", IQ2_S)):
        x, y = (libggml_decode(kind, z[name], 512).astype(np.float64) for z in (data, other))
        rms = [np.sqrt(np.mean(z**2)) for z in (x - y, x - source, y - source)]
        each = tensor(found, name)
        assert each.values is not None
        assert each.reference is not None
        assert each.values.rms == pytest.approx(rms[0], rel=1e-6)
        assert (each.reference.a_rms, each.reference.b_rms) == pytest.approx(rms[1:], rel=1e-6)
        assert each.reference.ratio == pytest.approx(rms[0] / max(rms[1:]), rel=1e-6)
        assert each.differing_blocks == (data[name] != other[name]).reshape(16, -1).any(axis=1).sum()
    assert "times the distance to the reference" in found.text
    bare = gguf(tmp_path / "bare.gguf", {"q": normal(2, 2)})
    assert "reference does not have" in (tensor(checked(a, b, reference=bare), "q").note or "")
