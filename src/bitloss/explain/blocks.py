"""Which blocks of two GGUF files differ: bytes against bytes, tensor by tensor.

A block is what the tensor's type stores together: 32 or 256 weights with their scales for quantized types (Q8_0: 34
bytes, Q4_K: 144), one value for F32, F16, BF16 and the like. Blocks lie one after the other, so block i of a tensor is
bytes ``i · block_bytes`` to ``(i + 1) · block_bytes`` of its data. Two blocks differ when a byte does (so +0 and -0
differ here).

Tensors can be compared that have the same name, type and shape in both files. Nothing is decoded; equal memory is seen
at the speed of memory (`memcmp`), and pages are given back as they are done with, so that memory does not grow with
the files. The definition is ``(a != b).reshape(n, block_bytes).any(axis=1)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitloss import _native
from bitloss.engine.llama import usable_cores
from bitloss.errors import MismatchError
from bitloss.model.gguf import GgufFile, TensorInfo
from bitloss.model.tensor_types import block_of
from bitloss.progress import Progress, ProgressCallback, silent

Bytes = npt.NDArray[np.uint8]
_PIECE = 32 << 20  # bytes of each file at a time


@dataclass(frozen=True, slots=True)
class TensorBlocks:
    """How many blocks of a tensor differ.

    Attributes:
        name: the tensor, in both files.
        type: its type in both ("Q4_K").
        blocks: how many it has.
        differing: how many of them differ.
    """

    name: str
    type: str
    blocks: int
    differing: int


def differing_blocks(
    a: GgufFile, b: GgufFile, *, threads: int = 0, progress: ProgressCallback = silent
) -> tuple[TensorBlocks, ...]:
    """Count the differing blocks of each tensor that both files have in the same type and shape, in the order of `a`.

    Args:
        a: a file (`bitloss.model.gguf_split.open_model`).
        b: another one, of one part or several.
        threads: worker threads; 0 takes all cores.
        progress: told after every piece.
    """
    threads = threads or usable_cores()
    names = comparable(a, b)
    done, total = 0, 2 * sum(a.tensors[name].n_bytes for name in names)
    found = []
    for name in names:
        info = a.tensors[name]
        differing = 0
        for _, marks in marked_pieces(a, b, name, threads=threads):
            differing += int(np.count_nonzero(marks))
        done += 2 * info.n_bytes
        progress(Progress(f"compare {name}", done, total, "bytes"))
        found.append(TensorBlocks(name, info.type_name, info.n_bytes // block_bytes(info), differing))
    return tuple(found)


def block_marks(a: GgufFile, b: GgufFile, name: str, *, threads: int = 0) -> npt.NDArray[np.bool_]:
    """Return which blocks of a tensor differ: bool [blocks].

    Raises:
        MismatchError: the files do not both have it in the same type and shape.
    """
    if name not in a.tensors or name not in b.tensors or not same_form(a.tensors[name], b.tensors[name]):
        raise MismatchError("not a tensor of the same type and shape in both files", where=name)
    pieces = [marks for _, marks in marked_pieces(a, b, name, threads=threads or usable_cores())]
    return np.concatenate(pieces).view(np.bool_) if pieces else np.zeros(0, np.bool_)


def comparable(a: GgufFile, b: GgufFile) -> list[str]:
    """Names of the tensors that both files have in the same type and shape, in the order of `a`."""
    return [
        name for name, info in a.tensors.items() if name in b.tensors and same_form(info, b.tensors[name])
    ]


def same_form(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors have the same type, shape and so many bytes."""
    return (a.ggml_type, a.shape, a.n_bytes) == (b.ggml_type, b.shape, b.n_bytes)


def quantized(info: TensorInfo) -> bool:
    """Whether a tensor is made of blocks of several values: what all shares of blocks are counted over.

    Floats and integers have no blocks but values; a type that is not known here has bytes.
    """
    return unit(info) == "block"


def unit(info: TensorInfo) -> Literal["block", "value", "byte"]:
    """What a tensor is counted in where its bytes are compared."""
    try:
        return "block" if block_of(info.ggml_type).weights > 1 else "value"
    except KeyError:
        return "byte"


def block_bytes(info: TensorInfo) -> int:
    """Bytes of a block of a tensor's type; 1 for a type that is not known here."""
    try:
        return block_of(info.ggml_type).bytes
    except KeyError:
        return 1


def marked_pieces(
    a: GgufFile, b: GgufFile, name: str, *, threads: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield (first block, marks of so many blocks) of a tensor of the same form in both: 1 where they differ.

    After a piece has been looked at, its pages leave this process.
    """
    info = a.tensors[name]
    size = block_bytes(info)
    left, right = a.tensor_bytes(name), b.tensor_bytes(name)
    step = max(1, _PIECE // size) * size
    for at in range(0, info.n_bytes, step):
        yield at // size, mark(left[at : at + step], right[at : at + step], size, threads=threads)
        a.forget(name, min(at + step, info.n_bytes))
        b.forget(name, min(at + step, info.n_bytes))


def mark(a: Bytes, b: Bytes, size: int, *, threads: int = 1) -> npt.NDArray[np.uint8]:
    """Compare blocks of `size` bytes: uint8 [n], 1 where they differ.

    Raises:
        MismatchError: not two vectors of as many whole blocks.
    """
    if a.ndim != 1 or a.shape != b.shape or size < 1 or a.size % size:
        raise MismatchError(
            "blocks to compare", expected=f"as many blocks of {size} bytes", found=f"{a.shape}, {b.shape}"
        )
    marks = np.empty(a.size // size, np.uint8)
    _native.differing_blocks(a, b, size, marks, threads)
    return marks
