"""Rows of floats to blocks of a tensor type and back, byte for byte what libggml does, only sooner.

`encode` gives the bytes of ``ggml_quantize_chunk`` of the installed llama.cpp, `decode` the floats of its
``to_float``. Types in `native_kinds` are encoded by kernels of ours (native/codec_*.hpp) whose definitions are the
NumPy functions of `bitloss.quantize.reference`; the others go through libggml, with the rows shared out to threads.

Rows are independent, so neither threads nor the instruction set change a byte.

Out of contract: NaN and infinite weights. They are encoded to something, by libggml and by the kernels, not always the
same; llama.cpp refuses such files (`bitloss.quantize.verify`).

Source: ggml/src/ggml.c (ggml_quantize_chunk) and ggml/include/ggml.h (struct ggml_type_traits).
"""

from __future__ import annotations

import ctypes as ct
import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from bitloss import _native
from bitloss.engine.ggml import ggml
from bitloss.errors import MismatchError, UnsupportedError
from bitloss.model.tensor_types import TensorType, block_of
from bitloss.quantize.types import TENSOR_TYPES

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# Without weights libggml aborts the process (IQ2_XXS, IQ2_XS, IQ1_S: ggml_quantize_requires_imatrix).
NEEDS_WEIGHTS = frozenset({TensorType.IQ2_XXS, TensorType.IQ2_XS, TensorType.IQ1_S})


def isas() -> list[str]:
    """Instruction sets this machine and build offer, best first."""
    return [isa for isa in _native.codec_isas() if isa != "wide"]


@functools.cache
def native_kinds() -> frozenset[TensorType]:
    """Types that our own kernels encode."""
    return frozenset(TensorType(kind) for kind in _native.codec_kinds(encoding=True))


def encode(
    kind: TensorType, rows: Floats, weights: Floats | None, *, threads: int = 1, isa: str = "auto"
) -> Bytes:
    """Encode rows.

    Args:
        kind: tensor type to encode to.
        rows: float32 [n_rows, n_per_row], finite; n_per_row is a multiple of the type's block.
        weights: float32 [n_per_row], how much each column matters (an importance matrix's row), or None. Used for
            all rows alike; some types do not look at it.
        threads: worker threads, at least 1.
        isa: instruction set of the kernels, from `isas`; "auto" takes the best, "wide" is for tests.

    Returns:
        uint8 [n_rows, row_bytes].

    Raises:
        MismatchError: shapes or types do not belong together, or this machine lacks ``isa``.
        UnsupportedError: libggml does not encode to that type, or not without weights, or gives up on the values: where
            their squares leave float32's range, the encoders of the codebook types fail an assertion.
    """
    _check_kind(kind)
    _check_matrix(rows, np.float32, "rows")
    out = np.empty((len(rows), row_bytes(kind, rows.shape[1])), np.uint8)
    encode_into(kind, rows, weights, out, threads=threads, isa=isa)
    return out


def encode_into(
    kind: TensorType,
    rows: Floats,
    weights: Floats | None,
    out: Bytes,
    *,
    threads: int = 1,
    isa: str = "auto",
) -> None:
    """Encode rows into ``out``, uint8 [n_rows, row_bytes], C-contiguous and writable; otherwise as `encode`."""
    _check_kind(kind)
    if weights is None and kind in NEEDS_WEIGHTS:
        raise UnsupportedError("this type cannot be encoded without importance weights", where=kind.name)
    _check_matrix(rows, np.float32, "rows")
    n_rows, n_per_row = rows.shape
    _check_out(out, np.uint8, (n_rows, row_bytes(kind, n_per_row)))
    if weights is not None:
        if weights.dtype != np.float32 or weights.shape != (n_per_row,):
            raise MismatchError(
                "weights and rows differ in width",
                expected=f"float32 [{n_per_row}]",
                found=f"{weights.dtype} {list(weights.shape)}",
            )
        weights = np.ascontiguousarray(weights)
    _check_run(threads, isa)
    rows = np.ascontiguousarray(rows)
    if kind in native_kinds():
        _native.encode_rows(int(kind), rows, weights, out, threads, isa)
        return
    library = ggml()
    library.ggml_quantize_init(int(kind))  # tables of the codebook types, made once

    call, catch = (_address(f) for f in (library.ggml_quantize_chunk, library.ggml_set_abort_callback))

    def encode_range(first: int, end: int) -> None:
        said = _native.encode_chunk(call, catch, int(kind), rows[first:end], weights, out[first:end])
        if said is not None:
            raise UnsupportedError(
                "ggml gives up on these values",
                where=kind.name,
                found=said.rpartition("/")[2],  # its file by the path where it was compiled
                mend="a value, or its importance, is too large for the type; choose another one",
            )

    if n_per_row:
        _share_out(n_rows, threads, encode_range)


def decode(kind: TensorType, data: Bytes, n_per_row: int, *, threads: int = 1, isa: str = "auto") -> Floats:
    """Decode rows.

    Args:
        kind: tensor type of the data.
        data: uint8 [n_rows, row_bytes].
        n_per_row: weights in a row, a multiple of the type's block.
        threads: worker threads, at least 1.
        isa: as for `encode`.

    Returns:
        float32 [n_rows, n_per_row].

    Raises:
        MismatchError: shapes or types do not belong together, or this machine lacks ``isa``.
        UnsupportedError: libggml does not decode that type.
    """
    _check_kind(kind)
    _check_matrix(data, np.uint8, "data")
    wanted = row_bytes(kind, n_per_row)
    if data.shape[1] != wanted:
        raise MismatchError(
            f"{kind.name} rows of {n_per_row} weights", expected=f"{wanted} bytes", found=data.shape[1]
        )
    _check_run(threads, isa)
    data = np.ascontiguousarray(data)
    if kind == TensorType.F32:
        return data.view(np.float32).copy()
    out = np.empty((len(data), n_per_row), np.float32)
    if int(kind) in _native.codec_kinds(encoding=False):
        _native.decode_rows(int(kind), data, out, threads, isa)
        return out
    to_float = ggml().ggml_get_type_traits(int(kind)).contents.to_float

    def decode_range(first: int, end: int) -> None:
        to_float(data[first:end].ctypes.data, out[first:end].ctypes.data, (end - first) * n_per_row)

    _share_out(len(data), threads, decode_range)
    return out


def row_bytes(kind: TensorType, n_per_row: int) -> int:
    """Bytes of a row of n_per_row weights.

    Raises:
        MismatchError: n_per_row is not a multiple of the type's block.
    """
    block, size = block_of(kind)
    if n_per_row < 0 or n_per_row % block:
        raise MismatchError(f"row length of {kind.name}", expected=f"a multiple of {block}", found=n_per_row)
    return n_per_row // block * size


def _address(function: Any) -> int:
    return ct.cast(function, ct.c_void_p).value or 0


def _share_out(n_rows: int, threads: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(first, end)`` for ranges that cover all rows, on so many threads (ctypes releases the GIL)."""
    parts = min(n_rows, threads if threads == 1 else 4 * threads)
    bounds = [n_rows * part // parts for part in range(parts + 1)] if parts else []
    if threads == 1:
        for first, end in itertools.pairwise(bounds):
            work(first, end)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


def _check_kind(kind: TensorType) -> None:
    if kind not in TENSOR_TYPES.values():
        raise UnsupportedError(
            "libggml does not encode to this type", where=kind.name, expected=", ".join(TENSOR_TYPES)
        )


def _check_matrix(array: npt.NDArray[np.generic], dtype: type[np.generic], name: str) -> None:
    if array.ndim != 2 or array.dtype != dtype:
        raise MismatchError(
            name,
            expected=f"{np.dtype(dtype)} with two dimensions",
            found=f"{array.dtype} {list(array.shape)}",
        )


def _check_out(out: npt.NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, int]) -> None:
    _check_matrix(out, dtype, "out")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise MismatchError(
            "out",
            expected=f"{list(shape)}, contiguous and writable",
            found=f"{list(out.shape)}, contiguous {out.flags.c_contiguous}, writable {out.flags.writeable}",
        )


def _check_run(threads: int, isa: str) -> None:
    if threads < 1:
        raise MismatchError("worker threads", expected="at least 1", found=threads)
    if isa not in ("auto", *_native.codec_isas()):
        raise MismatchError(
            "instruction set not available here", expected=", ".join(_native.codec_isas()), found=isa
        )
