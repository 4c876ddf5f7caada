"""The base: what candidates are measured against, stored small and exact.

Stored is the final normed hidden state of every scored position (float32, 4 bytes x n_embd a token; llama.cpp's base
file takes 2 bytes x vocabulary a token). Base logits are made again from it with the base's own output weight through
ggml, and are the engine's numbers, bit for bit (`bitloss.divergence.basewrite` checks it before it writes).

    BASE/  base.json                      header (`BaseHeader`)
           tokens.safetensors             "tokens" int32 [n_chunks, n_ctx], as cut
           hidden-00000.safetensors ...   "hidden" float32 [chunks of the shard, scored, n_embd]

Where chunks say for themselves which positions are scored, tokens.safetensors has "scored" uint8 [n_chunks, n_ctx] as
well, and a shard is float32 [scored positions of its chunks, n_embd].

The output weight stays in the model's GGUF file, named in the header by a path relative to the folder and by the
hash of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load

from bitloss.display import plain_fault
from bitloss.engine.llama import usable_cores
from bitloss.engine.output_layer import OutputLayer, output_weight_name
from bitloss.errors import BaseError, FileProblem, MismatchError, unreadable
from bitloss.model.documents import DocumentCounts, Splitting
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import open_model
from bitloss.model.text import Chunks
from bitloss.model.vocabulary import refuse_other_vocabulary
from bitloss.store import sha256_file

SCHEMA = "bitloss/base@1"
SHARD_BYTES: Final = 64 << 20
SHARDS_HELD: Final = 4
_HEADER_CAP = 64 << 20
_LOST = "without it no file of the base can be trusted or repaired: remove the folder and make the base again"


class Shard(BaseModel):
    """One file of hidden states.

    Attributes:
        file: its name.
        first: index of its first chunk.
        chunks: how many it holds.
        sha256: of the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    first: int
    chunks: int
    sha256: str


class TextPart(BaseModel):
    """One of the texts of a base; its chunks follow those of the text before.

    Attributes:
        name: of its file.
        sha256: of the file.
        chunks: how many it has.
        scored_tokens: how many tokens of it are scored.
        tokens_sha256: see `bitloss.model.text.Chunks.sha256`.
        documents: see `bitloss.model.documents.DocumentCounts`; None without a rule for documents.
        document_chunks: number of chunks of each scored document, in order; None without, and in older files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    sha256: str
    chunks: int
    scored_tokens: int
    tokens_sha256: str
    documents: DocumentCounts | None = None
    document_chunks: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _documents_are_the_chunks(self) -> Self:
        each = self.document_chunks
        if each is not None and (min(each, default=1) < 1 or sum(each) != self.chunks):
            raise ValueError("the chunks of its documents are not its chunks")
        return self


class BaseHeader(BaseModel):
    """``base.json``.

    Attributes:
        format: always ``bitloss/base@1``.
        model: file name of the model.
        model_path: where it is, relative to the base's folder.
        architecture: of the model.
        tensors_sha256: hash of the model's tensors (metadata left out).
        output_sha256: hash of the output weight's bytes.
        vocabulary_sha256: hash of the vocabulary.
        n_vocab: entries of the vocabulary.
        n_embd: width of the hidden state.
        n_ctx: tokens in a chunk.
        n_chunks: chunks.
        add_bos: whether BOS takes the place of a chunk's first token.
        bos: its id.
        tokens_sha256: see `bitloss.model.text.Chunks.sha256`.
        text: file name of the text; of several, joined.
        text_sha256: hash of the text's bytes; of several, of their hashes, one a line.
        texts: each of them; empty in older files.
        documents: how the texts are split into documents; None when they are not.
        scored_tokens: tokens scored, where the chunks say so for themselves.
        engine: version and commit of llama.cpp.
        options: engine settings that may change rounding.
        logits_max_difference: largest absolute difference between the engine's logits and those made again, on
            the first tokens of the text; 0 means bit-equal.
        shards: files of hidden states, in order.
        header_sha256: hash of all the rest (`header_hash`), checked when it is read; None in older files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: str
    model: str
    model_path: str
    architecture: str
    tensors_sha256: str
    output_sha256: str
    vocabulary_sha256: str
    n_vocab: int
    n_embd: int
    n_ctx: int
    n_chunks: int
    add_bos: bool
    bos: int
    tokens_sha256: str
    text: str
    text_sha256: str
    texts: tuple[TextPart, ...] = ()
    documents: str | None = None
    scored_tokens: int | None = None
    engine: str
    options: dict[str, str | int]
    logits_max_difference: float
    shards: tuple[Shard, ...]
    header_sha256: str | None = None


class TextSource(NamedTuple):
    """Names the text, or texts, of a base; see `BaseHeader`."""

    name: str
    sha256: str
    texts: tuple[TextPart, ...] = ()
    documents: str | None = None


def output_weight_sha256(file: GgufFile) -> str:
    """Hash of the bytes of the weight that makes logits (``output.weight``, or tied ``token_embd.weight``)."""
    name = output_weight_name(file)
    return hashlib.sha256(file.tensor_bytes(name).data).hexdigest()


class Base:
    """A stored base, opened for measuring.

    Args:
        folder: as `write_base` made it.
        model: the model's GGUF file, if it is no longer where the header says.
        threads: CPU threads of the product with the output weight.

    Raises:
        FileProblem: the folder, or the model's file, is missing.
        BaseError: the header or a shard is damaged (named).
        MismatchError: the model's file is not the one the base was made from.
    """

    known_in_part = False

    def __init__(self, folder: Path, *, model: Path | None = None, threads: int = 0) -> None:
        self.folder = folder
        self.header = read_header(folder)
        self.model = model or (folder / self.header.model_path).resolve()
        if not self.model.is_file():
            raise FileProblem(
                "the base's model is not there",
                where=self.model.name,
                mend="put the file back, or make the base again with `bitloss base`",
            )
        if output_weight_sha256(open_model(self.model)) != self.header.output_sha256:
            raise MismatchError(
                "not the model the base was made from: its output weight differs",
                where=self.model,
                mend="make the base again with `bitloss base`",
            )
        self.layer = OutputLayer(self.model, threads=threads or usable_cores())
        self.chunks = read_chunks(folder, self.header)
        # where the rows of each chunk begin among those of all
        self._row = np.concatenate([[0], np.cumsum(self.chunks.rows)])
        # chunks computed side by side may lie in neighbouring shards
        self._loaded: dict[int, NDArray[np.float32]] = {}

    def hidden(self, chunk: int) -> NDArray[np.float32]:
        """Hidden states of one chunk: float32 [scored, n_embd]."""
        shard = next(s for s in self.header.shards if s.first <= chunk < s.first + s.chunks)
        if shard.first not in self._loaded:
            while len(self._loaded) >= SHARDS_HELD:
                del self._loaded[min(self._loaded)]
            self._loaded[shard.first] = self._load_shard(shard)
        first, last = self._row[[chunk, chunk + 1]] - self._row[shard.first]
        return self._loaded[shard.first][first:last]

    def _load_shard(self, shard: Shard) -> NDArray[np.float32]:
        """Rows of a shard, one chunk after the other: float32 [rows, n_embd]."""
        path = self.folder / shard.file
        if path.is_file() and sha256_file(path) != shard.sha256:
            raise BaseError(
                "shard is damaged (its hash is not the header's)", where=path, mend=_mend(path.parent)
            )
        states = _load(path, "hidden")
        rows = int(self._row[shard.first + shard.chunks] - self._row[shard.first])
        expected = (
            (shard.chunks, rows // shard.chunks, self.header.n_embd)
            if self.chunks.scored is None
            else (rows, self.header.n_embd)
        )
        if states.dtype != np.float32 or states.shape != expected:
            raise BaseError("shard of another shape", where=path, expected=expected, found=states.shape)
        return states.reshape(rows, self.header.n_embd)

    @property
    def n_vocab(self) -> int:
        """Entries of the vocabulary."""
        return self.header.n_vocab

    @property
    def rows_per_slice(self) -> int:
        """Most rows `logits` gives at a time."""
        return self.layer.rows_per_slice

    def logits(self, chunk: int, first: int, rows: int) -> NDArray[np.float32]:
        """Logits of scored rows first .. first+rows of a chunk: float32 [rows, n_vocab], valid until the next call."""
        return self.layer.logits(self.hidden(chunk)[first : first + rows])

    @property
    def stored_bytes(self) -> int:
        """Bytes of the folder's files."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def close(self) -> None:
        """Give the mapped model back."""
        self.layer.close()


def check_vocabulary(base: Base, candidate: Path) -> None:
    """Refuse a candidate whose tokens are not the base's.

    Raises:
        MismatchError: size or content of the vocabulary differs.
    """
    refuse_other_vocabulary(
        open_model(candidate),
        open_model(base.model),
        vocabulary=base.header.vocabulary_sha256,
        name=base.header.model,
    )


def header_hash(document: Mapping[str, Any]) -> str:
    """SHA-256 of a header's document without ``header_sha256``: as JSON, keys sorted, no spaces, ASCII.

    Of the document as it stands, so that keys of later versions do not matter to earlier files.
    """
    rest = {key: value for key, value in document.items() if key != "header_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def header_text(header: BaseHeader) -> str:
    """``base.json`` of a header, with its hash."""
    document = header.model_dump(mode="json")
    return (
        json.dumps({**document, "header_sha256": header_hash(document)}, indent=1, ensure_ascii=False) + "\n"
    )


def read_header(folder: Path) -> BaseHeader:
    """Read and check ``base.json``.

    Raises:
        FileProblem: no such folder, or no base in it.
        BaseError: damaged, of another version, or its shards do not cover the chunks.
    """
    path = folder / "base.json"
    if not path.is_file():
        raise FileProblem(
            "no base here (base.json is missing)", where=folder, mend="make one with `bitloss base`"
        )
    if path.stat().st_size > _HEADER_CAP:
        raise BaseError("header too large", where=path, found=f"{path.stat().st_size} bytes")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(error, where=path, what="header of a base", mend=_LOST) from error
    try:
        header = BaseHeader.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise BaseError(
            f"header is damaged: {plain_fault(first['msg'])}",
            where=": ".join([str(path), *([".".join(map(str, first["loc"]))] if first["loc"] else [])]),
            mend=_LOST,
        ) from error
    if header.format != SCHEMA:
        raise BaseError("of another version", where=path, expected=SCHEMA, found=header.format)
    if header.header_sha256 not in {None, header_hash(json.loads(content))}:
        raise BaseError(
            "header is damaged: its content is not what its own hash says (header_sha256)",
            where=path,
            mend=f"restore the file if it was changed by hand; {_LOST}",
        )
    covered = 0
    for shard in header.shards:
        if shard.first != covered or shard.chunks < 1 or Path(shard.file).name != shard.file:
            raise BaseError("shards do not follow one another", where=f"{path}: {shard.file}")
        covered += shard.chunks
    if covered != header.n_chunks:
        raise BaseError("shards do not cover the chunks", where=path, expected=header.n_chunks, found=covered)
    return header


def read_chunks(folder: Path, header: BaseHeader) -> Chunks:
    """Read the tokens of a base, and which of them are scored.

    Raises:
        BaseError: damaged, or not those of the header.
    """
    path = folder / "tokens.safetensors"
    tokens, scored = _load(path, "tokens"), None
    shape = (header.n_chunks, header.n_ctx)
    if tokens.dtype != np.int32 or tokens.shape != shape:
        raise BaseError("tokens of another shape than the header says", where=path, mend=_mend(path.parent))
    if header.scored_tokens is not None:
        scored = _load(path, "scored")
        if scored.dtype != np.uint8 or scored.shape != shape:
            raise BaseError(
                "scored positions of another shape than the header says", where=path, mend=_mend(path.parent)
            )
        scored = scored != 0
    chunks = Chunks(tokens, header.add_bos, header.bos, scored)
    if chunks.sha256 != header.tokens_sha256:
        raise BaseError("tokens do not match the header", where=path, mend=_mend(path.parent))
    return chunks


def _mend(folder: Path) -> str:
    """Name the command that makes damaged files of a base again."""
    try:
        header = BaseHeader.model_validate_json((folder / "base.json").read_bytes())
    except (OSError, ValidationError):
        return "make the base again with `bitloss base`"
    parts = header.texts
    model = (folder / header.model_path).resolve()
    words = ["bitloss", "base", str(model) if model.is_file() else header.model]
    for name in [part.name for part in parts] or [header.text]:
        words += ["--text", name]
    if header.documents is not None:
        chat = header.documents == Splitting.CONVERSATIONS.value
        words += ["--chat-template"] if chat else ["--documents", header.documents]
    words += [
        "--ctx",
        str(header.n_ctx),
        "--chunks",
        str(max((p.chunks for p in parts), default=header.n_chunks)),
    ]
    return f"make only that file again: {shlex.join([*words, '--out', str(folder), '--repair'])}"


def _load(path: Path, key: str) -> NDArray[Any]:
    try:
        tensor: NDArray[Any] = load(path.read_bytes())[key]
    except FileNotFoundError as error:
        raise BaseError("file of the base is missing", where=path, mend=_mend(path.parent)) from error
    except OSError as error:
        raise BaseError("file of the base cannot be read", where=path, found=error.strerror) from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise BaseError(
            "not a safetensors file bitloss wrote", where=path, found=str(error), mend=_mend(path.parent)
        ) from error
    return tensor
