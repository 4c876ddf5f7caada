"""Making a base, and making single files of it again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from bitloss.divergence.basefile import (
    SCHEMA,
    SHARD_BYTES,
    BaseHeader,
    Shard,
    TextSource,
    output_weight_sha256,
    read_chunks,
    read_header,
)
from bitloss.engine.base import Engine, EngineOptions, Outputs
from bitloss.engine.llama import LlamaEngine, usable_cores
from bitloss.engine.output_layer import OutputLayer
from bitloss.errors import BaseError, MismatchError, UnsupportedError
from bitloss.model.gguf_split import open_model
from bitloss.model.text import Chunks
from bitloss.model.vocabulary import vocabulary_sha256
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_dir, atomic_path, atomic_write_text, sha256_file

_CHECKED_TOKENS: Final = (
    64  # whether logits are the product of output weight and hidden states shows on any tokens
)


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
    file = open_model(engine.path)
    layer = OutputLayer(engine.path, threads=options.threads or usable_cores())
    worst = check_remade_logits(engine, layer, chunks.as_computed()[0, :_CHECKED_TOKENS])
    layer.close()
    with atomic_dir(out) as folder:
        _save_tokens(chunks, folder / "tokens.safetensors")
        shards = tuple(_write_shards(engine, chunks, folder, progress))
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
            texts=text.texts,
            documents=text.documents,
            scored_tokens=None if chunks.scored is None else chunks.n_scored,
            engine=engine.version,
            options=arithmetic(options),
            logits_max_difference=worst,
            shards=shards,
        )
        atomic_write_text(folder / "base.json", header.model_dump_json(indent=1) + "\n")
    return header


class _Places(NamedTuple):
    """Chunks of one file."""

    first: int
    chunks: int


def _shards(chunks: Chunks, width: int) -> list[_Places]:
    """Share chunks out to files of about `SHARD_BYTES`, one chunk at least."""
    n_bytes = 4 * width * chunks.rows
    if chunks.scored is None:
        each = max(1, min(chunks.n_chunks, SHARD_BYTES // int(n_bytes[0])))
        return [
            _Places(first, min(each, chunks.n_chunks - first)) for first in range(0, chunks.n_chunks, each)
        ]
    places, first, total = [], 0, 0
    for chunk, size in enumerate(n_bytes):
        if chunk > first and total + size > SHARD_BYTES:
            places.append(_Places(first, chunk - first))
            first, total = chunk, 0
        total += int(size)
    return [*places, _Places(first, chunks.n_chunks - first)]


def _write_shards(
    engine: Engine, chunks: Chunks, folder: Path, progress: ProgressCallback
) -> Iterator[Shard]:
    states = _states(engine, chunks)
    for first, count in _shards(chunks, engine.facts.n_embd):
        kept = []
        for chunk in range(first, first + count):
            kept.append(next(states))
            progress(Progress("base", chunk + 1, chunks.n_chunks, "chunks"))
        path = folder / f"hidden-{first:06d}.safetensors"
        _save_shard(kept, path, ragged=chunks.scored is not None)
        yield Shard(file=path.name, first=first, chunks=count, sha256=sha256_file(path))


def _save_shard(states: list[NDArray[np.float32]], path: Path, *, ragged: bool) -> None:
    save_file({"hidden": np.concatenate(states) if ragged else np.stack(states)}, path)


def _states(engine: Engine, chunks: Chunks) -> Iterator[NDArray[np.float32]]:
    """Hidden states of the chunks in their order, float32 [scored, n_embd] each."""
    rows_of = chunks.rows
    open_chunks: dict[int, tuple[NDArray[np.float32], int]] = {}  # computed side by side; rows filled
    done = 0
    for rows in engine.evaluate(chunks.as_computed(), Outputs.HIDDEN, scored=chunks.scored):
        states, filled = open_chunks.get(rows.chunk) or (
            np.empty((rows_of[rows.chunk], engine.facts.n_embd), np.float32),
            0,
        )
        at = chunks.row(rows.chunk, rows.start)
        states[at : at + len(rows.values)] = rows.values
        open_chunks[rows.chunk] = states, filled + len(rows.values)
        while done in open_chunks and open_chunks[done][1] == rows_of[done]:
            yield open_chunks.pop(done)[0]
            done += 1


# ------------------------------------------------------------------------------------------------- repair


def arithmetic(options: EngineOptions) -> dict[str, str | int]:
    """The engine settings that may change rounding, as a header keeps them."""
    return {
        "batch": options.batch,
        "ubatch": options.micro_batch,
        "flash_attn": options.flash_attn.value,
        "n_gpu_layers": options.n_gpu_layers,
    }


def repair_base(
    engine: LlamaEngine, chunks: Chunks, folder: Path, progress: ProgressCallback = silent
) -> list[str]:
    """Make the missing and damaged files of a base again: only the chunks of those shards are computed.

    Every file must come out as it was, by the hash in the header, before it takes its place.

    Args:
        engine: holds the base's model, with the settings the base was made with.
        chunks: the base's text, cut as it was.
        folder: the base.
        progress: told after every chunk.

    Returns:
        Names of the files made again.

    Raises:
        FileProblem, BaseError: there is no header, or it is damaged itself: nothing to go by.
        MismatchError: another model, text, n_ctx, engine build or engine setting, by name.
        BaseError: a file came out otherwise than it was; what is there is left alone.
    """
    header = read_header(folder)
    if differences := header_differences(header, engine, chunks):
        raise MismatchError(
            "the base was made from something else, so its files cannot be made again",
            where=folder,
            found="; ".join(differences),
            mend="repair it with what it was made from, or make a new base elsewhere",
        )
    mended = []
    try:
        read_chunks(folder, header)
    except BaseError:
        with atomic_path(folder / "tokens.safetensors") as partial:
            _save_tokens(chunks, partial)
        mended.append("tokens.safetensors")
    broken = [shard for shard in header.shards if not _whole(folder, shard)]
    for number, shard in enumerate(broken, start=1):
        part = chunks.pick(np.arange(shard.first, shard.first + shard.chunks))
        with atomic_path(folder / shard.file) as partial:
            _save_shard(list(_states(engine, part)), partial, ragged=chunks.scored is not None)
            if sha256_file(partial) != shard.sha256:
                raise BaseError(
                    "made again it is not the file it was: the engine computed otherwise (another processor?)",
                    where=folder / shard.file,
                    mend="make the whole base again",
                )
        mended.append(shard.file)
        progress(Progress("repair", number, len(broken), "shards"))
    return mended


def header_differences(header: BaseHeader, engine: LlamaEngine, chunks: Chunks) -> list[str]:
    """Say what a base was made from that is not what is at hand, each by name; empty when all is the same."""
    file = open_model(engine.path)
    pairs: list[tuple[str, object, object]] = [
        ("model", header.tensors_sha256[:12], file.tensors_sha256()[:12]),
        ("vocabulary", header.vocabulary_sha256[:12], vocabulary_sha256(file)[:12]),
        ("n_ctx", header.n_ctx, chunks.n_ctx),
        ("chunks", header.n_chunks, chunks.n_chunks),
        ("engine build", header.engine, engine.version),
    ]
    if (header.n_ctx, header.n_chunks) == (chunks.n_ctx, chunks.n_chunks):
        pairs.append(("tokens of the text", header.tokens_sha256[:12], chunks.sha256[:12]))
    mine = arithmetic(engine.options)
    pairs += [(name, value, mine.get(name)) for name, value in header.options.items()]
    return [f"{name} {theirs} (now {now})" for name, theirs, now in pairs if theirs != now]


def _whole(folder: Path, shard: Shard) -> bool:
    path = folder / shard.file
    return path.is_file() and sha256_file(path) == shard.sha256


def _save_tokens(chunks: Chunks, path: Path) -> None:
    tensors = {"tokens": chunks.tokens}
    if chunks.scored is not None:
        tensors["scored"] = chunks.scored.astype(np.uint8)
    save_file(tensors, path)
