"""What pictures need of the per-token results, a few hundred numbers a candidate.

One file of tokens is in memory at a time (about 110 bytes a token), whatever the number of candidates. Tokens without
a finite value are left out of these pictures and counted; the tables give such figures as null.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitloss.divergence.clusters import Clusters
from bitloss.divergence.measure import TokenTable, read_tokens
from bitloss.errors import MismatchError, RecordError
from bitloss.records import Candidate, Results

LEVELS = tuple(
    float(level)
    for level in (
        *(0.001, 0.002, 0.005),
        *np.round(np.arange(0.01, 0.99, 0.01), 2),
        *(0.99, 0.995, 0.998, 0.999),
    )
)
NOISE_FILE = "noise-floor.parquet"
_POSITION_BINS, _ENTROPY_BINS = 16, 10


class Bin(NamedTuple):
    """A group of tokens.

    Attributes:
        low: smallest value in it of what the tokens are grouped by.
        high: largest.
        tokens: how many.
        kld: their mean KL divergence, nats.
        se: its standard error, clustered; None where a text has a single cluster there.
    """

    low: float
    high: float
    tokens: int
    kld: float
    se: float | None


@dataclass(frozen=True, slots=True)
class TokenSummary:
    """One file of per-token results, aggregated.

    Attributes:
        tokens: in the file.
        left_out: of them, without a finite KL divergence.
        kld: quantiles at `LEVELS`, nats.
        by_position: mean KL divergence along the context.
        by_entropy: mean KL divergence by the base's entropy, in tenths of the tokens.
        worst: indices of the rows with the largest KL divergence, largest first.
    """

    tokens: int
    left_out: int
    kld: tuple[float, ...]
    by_position: tuple[Bin, ...]
    by_entropy: tuple[Bin, ...]
    worst: tuple[int, ...]


def token_files(results: Results, folder: Path) -> dict[str, Path]:
    """Find the per-token results of each candidate below ``folder/tokens``; those not there are left out.

    Results that do not name their files are matched by what the files say of themselves.
    """
    by_tensors: dict[str, Path] = {}
    by_name: dict[str, Path] = {}
    for path in sorted((folder / "tokens").glob("*.parquet")):
        facts = _facts(path)
        if path.name != NOISE_FILE:
            by_tensors.setdefault(facts.get("tensors_sha256", ""), path)
            by_name.setdefault(facts.get("candidate", ""), path)
    found: dict[str, Path] = {}
    for each in results.candidates:
        ways: tuple[Path | None, ...] = (
            _named(each, folder),
            by_tensors.get(each.tensors_sha256),
            by_name.get(each.file),
            by_name.get(each.name),
            found.get(each.identical_to or ""),
        )
        way = next((path for path in ways if path is not None), None)
        if way is not None:
            found[each.name] = way
    return found


def _named(candidate: Candidate, folder: Path) -> Path | None:
    path = folder / "tokens" / candidate.tokens if candidate.tokens else None
    return path if path is not None and path.is_file() else None


def _facts(path: Path) -> dict[str, str]:
    """What the file says of itself; nothing, where it is not one of ours (reading it says so by name)."""
    try:
        facts = json.loads((pq.read_schema(path).metadata or {}).get(b"bitloss", b"{}"))
    except (pa.ArrowException, OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in facts.items()} if isinstance(facts, dict) else {}


def noise_file(folder: Path) -> Path | None:
    """Per-token results of the noise floor, where they are."""
    path = folder / "tokens" / NOISE_FILE
    return path if path.is_file() else None


def read_table(path: Path, results: Results) -> TokenTable:
    """Read per-token results and check that they are of this run's text.

    Raises:
        RecordError: damaged, or without a single token.
        MismatchError: of another number of tokens than the results say.
    """
    table, _ = read_tokens(path)
    if not len(table):
        raise RecordError("an empty file, no token is in it", where=path, mend="measure the candidate again")
    if len(table) != results.text.scored_tokens:
        raise MismatchError(
            "per-token results of another text",
            where=path,
            expected=f"{results.text.scored_tokens} tokens",
            found=len(table),
            mend="finish the run, or take the folder as it was",
        )
    return table


def summarize_tokens(table: TokenTable, clusters: Clusters | None = None, *, worst: int = 50) -> TokenSummary:
    """Aggregate one table.

    Args:
        table: per-token results.
        clusters: how its tokens are drawn; by chunk, of one text, when None.
        worst: how many rows with the largest KL divergence are pointed out.
    """
    clusters = Clusters.of(table.chunk) if clusters is None else clusters
    kld = table.metrics.kld
    finite = np.isfinite(kld)
    rows = np.flatnonzero(finite)
    sound = kld[rows]
    if not len(rows):
        return TokenSummary(len(table), len(table), (), (), (), ())
    position = table.position[rows]
    edges = np.linspace(position.min(), position.max() + 1, _POSITION_BINS + 1)
    entropy = table.metrics.entropy_base[rows]
    order = np.argsort(-sound, kind="stable")[:worst]
    return TokenSummary(
        tokens=len(table),
        left_out=len(table) - len(rows),
        kld=tuple(np.quantile(sound, LEVELS).tolist()),
        by_position=_bins(position.astype(np.float64), edges, sound, clusters.pick(rows)),
        by_entropy=_by_entropy(entropy, sound, clusters.pick(rows)),
        worst=tuple(rows[order].tolist()),
    )


def _by_entropy(
    entropy: NDArray[np.float64], kld: NDArray[np.float64], clusters: Clusters
) -> tuple[Bin, ...]:
    known = np.isfinite(entropy)
    if not known.any():
        return ()
    entropy, kld, clusters = entropy[known], kld[known], clusters.pick(np.flatnonzero(known))
    edges = np.unique(np.quantile(entropy, np.linspace(0, 1, _ENTROPY_BINS + 1)))
    edges[-1] = np.nextafter(edges[-1], np.inf)
    return _bins(entropy, edges, kld, clusters)


def _bins(
    by: NDArray[np.float64], edges: NDArray[np.float64], kld: NDArray[np.float64], clusters: Clusters
) -> tuple[Bin, ...]:
    which = np.searchsorted(edges, by, side="right") - 1
    made = []
    for index in np.unique(which):
        members = np.flatnonzero(which == index)
        mine = clusters.pick(members)
        values = kld[members]
        mean = float(values.mean())
        made.append(
            Bin(
                float(by[members].min()),
                float(by[members].max()),
                len(values),
                mean,
                mine.error(values - mean) if mine.fewest > 1 else None,
            )
        )
    return tuple(made)
