"""NumPy columns to Arrow and back through their memory.

`pyarrow.array` and ``to_numpy`` first import pandas wherever it is installed, half a second in every process, to see
whether they are given its types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_arrow(column: NDArray[Any]) -> pa.Array:
    """A column [n] of numbers or truth values as an Arrow array of the same type; numbers share their memory."""
    memory = (
        np.packbits(column, bitorder="little") if column.dtype == np.bool_ else np.ascontiguousarray(column)
    )
    return pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(column), [None, pa.py_buffer(memory)])


def from_arrow(column: pa.ChunkedArray, dtype: type[np.generic]) -> NDArray[Any]:
    """A column of numbers or truth values without nulls as an array [n].

    Raises:
        ValueError: of another type, or something is missing.
    """
    if column.type != pa.from_numpy_dtype(dtype) or column.null_count:
        raise ValueError(f"holds {column.type} with {column.null_count} nulls")
    parts = [np.empty(0, dtype)]
    for chunk in column.chunks:
        memory = chunk.buffers()[1]
        if len(chunk) == 0 or memory is None:
            continue
        if dtype is np.bool_:
            bits = np.unpackbits(
                np.frombuffer(memory, np.uint8), count=chunk.offset + len(chunk), bitorder="little"
            )
            parts.append(bits[chunk.offset :].astype(np.bool_))
        else:
            first = chunk.offset * np.dtype(dtype).itemsize
            parts.append(np.frombuffer(memory, dtype, count=len(chunk), offset=first))
    return np.concatenate(parts)
