"""`bitloss audit`: what a model's weights would lose in F16 and BF16, and what of that a quantized block would see.

Every value is counted (`bitloss.explain.weights`), none sampled. A model is a Hugging Face folder or a GGUF file, of
one part or several. Floats of 32, 16 and 8 bits are counted as they are; quantized tensors as the values their blocks
stand for (``decoded``); what holds no weights (integers, flags) or more than a float32 (F64) is opaque: named, not
counted.

Downstream, for each type of blocks asked for: how many blocks come out with other bytes when the weights are rounded
to F16 (or BF16) before they are encoded. Only blocks in which a value changes can differ, so only those are encoded,
both ways, by the encoder that quantizes (`bitloss.quantize.codec`), without importance weights; of Q8_0 no bytes are
made, as scales and quants can be compared while values are counted (`native/audit_blocks.hpp`). Blocks are those of
matrices whose rows they fill: vectors are never quantized. The rows of a folder's tensors are those of the GGUF
(conversion reorders whole rows at most), so its blocks are too.

Memory: pieces of 64 MB of a tensor, mapped; pages are given back as they are done with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitloss.engine.llama import usable_cores
from bitloss.errors import FileProblem, UsageError
from bitloss.explain import weights as w
from bitloss.explain.counting import (
    BlockTally,
    Counter,
    Scratch,
    marks_of_floats,
    marks_of_words,
    scratch_for,
)
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import absolute, open_model
from bitloss.model.tensor_types import TensorType, block_of
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.quantize.codec import NEEDS_WEIGHTS, decode, encode
from bitloss.quantize.types import TENSOR_TYPES, parse_tensor_type
from bitloss.records.audit import Audit, BlockLoss, CastLoss, TensorAudit, Through, Weights

Pages = Callable[[int], None]
_PIECE = 1 << 24  # values at a time
_WORDS = {"F16": w.WordTable.f16, "BF16": w.WordTable.bf16}
_WIDENED = ("F8_E4M3", "F8_E5M2")
_COUNTED = TensorType.Q8_0  # whose blocks are compared as values are counted
_OPAQUE = {
    "F64": "64-bit floats hold more than is audited",
    **dict.fromkeys(("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"), "integers"),
    "BOOL": "flags",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a model holds it.

    Attributes:
        name: its name.
        type: "F32", "BF16", "Q4_K".
        shape: NumPy order.
        data: its values, or uint8 bytes of a quantized type.
        forget: gives the pages of its first bytes back.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]
    forget: Pages

    @property
    def row(self) -> int:
        """Length of a row."""
        return self.shape[-1] if self.shape else 1


def audit(
    model: Path,
    *,
    formats: Sequence[str] = ("Q8_0",),
    threads: int = 0,
    progress: ProgressCallback = silent,
) -> Audit:
    """Count a model's weights.

    Args:
        model: Hugging Face folder, or GGUF file (of a split model the first part).
        formats: types of blocks to look at downstream.
        threads: worker threads; 0 takes all cores.
        progress: told after every piece.

    Raises:
        FileProblem: nothing there, or no weights in it.
        FormatError: a file breaks its format.
        UnsupportedError: a layout or tensor type that cannot be read.
        UsageError: an unknown type of blocks, one without blocks, or one that cannot be made without weights.
    """
    kinds = [block_type(name) for name in formats]
    tensors = list(stored_tensors(model))
    if not any(tensor.data.size for tensor in tensors):
        raise FileProblem("no weights to audit", where=model)
    threads = threads or usable_cores()
    scratch = scratch_for(threads)
    done, total = 0, sum(tensor.data.nbytes for tensor in tensors)
    rows: list[TensorAudit] = []
    everything, matrices = w.Tally(), w.Tally()
    blocks = {kind: BlockTally() for kind in kinds}
    for tensor in tensors:

        def told(n_bytes: int, name: str = tensor.name) -> None:
            nonlocal done
            done += n_bytes
            progress(Progress(f"audit {name}", done, total, "bytes"))

        tally, own = _audit_tensor(tensor, kinds, threads, scratch, told)
        if tally is not None:
            everything += tally
            matrices += tally if len(tensor.shape) > 1 else w.Tally()
        for kind, each in own.items():
            blocks[kind].add(each)
        rows.append(_row(tensor, tally, own))
    return Audit(
        model=absolute(model).name,
        total=as_record(everything),
        matrices=as_record(matrices),
        blocks=tuple(_block_loss(kind, each) for kind, each in blocks.items()),
        opaque=tuple(row.name for row in rows if row.opaque),
        tensors=tuple(rows),
    )


def block_type(name: str) -> TensorType:
    """Return the type of blocks of that name.

    Raises:
        UsageError: no such type, one without blocks, or one that needs importance weights.
    """
    kind = parse_tensor_type(name)
    if block_of(kind).weights == 1:
        raise UsageError("not a type of blocks", where="--formats", expected="Q8_0, Q4_K, ...", found=name)
    if kind in NEEDS_WEIGHTS:
        raise UsageError(
            "blocks of this type need an importance matrix, which an audit has not",
            where="--formats",
            found=name,
        )
    return kind


def stored_tensors(model: Path) -> Iterator[StoredTensor]:
    """Yield a model's tensors in the order of its files; raises as `audit`."""
    if model.is_dir():
        checkpoint = Checkpoint.open(model)
        for name in checkpoint.names():
            facts = checkpoint.info(name)
            data = checkpoint.tensor(name)
            yield StoredTensor(
                name, facts.dtype, facts.shape, data, functools.partial(checkpoint.forget, name)
            )
        return
    if not model.exists():
        raise FileProblem("no such model", where=model, expected="a Hugging Face folder or a GGUF file")
    file = open_model(model, unknown_types=True)
    for name in file.tensors:
        yield _from_gguf(file, name)


def _from_gguf(file: GgufFile, name: str) -> StoredTensor:
    info = file.tensors[name]
    data: npt.NDArray[Any] = file.tensor_bytes(name)
    shape = info.shape[::-1]
    if info.type_name in ("F32", "F16", "BF16"):
        data = data.view("<f4" if info.type_name == "F32" else "<u2").reshape(shape)
    return StoredTensor(name, info.type_name, shape, data, functools.partial(file.forget, name))


def _opaque(kind: str) -> str | None:
    """Why values of a type are not counted; None where they are."""
    if kind in _OPAQUE:
        return _OPAQUE[kind]
    known = kind == "F32" or kind in _WORDS or kind in _WIDENED or kind in TENSOR_TYPES
    return None if known else "a type that is not known here"


# ------------------------------------------------------------------------------------------- one tensor


def _audit_tensor(
    tensor: StoredTensor,
    kinds: Sequence[TensorType],
    threads: int,
    scratch: Scratch,
    told: Callable[[int], None],
) -> tuple[w.Tally | None, dict[TensorType, BlockTally]]:
    if _opaque(tensor.type):
        told(tensor.data.nbytes)
        return None, {}
    table = _WORDS[tensor.type]() if tensor.type in _WORDS else None
    matrix = len(tensor.shape) > 1
    blocks = {k: BlockTally() for k in kinds if matrix and tensor.row % block_of(k).weights == 0}
    counter = Counter(table, blocks=_COUNTED in blocks, threads=threads, scratch=scratch)
    done = 0
    for n_bytes, values in _pieces(tensor, threads):
        counter.add(values)
        for kind, each in blocks.items():
            if kind is not _COUNTED:
                each.add(compare_blocks(kind, values, table, threads))
        done += n_bytes
        tensor.forget(done)
        told(n_bytes)
    if _COUNTED in blocks:
        blocks[_COUNTED] = counter.q8_0
    return counter.tally(), blocks


def _pieces(tensor: StoredTensor, threads: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield (bytes, values) of whole rows: words of F16 and BF16, float32 of all others."""
    if tensor.type in _WORDS or tensor.type == "F32":
        flat = tensor.data.reshape(-1)
        flat = flat if tensor.type == "F32" else flat.view(np.uint16)
        step = max(1, _PIECE // max(1, tensor.row)) * tensor.row or 1
        for at in range(0, flat.size, step):
            piece = flat[at : at + step]
            yield piece.nbytes, _aligned(piece)
    elif tensor.type in _WIDENED:
        flat = tensor.data.reshape(-1)
        step = max(1, _PIECE // max(1, tensor.row)) * tensor.row or 1
        for at in range(0, flat.size, step):
            piece = flat[at : at + step]
            yield piece.nbytes, piece.astype(np.float32)
    else:
        kind = TENSOR_TYPES[tensor.type]
        n_rows = math.prod(tensor.shape[:-1])
        rows = tensor.data.reshape(n_rows, -1) if n_rows and tensor.data.size else tensor.data[:0, None]
        step = max(1, _PIECE // max(1, tensor.row))
        for at in range(0, len(rows), step):
            piece = rows[at : at + step]
            yield piece.nbytes, decode(kind, piece, tensor.row, threads=threads).reshape(-1)


def _aligned(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy what does not lie at a multiple of its size: safetensors does not promise it."""
    return np.require(values, requirements=["A", "C"])


def compare_blocks(
    kind: TensorType, values: npt.NDArray[Any], table: w.WordTable | None, threads: int
) -> BlockTally:
    """Encode the blocks that a cast can change, with and without it, and compare the bytes.

    Args:
        kind: type of the blocks.
        values: words of the table's type, or float32: a vector of whole blocks.
        table: None for float32.
        threads: worker threads.
    """
    block = block_of(kind).weights
    found = BlockTally(blocks=values.size // block)
    if table is not None:
        marks = marks_of_words(table, values, block, threads=threads)
    else:
        marks = marks_of_floats(values, block, threads=threads)
    broken = marks & w.NOT_FINITE != 0
    found.not_finite = int(broken.sum())
    found.blocks -= found.not_finite
    by_block = values.reshape(-1, block)

    def through(changes: int, overflows: int, cast: Callable[[w.Floats], w.Floats]) -> tuple[int, int]:
        lost = int(((marks & overflows != 0) & ~broken).sum())
        which = np.flatnonzero((marks & changes != 0) & (marks & overflows == 0) & ~broken)
        changed = lost
        for at in range(0, which.size, _PIECE // block):
            some = by_block[which[at : at + _PIECE // block]]
            plain = np.ascontiguousarray(some if table is None else some.view(table.dtype), np.float32)
            before = encode(kind, plain, None, threads=threads)
            after = encode(kind, cast(plain), None, threads=threads)
            changed += int((before != after).any(axis=1).sum())
        return changed, lost

    found.f16, found.f16_overflowed = through(w.F16_CHANGES, w.F16_OVERFLOWS, w.as_f16)
    found.bf16, found.bf16_overflowed = through(w.BF16_CHANGES, w.BF16_OVERFLOWS, w.as_bf16)
    return found


# --------------------------------------------------------------------------------------------- records


def _row(tensor: StoredTensor, tally: w.Tally | None, blocks: dict[TensorType, BlockTally]) -> TensorAudit:
    return TensorAudit(
        name=tensor.name,
        type=tensor.type,
        shape=tensor.shape,
        decoded=tally is not None and tensor.type not in ("F32", *_WORDS, *_WIDENED),
        opaque=_opaque(tensor.type),
        weights=None if tally is None else as_record(tally),
        blocks=tuple(_block_loss(kind, each) for kind, each in blocks.items()),
    )


def as_record(tally: w.Tally) -> Weights:
    """Return counts as they are written down, the histogram cut to where it is not empty."""
    there = np.flatnonzero(tally.histogram)
    first, last = (int(there[0]), int(there[-1]) + 1) if there.size else (0, 0)
    return Weights(
        values=tally.values,
        zeros=tally.zeros,
        largest=tally.largest,
        smallest=tally.smallest,
        below=tally.below,
        above=tally.above,
        nan=tally.nans,
        positive_infinities=tally.positive_infinities,
        negative_infinities=tally.negative_infinities,
        f16=_loss(tally.f16),
        bf16=_loss(tally.bf16),
        lowest_exponent=first + w.LOWEST_EXPONENT if there.size else None,
        exponents=tuple(int(n) for n in tally.histogram[first:last]),
    )


def _block_loss(kind: TensorType, blocks: BlockTally) -> BlockLoss:
    return BlockLoss(
        type=kind.name,
        blocks=blocks.blocks,
        not_finite=blocks.not_finite,
        f16=Through(changed=blocks.f16, overflowed=blocks.f16_overflowed),
        bf16=Through(changed=blocks.bf16, overflowed=blocks.bf16_overflowed),
    )


def _loss(cast: w.CastTally) -> CastLoss:
    kept = cast.changed > cast.overflowed
    return CastLoss(
        verdict="overflows" if cast.overflowed else "lossless except" if cast.changed else "lossless",
        changed=cast.changed,
        overflowed=cast.overflowed,
        zeroed=cast.zeroed,
        largest_error=cast.error if kept else None,
        largest_relative_error=cast.relative if kept else None,
    )
