"""llama.cpp tokenizes with a converted vocabulary as the tokenizers library does with the original."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers, trainers

from bitloss.convert import vocab
from bitloss.convert.cast import SourceType
from bitloss.convert.convert import ConvertOptions, convert, source_path
from bitloss.engine.llama import LlamaEngine
from bitloss.model.fallback import read_fallback
from bitloss.model.gguf import GgufFile
from bitloss.model.prooftext import KNOWN_DIFFERENCES, PROOF_TEXTS
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint, tokenizer_json
from bitloss.model.random_model import SPECIALS, RandomShape
from bitloss.model.witness import witness_of
from bitloss.run.proof import compare_tokens

pytestmark = pytest.mark.parity

SITE = Path(llama_cpp.__file__).parents[1]
N_VOCAB = 700
TEXT = """The quick brown fox jumped over 13 lazy dogs in 2024; they didn't care, we'LL see. I'M SURE it's
"fine"...
Größe, Übermut und Straße: naïve café, l'été à Noël. Ελληνικά γράμματα και ΚΕΦΑΛΑΙΑ. Съешь ещё этих мягких
БУЛОК. 日本語のテキストと漢字、カタカナ。 中文字符测试，一二三。 한국어 문장입니다. עברית ועוד. النص العربي ١٢٣ هنا.
Vowels as letters of their own १२३।  👍🏽 🤦🏼‍♂️ ﬁ ligature \u00a0nbsp\u2003em   three   spaces

\tdef f(x):\n\t\treturn x**2 + 1_000_000.50 / 3  # comment //path/to/file\r\n\r\n   \n \n  end   of\t \ttext
12345678901 a1b2c3 CamelCase HTTPServer XMLHttpRequest snake_case __init__ ÀÉÎ ǅungla ʰmodifier ª º x² ½ Ⅻ ٣٤٥
1st 2nd!!! ??? --- === ```code```
"""
# Letters with combining marks, and capitals beyond ASCII inside a word.
MARKED = "हिन्दी में पाठ और ไม่มีช่องว่าง e\u0301te\u0301 naïveÜBER"
STEPS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}],
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


def trained(pre: str, texts: list[str], n_vocab: int = N_VOCAB) -> dict[str, Any]:
    """Return a tokenizer.json trained on texts under a splitting rule, with special tokens in front."""
    data = tokenizer_json(259, "tekken" if pre in STEPS else pre)
    if pre in STEPS:
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": STEPS[pre]}
    data["model"]["ignore_merges"] = pre in {"tekken", "llama-bpe"}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 3, trainer)
    result: dict[str, Any] = json.loads(tokenizer.to_str())
    return result


def tokenize(model: Path, text: Path) -> list[int]:
    """Tokenize a file with llama.cpp's own tool."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(SITE / "lib")}
    tool = [str(SITE / "bin" / "llama-tokenize"), "-m", str(model), "-f", str(text), "--ids", "--log-disable"]
    done = subprocess.run(tool, env=environment, capture_output=True, text=True, check=True, timeout=60)
    ids: list[int] = json.loads(done.stdout.strip().splitlines()[-1])
    return ids


def assert_same_tokens(library: tokenizers.Tokenizer, model: Path, tmp_path: Path, content: str) -> list[int]:
    text = tmp_path / "text.txt"
    text.write_bytes(content.encode())
    expected = library.encode(content).ids
    assert tokenize(model, text) == expected
    return list(expected)


@pytest.mark.parametrize("pre", ["tekken", "llama-bpe", "dbrx", "qwen2", "gpt-2", "smollm"])
def test_every_known_rule_splits_as_the_library(tmp_path: Path, pre: str) -> None:
    data = trained(pre, [TEXT, MARKED])
    n_vocab = max(data["model"]["vocab"].values()) + 1
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shape=RandomShape(n_vocab=n_vocab)))
    (folder / "tokenizer.json").write_text(json.dumps(data))
    convert(folder, [SourceType.F16], tmp_path / "out")
    model = source_path(tmp_path / "out", "m", "f16")

    assert GgufFile.open(model).text("tokenizer.ggml.pre") == pre
    library = tokenizers.Tokenizer.from_str(json.dumps(data))
    ids = assert_same_tokens(library, model, tmp_path, TEXT + "[x]<s></s> <s>a")
    assert ids[0] == 1
    assert max(ids) > 259  # merges were at work
    if pre == "tekken":
        # llama.cpp's rule of this name leaves marks out of words and knows only ASCII capitals: such texts
        # are tokenized otherwise than by Mistral, with any GGUF of the model. If this fails, that was mended.
        text = tmp_path / "marked.txt"
        text.write_text(MARKED, encoding="utf-8")
        assert tokenize(model, text) != library.encode(MARKED).ids
    else:
        assert_same_tokens(library, model, tmp_path, MARKED)


@pytest.mark.parametrize("pre", ["tekken", "llama-bpe", "dbrx", "qwen2", "gpt-2", "smollm"])
def test_the_proof_finds_known_differences_only(tmp_path: Path, pre: str) -> None:
    """With a vocabulary that has joined all it can in the texts of the proof, where a difference would show."""
    data = trained(pre, [*PROOF_TEXTS.values()], 4000)
    n_vocab = max(data["model"]["vocab"].values()) + 1
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shape=RandomShape(n_vocab=n_vocab)))
    (folder / "tokenizer.json").write_text(json.dumps(data))
    convert(folder, [SourceType.F16], tmp_path / "out")
    witness = witness_of(folder)
    assert witness is not None
    with LlamaEngine(source_path(tmp_path / "out", "m", "f16"), vocab_only=True) as engine:
        proof = compare_tokens(engine, witness, pre)
    assert proof.texts == len(PROOF_TEXTS)
    assert proof.tokens < sum(len(text.encode()) for text in PROOF_TEXTS.values()) / 3
    found = {line.partition(":")[0] for line in proof.known_differences}
    assert found == set(KNOWN_DIFFERENCES.get(pre, {}))


CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
FAMILIES = [
    path
    for path in sorted((CHECKPOINTS.parent / "families").iterdir())
    if (path / "tokenizer.json").is_file()
]
DEMO = Path(__file__).parents[2] / "src" / "bitloss" / "assets" / "demo-model"


@pytest.mark.parametrize(
    "folder",
    [CHECKPOINTS / "mistral-odd", CHECKPOINTS / "llama-tied", DEMO, *FAMILIES],
    ids=lambda path: path.name,
)
def test_models_of_this_project_tokenize_as_the_library(tmp_path: Path, folder: Path) -> None:
    convert(folder, [SourceType.F16], tmp_path)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = source_path(tmp_path, folder.name, "f16")
    assert_same_tokens(library, model, tmp_path, TEXT + "[INST] hi [/INST]<|end_of_text|>")


def test_scores_of_a_tokenizer_json_put_joins_in_the_order_of_its_merges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CHECKPOINTS.parent / "families" / "llama2-json"
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # All scores equal, as llama.cpp's converter writes them: other tokens.
    real = read_fallback
    monkeypatch.setattr(vocab, "read_fallback", lambda path: dataclasses.replace(real(path), scores={}))
    convert(folder, [SourceType.F16], tmp_path, ConvertOptions(name="equal"))
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT.encode())
    assert tokenize(tmp_path / "equal-f16.gguf", text) != library.encode(TEXT).ids


def test_a_sentencepiece_model_tokenizes_as_its_library(tmp_path: Path) -> None:
    # The ids are the sentencepiece library's, recorded by training/make_test_models.py.
    folder = CHECKPOINTS / "llama-spm"
    convert(folder, [SourceType.F16], tmp_path)
    model = source_path(tmp_path, folder.name, "f16")
    recorded = json.loads((folder / "sentencepiece_ids.json").read_text(encoding="utf-8"))
    text = tmp_path / "text.txt"
    for entry in recorded:
        text.write_bytes(entry["text"].encode())
        assert tokenize(model, text) == [1, *entry["ids"]], entry["text"]
    seen = {number for entry in recorded for number in entry["ids"]}
    assert len(seen & set(range(4, 260))) > 50  # bytes
    assert len(seen & set(range(260, 353))) > 40  # joined pieces

    # A model that puts no space before a text: with one written there, the ids are the same.
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    with (bare / "tokenizer.model").open("ab") as file:
        file.write(b"\x1a\x02\x18\x00")  # normalizer_spec {add_dummy_prefix: false}, merged with the first
    convert(bare, [SourceType.F16], tmp_path)
    for entry in recorded[:3]:
        text.write_bytes(b" " + entry["text"].encode())
        assert tokenize(source_path(tmp_path, "bare", "f16"), text) == [1, *entry["ids"]]

    text.write_text("go<step>on [note]<s>(a b) (a b) x", encoding="utf-8")
    ids = tokenize(model, text)
    assert [number for number in ids[1:] if number in {1, 3, 400, 402}] == [3, 400, 1, 402]


def test_the_vocabulary_is_padded_to_the_embedding(tmp_path: Path) -> None:
    data = tokenizer_json(300, "tekken")
    added = data["added_tokens"][0] | {"special": False}
    data["added_tokens"] += [
        added | {"id": 300, "content": "<|tool|>"},
        added | {"id": 301, "content": "[note]"},
    ]
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shape=RandomShape(n_vocab=304)))
    (folder / "tokenizer.json").write_text(json.dumps(data))
    convert(folder, [SourceType.F16], tmp_path)
    model = source_path(tmp_path, "m", "f16")
    file = GgufFile.open(model)
    assert file.value("tokenizer.ggml.tokens")[300:] == ["<|tool|>", "[note]", "[PAD302]", "[PAD303]"]
    assert file.value("tokenizer.ggml.token_type")[299:].tolist() == [1, 3, 4, 5, 5]
    library = tokenizers.Tokenizer.from_str(json.dumps(data))
    assert 301 in assert_same_tokens(library, model, tmp_path, "see [note] and <|tool|>that")
