"""Headers that would end the process: llama.cpp asserts some hyperparameters instead of returning an error.

The rules are those of `llama_model_base::load_hparams` in src/llama-model.cpp. Found by giving every
hyperparameter of a small model extreme values; anything else it answers with an error code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bitloss.errors import GgufError

if TYPE_CHECKING:
    from bitloss.model.gguf import GgufFile

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_ROPE_SCALINGS = frozenset({"none", "linear", "yarn", "longrope"})


def check_limits(file: GgufFile) -> None:
    """Refuse a header that llama.cpp would answer with an abort. Absent keys are left to llama.cpp.

    Raises:
        GgufError: the key is named.
    """
    layers = _number(file, "block_count", 1)
    _within(file, "block_count", layers, 1, MAX_LAYERS)
    _within(file, "nextn_predict_layers", _number(file, "nextn_predict_layers", 0), 0, layers)
    experts = _number(file, "expert_count", 0)
    _within(file, "expert_count", experts, 0, MAX_EXPERTS)
    used = _number(file, "expert_used_count", 0)
    _within(file, "expert_used_count", used, min(1, experts), experts)
    groups = _number(file, "expert_group_count", 0)
    _within(file, "expert_group_count", groups, 0, max(0, experts - 1))
    if groups > 1:
        if experts % groups:
            raise _bad(file, "expert_group_count", f"a divisor of {experts}", groups)
        _within(file, "expert_group_used_count", _number(file, "expert_group_used_count", 0), 1, groups - 1)
    scaling = file.value(f"{file.architecture}.rope.scaling.type", "none")
    if scaling not in _ROPE_SCALINGS:
        raise _bad(file, "rope.scaling.type", f"one of {', '.join(sorted(_ROPE_SCALINGS))}", scaling)


def _number(file: GgufFile, key: str, absent: int) -> int:
    """Return a hyperparameter; of one value per layer the largest. A wrong type is llama.cpp's to refuse."""
    value = file.value(f"{file.architecture}.{key}", absent)
    if isinstance(value, np.ndarray):
        return int(value.max()) if value.size and value.dtype.kind in "iu" else absent
    return value if isinstance(value, int) else absent


def _within(file: GgufFile, key: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _bad(file, key, f"{least} to {most}", value)


def _bad(file: GgufFile, key: str, expected: str, found: object) -> GgufError:
    where = f"{file.path}[{file.architecture}.{key}]"
    return GgufError("impossible hyperparameter", where=where, expected=expected, found=found)
