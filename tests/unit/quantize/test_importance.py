"""What an importance matrix leaves out, type by type: what the encoders make of it, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitloss.imatrix.file import Imatrix, ImatrixEntry, write_imatrix
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.model.tensor_types import TensorType
from bitloss.quantize.codec import NEEDS_WEIGHTS, decode, encode
from bitloss.quantize.quantize import How, QuantizeSpec, plan_candidates, quantize
from bitloss.quantize.types import TENSOR_TYPES
from bitloss.quantize.weights import STORED_AS_NOISE, STORED_AS_ZEROS

N = 1024
SHAPE = RandomShape(n_embd=256, n_ff=256, n_layer=1, n_expert=3, n_expert_used=1, n_head=2, head_dim=128)


@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=lambda kind: str(kind.name))
def test_what_importance_0_makes_of_a_tensor(kind: TensorType) -> None:
    """The lists of `bitloss.quantize.weights` are what the encoders do."""
    x = (np.random.default_rng(3).standard_normal((64, N)) * 0.02).astype(np.float32)

    def error(weights: float | None) -> float:
        column = None if weights is None else np.full(N, weights, np.float32)
        back = decode(kind, encode(kind, x, column), N)
        return float(np.sqrt(np.square(back - x).sum() / np.square(x).sum()))

    back = decode(kind, encode(kind, x, np.zeros(N, np.float32)), N)
    assert (not back.any()) == (kind.name in STORED_AS_ZEROS)
    if kind.name in STORED_AS_NOISE:
        assert 0.65 < error(0) < 1
        assert error(0) > 2 * error(1)
    elif kind.name not in STORED_AS_ZEROS:
        assert kind not in NEEDS_WEIGHTS
        assert error(0) == pytest.approx(error(None), rel=0.02)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_gguf(tmp_path_factory.mktemp("model") / "m.gguf", SHAPE, dtype="f32")


def _matrix(path: Path) -> Path:
    """Experts 1 and 2 of ffn_up saw zeros only, attn_q did; no token reached expert 0 of ffn_down."""
    seen, none = np.ones((3, 256)), np.array([8.0, 8.0, 8.0])
    up = seen * np.array([1.0, 0, 0])[:, None]
    down = seen * np.array([0.0, 1, 1])[:, None]
    entries = {
        "blk.0.ffn_up_exps.weight": ImatrixEntry(up, none),
        "blk.0.ffn_down_exps.weight": ImatrixEntry(down, np.array([0.0, 8, 8])),
        "blk.0.attn_q.weight": ImatrixEntry(np.zeros((1, 256)), np.array([8.0])),
        "blk.0.attn_k.weight": ImatrixEntry(np.ones((1, 256)), np.array([8.0])),
    }
    write_imatrix(Imatrix(entries, 1, 8, ()), path)
    return path


@pytest.mark.parametrize("kind", ["Q4_K_S", "Q4_0"])
def test_tensors_that_importance_0_empties_are_named(model: Path, tmp_path: Path, kind: str) -> None:
    spec = QuantizeSpec(model, kind, tmp_path / "a.gguf", imatrix=_matrix(tmp_path / "i.gguf"))
    stored = kind.removesuffix("_S")
    expected = {
        "blk.0.ffn_up_exps.weight": {"type": stored, "experts": [1, 2], "n_experts": 3, "becomes": "zeros"},
        "blk.0.attn_q.weight": {"type": stored, "experts": [0], "n_experts": 1, "becomes": "zeros"},
    }
    assert plan_candidates([spec])[0].as_json()["lost"] == expected
    made = quantize(spec, how=How(errors=True))
    assert made.as_json()["lost"] == expected
    assert made.errors is not None
    assert made.errors["blk.0.attn_q.weight"].rms == 1
    assert made.errors["blk.0.ffn_up_exps.weight"].rms == pytest.approx((2 / 3) ** 0.5, rel=0.02)
    assert made.errors["blk.0.ffn_down_exps.weight"].rms is not None
    assert made.errors["blk.0.ffn_down_exps.weight"].rms < 0.2  # importance 1 where no token was


def test_types_that_take_no_notice_of_importance_lose_nothing(model: Path, tmp_path: Path) -> None:
    matrix = _matrix(tmp_path / "i.gguf")
    for kind in ("Q8_0", "Q4_1", "Q5_1"):
        told = plan_candidates([QuantizeSpec(model, kind, tmp_path / "a.gguf", imatrix=matrix)])[0].as_json()
        assert told["lost"] == {}
        assert set(told["zero_weights"]) == {"blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight"}
    forced = QuantizeSpec(
        model, "Q4_K_S", tmp_path / "a.gguf", imatrix=matrix, tensor_types=(("attn_q|ffn_up", "Q8_0"),)
    )
    assert plan_candidates([forced])[0].as_json()["lost"] == {}
    noisy = QuantizeSpec(
        model, "IQ3_S", tmp_path / "a.gguf", imatrix=matrix, tensor_types=(("attn_q", "IQ2_S"),)
    )
    lost = plan_candidates([noisy])[0].as_json()["lost"]
    assert lost == {
        "blk.0.attn_q.weight": {"type": "IQ2_S", "experts": [0], "n_experts": 1, "becomes": "noise"}
    }
