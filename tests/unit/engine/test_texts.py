"""Texts are cut each by itself; the tokens of conversations are those of transformers, the assistant's are marked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitloss.convert.convert import SourceType, convert, source_path
from bitloss.engine.base import TokenRole, chunks_of_text
from bitloss.engine.llama import LlamaEngine
from bitloss.engine.texts import TextRule, cut_texts, pooled
from bitloss.errors import TextError, UnsupportedError, UsageError
from bitloss.model.chat_template import ChatTemplate, SpecialTokens
from bitloss.model.documents import DocumentRule, Splitting
from bitloss.model.gguf import GgufFile

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "chat_golden.json"  # made by training/make_chat_golden.py
CONVERSATIONS = DocumentRule(Splitting.CONVERSATIONS)


@cache
def _golden() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(GOLDEN.read_text())
    return document


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as GGUF."""
    out = tmp_path_factory.mktemp("demo")
    convert(ROOT / "src" / "bitloss" / "assets" / "demo-model", [SourceType("f16")], out)
    return source_path(out, "demo-model", "f16")


@pytest.fixture(scope="module")
def engine(demo: Path) -> Iterator[LlamaEngine]:
    with LlamaEngine(demo, vocab_only=True) as engine:
        yield engine


def _talks(tmp_path: Path, *names: str) -> Path:
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps(_golden()["conversations"][name]) for name in names) + "\n")
    return path


def test_the_template_comes_from_the_file(demo: Path, tmp_path: Path) -> None:
    template = ChatTemplate.of(GgufFile.open(demo))
    case = next(c for c in _golden()["cases"] if (c["template"], c["conversation"]) == ("demo", "short"))
    with LlamaEngine(demo, vocab_only=True) as engine:
        (text,) = cut_texts(engine, [_talks(tmp_path, "short")], TextRule(64, None, CONVERSATIONS), template)
    assert text.streams[0].tolist() == case["tokens"]


_CASES = [case for case in _golden()["cases"] if "tokens" in case]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: f"{case['template']}, {case['conversation']}")
def test_tokens_and_mask_are_those_of_transformers(
    case: dict[str, Any], engine: LlamaEngine, tmp_path: Path
) -> None:
    source = _golden()["templates"][case["template"]]
    template = ChatTemplate(source, SpecialTokens(**_golden()["special"]), where="m.gguf")
    path = _talks(tmp_path, case["conversation"])
    (text,) = cut_texts(engine, [path], TextRule(256, None, CONVERSATIONS), template)
    tokens = case["tokens"]
    assert text.streams[0].tolist() == tokens
    assert text.chunks.tokens[0, : len(tokens)].tolist() == tokens
    targets = np.flatnonzero(text.chunks.mask()[0]) + 1
    if "mask" in case:
        assert targets.tolist() == np.flatnonzero(case["mask"]).tolist()
        return
    # without blocks of the template: what the assistant says, and the token that ends its turn
    spelled = b"".join(engine.token_text(tokens[i]) for i in targets).decode()
    messages = _golden()["conversations"][case["conversation"]]["messages"]
    assert spelled == "".join(m["content"] + "</s>" for m in messages if m["role"] == "assistant")
    assert sum(engine.token_role(tokens[i]) is TokenRole.END for i in targets) == spelled.count("</s>")


@pytest.mark.parametrize("name", ["llama-spm", "llama-tied", "mistral-odd"])
def test_the_assistants_tokens_spell_what_it_says_in_every_kind_of_vocabulary(
    name: str, tmp_path: Path
) -> None:
    """SentencePiece puts spaces before stretches of text, and spells rare characters in bytes."""
    folder = ROOT / "tests" / "data" / "checkpoints" / name
    convert(folder, [SourceType("f32")], tmp_path)
    path = _talks(tmp_path, "short", "white space", "characters", "same words")
    source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    source += " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    with LlamaEngine(source_path(tmp_path, name, "f32"), vocab_only=True) as engine:
        special = {
            key: engine.token_text(token).decode()
            for key, token in (("bos_token", engine.facts.bos), ("eos_token", _ends_with(engine)))
        }
        template = ChatTemplate(source, SpecialTokens(**special), where="m")
        (text,) = cut_texts(
            engine, [path], TextRule(512 if name != "mistral-odd" else 256, None, CONVERSATIONS), template
        )
        assert text.chunks.n_chunks == 4
        for row, mask, title in zip(
            text.chunks.tokens,
            text.chunks.mask(),
            ("short", "white space", "characters", "same words"),
            strict=True,
        ):
            targets = np.flatnonzero(mask) + 1
            spelled = b"".join(engine.token_text(int(row[i])) for i in targets).decode()
            messages = _golden()["conversations"][title]["messages"]
            said = [m["content"] for m in messages if m["role"] == "assistant"]
            # the space the template puts before belongs to the first token, as the model writes it
            expected = "".join(f" {each}{special['eos_token']}" for each in said)
            assert spelled.replace(" ", "") == expected.replace(" ", "")
            assert abs(len(spelled) - len(expected)) <= 2 * len(said)


def _ends_with(engine: LlamaEngine) -> int:
    return next(t for t in range(engine.facts.n_vocab) if engine.token_role(t) is TokenRole.END)


def test_a_conversation_longer_than_a_chunk_is_cut_and_counted(demo: Path, tmp_path: Path) -> None:
    template = ChatTemplate.of(GgufFile.open(demo))
    said = [f"{i} and one more is {i + 1}." for i in range(30)]
    talk = [{"role": "user" if i % 2 == 0 else "assistant", "content": each} for i, each in enumerate(said)]
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(json.dumps({"messages": each}) for each in (talk, talk[:2], talk[:1])))
    with LlamaEngine(demo, vocab_only=True) as engine:
        (text,) = cut_texts(engine, [path], TextRule(32, None, CONVERSATIONS), template)
        (whole,) = cut_texts(engine, [path], TextRule(512, None, CONVERSATIONS), template)
    assert text.counts == (2, 1, 1, 0)
    assert whole.counts == (2, 0, 1, 0)
    assert text.chunks.n_chunks > 3
    assert text.chunks.n_scored == whole.chunks.n_scored
    assert set(text.chunks.tokens[:, 0]) == {1}


def test_several_texts_are_cut_each_by_itself(engine: LlamaEngine, tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("the old house by the sea " * 40)
    b.write_text("a lamp stood upon the table " * 60)
    texts = cut_texts(engine, [a, b], TextRule(16, 9))
    for path, text in zip((a, b), texts, strict=True):
        alone = chunks_of_text(engine, path, n_ctx=16, n_chunks=9)
        assert np.array_equal(text.chunks.tokens, alone.tokens)
        assert text.chunks.sha256 == alone.sha256
        assert text.counts is None
        assert text.streams[0].tolist() == alone.tokens.reshape(-1).tolist()
    joined = pooled(texts)
    assert np.array_equal(joined.tokens, np.concatenate([text.chunks.tokens for text in texts]))
    assert pooled(texts[:1]) is texts[0].chunks


def test_documents_are_tokenized_each_by_itself(engine: LlamaEngine, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("the old house\n\nthe sea and the garden\n")
    (text,) = cut_texts(engine, [path], TextRule(16, None, DocumentRule.parse("blank-line")))
    assert [stream.tolist() for stream in text.streams] == [
        engine.tokenize(each).tolist() for each in ("the old house", "the sea and the garden")
    ]
    assert text.chunks.add_bos
    assert text.chunks.n_scored == sum(len(stream) - 1 for stream in text.streams)
    with pytest.raises(UsageError, match="--ctx"):
        cut_texts(engine, [path], TextRule(1 << 20, None, DocumentRule.parse("file")))


def test_texts_that_do_not_go_together(engine: LlamaEngine, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(_golden()["conversations"]["short"]))
    rule = TextRule(64, None, CONVERSATIONS)
    texts = [
        *cut_texts(
            engine, [path], rule, ChatTemplate("{{ messages[1].content }}", SpecialTokens(), where="m")
        ),
        *cut_texts(engine, [path], rule, ChatTemplate.of(GgufFile.open(engine.path))),
    ]
    with pytest.raises(TextError, match=r"t\.jsonl: does not begin with BOS"):
        pooled(texts)


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    from bitloss.model.random_model import random_gguf

    with pytest.raises(UnsupportedError, match=r"m\.gguf: the model has no chat template"):
        ChatTemplate.of(GgufFile.open(random_gguf(tmp_path / "m.gguf")))
