"""Rotary position settings of config.json -> GGUF keys and, for some scalings, tensors of factors.

Both spellings of config.json are read: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`, which Gemma 3
has once for each kind of layer. Follows `TextModel.__init__` and `set_gguf_parameters` in `conversion/base.py`, and
`generate_extra_tensors` in `conversion/llama.py` and `conversion/phi.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from bitloss.errors import CheckpointError, UnsupportedError
from bitloss.model.gguf import GgufType, GgufValue

if TYPE_CHECKING:
    from bitloss.convert.families import Family

_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "attn_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
_MOST_FACTOR = 1e6


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary settings.

    Attributes:
        keys: GGUF keys without the architecture.
        tensors: name -> divisors of the frequencies, float32 [head / 2], in the order written; mostly none.
    """

    keys: Mapping[str, GgufValue]
    tensors: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]


def rope(family: Family, config: Mapping[str, Any], head: int) -> Rope:
    """Return the rotary settings of a model with heads of width `head`.

    Raises:
        CheckpointError: a setting is missing or no number.
        UnsupportedError: a kind of scaling that the family's graph in llama.cpp does not have.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local = config.get("rope_local_base_freq", 10000.0)
    if isinstance(given, dict) and isinstance(given.get("full_attention"), dict):
        other = given.get("sliding_attention")
        local = other.get("rope_theta", local) if isinstance(other, dict) else local
        given = given["full_attention"]
    if not isinstance(given, dict):
        raise CheckpointError("no JSON object", where="config.json[rope_scaling]", found=str(given)[:60])
    kind = str(given.get("rope_type", given.get("type", "default")))
    if kind == "su":  # Phi-3's first name of it
        kind = "longrope"
    if kind not in family.rope_kinds:
        raise UnsupportedError(
            "rotary scaling that cannot be converted here",
            where="config.json[rope_scaling]",
            expected=", ".join(family.rope_kinds),
            found=kind[:40],
        )
    if family.rope_theta is None:
        if given.get("rope_theta", 10000) != 10000:
            raise UnsupportedError(
                "rotary base that llama.cpp's graph does not follow",
                where="config.json[rope_parameters.rope_theta]",
                expected=10000,
                found=given["rope_theta"],
            )
        return Rope({}, {})
    stated = {"rope_theta": config.get("rope_theta", family.rope_theta)}
    theta = _number(stated | given, "rope_theta", at_least=1)
    keys: dict[str, GgufValue] = {}
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    if kind == "llama3":
        tensors["rope_freqs.weight"] = llama3_factors(given, theta, head)
    elif kind == "longrope":
        factor, tensors = _longrope(given, config, head)
        keys["rope.scaling.attn_factor"] = _f32(factor)
    elif kind in {"linear", "yarn"}:
        keys |= _scaling(kind, given, config)
    keys["rope.freq_base"] = _f32(theta)
    if family.rope_local:
        keys["rope.freq_base_swa"] = _f32(_number({"rope_local_base_freq": local}, "rope_local_base_freq"))
    if family.rope_dimensions:
        keys["rope.dimension_count"] = GgufValue(GgufType.UINT32, head)
    return Rope(keys, tensors)


def _scaling(kind: str, given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, GgufValue]:
    """Return the keys of linear scaling and YaRN."""
    keys = {
        "rope.scaling.type": GgufValue(GgufType.STRING, kind),
        "rope.scaling.factor": _f32(_number(given, "factor")),
    }
    if kind == "yarn":
        defaults = {"original_max_position_embeddings": config.get("original_max_position_embeddings")}
        original = _number(defaults | dict(given), "original_max_position_embeddings", at_least=1)
        keys["rope.scaling.original_context_length"] = GgufValue(GgufType.UINT32, int(original))
        for name, key in _YARN.items():
            if given.get(name) is not None and f"rope.scaling.{key}" not in keys:
                keys[f"rope.scaling.{key}"] = _f32(_number(given, name))
    return keys


def _longrope(
    given: Mapping[str, Any], config: Mapping[str, Any], head: int
) -> tuple[float, dict[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """Return Phi-3's factor of attention and its two sets of divisors, for long and for short contexts.

    With s = context / original context: sqrt(1 + ln s / ln original) where s > 1, else 1.
    """
    original = _number(config, "original_max_position_embeddings", 4096, at_least=2)
    scale = _number(config, "max_position_embeddings", at_least=1) / original
    tensors = {}
    for kind in ("long", "short"):
        listed = given.get(f"{kind}_factor")
        if (
            not isinstance(listed, list)
            or len(listed) != head // 2
            or not all(type(number) in (int, float) and 0 < number < _MOST_FACTOR for number in listed)
        ):
            raise CheckpointError(
                "bad rotary factors",
                where=f"config.json[rope_scaling.{kind}_factor]",
                expected=f"{head // 2} positive numbers",
                found=str(listed)[:60],
            )
        tensors[f"rope_factors_{kind}.weight"] = np.array(listed, dtype=np.float32)
    return (sqrt(1 + log(scale) / log(original)) if scale > 1 else 1.0), tensors


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
