"""Making a base, and making single files of it again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from safetensors.numpy import save

from bitloss.divergence.basefile import (
    SCHEMA,
    SHARD_BYTES,
    BaseHeader,
    Shard,
    TextSource,
    header_text,
    output_weight_sha256,
    read_chunks,
    read_header,
)
from bitloss.divergence.unfinished import ShardPlan, UnfinishedBase, bytes_there
from bitloss.engine.base import Engine, EngineOptions, Outputs
from bitloss.engine.finite import CAUSES, TOKENS, compute_finite
from bitloss.engine.llama import LlamaEngine, usable_cores
from bitloss.engine.output_layer import OutputLayer
from bitloss.errors import BaseError, EngineError, MismatchError, UnsupportedError
from bitloss.model.gguf_split import absolute
from bitloss.model.text import Chunks
from bitloss.model.vocabulary import graph_sha256, vocabulary_sha256
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_path, atomic_write_text, content_key, sha256_file
from bitloss.store.atomic import explained
from bitloss.store.space import check_room


def check_remade_logits(engine: LlamaEngine, layer: OutputLayer, chunk: NDArray[np.int32]) -> float:
    """Compare logits made again from hidden states with the engine's own, on one chunk.

    Returns:
        The largest absolute difference; 0 when all are bit-equal.

    Raises:
        UnsupportedError: they differ by more than rounding can (the graph does something after the product), or at all
            on a CPU, where the same kernel must give the same bits.
        EngineError: the engine's logits are not finite.
    """
    hidden, logits = compute_finite(engine, chunk)
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
    engine: LlamaEngine,
    chunks: Chunks,
    *,
    text: TextSource,
    out: Path,
    also: Sequence[tuple[Path, int]] = (),
    progress: ProgressCallback = silent,
) -> BaseHeader:
    """Compute a base and store it; the folder appears whole or not at all.

    What an interrupted pass over the same left is gone on with (`bitloss.divergence.unfinished`).

    Args:
        engine: holds the base's model.
        chunks: the text, cut.
        text: what the header says of it.
        out: the folder.
        also: files that will be made of it, and their bytes: there must be room for them too.
        progress: told after every chunk.

    Raises:
        DiskFull: less space than the base takes (found before it is computed), or the disk ran full.
        UnsupportedError: the model's logits cannot be made again from its hidden states.
        EngineError: logits or hidden states are not finite, or llama.cpp failed.
        FileProblem: it cannot be written, or another process is writing it.
    """
    plans = _plans(chunks, engine.facts.n_embd)
    needed = base_files_bytes(plans, chunks)
    check_room([(out, needed - bytes_there(out)), *also])
    header = _header(engine, chunks, text, out)
    # wherever the model is; its tensors alone do not say what is computed from them
    same: dict[str, JsonValue] = {
        "header": header.model_dump(mode="json", exclude={"model_path", "header_sha256"}),
        "graph": graph_sha256(engine.file),
    }
    with UnfinishedBase(out, plans, content_key("base-header", same)) as files:
        if files.n_chunks < chunks.n_chunks:
            # the same chunks side by side as in a pass that was not interrupted
            together = engine.options.side_by_side(chunks.n_ctx)
            files.keep(files.n_chunks // together * together)
        for states in _states(engine, chunks, files.n_chunks):
            _check_finite(states, engine, files.n_chunks, chunks)
            files.append(states)
            progress(Progress("base", files.n_chunks, chunks.n_chunks, "chunks"))
        _save_tokens(chunks, files.folder / "tokens.safetensors")
        header = header.model_copy(update={"shards": tuple(files.shards())})
        atomic_write_text(files.folder / "base.json", header_text(header))
        files.put_in_place()
    return read_header(out)


def base_files_bytes(plans: Sequence[ShardPlan], chunks: Chunks) -> int:
    """Bytes a base will take: its shards and tokens, to the byte but for their headers, and those of base.json."""
    per_token = 4 if chunks.scored is None else 5
    return sum(plan.size for plan in plans) + per_token * chunks.tokens.size + 4096 + 160 * len(plans)


def _header(engine: LlamaEngine, chunks: Chunks, text: TextSource, out: Path) -> BaseHeader:
    """What is known of a base before it is computed: all but its shards."""
    options, file = engine.options, engine.file
    layer = OutputLayer(engine.path, threads=options.threads or usable_cores())
    worst = check_remade_logits(engine, layer, chunks.as_computed()[0, :TOKENS])
    layer.close()
    return BaseHeader(
        format=SCHEMA,
        model=engine.path.name,
        model_path=os.path.relpath(absolute(engine.path), out.resolve()),
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
        shards=(),
    )


def _plans(chunks: Chunks, width: int) -> list[ShardPlan]:
    """Share chunks out to files of about `SHARD_BYTES`, one chunk at least."""
    rows = [int(each) for each in chunks.rows]
    plans, first, total = [], 0, 0
    for chunk in range(chunks.n_chunks + 1):
        more = 4 * width * rows[chunk] if chunk < chunks.n_chunks else SHARD_BYTES + 1
        if chunk > first and total + more > SHARD_BYTES:
            mine = tuple(rows[first:chunk])
            shape = (len(mine), mine[0], width) if chunks.scored is None else (sum(mine), width)
            plans.append(ShardPlan(f"hidden-{first:06d}.safetensors", first, mine, shape))
            first, total = chunk, 0
        total += more
    return plans


def _check_finite(states: NDArray[np.float32], engine: LlamaEngine, chunk: int, chunks: Chunks) -> None:
    """Refuse a base that says nothing of some tokens: every candidate would be blamed for them."""
    bad = ~np.isfinite(states).all(axis=1)
    if bad.any():
        raise EngineError(
            "hidden states are not finite",
            where=f"{engine.path}[chunk {chunk + 1} of {chunks.n_chunks}]",
            found=f"{int(bad.sum())} of {bad.size} scored tokens",
            mend=f"nothing can be measured against this model: {CAUSES}",
        )


def _states(engine: Engine, chunks: Chunks, first: int = 0) -> Iterator[NDArray[np.float32]]:
    """Hidden states of the chunks in their order, from one of them on: float32 [scored, n_embd] each."""
    if first:
        chunks = chunks.pick(np.arange(first, chunks.n_chunks))
    if not chunks.n_chunks:
        return
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
    join = np.stack if chunks.scored is None else np.concatenate
    broken = [shard for shard in header.shards if not _whole(folder, shard)]
    for number, shard in enumerate(broken, start=1):
        part = chunks.pick(np.arange(shard.first, shard.first + shard.chunks))
        with atomic_path(folder / shard.file) as partial:
            _save({"hidden": join(list(_states(engine, part)))}, partial)
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
    file = engine.file
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
    _save(tensors, path)


def _save(tensors: dict[str, NDArray[Any]], path: Path) -> None:
    # not save_file, whose error is the library's own when the disk is full
    with explained(path):
        path.write_bytes(save(tensors))
