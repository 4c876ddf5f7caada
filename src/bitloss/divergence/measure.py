"""Measure a candidate against a base, token by token.

The candidate's logits come one micro-batch at a time; for each slice of rows the base's logits are made again and the
pair goes to the kernel. Nothing of size n_ctx x vocabulary exists at any time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitloss.divergence.metrics import COLUMNS, TokenMetrics, token_metrics
from bitloss.divergence.partial import partial_metrics
from bitloss.engine.base import Engine, Outputs, scored_positions
from bitloss.errors import FileProblem, MismatchError, RecordError
from bitloss.model.text import Chunks
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_path

TOKENS_SCHEMA = "bitloss/tokens@1"


class BaseLogits(Protocol):
    """Where base logits come from: `bitloss.divergence.basefile.Base`, or a stand-in."""

    @property
    def chunks(self) -> Chunks:
        """The text the base was computed on."""
        ...

    @property
    def n_vocab(self) -> int:
        """Entries of the vocabulary."""
        ...

    @property
    def rows_per_slice(self) -> int:
        """Most rows `logits` gives at a time."""
        ...

    @property
    def known_in_part(self) -> bool:
        """Whether `logits` gives rounded log-probabilities, -inf where none is known (`bitloss.divergence.partial`)."""
        ...

    def logits(self, chunk: int, first: int, rows: int) -> NDArray[np.float32]:
        """Logits of scored rows first .. first+rows of a chunk: float32 [rows, n_vocab], valid until the next call."""
        ...


class Picked:
    """Some chunks of a base, in the order given.

    Args:
        base: the whole base.
        which: indices of its chunks.
    """

    def __init__(self, base: BaseLogits, which: NDArray[np.int64]) -> None:
        self._base, self._which = base, which
        self.chunks = base.chunks.pick(which)
        self.n_vocab = base.n_vocab
        self.rows_per_slice = base.rows_per_slice
        self.known_in_part = base.known_in_part

    def logits(self, chunk: int, first: int, rows: int) -> NDArray[np.float32]:
        """See `BaseLogits.logits`."""
        return self._base.logits(int(self._which[chunk]), first, rows)


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Metrics of every scored token, in order of the text.

    Attributes:
        chunk: int32 [n], index of the chunk.
        position: int32 [n], position within the chunk whose next token is predicted.
        target: int32 [n], that next token.
        metrics: columns [n]; see `bitloss.divergence.metrics`.
    """

    chunk: NDArray[np.int32]
    position: NDArray[np.int32]
    target: NDArray[np.int32]
    metrics: TokenMetrics

    def __len__(self) -> int:
        return len(self.chunk)

    def in_order(self, chunks: NDArray[np.int64]) -> TokenTable:
        """Take its chunks in another order: the k-th becomes what is chunk ``chunks[k]`` here (all of one length)."""
        length = len(self) // max(1, len(chunks))
        rows = (chunks[:, None] * length + np.arange(length)).reshape(-1)
        return TokenTable(
            np.repeat(np.arange(len(chunks), dtype=np.int32), length),
            self.position[rows],
            self.target[rows],
            self.metrics[rows],
        )

    @classmethod
    def join(cls, parts: Sequence[TokenTable], which: NDArray[np.int64]) -> TokenTable:
        """Join tables of chunks that follow one another in ``which``, the chunks' indices in the text."""
        length = sum(map(len, parts)) // len(which)
        return cls(
            np.repeat(which.astype(np.int32), length),
            np.concatenate([part.position for part in parts]),
            np.concatenate([part.target for part in parts]),
            TokenMetrics.concat([part.metrics for part in parts]),
        )


def measure(
    engine: Engine, base: BaseLogits, *, threads: int, progress: ProgressCallback = silent
) -> TokenTable:
    """Run the candidate over the base's text and compare.

    Args:
        engine: holds the candidate.
        base: what it is measured against.
        threads: of the kernel; the result does not depend on it.
        progress: told after every chunk.

    Raises:
        MismatchError: the vocabularies differ in size.
        EngineError: the engine failed.
    """
    chunks = base.chunks
    if engine.facts.n_vocab != base.n_vocab:
        raise MismatchError(
            "vocabulary differs from the base's",
            where=str(getattr(engine, "path", "candidate")),
            expected=f"{base.n_vocab} entries",
            found=engine.facts.n_vocab,
            mend="candidate and base must be made from the same model",
        )
    scored = scored_positions(chunks.n_ctx)
    compare = partial_metrics if base.known_in_part else token_metrics
    parts: dict[
        tuple[int, int], TokenMetrics
    ] = {}  # by chunk and scored row: chunks side by side come in turn
    done = 0
    for rows in engine.evaluate(chunks.as_computed(), Outputs.LOGITS):
        targets = chunks.tokens[rows.chunk, rows.start + 1 : rows.start + 1 + len(rows.values)]
        for at in range(0, len(rows.values), base.rows_per_slice):
            candidate = rows.values[at : at + base.rows_per_slice]
            first = rows.start - scored.start + at
            reference = base.logits(rows.chunk, first, len(candidate))
            parts[rows.chunk, first] = compare(
                reference, candidate, targets[at : at + len(candidate)], threads=threads
            )
        done += len(rows.values)
        if done % len(scored) < len(rows.values):
            progress(Progress("measure", done // len(scored), chunks.n_chunks, "chunks"))
    n = chunks.n_chunks
    return TokenTable(
        chunk=np.repeat(np.arange(n, dtype=np.int32), len(scored)),
        position=np.tile(np.arange(scored.start, scored.stop, dtype=np.int32), n),
        target=np.ascontiguousarray(chunks.tokens[:, scored.start + 1 : scored.stop + 1]).reshape(-1),
        metrics=TokenMetrics.concat([parts[place] for place in sorted(parts)]),
    )


def measure_picked(
    engine: Engine,
    base: BaseLogits,
    which: NDArray[np.int64],
    *,
    threads: int,
    progress: ProgressCallback = silent,
) -> TokenTable:
    """As `measure`, of the base's chunks ``which`` alone, in that order; chunk k of the result is ``which[k]``.

    They are computed in the order of the text, because the base is stored in that order.
    """
    sorted_ = np.sort(which)
    table = measure(engine, Picked(base, sorted_), threads=threads, progress=progress)
    return table.in_order(np.searchsorted(sorted_, which))


_PLACES = ("chunk", "position", "target")
_DTYPES: dict[str, type[np.generic]] = {**dict.fromkeys(_PLACES, np.int32), **COLUMNS}


def write_tokens(table: TokenTable, path: Path, facts: dict[str, str]) -> None:
    """Write per-token results as Parquet (zstd), atomically; ``facts`` go into the file's metadata."""
    columns = {name: getattr(table, name) for name in _PLACES}
    columns |= {name: getattr(table.metrics, name) for name in COLUMNS}
    arrow = pa.table(columns).replace_schema_metadata(
        {"bitloss": json.dumps({"schema": TOKENS_SCHEMA, **facts})}
    )
    with atomic_path(path) as partial:
        pq.write_table(arrow, partial, compression="zstd")


def read_tokens(path: Path) -> tuple[TokenTable, dict[str, str]]:
    """Read what `write_tokens` wrote.

    Raises:
        FileProblem: no such file.
        RecordError: damaged, or not written by bitloss.
    """
    if not path.is_file():
        raise FileProblem("no such file", where=path)
    try:
        arrow = pq.read_table(path)
        facts = _facts(arrow)
        columns = {name: _column(arrow, name, dtype) for name, dtype in _DTYPES.items()}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise RecordError(
            "not a Parquet file of tokens bitloss wrote, or damaged",
            where=path,
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            mend="measure the candidate again",
        ) from error
    if facts.pop("schema", None) != TOKENS_SCHEMA:
        raise RecordError("of another version", where=path, expected=TOKENS_SCHEMA)
    places = {name: columns.pop(name) for name in _PLACES}
    return TokenTable(**places, metrics=TokenMetrics(**columns)), facts


def _facts(arrow: pa.Table) -> dict[str, str]:
    facts = json.loads((arrow.schema.metadata or {})[b"bitloss"])
    if not isinstance(facts, dict):
        raise ValueError("the metadata is no object")
    return facts


def _column(arrow: pa.Table, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    """A column as it was written: of this very type, nothing left out."""
    column = arrow.column(name)
    if column.type != pa.from_numpy_dtype(dtype) or column.null_count:
        raise ValueError(f"column {name} holds {column.type} with {column.null_count} nulls")
    return np.ascontiguousarray(column.to_numpy(), dtype)
