"""The texts of an evaluation, and what they have in common with the calibration text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from bitloss.errors import FileProblem, UsageError
from bitloss.model.documents import DocumentRule, Splitting
from bitloss.progress import ProgressCallback
from bitloss.run.steps.common import StepModel
from bitloss.store import atomic_write_text, sha256_file

if TYPE_CHECKING:
    from bitloss.divergence.basefile import TextSource
    from bitloss.engine.llama import LlamaEngine
    from bitloss.engine.texts import CutText


def texts_sha256(hashes: Sequence[str]) -> str:
    """Hash of a text: of its file; of several, of their hashes, one a line."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256("".join(f"{each}\n" for each in hashes).encode()).hexdigest()


class EvaluationTexts(BaseModel):
    """The texts to measure on, and how they are cut.

    Attributes:
        paths: the files.
        sha256: their hashes.
        n_ctx: tokens in a chunk.
        chunks: chunks of each text at most; None takes all.
        documents: as ``--documents`` takes it; None when the texts are not split into documents.
        chat_template: the texts are conversations, rendered with the model's own template.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    paths: tuple[Path, ...]
    sha256: tuple[str, ...]
    n_ctx: int
    chunks: int | None = None
    documents: str | None = None
    chat_template: bool = False

    @classmethod
    def of(
        cls,
        paths: Sequence[Path],
        *,
        n_ctx: int,
        chunks: int | None = None,
        documents: str | None = None,
        chat_template: bool = False,
    ) -> EvaluationTexts:
        """Check and hash the files.

        Raises:
            FileProblem: a text is missing.
            UsageError: two texts have one name, or the options do not go together.
        """
        check_texts(paths, documents=documents, chat_template=chat_template)
        return cls(
            paths=tuple(path.resolve() for path in paths),
            sha256=tuple(sha256_file(path) for path in paths),
            n_ctx=n_ctx,
            chunks=chunks,
            documents=documents,
            chat_template=chat_template,
        )

    @property
    def name(self) -> str:
        """Names of the files."""
        return " + ".join(path.name for path in self.paths)

    @property
    def splitting(self) -> str | None:
        """How the texts are split, in one word or line; None when they are not."""
        return Splitting.CONVERSATIONS.value if self.chat_template else self.documents

    def identity(self) -> dict[str, JsonValue]:
        """Parts of a step's content key."""
        text: JsonValue = self.sha256[0] if len(self.sha256) == 1 else list(self.sha256)
        documents: dict[str, JsonValue] = {"documents": self.splitting} if self.splitting else {}
        return {"text": text, "n_ctx": self.n_ctx, "chunks": self.chunks, **documents}

    def cut(self, engine: LlamaEngine) -> list[CutText]:
        """Cut every text with the engine's vocabulary; raises as `bitloss.engine.texts.cut_texts`."""
        from bitloss.engine.texts import TextRule, cut_texts
        from bitloss.model.chat_template import ChatTemplate
        from bitloss.model.gguf_split import open_model

        if self.chat_template:
            rule = TextRule(self.n_ctx, self.chunks, DocumentRule(Splitting.CONVERSATIONS))
            return cut_texts(engine, self.paths, rule, ChatTemplate.of(open_model(engine.path)))
        how = DocumentRule.parse(self.documents) if self.documents else None
        return cut_texts(engine, self.paths, TextRule(self.n_ctx, self.chunks, how))

    def source(self, cut: Sequence[CutText]) -> TextSource:
        """What a base keeps of the texts."""
        from bitloss.divergence.basefile import TextPart, TextSource

        parts = tuple(
            TextPart(
                name=text.name,
                sha256=sha256,
                chunks=text.chunks.n_chunks,
                scored_tokens=text.chunks.n_scored,
                tokens_sha256=text.chunks.sha256,
                documents=text.counts,
                document_chunks=text.windows,
            )
            for text, sha256 in zip(cut, self.sha256, strict=True)
        )
        return TextSource(self.name, texts_sha256(self.sha256), parts, self.splitting)


def check_texts(paths: Sequence[Path], *, documents: str | None, chat_template: bool) -> None:
    """Refuse texts that are not there or cannot be told apart, and options that do not go together.

    Raises:
        FileProblem, UsageError: as `EvaluationTexts.of`.
    """
    names: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise FileProblem("no such text", where=path, mend="give a UTF-8 text file")
        if path.name in names:
            raise UsageError(
                "two texts have the same file name", where=path, mend="rename one, the table needs names"
            )
        names[path.name] = path
    if documents is not None:
        DocumentRule.parse(documents)
        if chat_template:
            raise UsageError(
                "conversations are documents already",
                where="--documents with --chat-template",
                mend="leave out --documents",
            )


class OverlapStep(StepModel):
    """Evaluation texts and calibration text -> windows of tokens they share."""

    kind: Literal["overlap"] = "overlap"
    source: Path
    source_sha256: str
    texts: EvaluationTexts
    calibration: Path
    calibration_sha256: str
    calibration_chunks: int | None

    def identity(self) -> dict[str, JsonValue]:
        """Parts of the content key."""
        return {
            "source": self.source_sha256,
            **self.texts.identity(),
            "calibration": self.calibration_sha256,
            "calibration_chunks": self.calibration_chunks,
        }

    def execute(self, progress: ProgressCallback) -> JsonValue:
        """See `bitloss.model.overlap.shared_windows`; one count for each text."""
        from bitloss.engine.base import chunks_of_text
        from bitloss.engine.llama import LlamaEngine
        from bitloss.model.overlap import WINDOW, shared_windows

        with LlamaEngine(self.source, vocab_only=True) as engine:
            texts = self.texts.cut(engine)
            seen = chunks_of_text(
                engine, self.calibration, n_ctx=self.texts.n_ctx, n_chunks=self.calibration_chunks
            )
        stream = [seen.tokens.reshape(-1)]
        counts = [shared_windows(text.streams, stream) for text in texts]
        found: dict[str, JsonValue] = {
            "window": WINDOW,
            "texts": [{"windows": each.windows, "shared": each.shared} for each in counts],
        }
        atomic_write_text(self.out, json.dumps(found) + "\n")
        return found
