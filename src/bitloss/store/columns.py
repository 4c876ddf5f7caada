"""NumPy columns to Arrow and back through their memory.

`pyarrow.array` and ``to_numpy`` first import pandas wherever it is installed, half a second in every process, to see
whether they are given its types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def table_of_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows with the keys of the first one as the table that `pyarrow.Table.from_pylist` makes of them."""
    return pa.table({name: _of_values([row.get(name) for row in rows]) for name in (rows[0] if rows else ())})


def _of_values(values: list[Any]) -> pa.Array:
    """Python's own numbers, truth values or texts, None where there is none; of anything else what pyarrow makes."""
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    there = np.array([value is not None for value in values])
    memory: list[NDArray[Any] | bytes]
    if kinds == {str}:
        texts = [(value or "").encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)])
        if ends[-1] > np.iinfo(np.int32).max:
            return pa.array(values)
        kind, memory = pa.string(), [ends.astype(np.int32), b"".join(texts)]
    elif kinds == {bool}:
        kind, memory = pa.bool_(), [np.packbits([bool(value) for value in values], bitorder="little")]
    elif kinds <= {int, float}:
        dtype = np.float64 if float in kinds else np.int64
        if any(type(value) is int and abs(value) >= 2**53 for value in values):
            return pa.array(values)
        kind, memory = pa.from_numpy_dtype(dtype), [np.array([value or 0 for value in values], dtype)]
    else:
        return pa.array(values)
    known = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [known, *map(pa.py_buffer, memory)])


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
