"""Where marks and their names go on a picture, so that none covers another.

A mark that would cover another moves sideways, at its own height, as little as it takes: to the right, or at the right
edge to the left. The names of a row stand together in a list beside it, each behind its mark; the name of a mark that
stands alone has no need of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bitloss.report.svg import WIDE, Chart, Series, shape, width_of

_NEAR, _APART, _ROW = 9.0, 12.0, 17.0
"""Marks nearer than the first cover each other and move to the second; names of those within the third go together."""
_LINE, _KEY = 15.0, 16.0


class Named(NamedTuple):
    """A mark with its name.

    Attributes:
        name: as it is written.
        series: how it looks.
        x: pixel it is drawn at.
        y: likewise.
        bar: pixels of its error bar's ends.
    """

    name: str
    series: Series
    x: float
    y: float
    bar: tuple[float, float]


class Box(NamedTuple):
    """Pixels something takes."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether two boxes share any."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def beside_each_other(points: Sequence[tuple[float, float]], left: float, right: float) -> list[float]:
    """Horizontal pixels at which marks do not cover each other; heights stay.

    Args:
        points: pixels where the marks belong.
        left: where the plot begins.
        right: where it ends.
    """
    at = [x for x, _ in points]
    placed: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], i)):
        x, y = points[i]
        others = [(at[k], points[k][1]) for k in placed]
        if _nearest((x, y), others) < _NEAR:
            free = [x + step for step in range(1, 400) if _nearest((x + step, y), others) >= _APART]
            free += [x - step for step in range(1, 400) if _nearest((x - step, y), others) >= _APART]
            at[i] = next((moved for moved in free if left + 6 <= moved <= right - 6), x)
        placed.append(i)
    return at


def _nearest(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    return min((math.dist(point, other) for other in others), default=math.inf)


def draw_labels(chart: Chart, marks: Sequence[Named], lines: Sequence[Box] = ()) -> None:
    """Names near their marks, on no other name, mark or bar: the first free place around, joined by a hair when far.

    On a narrow picture a name that would stand far off is left out: pointing at the mark tells it, and the table.

    Args:
        chart: drawn on.
        marks: all there are.
        lines: what else no name may lie on.
    """
    tries = 60 if chart.size.width >= WIDE.width else 16
    taken = [Box(m.x - 6, m.y - 6, m.x + 6, m.y + 6) for m in marks]
    taken += lines
    taken += [Box(m.x - 5, min(m.bar), m.x + 5, max(m.bar)) for m in marks]
    taken += [Box(0, y - 6, chart.left - 6, y + 6) for y in (chart.py(t.value) for t in chart.y.ticks)]
    for row in _rows(marks):
        key = _KEY if len(row) > 1 else 0.0
        width = max(width_of(m.name) for m in row) + 2 + key
        height = _LINE * len(row) - 3
        around = Box(
            min(m.x for m in row), min(m.y for m in row), max(m.x for m in row), max(m.y for m in row)
        )
        for box in _places(around, width, height, tries):
            inside = box.left >= chart.left + 2 and box.right <= chart.size.width - 2
            inside &= box.top > chart.top - 10 and box.bottom < chart.bottom
            if inside and not any(box.meets(other) for other in taken):
                break
        else:
            continue
        taken.append(box)
        _lead(chart, around, box)
        for k, mark in enumerate(row):
            _write(chart, mark, box, (key, k))


def _rows(marks: Sequence[Named]) -> list[list[Named]]:
    """Marks that stand together, from left to right."""
    rows: list[list[Named]] = []
    for mark in sorted(marks, key=lambda m: m.x):
        near = [row for row in rows if any(math.dist((mark.x, mark.y), (m.x, m.y)) < _ROW for m in row)]
        for row in near:
            rows.remove(row)
        rows.append([*(m for row in near for m in row), mark])
    return rows


def _places(around: Box, width: float, height: float, tries: int) -> Iterator[Box]:
    """Places beside a mark or a row of them, nearest first."""
    single = height < _LINE
    for k in range(tries):
        step = k // 4 * 13
        if single:
            middle = around.top + (-9 - step if k % 2 == 0 else 9 + step)
        else:
            middle = (around.top + around.bottom) / 2 + (-step if k % 2 == 0 else step)
        left = around.right + 11 if k // 2 % 2 == 0 else around.left - 11 - width
        yield Box(left, middle - height / 2, left + width, middle + height / 2)


def _lead(chart: Chart, around: Box, box: Box) -> None:
    """A hair from the edge of a mark to a name that stands off."""
    middle = (box.top + box.bottom) / 2
    right = box.left > around.right
    x, y = (around.right if right else around.left), (around.top + around.bottom) / 2
    if box.top - 10 <= y <= box.bottom + 10:
        return
    end = box.left - 2 if right else box.right + 2
    far = math.hypot(end - x, middle - y)
    a, b = x + 7 * (end - x) / far, y + 7 * (middle - y) / far
    chart.body.append(f'<path d="M{a:.1f} {b:.1f}L{end:.1f} {middle:.1f}" class="lead"/>')


def _write(chart: Chart, mark: Named, box: Box, place: tuple[float, int]) -> None:
    key, line = place
    y = box.top + _LINE * line + 6
    if key:
        chart.body.append(f'<g class="{mark.series.css}">{shape(mark.series, box.left + 6, y, 3.6)}</g>')
    chart.note(box.left + key, y + 4, mark.name)
