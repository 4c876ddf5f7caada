"""Cutting a text as llama-perplexity does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitloss.errors import FileProblem, FormatError, TextError
from bitloss.model.text import Chunks, cut_chunks, read_text


def test_chunks_are_cut_in_order_and_the_rest_is_left_over() -> None:
    chunks = cut_chunks(np.arange(35, dtype=np.int32), n_ctx=8, n_chunks=None, bos=99, where="t")
    assert chunks.tokens.tolist() == [list(range(i, i + 8)) for i in (0, 8, 16, 24)]
    computed = chunks.as_computed()
    assert computed[:, 0].tolist() == [99] * 4
    assert (computed[:, 1:] == chunks.tokens[:, 1:]).all()
    assert chunks.tokens[1, 0] == 8  # the text's own token is kept as the target of nothing


def test_without_bos_the_tokens_are_computed_as_they_are() -> None:
    chunks = cut_chunks(np.arange(16, dtype=np.int32), n_ctx=8, n_chunks=1, bos=None, where="t")
    assert chunks.n_chunks == 1
    assert (chunks.as_computed() == chunks.tokens).all()


@pytest.mark.parametrize(
    ("n", "n_ctx", "n_chunks", "message"),
    [
        (15, 8, None, r"text\.txt: text too short: expected at least 16 tokens .*found 15 tokens"),
        (0, 8, None, "text too short"),
        (99, 7, None, "context too short"),
        (99, 8, 0, "no chunks asked for"),
    ],
)
def test_what_cannot_be_cut_says_why(n: int, n_ctx: int, n_chunks: int | None, message: str) -> None:
    with pytest.raises(TextError, match=message):
        cut_chunks(np.zeros(n, np.int32), n_ctx=n_ctx, n_chunks=n_chunks, bos=None, where="text.txt")


def test_the_hash_tells_tokens_shape_and_bos_apart() -> None:
    tokens = np.arange(32, dtype=np.int32)
    a = Chunks(tokens.reshape(4, 8), True, 1)
    hashes = {
        a.sha256,
        Chunks(tokens.reshape(2, 16), True, 1).sha256,
        Chunks(tokens.reshape(4, 8), False, 1).sha256,
        Chunks(tokens.reshape(4, 8), True, 2).sha256,
        Chunks(tokens[::-1].reshape(4, 8), True, 1).sha256,
    }
    assert len(hashes) == 5
    assert a.sha256 == Chunks(tokens.copy().reshape(4, 8), True, 1).sha256


def test_one_trailing_newline_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a\n\n")
    assert read_text(path) == "a\n"


def test_unreadable_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"none\.txt: no such text\. Give a UTF-8 text file"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(FormatError, match=r"latin\.txt: not UTF-8 at byte 3"):
        read_text(tmp_path / "latin.txt")
    with pytest.raises(FileProblem, match="a folder, not a text"):
        read_text(tmp_path)
