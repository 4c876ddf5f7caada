"""What results say of texts, and how their tokens are clustered, from the header of a base."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bitloss.run.texts import TextRecords, text_records

CHUNK = np.repeat(np.arange(7, dtype=np.int32), 3)
OF_EACH = ((2, 1), (1, 3))


def header(*, split: str | None, windows: tuple[tuple[int, ...] | None, ...] = OF_EACH) -> dict[str, Any]:
    """Of a base of two texts with 3 and 4 chunks."""
    common = {"sha256": "0" * 64, "tokens_sha256": "1" * 64, "scored_tokens": 9}
    parts = []
    for name, chunks, each in (("a.txt", 3, windows[0]), ("b.txt", 4, windows[1])):
        part = common | {"name": name, "chunks": chunks}
        if split:
            part |= {"documents": [2, 1, 0, 0]} | ({"document_chunks": list(each)} if each else {})
        parts.append(part)
    return {
        **{"text": "a.txt + b.txt", "text_sha256": "0" * 64, "tokens_sha256": "1" * 64, "add_bos": False},
        **{"n_ctx": 8, "n_chunks": 7, "texts": parts},
        **({"documents": split, "scored_tokens": 21} if split else {}),
    }


def clusters(texts: TextRecords, chunk: Any = CHUNK) -> tuple[list[int], list[int] | None, str]:
    found = texts.clusters(chunk)
    text = None if found.text_of_token is None else found.text_of_token[::3].tolist()
    return found.of_token[::3].tolist(), text, found.noun


def test_chunks_of_two_texts() -> None:
    texts = text_records(header(split=None))
    assert clusters(texts) == ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1, 1], "chunk")
    assert clusters(texts, CHUNK[9:]) == ([0, 1, 2, 3], None, "chunk")  # the second text by itself
    assert texts.text.clustered == "clustered by chunk, about each text's own mean"


def test_chunks_drawn_from_all_texts_are_no_strata() -> None:
    texts = text_records(header(split=None), np.array([5, 0, 3]))
    assert not texts.text.stratified
    assert clusters(texts, np.repeat([5, 0, 3], 3)) == ([2, 0, 1], None, "chunk")
    assert texts.text.clustered == "clustered by chunk"


@pytest.mark.parametrize(
    ("split", "noun"), [("jsonl", "document"), ("file", "document"), ("conversations", "conversation")]
)
def test_documents(split: str, noun: str) -> None:
    texts = text_records(header(split=split))
    assert clusters(texts) == ([0, 0, 1, 2, 3, 3, 3], [0, 0, 0, 1, 1, 1, 1], noun)
    assert clusters(texts, CHUNK[9:]) == ([0, 1, 1, 1], None, noun)
    assert texts.text.documents is not None
    assert texts.text.documents.chunks == (2, 1, 1, 3)
    assert [part.documents.chunks for part in texts.parts if part.documents] == [(2, 1), (1, 3)]


@pytest.mark.parametrize("windows", [(None, None), (OF_EACH[0], None)])
def test_a_base_that_does_not_say_is_clustered_by_chunk(
    windows: tuple[tuple[int, ...] | None, ...],
) -> None:
    texts = text_records(header(split="jsonl", windows=windows))
    assert clusters(texts) == ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1, 1], "chunk")
    assert texts.text.documents is not None
    assert texts.text.documents.chunks == ()
