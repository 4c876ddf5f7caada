"""Columns to Arrow and back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from bitloss.store.columns import from_arrow, table_of_rows, to_arrow

TYPES = [np.int32, np.int64, np.float32, np.float64, np.uint8, np.bool_]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_there_and_back(dtype: type[np.generic], n: int) -> None:
    column = (np.random.default_rng(n).normal(size=n) * 3).astype(np.int64).astype(dtype)
    arrow = to_arrow(column)
    assert arrow.to_pylist() == column.tolist()  # pyarrow's own reading
    back = from_arrow(pa.chunked_array([arrow]), dtype)
    assert back.dtype == dtype
    assert np.array_equal(back, column)


@pytest.mark.parametrize("dtype", TYPES)
def test_chunks_and_offsets(dtype: type[np.generic]) -> None:
    column = np.arange(50).astype(dtype) if dtype is not np.bool_ else np.arange(50) % 3 == 0
    whole = pa.array(column.tolist(), pa.from_numpy_dtype(dtype))
    pieces = pa.chunked_array([whole[3:11], whole[11:11], whole[11:12], whole[12:50]])
    assert np.array_equal(from_arrow(pieces, dtype), column[3:])


def test_every_other_entry_is_laid_side_by_side() -> None:
    assert to_arrow(np.arange(10, dtype=np.int32)[::2]).to_pylist() == [0, 2, 4, 6, 8]


def test_another_type_and_nulls_are_refused() -> None:
    with pytest.raises(ValueError, match="holds int64"):
        from_arrow(pa.chunked_array([pa.array([1, 2])]), np.int32)
    with pytest.raises(ValueError, match="1 nulls"):
        from_arrow(pa.chunked_array([pa.array([1, None])]), np.int64)


@pytest.mark.parametrize(
    "values",
    [
        ["a", "", None, "ä→😀"],
        [1, None, -(2**53), 0],
        [1, 2.5, None],
        [0.1, float("inf"), -0.0],
        [True, None, False],
        [None, None],
        [2**53 + 1, None],
        [2**53 + 1, 0.5],
        [1, True],
        [["a"], None, []],
        ["a", None],
    ],
    ids=str,
)
def test_rows_are_the_table_pyarrow_makes_of_them(values: list[object]) -> None:
    rows = [{"first": i, "second": value} for i, value in enumerate(values)]
    rows[-1].pop("second")  # left out is None
    try:
        expected = pa.Table.from_pylist(rows)
    except pa.ArrowInvalid:
        with pytest.raises(pa.ArrowInvalid):
            table_of_rows(rows)
        return
    made = table_of_rows(rows)
    made.validate(full=True)
    assert made.equals(expected)
    assert made.schema.equals(expected.schema)


def test_no_rows_are_an_empty_table() -> None:
    assert table_of_rows([]).equals(pa.Table.from_pylist([]))


def test_pandas_is_not_imported() -> None:
    code = (
        "import sys, numpy as np, pyarrow as pa; from bitloss.store.columns import *;"
        "a = np.arange(5.0); assert (from_arrow(pa.chunked_array([to_arrow(a)]), np.float64) == a).all();"
        "table_of_rows([{'a': 1, 'b': 'x', 'c': 1.5, 'd': None, 'e': True}]);"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
