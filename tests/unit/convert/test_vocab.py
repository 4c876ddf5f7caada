"""A SentencePiece vocabulary in a GGUF; that it equals llama.cpp's converter is tests/parity/test_conversion.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bitloss.convert.families import family_of
from bitloss.convert.vocab import vocabulary
from bitloss.errors import CheckpointError, FileProblem, UnsupportedError
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.random_checkpoint import tokenizer_json
from bitloss.model.source import model_sha256

CHECKPOINT = Path(__file__).parents[2] / "data" / "checkpoints" / "llama-spm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINT, tmp_path / "m")
    return tmp_path / "m"


def change(folder: Path, name: str, **values: Any) -> None:
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(data | values))


def keys(folder: Path, n_vocab: int = 408) -> dict[str, Any]:
    checkpoint = Checkpoint.open(folder)
    found = vocabulary(checkpoint, family_of(checkpoint.architecture).vocabulary, n_vocab)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): entry.value for key, entry in found.items()}


def test_tokens_scores_and_types(folder: Path) -> None:
    found = keys(folder)
    assert found["tokens"][:5] == ["<unk>", "<s>", "</s>", "<step>", "<0x00>"]
    assert found["tokens"][400:404] == ["[note]", "<|tool|>", " (a b) ", "[PAD403]"]
    assert found["token_type"][[0, 1, 3, 4, 300]].tolist() == [3, 3, 4, 6, 1]
    assert found["token_type"][400:404].tolist() == [4, 3, 4, 5]
    assert found["scores"][[4, 261, 400, 403]].tolist() == [0.0, -1.0, -1000.0, -10000.0]
    assert "add_space_prefix" not in found


def test_user_defined_pieces_not_listed_as_added_are_normal_ones(folder: Path) -> None:
    (folder / "added_tokens.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    found = keys(folder)
    assert found["token_type"][:5].tolist() == [2, 3, 3, 1, 6]
    assert found["tokens"][400] == "[PAD400]"
    assert "chat_template" not in found
    assert "add_bos_token" not in found


def test_ids_beyond_the_embedding_are_left_out(folder: Path) -> None:
    change(folder, "config.json", pad_token_id=408, unk_token_id=-1)
    change(folder, "added_tokens.json", late=408)
    found = keys(folder)
    assert len(found["tokens"]) == 408
    assert "late" not in found["tokens"]
    assert {key for key in found if key.endswith("token_id")} == {"bos_token_id", "eos_token_id"}
    assert len(keys(folder, 390)["tokens"]) == 390


def test_a_tokenizer_json_beside_it_tells_only_of_special_tokens(folder: Path) -> None:
    data = tokenizer_json(300, "tekken")
    data["added_tokens"][0] |= {"id": 7, "content": "<s>"}
    data["added_tokens"] = data["added_tokens"][:1]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    found = keys(folder)
    assert found["model"] == "llama"
    assert found["bos_token_id"] == 7


def without_prefix(folder: Path) -> None:
    # Field 3 (normalizer_spec) once more, with add_dummy_prefix (3) false: messages given twice are merged.
    with (folder / "tokenizer.model").open("ab") as file:
        file.write(b"\x1a\x02\x18\x00")


def test_the_space_before_a_text(folder: Path) -> None:
    without_prefix(folder)
    assert keys(folder)["add_space_prefix"] is False
    change(folder, "tokenizer_config.json", add_prefix_space=True)
    assert keys(folder)["add_space_prefix"] is True


def test_code_llama_is_known_by_the_size_of_its_vocabulary(folder: Path) -> None:
    found = keys(folder, 32016)
    names = ("prefix", "suffix", "middle", "eot")
    assert [found[f"{name}_token_id"] for name in names] == [32007, 32008, 32009, 32010]


def test_smollm_is_known_by_the_size_of_its_vocabulary(tmp_path: Path) -> None:
    """Trained without BOS in front; its tokenizer says nothing of it, or the contrary."""
    shutil.copytree(FAMILIES / "smollm", tmp_path / "m")
    change(tmp_path / "m", "tokenizer_config.json", add_bos_token=True)
    change(tmp_path / "m", "tokenizer.json", post_processor=None)  # which else would say it
    found = keys(tmp_path / "m", 49152)
    assert found["pre"] == "smollm"
    assert found["add_bos_token"] is False
    assert keys(tmp_path / "m", 49151)["add_bos_token"] is True


def test_a_byte_without_a_piece_is_refused(folder: Path) -> None:
    change(folder, "added_tokens.json", x=100)
    with pytest.raises(
        UnsupportedError, match="without byte fallback: expected all 256 byte pieces, found 255"
    ):
        keys(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("added_tokens.json", {"x": -1}),
        ("added_tokens.json", {"x": True}),
        ("added_tokens.json", {"x": "1"}),
        ("tokenizer_config.json", {"added_tokens_decoder": []}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "x"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": 3}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "x"}}),
    ],
)
def test_bad_added_tokens(folder: Path, name: str, values: dict[str, Any]) -> None:
    change(folder, name, **values)
    with pytest.raises(CheckpointError, match=f"{name}.*: bad added"):
        keys(folder)


def test_without_tokenizer_model(folder: Path) -> None:
    before = model_sha256(folder)
    (folder / "tokenizer.model").unlink()
    assert model_sha256(folder) != before
    with pytest.raises(FileProblem, match=r"tokenizer\.json: no such file"):
        keys(folder)


FAMILIES = CHECKPOINT.parents[1] / "families"


@pytest.fixture
def fallback(tmp_path: Path) -> Path:
    shutil.copytree(FAMILIES / "llama2-json", tmp_path / "f")
    return tmp_path / "f"


def test_a_tokenizer_json_with_byte_fallback_alone(fallback: Path) -> None:
    merges = json.loads((fallback / "tokenizer.json").read_text())["model"]["merges"]
    found = keys(fallback, 384)
    assert found["model"] == "llama"
    assert found["tokens"][:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert found["token_type"][[0, 1, 3, 379, 380]].tolist() == [3, 3, 6, 1, 5]
    by_text = dict(zip(found["tokens"], found["scores"].tolist(), strict=True))
    assert by_text["".join(merges[0])] == 0.0
    assert by_text["".join(merges[1])] == -1.0
    assert by_text["<0x00>"] == by_text["[PAD380]"] == -1000.0
    assert "add_space_prefix" not in found


@pytest.mark.parametrize(
    ("normalizer", "splitter", "prefix"),
    [
        ({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}, None, False),
        (
            None,
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
            True,
        ),
        (
            None,
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False},
            False,
        ),
    ],
)
def test_the_space_before_a_text_of_such_a_vocabulary(
    fallback: Path, normalizer: Any, splitter: Any, prefix: bool
) -> None:
    change(fallback, "tokenizer.json", normalizer=normalizer, pre_tokenizer=splitter)
    assert keys(fallback).get("add_space_prefix", True) is prefix


@pytest.mark.parametrize(
    ("normalizer", "splitter"),
    [
        ({"type": "Lowercase"}, None),
        (None, None),
        (None, {"type": "Metaspace", "replacement": "_", "split": False}),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}]}, None),
    ],
)
def test_other_steps_of_such_a_vocabulary_are_refused(fallback: Path, normalizer: Any, splitter: Any) -> None:
    change(fallback, "tokenizer.json", normalizer=normalizer, pre_tokenizer=splitter)
    with pytest.raises(UnsupportedError, match="normaliser or splitting rule"):
        keys(fallback)


def test_families_without_a_tokenizer_model(tmp_path: Path) -> None:
    for name, kind in (("gemma2", FileProblem), ("qwen3", UnsupportedError)):
        shutil.copytree(FAMILIES / name, tmp_path / name)
        (tmp_path / name / "tokenizer.model").unlink(missing_ok=True)
        shutil.copy(FAMILIES / "llama2-json" / "tokenizer.json", tmp_path / name)
        with pytest.raises(kind, match=r"tokenizer\.model"):
            keys(tmp_path / name)


def test_granite_names_its_rule_as_published_files_do(tmp_path: Path) -> None:
    assert keys(FAMILIES / "granite", 320)["pre"] == "refact"
    shutil.copytree(FAMILIES / "granite", tmp_path / "m")
    change(tmp_path / "m", "config.json", architectures=["LlamaForCausalLM"])
    assert keys(tmp_path / "m", 320)["pre"] == "smollm"
