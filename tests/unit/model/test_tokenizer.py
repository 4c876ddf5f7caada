from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from bitloss.errors import BitlossError, CheckpointError, FileProblem, UnsupportedError
from bitloss.model.random_checkpoint import tokenizer_json
from bitloss.model.tokenizer import PRE_TOKENIZERS, AddedToken, read_tokenizer, recognise, written


def folder_with(folder: Path, **changes: Any) -> Path:
    data = tokenizer_json(400, "tekken")
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            data[part][name] = value
        else:
            data[part] = value
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


def test_reads_the_facts(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(folder_with(tmp_path))
    assert tokenizer.pre == "tekken"
    assert len(tokenizer.tokens) == 400
    assert tokenizer.tokens[1] == "<s>"
    assert tokenizer.added[1].special
    assert tokenizer.ids["</s>"] == 2
    assert tokenizer.merges[0] == "Ġ Ġ"


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("content", ["<s>", "[INST]", "é", "Ċ", "<|x y|>", "Ġa", "｜x｜", "Ã¼", "a\tb"])
def test_added_tokens_are_written_as_the_library_decodes_them(
    tmp_path: Path, content: str, normalized: bool
) -> None:
    data = tokenizer_json(400, "tekken")
    data["added_tokens"].append(
        data["added_tokens"][0] | {"id": 400, "content": content, "normalized": normalized}
    )
    library = tokenizers.Tokenizer.from_str(json.dumps(data))
    token = AddedToken(content, special=True, normalized=normalized)
    if normalized:
        assert written(token) == content
    else:
        ids = library.encode(content, add_special_tokens=False).ids
        assert written(token) == library.decode(ids, skip_special_tokens=False)


def test_both_forms_of_merges(tmp_path: Path) -> None:
    merges = tokenizer_json(400, "tekken")["model"]["merges"]
    pairs = [merge.split(" ") for merge in merges]
    assert read_tokenizer(folder_with(tmp_path, model__merges=pairs)).merges == tuple(merges)


@pytest.mark.parametrize("pre", ["tekken", "llama-bpe", "qwen2"])
def test_rules_are_recognised_by_their_pattern(pre: str) -> None:
    assert recognise(tokenizer_json(300, pre), "x") == pre


def test_rules_without_a_pattern_are_recognised() -> None:
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert recognise({"pre_tokenizer": by_bytes}, "x") == "gpt-2"
    assert (
        recognise({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, by_bytes]}}, "x")
        == "smollm"
    )
    assert len(set(PRE_TOKENIZERS.values())) == len(PRE_TOKENIZERS)


def test_a_name_says_whether_words_are_taken_whole() -> None:
    for pre, plain in (("llama-bpe", "dbrx"), ("tekken", None), ("qwen2", "qwen2")):
        data = tokenizer_json(300, pre)
        data["model"]["ignore_merges"] = False
        if plain is None:
            with pytest.raises(UnsupportedError, match="tekken with ignore_merges false"):
                recognise(data, "x")
        else:
            assert recognise(data, "x") == plain
    data["model"]["ignore_merges"] = True
    with pytest.raises(UnsupportedError, match="qwen2 with ignore_merges true"):
        recognise(data, "x")


def test_keeping_what_matches_is_splitting_at_it() -> None:
    data = tokenizer_json(300, "dbrx")
    data["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    assert recognise(data, "x") == "dbrx"


def test_an_unknown_rule_is_shown() -> None:
    data = tokenizer_json(300, "tekken")
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{Han}+|\s"}
    with pytest.raises(
        UnsupportedError, match=r"split \\p\{Han\}\+\|\\s ; bytes.*convert_hf_to_gguf"
    ) as caught:
        recognise(data, "tokenizer.json")
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"behavior": "Removed"},
        {"invert": True},
        {"type": "Whitespace"},
        {"pattern": {"String": " "}},
    ],
)
def test_a_rule_that_only_looks_known_is_refused(change: dict[str, Any]) -> None:
    data = tokenizer_json(300, "tekken")
    data["pre_tokenizer"]["pretokenizers"][0] |= change
    with pytest.raises(UnsupportedError, match="splitting rule"):
        recognise(data, "x")


BAD: dict[str, tuple[dict[str, Any], type[BitlossError], str]] = {
    "kind": (
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
        UnsupportedError,
        "found WordLevel",
    ),
    "sentencepiece": ({"model__byte_fallback": True}, UnsupportedError, "SentencePiece"),
    "prefix": ({"model__continuing_subword_prefix": "##"}, UnsupportedError, "continuing_subword_prefix"),
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, UnsupportedError, "normalizer.*Lowercase"),
    "merge": ({"model__merges": ["ab"]}, CheckpointError, "bad merge: found ab"),
    "vocab": ({"model__vocab": []}, CheckpointError, "no vocabulary"),
    "ids": ({"model__vocab": {"a": -1}, "added_tokens": []}, CheckpointError, "bad or repeated token id"),
    "added": ({"added_tokens": [3]}, CheckpointError, "bad or repeated added token"),
    "added list": ({"added_tokens": {}}, CheckpointError, "not a JSON list"),
    "decoder": ({"decoder": {"type": "Sequence"}}, UnsupportedError, "not byte-level"),
    "model": ({"model": None}, UnsupportedError, "expected BPE, found None"),
}


@pytest.mark.parametrize("case", BAD)
def test_faults_have_their_own_line(tmp_path: Path, case: str) -> None:
    changes, kind, message = BAD[case]
    with pytest.raises(kind, match=message) as caught:
        read_tokenizer(folder_with(tmp_path, **changes))
    assert type(caught.value) is kind
    assert "tokenizer.json" in str(caught.value)


def test_two_tokens_with_one_id_are_refused(tmp_path: Path) -> None:
    vocab = tokenizer_json(400, "tekken")["model"]["vocab"]
    vocab["zzzz"] = 399
    with pytest.raises(CheckpointError, match="repeated token id: found 399"):
        read_tokenizer(folder_with(tmp_path, model__vocab=vocab))


def test_an_added_token_must_have_the_number_the_library_gives_it(tmp_path: Path) -> None:
    data = tokenizer_json(400, "tekken")
    added = [*data["added_tokens"], data["added_tokens"][0] | {"id": 405, "content": "[late]"}]
    with pytest.raises(CheckpointError, match=r"\[\[late\]\].*expected 400, found 405"):
        read_tokenizer(folder_with(tmp_path, added_tokens=added))
    data["added_tokens"] = added
    assert tokenizers.Tokenizer.from_str(json.dumps(data)).token_to_id("[late]") == 400


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such file"):
        read_tokenizer(tmp_path)
