"""Charts as SVG: scales, ticks, axes and marks, nothing else.

A chart names its colours by class and draws in ``currentColor``, so the same text follows the page's theme in a
browser and, with :func:`standalone`, is a file of its own. Names from outside go through :func:`text`: escaped, on one
line, without control or direction characters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from bitloss.display import visible
from bitloss.report.colours import COLOURS, STYLE

_DASHES = ("", "6 3", "2 3", "9 3 2 3", "14 4", "9 3 2 3 2 3", "5 2 5 6", "1 6")
VARIANTS = len(_DASHES)
"""Marks, and dashes, that can be told apart."""
_WIDTHS = ((0.32, "ijlI.,:;'|! "), (0.42, 'frtJ()[]-/_"'), (0.8, "wGOQADHNU&+<>=~"), (1.0, "mMW%@…"))
_OTHERS = 0.66
"""Widths of characters of DejaVu Sans, one of the widest, as shares of the font size."""


class Size(NamedTuple):
    """Width and height of a chart, in pixels."""

    width: int
    height: int


WIDE = Size(760, 400)
NARROW = Size(358, 340)


class Tick(NamedTuple):
    """A value of an axis that is written out."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """One axis.

    Attributes:
        low: smallest value shown.
        high: largest; above `low`.
        ticks: values written out.
        shape: monotone map applied before the linear one (a logarithm, say).
    """

    low: float
    high: float
    ticks: tuple[Tick, ...]
    shape: Callable[[float], float] = float

    def at(self, value: float, first: float, last: float) -> float:
        """Pixel of a value, between `first` (at `low`) and `last`; values outside are clipped."""
        inside = min(max(value, self.low), self.high)
        low, high = self.shape(self.low), self.shape(self.high)
        return first + (last - first) * (self.shape(inside) - low) / (high - low)


def linear(
    low: float, high: float, *, count: int = 6, label: Callable[[float], str] = "{:g}".format
) -> Scale:
    """A scale with round ticks that covers low .. high and a little more."""
    if high <= low:
        pad = abs(low) * 0.05 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw * 0.999)
    pad = (high - low) * 0.05
    low, high = low - pad, high + pad
    first = math.ceil(low / step)
    values = [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]
    return Scale(low, high, tuple(Tick(v, label(v)) for v in values))


def logarithmic(low: float, high: float, *, pad: float = 1.25) -> Scale:
    """A decimal logarithm that covers low .. high (both > 0): decades, with 2 and 5 where they are few."""
    low, high = low / pad, high * pad
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors = (1, 2, 5) if decades <= 3 else (1,)
    every = 1 if decades <= 8 else 2
    values = [k * 10.0**e for e in range(first, last + 1, every) for k in factors]
    return Scale(low, high, tuple(Tick(v, _decade(v)) for v in values if low <= v <= high), math.log10)


def probit(levels: Sequence[float]) -> Scale:
    """Percentiles, stretched towards both ends as a normal distribution is; levels are fractions."""
    normal = NormalDist()
    return Scale(levels[0], levels[-1], tuple(Tick(v, f"{100 * v:g}") for v in levels), normal.inv_cdf)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(base: int, exponent: float) -> str:
    """``2⁻³⁰``."""
    return f"{base}{f'{exponent:g}'.translate(_RAISED)}"


def _decade(value: float) -> str:
    """``0.002``, ``10,000``, ``10⁵``, ``2×10⁻⁵``."""
    if 0.99e-4 < value < 1e5:
        return f"{value:,g}"
    factor, _, exponent = f"{value:.0e}".partition("e")
    raised = power(10, int(exponent))
    return raised if factor == "1" else f"{factor}×{raised}"


class Series(NamedTuple):
    """How one candidate looks wherever it appears.

    Attributes:
        name: of the candidate.
        colour: index of its colour, by quantization type; -1 for grey.
        variant: index of its dash and mark among those of the same type.
    """

    name: str
    colour: int
    variant: int

    @property
    def css(self) -> str:
        """Class that gives the colour."""
        return "kn" if self.colour < 0 else f"k{self.colour % len(COLOURS)}"


def text(value: str, limit: int = 80) -> str:
    """A name or a number as XML text."""
    return escape(visible(value, limit))


def width_of(value: str, size: float = 11) -> float:
    """Pixels that a text takes, a little more rather than less: sans-serif fonts differ."""
    return size * sum(next((w for w, some in _WIDTHS if c in some), _OTHERS) for c in value)


def fitting(value: str, width: float, *, size: float = 11) -> str:
    """A name in as many pixels, its middle cut out where it would take more."""
    limit = 80
    while limit > 3 and width_of(visible(value, limit), size) > width:
        limit -= 1
    return visible(value, limit)


def tip_attribute(tip: str) -> str:
    """Attribute that makes an element say `tip` (lines parted by newlines) when pointed at."""
    return "data-tip=" + quoteattr(" · ".join(visible(line, 160) for line in tip.split("\n")))


_CORNERS = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
    "triangle": ((0, -1), (1, 0.8), (-1, 0.8)),
    "turned": ((0, 1), (-1, -0.8), (1, -0.8)),
}
_MARKS = (
    *(("circle", True), ("square", False), ("diamond", True), ("triangle", True)),
    *(("circle", False), ("square", True), ("diamond", False), ("turned", False)),
)
"""By variant: what it is, and whether it is filled."""


def shape(series: Series, x: float, y: float, r: float = 4.5) -> str:
    """The mark of a series: circle, square, diamond or triangle, filled or hollow, by its variant."""
    kind, filled = _MARKS[series.variant % VARIANTS]
    paint = (
        'fill="currentColor"'
        if filled
        else 'fill="none" class="hollow" stroke="currentColor" stroke-width="1.8"'
    )
    less = 0 if filled else 0.5  # for the stroke's own width
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r - less:g}" {paint}/>'
    d = r + 1 - less
    points = " ".join(f"{x + d * a:.1f},{y + d * b:.1f}" for a, b in _CORNERS[kind])
    return f'<polygon points="{points}" {paint}/>'


@dataclass(slots=True)
class Chart:
    """One chart under construction.

    Attributes:
        size: of the whole.
        x: horizontal axis.
        y: vertical axis.
        x_title: what the horizontal axis shows, with its unit.
        y_title: likewise; written above the axis, so that it is read level.
        left: room for the labels of the vertical axis.
        head: room above the plot.
        body: what was drawn.
        under: what lies under the grid and the axes.
    """

    size: Size
    x: Scale
    y: Scale
    x_title: str
    y_title: str
    left: float = 58.0
    head: float = 28.0
    body: list[str] = field(default_factory=list)
    under: list[str] = field(default_factory=list)

    @property
    def right(self) -> float:
        """Right edge of the plot."""
        return self.size.width - 14.0

    @property
    def top(self) -> float:
        """Upper edge of the plot."""
        return self.head

    @property
    def bottom(self) -> float:
        """Lower edge of the plot."""
        return self.size.height - 44.0

    def px(self, value: float) -> float:
        """Pixel of a value on the horizontal axis."""
        return self.x.at(value, self.left, self.right)

    def py(self, value: float) -> float:
        """Pixel of a value on the vertical axis."""
        return self.y.at(value, self.bottom, self.top)

    def line(self, series: Series, points: Sequence[tuple[float, float]], *, width: float = 1.8) -> None:
        """Join points by straight lines."""
        if len(points) < 2:
            return
        path = "L".join(f"{self.px(x):.1f} {self.py(y):.1f}" for x, y in points)
        dash = _DASHES[series.variant % VARIANTS]
        attribute = f' stroke-dasharray="{dash}"' if dash else ""
        self.body.append(
            f'<path d="M{path}" fill="none" stroke="currentColor" stroke-width="{width}"{attribute} '
            'stroke-linejoin="round"/>'
        )

    def mark(
        self, series: Series, x: float, y: float, tip: str, *, focus: bool = False, at: float | None = None
    ) -> None:
        """Draw a mark that says `tip` (lines parted by newlines) when pointed at, or focused where `focus` is set.

        `at` puts it at another pixel than `x`'s.
        """
        cx, cy = self.px(x) if at is None else at, self.py(y)
        said = tip_attribute(tip)
        keys = f' tabindex="0" role="img" aria-label={said.removeprefix("data-tip=")}' if focus else ""
        drawn = shape(series, cx, cy, 5.0 if focus else 3.0)
        self.body.append(
            f'<g class="mark" {said}{keys}><circle cx="{cx:.1f}" cy="{cy:.1f}" r="11" class="hit"/>{drawn}</g>'
        )

    def spread(self, cx: float, low: float, high: float) -> None:
        """An upright error bar with ends, at a pixel."""
        a, b = self.py(low), self.py(high)
        self.body.append(
            f'<path d="M{cx:.1f} {a:.1f}V{b:.1f}M{cx - 4:.1f} {a:.1f}h8M{cx - 4:.1f} {b:.1f}h8" fill="none" '
            'stroke="currentColor" stroke-width="1.3"/>'
        )

    def across(self, y: float, label: str) -> None:
        """A level line over the whole width, named."""
        cy = self.py(y)
        self.body.append(
            f'<path d="M{self.left:.1f} {cy:.1f}H{self.right:.1f}" class="rule"/>'
            f'<text x="{self.right - 4:.1f}" y="{cy - 5:.1f}" text-anchor="end" class="small halo">{text(label)}</text>'
        )

    def note(self, x: float, y: float, label: str, *, anchor: str = "start", css: str = "small halo") -> None:
        """Text at a pixel."""
        self.body.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{text(label)}</text>'
        )

    def group(self, series: Series, index: int) -> None:
        """Open the group of a series; close it with :meth:`end`."""
        self.body.append(f'<g class="series {series.css}" data-s="{index}">')

    def end(self) -> None:
        """Close a group."""
        self.body.append("</g>")

    def content(self) -> str:
        """Axes, then what was drawn, as SVG elements."""
        out = [*self.under]
        for tick in self.y.ticks:
            y = self.py(tick.value)
            out.append(
                f'<path d="M{self.left:.1f} {y:.1f}H{self.right:.1f}" class="grid"/>'
                f'<text x="{self.left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end" class="tick">'
                f"{text(tick.label)}</text>"
            )
        free = -math.inf
        for tick in self.x.ticks:
            x = self.px(tick.value)
            half = width_of(tick.label) / 2 + 3
            out.append(f'<path d="M{x:.1f} {self.bottom:.1f}v5" class="axis"/>')
            if x - half > free:
                out.append(
                    f'<text x="{x:.1f}" y="{self.bottom + 18:.1f}" text-anchor="middle" class="tick">'
                    f"{text(tick.label)}</text>"
                )
                free = x + half
        out.append(f'<path d="M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}" class="axis"/>')
        out.append(f'<text x="0" y="14" class="title">{text(self.y_title)}</text>')
        out.append(
            f'<text x="{self.right:.1f}" y="{self.size.height - 6}" text-anchor="end" class="title">'
            f"{text(self.x_title)}</text>"
        )
        return "".join([*out, *self.body])

    def inline(self, label: str, css: str) -> str:
        """The chart for a page, which gives the colours; `label` says in words what it shows."""
        return (
            f'<svg class="chart {css}" viewBox="0 0 {self.size.width} {self.size.height}" role="img" '
            f"aria-label={quoteattr(visible(label, 400))}>{self.content()}</svg>"
        )


_MARGIN = 16


def standalone(chart: Chart, heading: str, legend: Sequence[Series]) -> str:
    """The chart as a file: its own colours, a heading, and a legend below."""
    rows: list[str] = []
    x, y = 0.0, chart.size.height + 54.0
    for series in legend:
        name = visible(series.name, 60)
        width = 30 + width_of(name, 12) + 16
        if x + width > chart.size.width and x > 0:
            x, y = 0.0, y + 20
        rows.append(
            f'<g class="{series.css}">{shape(series, x + 6, y - 4)}'
            f'<text x="{x + 18:.1f}" y="{y:.1f}">{text(name)}</text></g>'
        )
        x += width
    height, width = (y + 14 if legend else chart.size.height + 44), chart.size.width + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-_MARGIN} 0 {width} {height:.0f}" '
        f'width="{width}" height="{height:.0f}" role="img"><title>{text(heading, 200)}</title>'
        f'<style>{STYLE}</style><rect x="{-_MARGIN}" width="{width}" height="{height:.0f}" fill="#fff"/>'
        f'<text x="0" y="24" class="head">{text(fitting(heading, width - 2 * _MARGIN, size=17))}</text>'
        f'<g transform="translate(0 36)">{chart.content()}</g>{"".join(rows)}</svg>\n'
    )
