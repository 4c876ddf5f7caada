"""Numbers between F32, F16 and BF16, rounded to nearest, ties to even, and checked.

Widening (F16 or BF16 to F32) is exact. Narrowing rounds once. A source value that is NaN or infinite, and one
that becomes infinite by narrowing (F16: at least 65520 in size; BF16: at least 2^128 - 2^119), is an error
that names the tensor and the element, unless overflow is allowed; llama.cpp's converter writes infinity
without a word. Values below the smallest subnormal round to zero, silently: that loss is what an audit
counts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from bitloss.errors import CheckpointError

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


def widen(values: np.ndarray[Any, Any], where: Callable[[int], str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return F16, BF16 or F32 values as float32, exactly.

    Args:
        values: the values, any shape.
        where: flat index within `values` -> "tensor[row, column]" for messages.

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
        where: as in `widen`.
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
                mend="write BF16 or F32 instead, or allow overflow to infinity",
            )
    return rounded
