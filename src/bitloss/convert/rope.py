"""Rotary position settings of config.json -> GGUF keys and, for Llama 3's scaling, a tensor of factors.

Both spellings of config.json are read: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`.
Follows `set_gguf_parameters` in `conversion/base.py` and `generate_extra_tensors` in `conversion/llama.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np

from bitloss.errors import CheckpointError, UnsupportedError
from bitloss.model.gguf import GgufType, GgufValue

_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary settings.

    Attributes:
        keys: GGUF keys without the architecture.
        factors: divisors of the frequencies, float32 [head / 2], for Llama 3's scaling; otherwise None.
    """

    keys: Mapping[str, GgufValue]
    factors: np.ndarray[Any, np.dtype[np.float32]] | None


def rope(config: Mapping[str, Any], head: int) -> Rope:
    """Return the rotary settings of a model with heads of width `head`.

    Raises:
        CheckpointError: a setting is missing or no number.
        UnsupportedError: a kind of scaling that llama.cpp's `llama` architecture does not have.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise CheckpointError("no JSON object", where="config.json[rope_scaling]", found=str(given)[:60])
    theta = _number({"rope_theta": config.get("rope_theta", 10000.0)} | given, "rope_theta", at_least=1)
    kind = str(given.get("rope_type", given.get("type", "default")))
    keys: dict[str, GgufValue] = {}
    factors = None
    if kind == "llama3":
        factors = llama3_factors(given, theta, head)
    elif kind in {"linear", "yarn"}:
        keys["rope.scaling.type"] = GgufValue(GgufType.STRING, kind)
        keys["rope.scaling.factor"] = _f32(_number(given, "factor"))
        if kind == "yarn":
            defaults = {"original_max_position_embeddings": config.get("original_max_position_embeddings")}
            original = _number(defaults | given, "original_max_position_embeddings", at_least=1)
            keys["rope.scaling.original_context_length"] = GgufValue(GgufType.UINT32, int(original))
            for name, key in _YARN.items():
                if given.get(name) is not None:
                    keys[f"rope.scaling.{key}"] = _f32(_number(given, name))
    elif kind != "default":
        raise UnsupportedError(
            "rotary scaling that cannot be converted here",
            where="config.json[rope_scaling]",
            expected="default, linear, yarn, llama3",
            found=kind[:40],
            mend="make a GGUF with llama.cpp's convert_hf_to_gguf.py and give that",
        )
    keys["rope.freq_base"] = _f32(theta)
    keys["rope.dimension_count"] = GgufValue(GgufType.UINT32, head)
    return Rope(keys, factors)


def llama3_factors(
    given: Mapping[str, Any], theta: float, head: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the divisor of each rotary frequency under Llama 3's scaling: float32 [head / 2].

    With wavelength w = 2 pi theta^(2i / head) and original context L: 1 where w < L / high, `factor` where
    w > L / low, and between them 1 / ((1 - s) / factor + s) with s = (L / w - low) / (high - low).
    Computed in float32, as llama.cpp's converter does: equal to it bit for bit for published settings (theta
    10000 and 500000 with heads of 64 or 128), within 5 units in the last place for any.
    """
    factor, low = _number(given, "factor", 8.0), _number(given, "low_freq_factor", 1.0)
    high = _number(given, "high_freq_factor", 4.0)
    original = _number(given, "original_max_position_embeddings", 8192)
    if not low < high:
        raise CheckpointError(
            "bad frequency bands", where="config.json[rope_scaling]", expected=f"more than {low}", found=high
        )
    one = np.float32(1)
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    # Correctly rounded powers, and quotients of a constant as constant x reciprocal: bit for bit what
    # llama.cpp's converter gets from torch.
    frequencies = one / np.power(theta, exponents, dtype=np.float64).astype(np.float32)
    wavelengths = one / frequencies * np.float32(2 * pi)
    smooth = (one / wavelengths * np.float32(original) - np.float32(low)) / np.float32(high - low)
    blended = one / ((one - smooth) / np.float32(factor) + smooth)
    result = np.where(wavelengths > np.float32(original / low), np.float32(factor), blended)
    return np.where(wavelengths < np.float32(original / high), one, result).astype(np.float32)


def _number(given: Mapping[str, Any], name: str, default: float | None = None, at_least: float = 0) -> float:
    value = given.get(name, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not at_least <= value < 1e12
        or value == 0
    ):
        raise CheckpointError(
            "bad or missing setting",
            where=f"config.json[{name}]",
            expected="a positive number",
            found=repr(value)[:40],
        )
    return float(value)


def _f32(value: float) -> GgufValue:
    return GgufValue(GgufType.FLOAT32, value)
