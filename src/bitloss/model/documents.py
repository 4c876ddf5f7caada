"""Texts made of documents: how a file is split into them, and how they are cut so that no chunk crosses their borders.

**Cutting.** A document of up to n_ctx tokens is one chunk, filled up behind its end (what comes behind cannot reach
back in a causal model; it is neither scored nor computed beyond the last scored token of the chunks beside it). A
longer one is cut into overlapping windows: the first holds its first n_ctx tokens, each next one starts n_ctx/2 tokens
before the first token not yet scored, the last one ends with the document. Where the document begins with BOS, BOS also
takes the place of the first token of the later windows, as in llama-perplexity.

**What is scored.** Every token of a document but its first, exactly once (in a conversation: those of the assistant):
given the document from its beginning, or at least n_ctx/2 tokens of it. A document of a single token has nothing to
score; it is counted and left out. Windows without a scored token are left out too.

llama-perplexity has no such rule. It scores the second halves of chunks only, because a chunk of one long text begins
in the middle of something; a document begins where it begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bitloss.display import json_kind, many, visible
from bitloss.errors import FormatError, TextError, UsageError
from bitloss.model.text import Chunks


class Splitting(StrEnum):
    """How a file is split into documents."""

    BLANK_LINE = "blank-line"
    """Documents are separated by lines of nothing but white space."""
    FILE = "file"
    """The file is one document."""
    JSONL = "jsonl"
    """A line is a JSON object, its ``text`` the document."""
    LINE = "line"
    """Documents are separated by a line of a given text."""
    CONVERSATIONS = "conversations"
    """A line is a JSON object, its ``messages`` a conversation (`bitloss.model.conversations`)."""


class DocumentRule(NamedTuple):
    """A way to split a file.

    Attributes:
        how: the kind of separation.
        line: the separating line, with `Splitting.LINE`.
    """

    how: Splitting
    line: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `--documents` takes: ``blank-line``, ``file``, ``jsonl`` or ``line=TEXT``.

        Raises:
            UsageError: something else.
        """
        kind, equals, line = text.partition("=")
        if equals and kind == Splitting.LINE and line.strip() and "\n" not in line:
            return cls(Splitting.LINE, line)
        if text in (Splitting.BLANK_LINE, Splitting.FILE, Splitting.JSONL):
            return cls(Splitting(text))
        raise UsageError(
            "not a way to separate documents",
            where="--documents",
            expected="blank-line, file, jsonl or line=TEXT",
            found=text[:80],
        )


class Document(NamedTuple):
    """A document in tokens.

    Attributes:
        tokens: int32 [n], BOS first where the vocabulary (or the chat template) puts it.
        targets: bool [n], tokens that may be scored; None for all.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.bool_] | None = None


class DocumentCounts(NamedTuple):
    """What became of the documents.

    Attributes:
        documents: those some token of which is scored.
        cut: those of them that are longer than a chunk.
        unscored: those with no token to score, left out.
        unused: those behind the last chunk that was asked for.
    """

    documents: int
    cut: int
    unscored: int
    unused: int


class CutDocuments(NamedTuple):
    """Documents cut into chunks.

    Attributes:
        chunks: with their mask of scored positions.
        streams: tokens of every document as far as it is used, for `bitloss.model.overlap`.
        counts: what became of the documents.
        windows: number of chunks of each scored document, in order; its chunks follow one another.
    """

    chunks: Chunks
    streams: list[NDArray[np.int32]]
    counts: DocumentCounts
    windows: tuple[int, ...]


_A_LINE: Final = 'one document a line: {"text": "..."}'
_MEND: Final = "for a text that is no JSON give --documents blank-line, file or line=TEXT, or leave it out"


def split_documents(text: str, rule: DocumentRule, where: Path) -> list[str]:
    """Split a text into documents, in order; those of white space only are no documents.

    Raises:
        FormatError: a line is no JSON object with a ``text``.
        TextError: there is no document.
    """
    if rule.how is Splitting.JSONL:
        documents = [
            _text_of(value, number, where)
            for number, value in json_lines(text, where, expected=_A_LINE, mend=_MEND)
        ]
    elif rule.how is Splitting.FILE:
        documents = [text]
    else:
        documents = _separated(text, rule)
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise TextError("no document", where=where, expected=f"documents separated by {_separator(rule)}")
    return documents


def _separator(rule: DocumentRule) -> str:
    return f"lines {rule.line!r}" if rule.how is Splitting.LINE else rule.how.value


def _separated(text: str, rule: DocumentRule) -> list[str]:
    documents: list[list[str]] = [[]]
    for line in text.split("\n"):
        separates = line.rstrip("\r") == rule.line if rule.how is Splitting.LINE else not line.strip()
        if separates:
            documents.append([])
        else:
            documents[-1].append(line)
    return ["\n".join(lines) for lines in documents]


def json_lines(
    text: str, where: Path, *, expected: str, mend: str
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield number and object of every line that is not empty; `expected` and `mend` say what lines should be.

    Raises:
        FormatError: a line is no JSON object; it is named.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(
                "no JSON",
                where=f"{where}, line {number}",
                expected=expected,
                found=visible(line.strip(), 40),
                mend=mend,
            ) from error
        if not isinstance(value, dict):
            raise FormatError(
                "no JSON object",
                where=f"{where}, line {number}",
                expected=expected,
                found=json_kind(value),
                mend=mend,
            )
        yield number, value


def _text_of(value: dict[str, object], number: int, where: Path) -> str:
    found = value.get("text")
    if not isinstance(found, str):
        raise FormatError(
            "no document",
            where=f"{where}, line {number}",
            expected='{"text": "..."}',
            found=f"keys {', '.join(list(value)[:4])}" if found is None else json_kind(found),
        )
    return checked_text(found, where=f"{where}, line {number}")


def checked_text(text: str, *, where: str) -> str:
    r"""Refuse what JSON can spell but UTF-8 cannot (``"\ud800"``).

    Raises:
        FormatError: half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError("half of a surrogate pair, which is no text", where=where) from error
    return text


def cut_documents(
    documents: Sequence[Document], *, n_ctx: int, n_chunks: int | None, bos: int | None, where: str
) -> CutDocuments:
    """Cut documents into chunks; the rule is in the module docstring.

    Args:
        documents: in order.
        n_ctx: tokens in a chunk.
        n_chunks: chunks at most; None takes all.
        bos: id of BOS when every document begins with it, else None.
        where: names the text in messages.

    Raises:
        TextError: no token is scored.
    """
    tokens: list[NDArray[np.int32]] = []
    scored: list[NDArray[np.bool_]] = []
    streams: list[NDArray[np.int32]] = []
    of_each: list[int] = []
    cut = unscored = used = 0
    for document in documents:
        if n_chunks is not None and len(tokens) >= n_chunks:
            break
        used += 1
        room = None if n_chunks is None else n_chunks - len(tokens)
        windows = _windows(document, n_ctx)[:room]
        if not windows:
            unscored += 1
            continue
        cut += len(document.tokens) > n_ctx
        of_each.append(len(windows))
        streams.append(document.tokens[: windows[-1].start + n_ctx])
        for window in windows:
            tokens.append(_filled(document.tokens[window.start : window.start + n_ctx], n_ctx, bos))
            scored.append(window.scored)
    if not tokens:
        raise TextError(
            "nothing to score",
            where=where,
            expected="a document of two tokens or more, in which something is scored",
            found=f"{many(used, 'document')} without",
            mend="give longer documents; of conversations only what the assistant says is scored",
        )
    chunks = Chunks(np.stack(tokens), bos is not None, -1 if bos is None else bos, np.stack(scored))
    counts = DocumentCounts(used - unscored, cut, unscored, len(documents) - used)
    return CutDocuments(chunks, streams, counts, tuple(of_each))


class _Window(NamedTuple):
    """A stretch of a document that becomes a chunk: where it starts, and its mask of scored positions [n_ctx]."""

    start: int
    scored: NDArray[np.bool_]


def _windows(document: Document, n_ctx: int) -> list[_Window]:
    n = len(document.tokens)
    windows, start, done = [], 0, 1
    while done < n:
        end = min(start + n_ctx, n)
        scored = np.zeros(n_ctx, np.bool_)
        targets = np.ones(n, np.bool_) if document.targets is None else document.targets
        scored[done - start - 1 : end - start - 1] = targets[done:end]
        if scored.any():
            windows.append(_Window(start, scored))
        done = end
        start = min(end - n_ctx // 2, n - n_ctx)
    return windows


def _filled(tokens: NDArray[np.int32], n_ctx: int, bos: int | None) -> NDArray[np.int32]:
    filled = np.zeros(n_ctx, np.int32)
    filled[: len(tokens)] = tokens
    if bos is not None:
        filled[0] = bos
    return filled
