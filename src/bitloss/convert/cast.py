"""Numbers between F32, F16 and BF16, rounded to nearest, ties to even, checked and counted.

Widening (F16 or BF16 to F32) is exact. Narrowing rounds once; what goes from F16 to BF16 or back goes by way of F32.
A source value that is NaN or infinite, and one that becomes infinite by narrowing (F16: at least 65520 in size; BF16:
at least 2^128 - 2^119), is an error that names the tensor and the element, unless overflow is allowed; llama.cpp's
converter writes infinity without a word. Values of at most half the smallest subnormal become zero: that is no error,
but counted.

`widen`, `narrow` and `counts_of` are the definition, in NumPy; `cast` is the same by a native kernel, in one pass, and
goes back to the definition to say what is wrong. The counts are those an audit foretells (`bitloss.explain.weights`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from bitloss import _native
from bitloss.errors import CheckpointError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable


class SourceType(StrEnum):
    """Types of full-precision GGUF files."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"

    @property
    def ggml_type(self) -> int:
        """Tensor type of the matrices."""
        return int(GGMLQuantizationType[self.name])

    @property
    def file_type(self) -> int:
        """Value of `general.file_type`."""
        return int(LlamaFileType[{"F32": "ALL_F32"}.get(self.name, f"MOSTLY_{self.name}")])

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of the data."""
        return _DTYPES[self]


_DTYPES: dict[SourceType, np.dtype[Any]] = {
    SourceType.F32: np.dtype("<f4"),
    SourceType.F16: np.dtype("<f2"),
    SourceType.BF16: np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES.values())}  # of the native kernels


class CastCounts(NamedTuple):
    """What a cast did to finite values.

    Attributes:
        changed: values that are another number now, those below included.
        overflowed: of them, those that became infinite.
        zeroed: of them, those that became zero.
    """

    changed: int = 0
    overflowed: int = 0
    zeroed: int = 0

    def plus(self, other: CastCounts) -> CastCounts:
        """Return the sum of both."""
        return CastCounts(*(a + b for a, b in zip(self, other, strict=True)))


def isas() -> list[str]:
    """Instruction sets this machine and build offer, best first."""
    return [isa for isa in _native.cast_isas() if isa != "wide"]


def cast(
    values: np.ndarray[Any, Any],
    to: SourceType,
    where: Callable[[int], str],
    *,
    allow_overflow: bool = False,
    out: np.ndarray[Any, Any] | None = None,
    isa: str = "auto",
) -> tuple[np.ndarray[Any, Any], CastCounts]:
    """Return values in another type, and what that did to them.

    Args:
        values: F32, F16 or BF16, any shape.
        to: the type wanted.
        where: flat index within `values` -> "tensor[row, column]" for messages.
        allow_overflow: let values out of range become infinite.
        out: contiguous array for the result, of its shape and type; a new one when left out.
        isa: instruction set from `isas`, "auto" takes the best, "wide" is for tests.

    Raises:
        CheckpointError: a value is NaN or infinite, or out of range and that is not allowed.
        MismatchError: this machine lacks ``isa``, or values of another type.
    """
    if isa not in ("auto", *_native.cast_isas()) or values.dtype not in _CODES:
        raise MismatchError("no such cast", expected="F32, F16, BF16", found=f"{values.dtype} by {isa}")
    source = np.ascontiguousarray(values)
    if out is None:
        out = np.empty(values.shape, to.dtype)
    assert (out.shape, out.dtype) == (values.shape, to.dtype)
    not_finite, *told = _native.cast_values(
        _CODES[source.dtype], _CODES[out.dtype], _bytes_of(source), _bytes_of(out), isa
    )
    counts = CastCounts(*told)
    if not_finite or (counts.overflowed and not allow_overflow):
        narrow(widen(source, where), to, where)
        raise AssertionError("the kernel and its definition disagree")
    return out, counts


def _bytes_of(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes as they lie: safetensors does not promise that values begin at a multiple of their size."""
    return values.reshape(-1).view(np.uint8)


def widen(values: np.ndarray[Any, Any], where: Callable[[int], str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return F16, BF16 or F32 values as float32, exactly.

    Args:
        values: the values, any shape.
        where: as in `cast`.

    Raises:
        CheckpointError: a value is NaN or infinite.
    """
    wide = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(wide)
    if not finite.all():
        index = int(np.argmin(finite.reshape(-1)))
        value = wide.reshape(-1)[index]
        raise CheckpointError(
            f"{'NaN' if np.isnan(value) else 'infinite'} weight",
            where=where(index),
            expected="a finite number",
        )
    return wide


def narrow(
    values: np.ndarray[Any, np.dtype[np.float32]],
    to: SourceType,
    where: Callable[[int], str],
    *,
    allow_overflow: bool = False,
) -> np.ndarray[Any, Any]:
    """Round finite float32 values to a type.

    Args:
        values: finite float32, any shape.
        to: the type wanted.
        where: as in `cast`.
        allow_overflow: let values out of range become infinite.

    Raises:
        CheckpointError: a value is out of range and that is not allowed.
    """
    if to is SourceType.F32:
        return values
    with np.errstate(over="ignore"):
        rounded = values.astype(to.dtype)
    if not allow_overflow:
        finite = np.isfinite(rounded)
        if not finite.all():
            index = int(np.argmin(finite.reshape(-1)))
            raise CheckpointError(
                f"weight out of the range of {to.name}",
                where=where(index),
                expected=f"at most {float(ml_dtypes.finfo(to.dtype).max):g} in size",
                found=f"{values.reshape(-1)[index]:g}",
                mend="write BF16 or F32 instead, or let it become infinite (bitloss convert --allow-overflow)",
            )
    return rounded


def counts_of(values: np.ndarray[Any, np.dtype[np.float32]], rounded: np.ndarray[Any, Any]) -> CastCounts:
    """Count what `narrow` did to finite float32 values."""
    back = rounded.astype(np.float32)
    return CastCounts(
        changed=int((back != values).sum()),
        overflowed=int(np.isinf(back).sum()),
        zeroed=int(((back == 0) & (values != 0)).sum()),
    )
