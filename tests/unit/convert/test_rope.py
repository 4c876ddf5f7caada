from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bitloss.convert.cast import SourceType
from bitloss.convert.convert import convert
from bitloss.model.gguf import GgufFile
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint
from bitloss.model.random_model import RandomShape


def made(tmp_path: Path, options: CheckpointOptions) -> GgufFile:
    convert(random_checkpoint(tmp_path / "m", options), [SourceType.F32], tmp_path / "out")
    return GgufFile.open(tmp_path / "out" / "m-f32.gguf")


class Rope(NamedTuple):
    config: dict[str, Any]
    keys: dict[str, Any]


ROPES = {
    "old": Rope({"rope_theta": 1e6}, {"freq_base": 1e6}),
    "none": Rope({"rope_theta": None}, {"freq_base": 10000.0}),
    "new": Rope(
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"freq_base": 5e5},
    ),
    "linear": Rope(
        {"rope_scaling": {"type": "linear", "factor": 4}},
        {"freq_base": 10000.0, "scaling.type": "linear", "scaling.factor": 4.0},
    ),
    "yarn": Rope(
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 16,
            }
        },
        {
            "freq_base": 10000.0,
            "scaling.type": "yarn",
            "scaling.factor": 8.0,
            "scaling.original_context_length": 4096,
            "scaling.yarn_beta_fast": 16.0,
        },
    ),
}


@pytest.mark.parametrize("case", ROPES)
def test_rotary_settings(tmp_path: Path, case: str) -> None:
    file = made(tmp_path, CheckpointOptions(config=ROPES[case].config))
    prefix = "llama.rope."
    found = {key.removeprefix(prefix): file.value(key) for key in file.metadata if key.startswith(prefix)}
    assert found == ROPES[case].keys | {"dimension_count": 16}
    assert "rope_freqs.weight" not in file.tensors


def test_llama3_scaling_makes_factors(tmp_path: Path) -> None:
    # Llama 3.1: rope_scaling of its config.json, heads of 128; factors as torch computes them in llama.cpp's
    # converter.
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    file = made(
        tmp_path,
        CheckpointOptions(
            shape=RandomShape(head_dim=128), config={"rope_scaling": scaling, "rope_theta": 5e5}
        ),
    )
    factors = file.tensor_f32("rope_freqs.weight")
    assert next(iter(file.tensors)) == "rope_freqs.weight"
    assert factors[:29].tolist() == [1.0] * 29
    assert factors[35:].tolist() == [8.0] * 29
    assert factors[29:35].tolist() == TORCH_BAND


TORCH_BAND = [
    1.2074838876724243,
    1.5534145832061768,
    2.026313066482544,
    2.6945300102233887,
    3.684253215789795,
    5.257327079772949,
]
