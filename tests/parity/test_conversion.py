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
FOLDERS = {
    path.name: path
    for path in [
        *(DATA / "checkpoints").iterdir(),
        *(DATA / "families").iterdir(),
        DATA.parents[1] / "src/bitloss/assets/demo-model",
    ]
}
# Where our file is meant to differ from the converter's: model -> key -> why.
DIFFERENT = {
    "llama2-json": {
        "tokenizer.ggml.scores": "the converter gives all tokens of a tokenizer.json one score; llama.cpp then joins "
        "in another order than the tokenizers library (shown in test_vocabulary.py)",
    },
}


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
        convert(FOLDERS[name], list(SourceType), out)
    return out


def test_there_are_manifests() -> None:
    # Three files of every checkpoint in tests/data and of the demo model, and of nothing else.
    assert {path.stem for path in MANIFESTS} == {f"{name}-{kind}" for name in FOLDERS for kind in SourceType}


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
    apart = {
        key for key in metadata | recorded["metadata"] if metadata.get(key) != recorded["metadata"].get(key)
    }
    assert apart == set(DIFFERENT.get(name, {}))
    assert tensors == recorded["tensors"]
    assert ours.size == recorded["bytes"]
