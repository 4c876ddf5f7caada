"""Damaged HF folders end in one of our errors, or convert: no other exception, nothing half-written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitloss.convert.cast import SourceType
from bitloss.convert.convert import convert
from bitloss.errors import BitlossError
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint
from bitloss.model.random_model import RandomShape
from bitloss.model.safetensors import SafetensorsFile

SHAPE = RandomShape(n_vocab=262, n_embd=4, n_layer=1, n_head=1, n_head_kv=1, head_dim=2, n_ff=4)
# What a value of a JSON file may be replaced with.
EVIL: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 70,
    1.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    [],
    [None],
    [[]],
    {},
    {"type": 3},
    {"id": []},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = random_checkpoint(tmp_path_factory.mktemp("evil") / "m", CheckpointOptions(shape=SHAPE))
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling, "sliding_window": 8}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"chat_template": [{"name": "default", "template": "{{x}}"}], "add_prefix_space": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def outcome(folder: Path, out: Path) -> str:
    try:
        convert(folder, [SourceType.F16], out)
    except BitlossError as error:
        left = [path.name for path in out.iterdir()] if out.is_dir() else []
        return error.what if not left and "\n" not in str(error) else f"left {left}"
    for path in out.iterdir():
        path.unlink()
    return "converted"


def read(path: Path, content: bytes) -> str:
    try:
        file = SafetensorsFile(path, memoryview(content))
        for name in file.tensors:
            file.tensor(name)
    except BitlossError as error:
        return error.what if str(path) in str(error) else "a message that does not name the file"
    return "read"


def test_weights_cut_at_every_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = [*range(header + 1), *range(header, len(whole), 53)]
    outcomes = Counter(read(path, whole[:cut]) for cut in cuts)
    assert outcomes["read"] == outcomes["a message that does not name the file"] == 0
    assert len(outcomes) <= 4


def test_every_bit_of_the_weights_header_flipped(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    outcomes: Counter[str] = Counter()
    for bit in range(8 * header):
        whole[bit // 8] ^= 1 << bit % 8
        outcomes[read(path, bytes(whole))] += 1
        whole[bit // 8] ^= 1 << bit % 8
    assert outcomes["a message that does not name the file"] == 0
    assert outcomes["read"] > 0  # names and metadata may change
    assert len(outcomes) >= 6


def places(value: Any, depth: int = 0) -> list[tuple[Any, ...]]:
    """List the paths to values worth replacing; of long containers the first few."""
    found: list[tuple[Any, ...]] = [()]
    if depth > 5:
        return found
    items = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    for key, inner in items[:40] if len(items) < 100 else items[:2]:
        found += [(key, *rest) for rest in places(inner, depth + 1)]
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_every_value_of_a_json_file_replaced(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    data = json.loads(good)
    outcomes: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    try:
        for place in places(data):
            for new in rng.permutation(len(EVIL))[:3]:
                path.write_text(json.dumps(replaced(data, place, EVIL[new])))
                outcomes[outcome(folder, tmp_path / "out")] += 1
    finally:
        path.write_bytes(good)
    assert not [what for what in outcomes if what.startswith("left")]
    assert outcomes["converted"] > 0
    assert len(outcomes) > 1


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_files_cut_and_flipped(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / name
    good = path.read_bytes()
    outcomes: Counter[str] = Counter()
    rng = np.random.default_rng(1)
    try:
        for cut in rng.integers(0, len(good), 30):
            path.write_bytes(good[:cut])
            outcomes[outcome(folder, tmp_path / "out")] += 1
        for bit in rng.integers(0, 8 * len(good), 70):
            damaged = bytearray(good)
            damaged[bit // 8] ^= 1 << int(bit) % 8
            path.write_bytes(damaged)
            outcomes[outcome(folder, tmp_path / "out")] += 1
    finally:
        path.write_bytes(good)
    assert sum(outcomes.values()) == 100
    assert not [what for what in outcomes if what.startswith("left")]
