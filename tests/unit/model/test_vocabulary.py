"""Hashes of vocabularies, and how two that differ are told apart."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from bitloss.errors import MismatchError
from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream
from bitloss.model.vocabulary import refuse_other_vocabulary, vocabulary_sha256

if TYPE_CHECKING:
    from pathlib import Path


def _with_tokens(path: Path, changed: dict[int, str], *, kind: str = "gpt2", size: int = 300) -> GgufFile:
    tokens = [changed.get(i, f"t{i}") for i in range(size)]
    keys = {
        "general.architecture": GgufValue(GgufType.STRING, "llama"),
        "tokenizer.ggml.model": GgufValue(GgufType.STRING, kind),
        "tokenizer.ggml.tokens": GgufValue(GgufType.ARRAY, tokens, GgufType.STRING),
    }
    with GgufStream(path, keys, []):
        pass
    return GgufFile.open(path)


@pytest.mark.parametrize(
    ("changed", "kind", "size", "said"),
    [
        (
            {7: "x\n", 9: "y"},
            "gpt2",
            300,
            r"b\.gguf: .* expected the 300 tokens of base \(the first that differs, 7, is 't7'\), "
            r"found 300 tokens \(the first that differs, 7, is 'x\\n'\)\. Candidate and base",
        ),
        ({}, "gpt2", 299, r"first that differs, 299, is 't299'\), found 299 tokens \(.*299, is not there\)"),
        ({}, "llama", 300, r"of base \(tokenizer gpt2\), found 300 tokens \(tokenizer llama\)"),
    ],
    ids=["text", "number", "kind"],
)
def test_the_first_token_that_differs_is_named(
    tmp_path: Path, changed: dict[int, str], kind: str, size: int, said: str
) -> None:
    base = _with_tokens(tmp_path / "a.gguf", {})
    other = _with_tokens(tmp_path / "b.gguf", changed, kind=kind, size=size)
    refuse_other_vocabulary(base, None, vocabulary=vocabulary_sha256(base), name="base")
    with pytest.raises(MismatchError, match=said):
        refuse_other_vocabulary(other, base, vocabulary=vocabulary_sha256(base), name="base")
    with pytest.raises(MismatchError, match=r"expected the tokens of base, found \d+ tokens\."):
        refuse_other_vocabulary(other, None, vocabulary=vocabulary_sha256(base), name="base")


@pytest.mark.parametrize(
    "tokens",
    [[b"a", b"", "ä→😀".encode(), b"\x00\\xff"], [b"a", b"\xff\xfe", b"b"], [b"caf\xc3", b"\xa9"]],
    ids=["text", "not UTF-8", "cut within a character"],
)
def test_the_hash_is_of_the_texts_one_after_the_other(tmp_path: Path, tokens: list[bytes]) -> None:
    # the writer takes text; bytes that are none are put in its place afterwards
    places = {i: chr(65 + i) * len(token) for i, token in enumerate(tokens)}
    file = _with_tokens(tmp_path / "m.gguf", places, size=len(tokens))
    data = file.path.read_bytes()
    for i, token in enumerate(tokens):
        if token:
            size = len(token).to_bytes(8, "little")
            assert data.count(size + places[i].encode()) == 1
            data = data.replace(size + places[i].encode(), size + token)
    (tmp_path / "other.gguf").write_bytes(data)
    digest = hashlib.sha256(b"gpt2")
    for token in tokens:
        shown = token.decode("utf-8", "backslashreplace").encode()
        digest.update(len(shown).to_bytes(8, "little") + shown)
    assert vocabulary_sha256(GgufFile.open(tmp_path / "other.gguf")) == digest.hexdigest()
