"""Texts to chunks of tokens, with a model's own vocabulary and, for conversations, its own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitloss.engine.base import Engine, TokenRole, check_context, chunks_of_text
from bitloss.errors import TextError
from bitloss.model.chat_template import ChatTemplate
from bitloss.model.chat_tokens import assistant_tokens, place_tokens
from bitloss.model.conversations import Conversation, read_conversations
from bitloss.model.documents import (
    Document,
    DocumentCounts,
    DocumentRule,
    Splitting,
    cut_documents,
    split_documents,
)
from bitloss.model.text import Chunks, join_chunks, read_text


class TextRule(NamedTuple):
    """How texts are cut.

    Attributes:
        n_ctx: tokens in a chunk.
        n_chunks: chunks of each text at most; None takes all.
        documents: how each text is made of documents; None cuts it as llama-perplexity does.
    """

    n_ctx: int
    n_chunks: int | None = None
    documents: DocumentRule | None = None


class CutText(NamedTuple):
    """One text, cut.

    Attributes:
        name: of its file.
        chunks: what is computed and scored.
        streams: its tokens as far as they are used, int32 [n] each; none reaches over a document's border.
        counts: what became of its documents; None without a rule for them.
        windows: number of chunks of each scored document, in order; None likewise.
    """

    name: str
    chunks: Chunks
    streams: list[NDArray[np.int32]]
    counts: DocumentCounts | None
    windows: tuple[int, ...] | None = None


def cut_texts(
    engine: Engine, paths: Sequence[Path], rule: TextRule, template: ChatTemplate | None = None
) -> list[CutText]:
    """Read, tokenize and cut texts, each by itself.

    Args:
        engine: holds the vocabulary.
        paths: the files.
        rule: how to cut.
        template: the model's, where the rule is about conversations.

    Raises:
        UsageError: n_ctx is beyond what the model was made for.
        TextError: a text is too short, holds nothing to score, or a conversation the template refuses.
        UnsupportedError: the assistant's part of a conversation cannot be located.
        FileProblem, FormatError: a text cannot be read.
    """
    if rule.documents is None:
        return [_plain(engine, path, rule) for path in paths]
    check_context(engine, rule.n_ctx)
    return [_cut(engine, path, rule, rule.documents, template) for path in paths]


def pooled(texts: Sequence[CutText]) -> Chunks:
    """The chunks of all texts, one text after the other.

    Raises:
        TextError: conversations of one begin with BOS and those of another do not.
    """
    for text in texts[1:]:
        if (text.chunks.add_bos, text.chunks.bos) != (texts[0].chunks.add_bos, texts[0].chunks.bos):
            raise TextError("does not begin with BOS as the text before does", where=text.name)
    return join_chunks([text.chunks for text in texts])


def _plain(engine: Engine, path: Path, rule: TextRule) -> CutText:
    chunks = chunks_of_text(engine, path, n_ctx=rule.n_ctx, n_chunks=rule.n_chunks)
    return CutText(path.name, chunks, [chunks.tokens.reshape(-1)], None)


def _cut(
    engine: Engine, path: Path, rule: TextRule, how: DocumentRule, template: ChatTemplate | None
) -> CutText:
    text = read_text(path)
    if how.how is Splitting.CONVERSATIONS:
        assert template is not None
        talks = read_conversations(text, Path(path.name))
        documents = _Reader(engine, template).documents(talks)
    else:
        documents = [Document(engine.tokenize(each)) for each in split_documents(text, how, Path(path.name))]
    bos = engine.facts.bos
    led = all(len(document.tokens) and document.tokens[0] == bos for document in documents)
    cut = cut_documents(
        documents, n_ctx=rule.n_ctx, n_chunks=rule.n_chunks, bos=bos if led else None, where=path.name
    )
    return CutText(path.name, cut.chunks, cut.streams, cut.counts, cut.windows)


class _Reader:
    """Conversations to tokens; what a token is, is asked once."""

    def __init__(self, engine: Engine, template: ChatTemplate) -> None:
        self._engine, self._template = engine, template
        self._known: dict[int, tuple[bytes, TokenRole]] = {}

    def documents(self, conversations: Sequence[Conversation]) -> list[Document]:
        return [self._document(conversation) for conversation in conversations]

    def _document(self, conversation: Conversation) -> Document:
        rendered = self._template.render(conversation)
        tokens = self._engine.tokenize(rendered.text, rendered=True)
        told = [self._tell(int(token)) for token in tokens]
        roles = np.array([role for _, role in told], object)
        places = place_tokens(
            rendered.text, [text for text, _ in told], roles != TokenRole.TEXT, where=conversation.where
        )
        return Document(tokens, assistant_tokens(rendered, places, roles == TokenRole.END))

    def _tell(self, token: int) -> tuple[bytes, TokenRole]:
        if token not in self._known:
            self._known[token] = self._engine.token_text(token), self._engine.token_role(token)
        return self._known[token]
