"""Documents are split as asked, cut so that every token but the first is scored once, and never across a border."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitloss.errors import FormatError, TextError, UsageError
from bitloss.model.documents import (
    CutDocuments,
    Document,
    DocumentRule,
    Splitting,
    cut_documents,
    split_documents,
)
from bitloss.model.text import Chunks, join_chunks, scored_positions

WHERE = Path("t")


def _split(text: str, rule: str) -> list[str]:
    return split_documents(text, DocumentRule.parse(rule), WHERE)


def test_the_ways_to_split() -> None:
    text = "\n\na\nb\n \t\nc\n---\nd\n\n\n"
    assert _split(text, "blank-line") == ["a\nb", "c\n---\nd"]
    assert _split(text, "file") == [text]
    assert _split(text, "line=---") == ["\n\na\nb\n \t\nc", "d\n\n\n"]
    assert _split(text.replace("\n", "\r\n"), "line=---")[1].startswith("d")
    lines = [json.dumps({"text": each, "id": 1}) for each in ("a\n\nb", "c", "  ")]
    assert _split("\n".join([*lines, "", ""]), "jsonl") == ["a\n\nb", "c"]


@pytest.mark.parametrize(
    "rule", ["", "lines", "line=", "line= ", "line=a\nb", "jsonl=x", "conversations", "line"]
)
def test_other_ways_are_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="--documents"):
        DocumentRule.parse(rule)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("x", "t, line 2: no JSON"),
        ("3", "t, line 2: no JSON object"),
        ("{}", "t, line 2: no document"),
        ('{"text": 3}', "found a number"),
        ('{"content": "a"}', "found keys content"),
        ('{"text": "\\udc00"}', "half of a surrogate pair"),
    ],
)
def test_lines_that_are_no_documents_are_named(line: str, told: str) -> None:
    with pytest.raises(FormatError) as caught:
        _split(f'{{"text": "a"}}\n{line}', "jsonl")
    assert told in str(caught.value)


def test_a_file_without_documents() -> None:
    for rule in ("blank-line", "file", "jsonl", "line=-"):
        with pytest.raises(TextError, match="t: no document"):
            _split("\n \n", rule)


def _scored(cut: CutDocuments) -> list[list[tuple[int, int]]]:
    """Of every chunk: (position, its target) of the scored."""
    chunks = cut.chunks
    return [
        [(int(i), int(row[i + 1])) for i in np.flatnonzero(m)]
        for row, m in zip(chunks.tokens, chunks.mask(), strict=True)
    ]


def test_a_worked_example() -> None:
    documents = [Document(np.arange(n, dtype=np.int32) + 100 * n) for n in (3, 1, 8, 11)]
    cut = cut_documents(documents, n_ctx=8, n_chunks=None, bos=None, where="t")
    assert cut.chunks.tokens.tolist() == [
        [300, 301, 302, 0, 0, 0, 0, 0],
        list(range(800, 808)),
        list(range(1100, 1108)),
        list(range(1103, 1111)),
    ]
    assert _scored(cut) == [
        [(0, 301), (1, 302)],
        [(i, 801 + i) for i in range(7)],
        [(i, 1101 + i) for i in range(7)],
        [(4, 1108), (5, 1109), (6, 1110)],
    ]
    assert cut.counts == (3, 1, 1, 0)
    assert cut.windows == (1, 1, 2)
    assert [len(stream) for stream in cut.streams] == [3, 8, 11]
    few = cut_documents(documents, n_ctx=8, n_chunks=3, bos=None, where="t")
    assert few.chunks.tokens.tolist() == cut.chunks.tokens[:3].tolist()
    assert few.counts == (3, 1, 1, 0)
    assert few.windows == (1, 1, 1)
    assert [len(stream) for stream in few.streams] == [3, 8, 8]
    assert cut_documents(documents, n_ctx=8, n_chunks=1, bos=None, where="t").counts == (1, 0, 0, 3)


def test_bos_leads_every_window_of_a_document_that_begins_with_it() -> None:
    cut = cut_documents(
        [Document(np.arange(1, 20, dtype=np.int32))], n_ctx=8, n_chunks=None, bos=1, where="t"
    )
    assert set(cut.chunks.tokens[:, 0]) == {1}
    assert cut.chunks.add_bos
    assert np.array_equal(cut.chunks.as_computed(), cut.chunks.tokens)


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    n_ctx=st.integers(8, 21),
    seed=st.integers(0, 9),
    masked=st.booleans(),
)
def test_every_token_is_scored_once_with_enough_context(
    lengths: list[int], n_ctx: int, seed: int, masked: bool
) -> None:
    rng = np.random.default_rng(seed)
    documents, expected, at = [], set(), 1
    for length in lengths:
        tokens = np.arange(at, at + length, dtype=np.int32)  # every token is its own id
        targets = rng.random(length) < 0.3 if masked else None
        documents.append(Document(tokens, targets))
        expected |= {int(t) for i, t in enumerate(tokens) if i and (targets is None or targets[i])}
        at += length
    if not expected:
        with pytest.raises(TextError, match="nothing to score"):
            cut_documents(documents, n_ctx=n_ctx, n_chunks=None, bos=None, where="t")
        return
    cut = cut_documents(documents, n_ctx=n_ctx, n_chunks=None, bos=None, where="t")
    begins = {int(document.tokens[0]) for document in documents}
    found = []
    for row, scored in zip(cut.chunks.tokens, _scored(cut), strict=True):
        real = row[row > 0]
        assert np.array_equal(
            real, np.arange(real[0], real[0] + len(real))
        )  # of one document, nothing left out
        assert not any(int(t) in begins for t in real[1:])
        assert scored
        for position, target in scored:
            assert position >= n_ctx // 2 - 1 or int(real[0]) in begins
            found.append(target)
    assert sorted(found) == sorted(expected)
    assert cut.chunks.n_scored == len(expected) == cut.chunks.rows.sum()
    assert cut.counts.documents + cut.counts.unscored == len(lengths)


def test_chunks_with_a_mask_and_without() -> None:
    tokens = np.arange(48, dtype=np.int32).reshape(3, 16)
    plain = Chunks(tokens, add_bos=True, bos=1)
    mask = plain.mask()
    masked = Chunks(tokens, add_bos=True, bos=1, scored=mask)
    assert plain.n_scored == masked.n_scored == 3 * len(scored_positions(16))
    assert plain.rows.tolist() == masked.rows.tolist() == [7, 7, 7]
    assert (
        [plain.row(1, i) for i in range(8, 15)] == [masked.row(1, i) for i in range(8, 15)] == list(range(7))
    )
    assert plain.sha256 != masked.sha256
    mask = mask.copy()
    mask[1, 3] = True
    other = Chunks(tokens, add_bos=True, bos=1, scored=mask)
    assert other.sha256 != masked.sha256
    assert other.rows.tolist() == [7, 8, 7]
    picked = other.pick(np.array([1, 0]))
    assert picked.rows.tolist() == [8, 7]
    both = join_chunks([other, picked])
    assert both.rows.tolist() == [7, 8, 7, 8, 7]
    assert both.tokens.shape == (5, 16)
    assert join_chunks([plain]) is plain
    assert join_chunks([plain, plain]).scored is None
    assert Splitting("file") is Splitting.FILE
