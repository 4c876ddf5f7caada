"""The generated pages are what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bitloss.spec import known_keys

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fresh(generator: ModuleType) -> None:
    assert generator.stale() == [], "run scripts/generate_reference.py"


def test_stale_is_noticed(generator: ModuleType, tmp_path: Path) -> None:
    assert generator.stale(tmp_path) == sorted(generator.pages())
    for name, text in generator.pages().items():
        (tmp_path / name).write_text(text)
    assert generator.stale(tmp_path) == []
    (tmp_path / "results.schema.json").write_text("{}")
    assert generator.stale(tmp_path) == ["results.schema.json"]


def test_every_key_of_an_experiment_file_is_explained(generator: ModuleType) -> None:
    page = generator.pages()["experiment.md"]
    for key in known_keys():
        name = key.rpartition(".")[2]
        assert f"| `{name}` |" in page or name in generator.TABLES, key
    assert "| `ctx` | whole number, at least 8, at most 1048576 | `512` |" in page
    assert '| `from` | list of `"f32"` or `"f16"` or `"bf16"` | `["f32", "f16"]` |' in page
    assert "| `text` | list of path | has to be given |" in page
