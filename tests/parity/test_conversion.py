"""Our conversion equals llama.cpp's own converter, recorded by training/make_conversion_manifests.py."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bitloss.convert.cast import SourceType
from bitloss.convert.convert import convert, source_path
from bitloss.model.gguf import GgufFile, GgufType, GgufValue

pytestmark = pytest.mark.parity

DATA = Path(__file__).parents[1] / "data"
MANIFESTS = sorted((DATA / "manifests").glob("*.json"))
# Folder of a recorded model, where it is not in tests/data/checkpoints.
ELSEWHERE = {"demo-model": DATA.parents[1] / "src/bitloss/assets/demo-model"}


def shown(entry: GgufValue) -> dict[str, Any]:
    """Write a value as the manifests do."""
    if entry.value_type is not GgufType.ARRAY:
        return {"type": entry.value_type.name, "value": entry.value}
    assert entry.item_type is not None
    items = entry.value if isinstance(entry.value, list) else entry.value.tolist()
    head: dict[str, Any] = {"type": "ARRAY", "item_type": entry.item_type.name}
    if len(items) <= 8:
        return head | {"value": items}
    text = json.dumps(items, ensure_ascii=False, separators=(",", ":"))
    return head | {"length": len(items), "sha256": hashlib.sha256(text.encode()).hexdigest()}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted")
    for name in {path.stem.rpartition("-")[0] for path in MANIFESTS}:
        convert(ELSEWHERE.get(name, DATA / "checkpoints" / name), list(SourceType), out)
    return out


def test_there_are_manifests() -> None:
    assert len(MANIFESTS) >= 6


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_equals_the_official_converter(path: Path, converted: Path) -> None:
    name, _, kind = path.stem.rpartition("-")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    ours = GgufFile.open(source_path(converted, name, kind))

    metadata = {key: shown(entry) for key, entry in ours.metadata.items()}
    tensors = [
        {
            "name": info.name,
            "type": info.type_name,
            "shape": list(info.shape),
            "sha256": hashlib.sha256(ours.tensor_bytes(info.name).tobytes()).hexdigest(),
        }
        for info in ours.tensors.values()
    ]

    # No key is left out: names worked out from the folder agree as well.
    assert metadata == recorded["metadata"]
    assert tensors == recorded["tensors"]
    assert ours.size == recorded["bytes"]
