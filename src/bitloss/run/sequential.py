"""Measure block by block until a rule is met (`bitloss.divergence.stopping`).

Chunks are taken in a seeded random order of the text. After every block all candidates have been measured on the same
chunks, and the rule is asked. The number of chunks doubles, 16, 32, 64, ...: models are loaded a few times only, and
at most about half of what is measured comes after the rule could have been met.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitloss.divergence.comparison import ALPHA, Metric, table_pairs
from bitloss.divergence.measure import TokenTable, read_tokens
from bitloss.divergence.metrics import FloatArray
from bitloss.divergence.stopping import Precise, Rule, chunk_means, decided, precise, same_files, table_size
from bitloss.errors import UsageError
from bitloss.records import Known, Outcome, Settled, Stopping
from bitloss.run.steps import Part
from bitloss.spec import StopSpec

FIRST_BLOCK: Final = 16
"""Chunks of the first block: a little above the burn-in."""


class MeasuredBlock(NamedTuple):
    """What one block left.

    Attributes:
        available: chunks of the whole text.
        tokens: per-token results of the block's chunks, by what was measured.
    """

    available: int
    tokens: Mapping[str, Path]


class Stopped(NamedTuple):
    """What was measured until the rule was met or the text was over.

    Attributes:
        record: the rule, and what it says.
        which: indices in the text of the chunks measured, in their order.
        parts: the blocks.
        tables: per-token results in that order, by what was measured.
    """

    record: Stopping
    which: NDArray[np.int64]
    parts: tuple[Part, ...]
    tables: dict[str, TokenTable]


def check_rule(stop: StopSpec | None, candidates: int) -> None:
    """Refuse a rule that has nothing to decide.

    Raises:
        UsageError: a single candidate, and the rule is about pairs.
    """
    if stop is not None and stop.when == "decided" and candidates < 2:
        raise UsageError(
            "nothing to decide between",
            where="--stop-when decided",
            expected="two candidates or more",
            found=candidates,
            mend="stop by precision instead: --precision 2%",
        )


def part_label(step: str, part: Part | None) -> str:
    """What to call a step, or that step on a part of the text, its chunks counted from 1.

    How long the text is is not known before its first block.
    """
    if part is None:
        return step
    return (
        f"{step}, chunks {part.first + 1}..{part.last}" if part.first else f"{step}, first {part.last} chunks"
    )


def measure_until(
    stop: StopSpec, measured_as: Mapping[str, str], measure: Callable[[Part], MeasuredBlock]
) -> Stopped:
    """Measure block after block.

    Args:
        stop: the rule.
        measured_as: by candidate, what it is measured as; equal for candidates with equal tensors.
        measure: measures everything on a block.

    Raises:
        BitlossError: a block failed.
    """
    parts: list[Part] = []
    tables: dict[str, list[TokenTable]] = {}
    part = Part(seed=stop.seed, first=0, last=FIRST_BLOCK)
    while True:
        block = measure(part)
        parts.append(part)
        for key, path in block.tokens.items():
            tables.setdefault(key, []).append(read_tokens(path)[0])
        which = Part(seed=stop.seed, first=0, last=part.last).of(block.available)
        joined = {key: TokenTable.join(each, which) for key, each in tables.items()}
        record, over = ask(stop, measured_as, joined, block.available)
        if over or len(which) == block.available:
            return Stopped(record, which, tuple(parts), joined)
        part = Part(seed=stop.seed, first=part.last, last=min(2 * part.last, block.available))


def ask(
    stop: StopSpec, measured_as: Mapping[str, str], tables: Mapping[str, TokenTable], available: int
) -> tuple[Stopping, bool]:
    """Ask the rule what the chunks measured so far say; also gives whether more of them could change nothing.

    A value that is not finite stays so, whatever follows: what cannot be compared, or has no mean, holds nothing up,
    but a rule that is about it is not met either.
    """
    means = {key: chunk_means(table.metrics.kld, table.chunk) for key, table in tables.items()}
    klds = {name: means[key] for name, key in measured_as.items()}
    answer = (
        _decided(stop, measured_as, klds)
        if stop.when == "decided"
        else _precise(stop, measured_as, klds, {key for key, each in tables.items() if _exact(each)})
    )
    record = Stopping(
        rule=stop.when,
        met=answer.met,
        alpha=ALPHA,
        margin=stop.margin,
        precision=stop.precision,
        seed=stop.seed,
        chunks_available=available,
        settled=answer.settled,
        known=answer.known,
    )
    return record, answer.over


class _Answer(NamedTuple):
    met: bool
    over: bool
    settled: tuple[Settled, ...] = ()
    known: tuple[Known, ...] = ()


def _exact(table: TokenTable) -> bool:
    """Whether every token's KLD is exactly 0: what was measured computes what the base computes."""
    return len(table) > 0 and not np.any(table.metrics.kld)


def _decided(stop: StopSpec, measured_as: Mapping[str, str], klds: Mapping[str, FloatArray]) -> _Answer:
    """The level is split over all comparisons of the results, so that the table never calls a settled pair a tie."""
    pairs = table_pairs(measured_as)
    identical = same_files(pairs, measured_as)
    margins = {} if stop.margin is None else {Metric.KLD_MEAN: stop.margin}
    rule = Rule(margins=margins, family=table_size(pairs, identical))
    done, judgements = decided({Metric.KLD_MEAN: klds}, pairs, rule, identical=identical)
    settled = tuple(
        Settled(
            a=each.pair.a, b=each.pair.b, outcome=each.outcome, chunks=each.at, low=each.low, high=each.high
        )
        for each in judgements
    )
    undefined = any(each.outcome is Outcome.UNDEFINED for each in judgements)
    return _Answer(done and not undefined, done, settled=settled)


def _precise(
    stop: StopSpec, measured_as: Mapping[str, str], klds: Mapping[str, FloatArray], exact: Collection[str]
) -> _Answer:
    """Twins are known alike, and count once; a mean of zeros alone is known, though its chunks have no spread."""
    assert stop.precision is not None
    first: dict[str, str] = {}
    for name, key in measured_as.items():
        first.setdefault(key, name)
    asked = {name: klds[name] for key, name in first.items() if key not in exact}
    done, found = precise(asked, stop.precision)
    known = []
    for name, key in measured_as.items():
        each = Precise(0.0, 0.0, 0.0, 0.0) if key in exact else found[first[key]]
        known.append(Known(candidate=name, low=each.low, high=each.high, relative=each.relative))
    undefined = any(each.mean is None for each in found.values())
    return _Answer(done and not undefined, done, known=tuple(known))
