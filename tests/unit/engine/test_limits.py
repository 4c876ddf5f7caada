"""Headers that would end the process are refused by key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitloss.engine.limits import check_limits
from bitloss.errors import GgufError
from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream


def file(path: Path, **keys: object) -> GgufFile:
    metadata = {"general.architecture": GgufValue(GgufType.STRING, "llama")}
    for key, value in keys.items():
        name = "llama." + key.replace("__", ".")
        if isinstance(value, str):
            metadata[name] = GgufValue(GgufType.STRING, value)
        elif isinstance(value, list):
            numbers = np.array(value, dtype=np.uint32)
            metadata[name] = GgufValue(GgufType.ARRAY, numbers, GgufType.UINT32)
        else:
            metadata[name] = GgufValue(GgufType.UINT32, value)
    with GgufStream(path, metadata, []):
        pass
    return GgufFile.open(path)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"block_count": 512},
        {"block_count": 1, "expert_count": 8, "expert_used_count": 8},
        {"block_count": 2, "expert_count": 8, "expert_used_count": [2, 4]},
        {"expert_count": 8, "expert_used_count": 2, "expert_group_count": 4, "expert_group_used_count": 2},
        {"rope__scaling__type": "yarn"},
    ],
)
def test_what_llama_cpp_takes(tmp_path: Path, keys: dict[str, object]) -> None:
    check_limits(file(tmp_path / "a.gguf", **keys))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"block_count": 0}, r"\[llama\.block_count\].*expected 1 to 512, found 0"),
        ({"block_count": 513}, "found 513"),
        ({"block_count": 2, "nextn_predict_layers": 3}, "nextn_predict_layers"),
        ({"expert_count": 1025}, "expert_count"),
        ({"expert_used_count": 1}, "expert_used_count"),
        ({"expert_count": 4}, "expert_used_count.*expected 1 to 4, found 0"),
        ({"expert_count": 4, "expert_used_count": [1, 5]}, "found 5"),
        ({"expert_count": 4, "expert_used_count": 2, "expert_group_count": 4}, "expert_group_count"),
        ({"expert_count": 4, "expert_used_count": 2, "expert_group_count": 3}, "a divisor of 4"),
        ({"expert_count": 4, "expert_used_count": 2, "expert_group_count": 2}, "expert_group_used_count"),
        ({"rope__scaling__type": "dynamic"}, "one of linear, longrope, none, yarn, found dynamic"),
    ],
)
def test_what_would_end_the_process(tmp_path: Path, keys: dict[str, object], words: str) -> None:
    with pytest.raises(GgufError, match=words):
        check_limits(file(tmp_path / "a.gguf", **keys))
