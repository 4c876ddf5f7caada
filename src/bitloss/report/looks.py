"""What a picture is, and how a candidate looks in all of them.

Colour goes by quantization type, dash and mark by what tells files of one type apart, so that two routes to the same
type lie side by side in one colour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bitloss.display import visible
from bitloss.records import Candidate, Results
from bitloss.report.colours import COLOURS
from bitloss.report.summary import TokenSummary
from bitloss.report.svg import NARROW, VARIANTS, WIDE, Chart, Series, Size
from bitloss.report.tables import Table

FLOOR = "noise floor"
_NAME = 40  # characters of a name in a caption
_AGAIN = (0, 2, 4, 6)
"""First variant of types that share a colour: those of two routes are apart from the others' as long as can be."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture.

    Attributes:
        id: its name as a file and an anchor.
        title: what it is.
        caption: how to read it, one or two sentences.
        draw: draws it at a size.
        legend: the series in it.
        table: the numbers it shows.
    """

    id: str
    title: str
    caption: str
    draw: Callable[[Size], Chart]
    legend: tuple[Series, ...]
    table: Table

    def both(self) -> tuple[str, str]:
        """The picture for a wide page and for a narrow one."""
        label = f"{self.title}. {self.caption}"
        return self.draw(WIDE).inline(label, "wide"), self.draw(NARROW).inline(label, "narrow")


class Look(NamedTuple):
    """What pictures are made from.

    Attributes:
        results: of the run.
        tokens: aggregated per-token results of candidates, by name; those without are missing.
        floor: of the noise floor; None where not kept.
        series: how each candidate looks, in the order of the table.
    """

    results: Results
    tokens: Mapping[str, TokenSummary]
    floor: TokenSummary | None
    series: tuple[Series, ...]


def series_of(candidates: Sequence[Candidate]) -> tuple[Series, ...]:
    """Colours by type, variants within a type, in the order of the table; colours used up come again with others.

    A type with more files than there are variants takes another colour for the rest.
    """
    kinds: dict[tuple[str, int], int] = {}
    count: Counter[str] = Counter()
    made = []
    for each in candidates:
        more, place = divmod(count[each.type], VARIANTS)
        count[each.type] += 1
        again, colour = divmod(kinds.setdefault((each.type, more), len(kinds)), len(COLOURS))
        made.append(Series(each.name, colour, (_AGAIN[again % len(_AGAIN)] + place) % VARIANTS))
    return tuple(made)


def labels(candidates: Sequence[Candidate]) -> dict[str, str]:
    """What a picture calls each candidate: its type alone where that tells them apart, else its name."""
    types = [each.type for each in candidates]
    plain = len(set(types)) == len(types) and all(c.name.startswith(c.type) for c in candidates)
    return {each.name: each.type if plain else each.name for each in candidates}


def distinct(look: Look) -> list[int]:
    """Indices of candidates that were measured themselves: a twin's curve would hide its own."""
    return [i for i, c in enumerate(look.results.candidates) if c.identical_to is None]


def twins(look: Look) -> str:
    """Say, for a caption, which candidates a picture leaves out as equal to another."""
    names = [
        f"{visible(c.name, _NAME)} (as {visible(c.identical_to, _NAME)})"
        for c in look.results.candidates
        if c.identical_to
    ]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f" Not drawn again, the weights being the same: {', '.join(names[:6])}{more}." if names else ""
