"""The texts of a run, as ``results.json`` tells of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from bitloss.records.parts import BareName, Count, NonEmpty, Record, Sha256


class Documents(Record):
    """What became of the documents of a text; `bitloss.model.documents` has the rule."""

    split: NonEmpty
    """``blank-line``, ``file``, ``jsonl``, ``line=TEXT``, or ``conversations`` (the assistant's tokens are scored)."""
    scored: Count
    """Documents some token of which is scored."""
    cut: Count
    """Those of them that are longer than a chunk, and were cut into overlapping windows."""
    unscored: Count
    """Documents with no token to score, left out."""
    unused: Count
    """Documents behind the last chunk that was asked for."""
    chunks: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Chunks of each scored document, in order; those of one are one cluster of the clustered errors. Empty where the
    base is from a version that did not keep it: errors are then clustered by chunk."""


class Overlap(Record):
    """How much of a text stands in the calibration text as well."""

    window: int = Field(ge=1)
    """Tokens of a window."""
    windows: Count
    """Windows of the text."""
    shared: Count
    """Those of them that occur in the calibration text."""
    share: float = Field(ge=0, le=1)
    """`shared` / `windows`; 0 where there are none."""

    @model_validator(mode="after")
    def _no_more_than_all(self) -> Self:
        if self.shared > self.windows:
            raise ValueError("more windows shared than there are")
        return self


class Text(Record):
    """The text every candidate was measured on; of several texts, all of them together."""

    name: BareName
    """Name of the file; of several, joined."""
    sha256: Sha256 | None
    """Hash of the file; of several, of their hashes, one a line; null when only its tokens were given."""
    tokens_sha256: Sha256
    """Hash of the tokens (int32, little-endian) after cutting into chunks; of all chunks, also where measuring stopped
    early."""
    n_ctx: int = Field(ge=2)
    """Tokens per chunk; the second half is scored, unless `documents` says otherwise."""
    chunks: int = Field(ge=1)
    """Number of chunks measured."""
    scored_tokens: int = Field(ge=1)
    """Number of tokens scored in them."""
    add_bos: bool
    """Whether the first token of each chunk was replaced by BOS."""
    documents: Documents | None = None
    """How it was split into documents; null when it was cut as one, llama-perplexity's way."""
    overlap: Overlap | None = None
    """What it has in common with the calibration text; null without one."""
    stratified: bool = False
    """Of several texts: whether clustered errors and comparisons are of residuals about each text's own mean. False
    where measuring stopped by a rule (its chunks are drawn from all texts together), and in older results."""

    @property
    def cluster(self) -> str:
        """What clustered errors are clustered by: ``chunk``, ``document`` or ``conversation``."""
        if self.documents is None or not self.documents.chunks:
            return "chunk"
        return "conversation" if self.documents.split == "conversations" else "document"

    @property
    def clustered(self) -> str:
        """The same in words, to follow an error, or "paired and"."""
        about = ", about each text's own mean" if self.stratified else ""
        return f"clustered by {self.cluster}{about}"

    def check_parts(self, parts: Sequence[TextPart]) -> None:
        """Raise ValueError where the texts are strata and their chunks are not those of all of them."""
        if self.stratified and sum(part.chunks for part in parts) != self.chunks:
            raise ValueError("the chunks of the texts are not those of all of them")

    @model_validator(mode="after")
    def _documents_are_the_chunks(self) -> Self:
        _check(self.documents, self.chunks)
        return self


def _check(documents: Documents | None, chunks: int) -> None:
    if documents and documents.chunks and sum(documents.chunks) != chunks:
        raise ValueError("the chunks of the documents are not those of the text")


class TextPart(Record):
    """One of several texts the candidates were measured on."""

    name: BareName
    """Name of the file."""
    sha256: Sha256
    """Hash of the file."""
    tokens_sha256: Sha256
    """Hash of its tokens after cutting into chunks; of all its chunks, also where measuring stopped early."""
    chunks: Count
    """Number of its chunks that were measured."""
    scored_tokens: Count
    """Number of tokens scored in them."""
    documents: Documents | None = None
    """As in `text`."""
    overlap: Overlap | None = None
    """As in `text`."""

    @model_validator(mode="after")
    def _documents_are_the_chunks(self) -> Self:
        _check(self.documents, self.chunks)
        return self


class Calibration(Record):
    """The text the importance matrices were made from."""

    name: BareName
    """Name of the file."""
    sha256: Sha256
    """Hash of the file."""
    n_ctx: int = Field(ge=2)
    """Tokens per chunk."""
    chunks: int = Field(ge=1)
    """Number of chunks."""
