"""The base: what candidates are measured against, stored small and exact.

Stored is the final normed hidden state of every scored position (float32, 4 bytes x n_embd a token; llama.cpp's base
file takes 2 bytes x vocabulary a token). Base logits are made again from it with the base's own output weight through
ggml, and are the engine's numbers, bit for bit; every base is checked against the engine's logits on a few tokens
before anything else is computed.

    BASE/  base.json                      header (`BaseHeader`)
           tokens.safetensors             "tokens" int32 [n_chunks, n_ctx], as cut
           hidden-00000.safetensors ...   "hidden" float32 [chunks of the shard, scored, n_embd]

The output weight stays in the model's GGUF file, named in the header by a path relative to the folder and by the
hash of its bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from bitloss.engine.base import Engine, Outputs
from bitloss.engine.llama import LlamaEngine, usable_cores
from bitloss.engine.output_layer import SLICE_BYTES, OutputLayer, output_weight_name
from bitloss.errors import BaseError, FileProblem, MismatchError, UnsupportedError
from bitloss.model.gguf import GgufFile, tensor_bytes
from bitloss.model.text import Chunks, scored_positions
from bitloss.model.vocabulary import vocabulary_sha256
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_dir, atomic_write_text, sha256_file

SCHEMA = "bitloss/base@1"
_SHARD_BYTES = 64 << 20
_SHARDS_HELD = 4
_CHECKED_TOKENS = 64  # whether logits are the product of output weight and hidden states shows on any tokens
_HEADER_CAP = 64 << 20


def base_bytes(folder: Path, model: Path) -> int:
    """Estimate the bytes an opened base takes: the mapped output weight, the shards at hand, slices of logits."""
    file = GgufFile.open(model)
    info = file.tensors[output_weight_name(file)]
    shards = sum(path.stat().st_size for path in folder.glob("hidden-*.safetensors"))
    return (
        tensor_bytes(info.shape, info.ggml_type) + min(shards, _SHARDS_HELD * _SHARD_BYTES) + 2 * SLICE_BYTES
    )


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
        text: file name of the text.
        text_sha256: hash of the text's bytes.
        engine: version and commit of llama.cpp.
        options: engine settings that may change rounding.
        logits_max_difference: largest absolute difference between the engine's logits and those made again, on
            the first tokens of the text; 0 means bit-equal.
        shards: files of hidden states, in order.
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
    engine: str
    options: dict[str, str | int]
    logits_max_difference: float
    shards: tuple[Shard, ...]


class TextSource(NamedTuple):
    """Names a text: file name and hash of its bytes."""

    name: str
    sha256: str


def output_weight_sha256(file: GgufFile) -> str:
    """Hash of the bytes of the weight that makes logits (``output.weight``, or tied ``token_embd.weight``)."""
    name = output_weight_name(file)
    return hashlib.sha256(file.tensor_bytes(name).data).hexdigest()


def check_remade_logits(engine: LlamaEngine, layer: OutputLayer, chunk: NDArray[np.int32]) -> float:
    """Compare logits made again from hidden states with the engine's own, on one chunk.

    Returns:
        The largest absolute difference; 0 when all are bit-equal.

    Raises:
        UnsupportedError: they differ by more than rounding can (the graph does something after the product), or at all
            on a CPU, where the same kernel must give the same bits.
    """
    hidden, logits = engine.hidden_and_logits(chunk)
    worst = 0.0
    for part in layer.slices(len(hidden)):
        remade, told = layer.logits(hidden[part]), logits[part]
        if not np.array_equal(remade.view(np.uint32), told.view(np.uint32)):
            same = (remade == told) | (np.isnan(remade) & np.isnan(told))
            with np.errstate(invalid="ignore"):  # infinity less infinity
                apart = np.abs(remade.astype(np.float64) - told)
            # NaN on one side is as far as can be, and must not be lost in a maximum
            worst = max(worst, float(np.max(np.where(same, 0.0, np.nan_to_num(apart, nan=math.inf)))))
    spread = float(np.std(logits, dtype=np.float64))
    # TF32 or F16 products of a GPU differ from the CPU's by up to about 1e-3 of the logits' spread
    if worst == math.inf or worst > (0.01 * spread if engine.options.n_gpu_layers else 0.0):
        raise UnsupportedError(
            f"logits made again from hidden states differ from the engine's by up to {worst:.3g}",
            where=engine.path,
            mend=f"the {engine.facts.architecture} graph changes logits after the output product; "
            "measure against a base made by llama-perplexity (--kl-divergence-base)",
        )
    return worst


def write_base(
    engine: LlamaEngine, chunks: Chunks, *, text: TextSource, out: Path, progress: ProgressCallback = silent
) -> BaseHeader:
    """Compute a base and store it; the folder appears whole or not at all.

    Raises:
        UnsupportedError: the model's logits cannot be made again from its hidden states.
        EngineError, DiskFull: as they say.
    """
    options = engine.options
    file = GgufFile.open(engine.path)
    layer = OutputLayer(engine.path, threads=options.threads or usable_cores())
    tokens = chunks.as_computed()
    worst = check_remade_logits(engine, layer, tokens[0, :_CHECKED_TOKENS])
    layer.close()
    with atomic_dir(out) as folder:
        save_file({"tokens": chunks.tokens}, folder / "tokens.safetensors")
        shards = tuple(_write_shards(engine, tokens, folder, progress))
        header = BaseHeader(
            format=SCHEMA,
            model=engine.path.name,
            model_path=os.path.relpath(engine.path.resolve(), out.resolve()),
            architecture=engine.facts.architecture,
            tensors_sha256=file.tensors_sha256(),
            output_sha256=output_weight_sha256(file),
            vocabulary_sha256=vocabulary_sha256(file),
            n_vocab=engine.facts.n_vocab,
            n_embd=engine.facts.n_embd,
            n_ctx=chunks.n_ctx,
            n_chunks=chunks.n_chunks,
            add_bos=chunks.add_bos,
            bos=chunks.bos,
            tokens_sha256=chunks.sha256,
            text=text.name,
            text_sha256=text.sha256,
            engine=engine.version,
            options={
                "ubatch": options.micro_batch,
                "flash_attn": options.flash_attn.value,
                "n_gpu_layers": options.n_gpu_layers,
            },
            logits_max_difference=worst,
            shards=shards,
        )
        atomic_write_text(folder / "base.json", header.model_dump_json(indent=1) + "\n")
    return header


def _write_shards(
    engine: Engine, tokens: NDArray[np.int32], folder: Path, progress: ProgressCallback
) -> Iterator[Shard]:
    n_chunks, n_ctx = tokens.shape
    scored = scored_positions(n_ctx)
    width = engine.facts.n_embd
    per_shard = max(1, min(n_chunks, _SHARD_BYTES // (4 * len(scored) * width)))
    open_chunks: dict[int, tuple[NDArray[np.float32], int]] = {}  # chunks computed side by side, rows filled
    shard: list[NDArray[np.float32]] = []
    done = 0
    for rows in engine.evaluate(tokens, Outputs.HIDDEN):
        states, filled = open_chunks.get(rows.chunk) or (np.empty((len(scored), width), np.float32), 0)
        at = rows.start - scored.start
        states[at : at + len(rows.values)] = rows.values
        open_chunks[rows.chunk] = states, filled + len(rows.values)
        while done in open_chunks and open_chunks[done][1] == len(scored):
            shard.append(open_chunks.pop(done)[0])
            done += 1
            progress(Progress("base", done, n_chunks, "chunks"))
            if len(shard) == per_shard or done == n_chunks:
                first = done - len(shard)
                path = folder / f"hidden-{first:06d}.safetensors"
                save_file({"hidden": np.stack(shard)}, path)
                yield Shard(file=path.name, first=first, chunks=len(shard), sha256=sha256_file(path))
                shard.clear()


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
        if output_weight_sha256(GgufFile.open(self.model)) != self.header.output_sha256:
            raise MismatchError(
                "not the model the base was made from: its output weight differs",
                where=self.model,
                mend="make the base again with `bitloss base`",
            )
        self.layer = OutputLayer(self.model, threads=threads or usable_cores())
        self.chunks = Chunks(self._tokens(), self.header.add_bos, self.header.bos)
        if self.chunks.sha256 != self.header.tokens_sha256:
            raise BaseError("tokens do not match the header", where=folder / "tokens.safetensors")
        # chunks computed side by side may lie in neighbouring shards
        self._loaded: dict[int, NDArray[np.float32]] = {}

    def _tokens(self) -> NDArray[np.int32]:
        tokens = _load(self.folder / "tokens.safetensors", "tokens")
        if tokens.dtype != np.int32 or tokens.shape != (self.header.n_chunks, self.header.n_ctx):
            raise BaseError(
                "tokens of another shape than the header says", where=self.folder / "tokens.safetensors"
            )
        return tokens

    def hidden(self, chunk: int) -> NDArray[np.float32]:
        """Hidden states of one chunk: float32 [scored, n_embd]."""
        shard = next(s for s in self.header.shards if s.first <= chunk < s.first + s.chunks)
        if shard.first not in self._loaded:
            while len(self._loaded) >= _SHARDS_HELD:
                del self._loaded[min(self._loaded)]
            self._loaded[shard.first] = self._load_shard(shard)
        rows: NDArray[np.float32] = self._loaded[shard.first][chunk - shard.first]
        return rows

    def _load_shard(self, shard: Shard) -> NDArray[np.float32]:
        path = self.folder / shard.file
        if path.is_file() and sha256_file(path) != shard.sha256:
            raise BaseError(
                "shard is damaged (its hash is not the header's)",
                where=path,
                mend="make the base again with `bitloss base`",
            )
        states = _load(path, "hidden")
        expected = (shard.chunks, len(scored_positions(self.header.n_ctx)), self.header.n_embd)
        if states.dtype != np.float32 or states.shape != expected:
            raise BaseError("shard of another shape", where=path, expected=expected, found=states.shape)
        return states

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
    file = GgufFile.open(candidate)
    if vocabulary_sha256(file) != base.header.vocabulary_sha256:
        raise MismatchError(
            "vocabulary differs from the base's",
            where=candidate,
            expected=f"{base.header.n_vocab} tokens of {base.header.model}",
            found=f"{len(file.value('tokenizer.ggml.tokens', []))} tokens",
            mend="candidate and base must be made from the same model",
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
        header = BaseHeader.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise BaseError(
            f"header is damaged: {first['msg']}", where=f"{path}: {'.'.join(map(str, first['loc']))}"
        ) from error
    if header.format != SCHEMA:
        raise BaseError("of another version", where=path, expected=SCHEMA, found=header.format)
    covered = 0
    for shard in header.shards:
        if shard.first != covered or shard.chunks < 1 or Path(shard.file).name != shard.file:
            raise BaseError("shards do not follow one another", where=f"{path}: {shard.file}")
        covered += shard.chunks
    if covered != header.n_chunks:
        raise BaseError("shards do not cover the chunks", where=path, expected=header.n_chunks, found=covered)
    return header


def _load(path: Path, key: str) -> NDArray[Any]:
    try:
        tensor: NDArray[Any] = load(path.read_bytes())[key]
    except FileNotFoundError as error:
        raise BaseError("file of the base is missing", where=path, mend="make the base again") from error
    except OSError as error:
        raise BaseError("file of the base cannot be read", where=path, found=error.strerror) from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise BaseError("not a safetensors file bitloss wrote", where=path, found=str(error)) from error
    return tensor
