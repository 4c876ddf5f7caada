"""Measure a candidate against a base, token by token.

The candidate's logits come one micro-batch at a time; for each slice of rows the base's logits are made again and the
pair goes to the kernel. Nothing of size n_ctx x vocabulary exists at any time.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitloss.divergence.metrics import COLUMNS, TokenMetrics, token_metrics
from bitloss.divergence.partial import partial_metrics
from bitloss.divergence.worst import Rows as WorstRows
from bitloss.divergence.worst import Worst, WorstKeeper
from bitloss.engine.base import Engine, Outputs, Rows
from bitloss.errors import EngineError, FileProblem, MismatchError, RecordError
from bitloss.model.text import Chunks
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store import atomic_path
from bitloss.store.columns import from_arrow, to_arrow

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
        worst: the tokens with the largest divergence, in their text; empty where it was not kept.
    """

    chunk: NDArray[np.int32]
    position: NDArray[np.int32]
    target: NDArray[np.int32]
    metrics: TokenMetrics
    worst: Worst = Worst()  # noqa: RUF009 - frozen

    def __len__(self) -> int:
        return len(self.chunk)

    def in_order(self, chunks: NDArray[np.int64]) -> TokenTable:
        """Take its chunks in another order: the k-th becomes what is chunk ``chunks[k]`` here."""
        first, after = (
            np.searchsorted(self.chunk, chunks, "left"),
            np.searchsorted(self.chunk, chunks, "right"),
        )
        lengths = after - first
        rows = np.repeat(first - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        return TokenTable(
            np.repeat(np.arange(len(chunks), dtype=np.int32), lengths),
            self.position[rows],
            self.target[rows],
            self.metrics[rows],
            self.worst.moved({int(chunk): k for k, chunk in enumerate(chunks)}),
        )

    @classmethod
    def join(cls, parts: Sequence[TokenTable], which: NDArray[np.int64]) -> TokenTable:
        """Join tables of chunks that follow one another in ``which``, the chunks' indices in the text (one length)."""
        length = sum(map(len, parts)) // len(which)
        worst, done = [], 0
        for part in parts:
            many = len(part) // length
            worst.append(part.worst.moved({k: int(which[done + k]) for k in range(many)}))
            done += many
        return cls(
            np.repeat(which.astype(np.int32), length),
            np.concatenate([part.position for part in parts]),
            np.concatenate([part.target for part in parts]),
            TokenMetrics.concat([part.metrics for part in parts]),
            Worst.join(worst),
        )

    def of_chunks(self, first: int, last: int) -> TokenTable:
        """The rows of chunks first .. last-1, by their index."""
        rows = np.flatnonzero((self.chunk >= first) & (self.chunk < last))
        return TokenTable(self.chunk[rows], self.position[rows], self.target[rows], self.metrics[rows])


class Measured(NamedTuple):
    """What `measure_together` found out about one candidate.

    Attributes:
        table: per token.
        seconds: spent on it: its own time in engine and kernel, and an equal share of the base logits'.
    """

    table: TokenTable
    seconds: float


def measure(
    engine: Engine, base: BaseLogits, *, threads: int, progress: ProgressCallback = silent
) -> TokenTable:
    """Run one candidate over the base's text and compare; see `measure_together`."""
    return measure_together([engine], base, threads=threads, progress=progress)[0].table


def measure_together(
    engines: Sequence[Engine],
    base: BaseLogits,
    *,
    which: NDArray[np.int64] | None = None,
    threads: int,
    progress: ProgressCallback = silent,
) -> list[Measured]:
    """Run candidates side by side over the base's text and compare; base logits are made once for all.

    The numbers are those of measuring each alone. Memory: every engine's model, cache and logits of one micro-batch,
    and one slice of base logits.

    Args:
        engines: hold the candidates; they must hand out rows alike (the same batch and micro-batch).
        base: what they are measured against.
        which: indices of the base's chunks to measure on, all when None; chunk k of the results is ``which[k]``. They
            are computed in the order of the text, because the base is stored in that order.
        threads: of the kernel; the result does not depend on it.
        progress: told after every chunk.

    Raises:
        MismatchError: the vocabularies differ in size.
        EngineError: an engine failed.
    """
    for engine in engines:
        if engine.facts.n_vocab != base.n_vocab:
            raise MismatchError(
                "vocabulary differs from the base's",
                where=str(getattr(engine, "path", "candidate")),
                expected=f"{base.n_vocab} entries",
                found=engine.facts.n_vocab,
                mend="candidate and base must be made from the same model",
            )
    picked = base if which is None else Picked(base, np.sort(which))
    pass_ = _Pass(picked, len(engines), threads)
    chunks = picked.chunks
    tokens = chunks.as_computed()
    left = chunks.rows  # rows of each chunk that are still to come
    done = 0
    with contextlib.ExitStack() as stack:
        # closed before the engines are: a generator holds the engine's context
        runs = [
            stack.enter_context(
                contextlib.closing(engine.evaluate(tokens, Outputs.LOGITS, scored=chunks.scored))
            )
            for engine in engines
        ]
        while (rows := pass_.next_rows(runs)) is not None:
            pass_.compare(rows)
            left[rows[0].chunk] -= len(rows[0].values)
            if left[rows[0].chunk] == 0:
                done += 1
                progress(Progress("measure", done, chunks.n_chunks, "chunks"))
    tables = [
        replace(_table(chunks, parts), worst=keeper.worst.spelled(_words(engine)))
        for engine, parts, keeper in zip(engines, pass_.parts, pass_.keepers, strict=True)
    ]
    if which is not None:
        order = np.searchsorted(np.sort(which), which)
        tables = [table.in_order(order) for table in tables]
    return [Measured(table, seconds) for table, seconds in zip(tables, pass_.seconds, strict=True)]


class _Pass:
    """Rows of several engines in step, compared with the same base logits; keeps the time of each."""

    def __init__(self, base: BaseLogits, n_engines: int, threads: int) -> None:
        self.base = base
        self.threads = threads
        self.seconds = [0.0] * n_engines
        # by chunk and scored row: chunks computed side by side come in turn
        self.parts: list[dict[tuple[int, int], TokenMetrics]] = [{} for _ in range(n_engines)]
        self.keepers = [WorstKeeper() for _ in range(n_engines)]
        self._compare = partial_metrics if base.known_in_part else token_metrics

    def next_rows(self, runs: Sequence[Iterator[Rows]]) -> list[Rows] | None:
        """The next rows of each, the same place of the text for all; None when all are through."""
        found: list[Rows | None] = []
        for i, run in enumerate(runs):
            with self._timed(i):
                found.append(next(run, None))
        places = {(rows.chunk, rows.start, len(rows.values)) if rows else None for rows in found}
        if len(places) != 1:
            raise EngineError(
                "engines measured together do not hand out the same rows", found=sorted(map(str, places))
            )
        return None if None in places else [rows for rows in found if rows is not None]

    def compare(self, rows: Sequence[Rows]) -> None:
        """Score one stretch of all candidates."""
        chunk, start = rows[0].chunk, rows[0].start
        n = len(rows[0].values)
        targets = self.base.chunks.tokens[chunk, start + 1 : start + 1 + n]
        begin = self.base.chunks.row(chunk, start)
        for at in range(0, n, self.base.rows_per_slice):
            first = begin + at
            end = min(n, at + self.base.rows_per_slice)
            began = time.perf_counter()
            reference = self.base.logits(chunk, first, end - at)
            share = (time.perf_counter() - began) / len(rows)
            for i, each in enumerate(rows):
                with self._timed(i):
                    metrics = self._compare(
                        reference, each.values[at:end], targets[at:end], threads=self.threads
                    )
                    self.parts[i][chunk, first] = metrics
                    text = self.base.chunks.tokens[chunk]
                    self.keepers[i].look(
                        WorstRows(chunk, text, start + at, metrics.kld), reference, each.values[at:end]
                    )
                self.seconds[i] += share

    @contextlib.contextmanager
    def _timed(self, i: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[i] += time.perf_counter() - began


def _words(engine: Engine) -> Callable[[int], bytes]:
    """What a token stands for, where the engine can tell."""
    text: Callable[[int], bytes] | None = getattr(engine, "token_text", None)
    return text or (lambda token: f"<{token}>".encode())


def _table(chunks: Chunks, parts: dict[tuple[int, int], TokenMetrics]) -> TokenTable:
    chunk, position = np.nonzero(chunks.mask())
    return TokenTable(
        chunk=chunk.astype(np.int32),
        position=position.astype(np.int32),
        target=np.ascontiguousarray(chunks.tokens[chunk, position + 1]),
        metrics=TokenMetrics.concat([parts[place] for place in sorted(parts)]),
    )


_WORST = "bitloss.worst"
_PLACES = ("chunk", "position", "target")
_DTYPES: dict[str, type[np.generic]] = {**dict.fromkeys(_PLACES, np.int32), **COLUMNS}


def write_tokens(table: TokenTable, path: Path, facts: dict[str, str]) -> None:
    """Write per-token results as Parquet (zstd), atomically; ``facts`` go into the file's metadata."""
    columns = {name: getattr(table, name) for name in _PLACES}
    columns |= {name: getattr(table.metrics, name) for name in COLUMNS}
    metadata = {"bitloss": json.dumps({"schema": TOKENS_SCHEMA, **facts})}
    if table.worst.tokens:
        metadata[_WORST] = table.worst.model_dump_json()
    arrow = pa.table({name: to_arrow(column) for name, column in columns.items()})
    arrow = arrow.replace_schema_metadata(metadata)
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
        # not pq.read_table, which imports what reads whole folders of files
        with pq.ParquetFile(path) as file:
            arrow = file.read()
        facts = _facts(arrow)
        columns = {name: _column(arrow, name, dtype) for name, dtype in _DTYPES.items()}
        worst = Worst.model_validate_json((arrow.schema.metadata or {}).get(_WORST.encode(), b"{}"))
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
    return TokenTable(**places, metrics=TokenMetrics(**columns), worst=worst), facts


def _facts(arrow: pa.Table) -> dict[str, str]:
    facts = json.loads((arrow.schema.metadata or {})[b"bitloss"])
    if not isinstance(facts, dict):
        raise ValueError("the metadata is no object")
    return facts


def _column(arrow: pa.Table, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    """A column as it was written: of this very type, nothing left out."""
    try:
        return from_arrow(arrow.column(name), dtype)
    except ValueError as error:
        raise ValueError(f"column {name} {error}") from error
