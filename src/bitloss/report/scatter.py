"""Pictures with one mark a file: size and perplexity against mean KLD. Bars are 95 % intervals.

They are clustered by chunk (or document); with too few for that they take tokens as independent, and the
caption says so. Marks that would cover each other stand side by side, a hair leading back to where each belongs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from bitloss.display import decimal, duration, size, visible
from bitloss.explain.routes import is_whole
from bitloss.records import Candidate, Figure, Results
from bitloss.report.looks import FLOOR, Look, Plot, labels
from bitloss.report.placing import Box, Named, beside_each_other, draw_labels
from bitloss.report.svg import NARROW, WIDE, Chart, Scale, Size, linear, logarithmic
from bitloss.report.tables import Table
from bitloss.report.uncertainty import Uncertainty, usual, usual_error

_Z = 1.959963984540054
_GIB = float(1 << 30)
_MARK = 11.0
"""Height of a mark, pixels."""
_TWINS = 3
"""Files with the same tensors that are all named at their mark."""


class _Dot(NamedTuple):
    row: int
    candidate: Candidate
    x: float
    y: float
    se: float


def size_kld(look: Look) -> Plot | None:
    """Size of the file against mean KLD, with the front of files that no other beats in both."""
    dots = _dots(look, lambda c: c.bytes / _GIB)
    if not dots:
        return None
    gib = max(d.x for d in dots) >= 1
    if not gib:
        dots = [d._replace(x=d.x * 1024) for d in dots]
    front = pareto([(d.x, d.y) for d in dots])
    unit = "GiB" if gib else "MiB"
    floor = _floor(look.results)
    scale = linear(min(d.x for d in dots), max(d.x for d in dots))

    def draw(of: Size) -> Chart:
        chart = _kld_chart(of, dots, scale, f"file size, {unit}")
        lines = _draw_front(chart, [(dots[i].x, dots[i].y) for i in front])
        _draw_dots(chart, look, dots, lines)
        if floor is not None and floor >= chart.y.low:
            chart.across(floor, f"{FLOOR} {decimal(floor)}")
        return chart

    on_front = {dots[i].candidate.name for i in front}
    rows = tuple(
        (
            d.candidate.name,
            d.candidate.file,
            size(d.candidate.bytes),
            f"{d.candidate.bits_per_weight:.4f}",
            decimal(d.y, d.se),
            "yes" if d.candidate.name in on_front else "",
        )
        for d in dots
    )
    return Plot(
        "size-kld",
        "Size against divergence",
        "Down and to the left is better. The dashed steps join the files that no other file beats in both size and "
        f"mean KLD; bars are 95 % intervals, {_kind_of_error(look)}.{_apart(dots, scale)}"
        f"{_floor_said(floor, _kld_scale(dots))}",
        draw,
        (),
        Table(
            ("Name", "File", "Size", "Bits per weight", "Mean KLD", "On the front"),
            rows,
            right=frozenset({2, 3, 4}),
        ),
    )


def ppl_kld(look: Look) -> Plot | None:
    """Change of perplexity against mean KLD."""

    def change(c: Candidate) -> float | None:
        figure = c.metrics.get("ppl_ratio")
        return None if figure is None or figure.value is None else 100 * (figure.value - 1)

    dots = _dots(look, change)
    if not dots:
        return None
    floor = _floor(look.results)
    scale = linear(min(0.0, *(d.x for d in dots)), max(0.0, *(d.x for d in dots)))

    def draw(of: Size) -> Chart:
        chart = _kld_chart(of, dots, scale, "change of perplexity against the base, %")
        _draw_dots(chart, look, dots)
        if floor is not None and floor >= chart.y.low:
            chart.across(floor, f"{FLOOR} {decimal(floor)}")
        return chart

    rows = tuple(
        (d.candidate.name, _shown(d.candidate.metrics["ppl_ratio"]), decimal(d.y, d.se)) for d in dots
    )
    return Plot(
        "ppl-kld",
        "Perplexity against divergence",
        "Perplexity can stay, or even fall, while the distribution moves: files to the left of zero are less perplexed "
        f"than the base and no nearer to it.{_apart(dots, scale)}{_floor_said(floor, _kld_scale(dots))}",
        draw,
        (),
        Table(("Name", "Mean PPL(Q)/PPL(base)", "Mean KLD"), rows, right=frozenset({1, 2})),
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in one coordinate without losing in the other, by the first."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    front: list[int] = []
    best = math.inf
    for i in order:
        if points[i][1] < best:
            front.append(i)
            best = points[i][1]
    return front


def _dots(look: Look, x: Callable[[Candidate], float | None]) -> list[_Dot]:
    made = []
    for i, each in enumerate(look.results.candidates):
        figure, at = each.metrics.get("kld_mean"), x(each)
        if each.identical_to is None and figure and figure.value and figure.value > 0 and at is not None:
            made.append(_Dot(i, each, at, figure.value, _error(figure)))
    return made


def _error(figure: Figure) -> float:
    return usual_error(figure) or 0.0


def _kind_of_error(look: Look) -> str:
    if usual(look.results) is Uncertainty.CLUSTERED:
        return look.results.text.clustered
    few = f"too few {look.results.text.cluster}s for better ones"
    return f"with tokens taken as independent, which makes them too narrow ({few})"


def _interval(d: _Dot) -> tuple[float, float]:
    return max(d.y - _Z * d.se, d.y / 20), d.y + _Z * d.se


def _kld_chart(of: Size, dots: Sequence[_Dot], x: Scale, x_title: str) -> Chart:
    return Chart(of, x, _kld_scale(dots), x_title, "mean KLD, nats (logarithmic)")


def _kld_scale(dots: Sequence[_Dot]) -> Scale:
    ends = [end for d in dots for end in _interval(d)]
    return logarithmic(min(ends), max(ends), pad=1.6)


def _draw_front(chart: Chart, points: Sequence[tuple[float, float]]) -> list[Box]:
    """Draw the steps; returns the boxes that they lie in."""
    pixels = [(chart.px(x), chart.py(y)) for x, y in points]
    if len(pixels) > 1:
        steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in pixels[1:])
        chart.body.append(f'<path d="M{pixels[0][0]:.1f} {pixels[0][1]:.1f}{steps}" class="front"/>')
    across = [Box(a, y - 1, b, y + 1) for (a, y), (b, _) in pairwise(pixels)]
    return across + [Box(x - 1, a, x + 1, b) for (_, a), (x, b) in pairwise(pixels)]


def _draw_dots(chart: Chart, look: Look, dots: Sequence[_Dot], lines: Sequence[Box] = ()) -> None:
    places = beside_each_other([(chart.px(d.x), chart.py(d.y)) for d in dots], chart.left, chart.right)
    for d, at in zip(dots, places, strict=True):
        if at != chart.px(d.x):
            y = chart.py(d.y)
            chart.body.append(f'<path d="M{chart.px(d.x):.1f} {y:.1f}H{at:.1f}" class="lead"/>')
    for d, at in zip(dots, places, strict=True):
        chart.group(look.series[d.row], d.row)
        if (
            d.se > 0 and abs(chart.py(_interval(d)[0]) - chart.py(_interval(d)[1])) > _MARK
        ):  # else behind the mark
            chart.spread(at, *_interval(d))
        chart.mark(look.series[d.row], d.x, d.y, _told(look.results, d), focus=True, at=at)
        chart.end()
    called = labels(look.results.candidates)
    longest = 20 if chart.size.width < WIDE.width else 40
    bars = [(chart.py(low), chart.py(high)) for low, high in map(_interval, dots)]
    draw_labels(
        chart,
        [
            Named(_label(look, d, called, longest), look.series[d.row], at, chart.py(d.y), bar)
            for d, at, bar in zip(dots, places, bars, strict=True)
        ],
        lines,
    )


def _apart(dots: Sequence[_Dot], x: Scale) -> str:
    """Say, for a caption, that marks were moved."""
    for of in (WIDE, NARROW):
        chart = _kld_chart(of, dots, x, "")
        points = [(chart.px(d.x), chart.py(d.y)) for d in dots]
        if any(
            at != x
            for at, (x, _) in zip(beside_each_other(points, chart.left, chart.right), points, strict=True)
        ):
            return " Marks that would cover each other stand side by side, joined by a hair."
    return ""


def _label(look: Look, d: _Dot, called: Mapping[str, str], longest: int) -> str:
    """A name; files with the same tensors share one mark. Of those made only to be crossed none is named."""
    candidates = look.results.candidates
    names = [d.candidate.name]
    names += [c.name for c in candidates if c.identical_to == d.candidate.name and is_whole(c)]
    for shown in (names if len(names) <= _TWINS else names[:2], names[:1]):
        more = f" = {len(names) - len(shown)} more" if len(shown) < len(names) else ""
        label = " = ".join(visible(called[name], longest) for name in shown) + more
        if len(label) <= 2 * longest:
            break
    return label


def _floor(results: Results) -> float | None:
    figure = results.noise_floor.metrics.get("kld_mean") if results.noise_floor else None
    return None if figure is None or not figure.value else figure.value


def _floor_said(floor: float | None, scale: Scale) -> str:
    if floor is None or floor >= scale.low:
        return ""
    return f" The {FLOOR}, {decimal(floor)}, lies below the scale."


def _told(results: Results, d: _Dot) -> str:
    c = d.candidate
    lines = [
        c.name,
        c.file,
        size(c.bytes),
        f"{c.bits_per_weight:.4f} bits per weight",
        f"mean KLD {decimal(d.y, d.se)}",
    ]
    made = [cost.seconds for cost in results.costs if cost.step == f"quantize {c.name}"]
    route = sum(
        cost.seconds for cost in results.costs if cost.kind == "imatrix" and cost.route == c.imatrix_from
    )
    if made:
        lines.append(
            f"quantized in {duration(sum(made))}" + (f", imatrix {duration(route)}" if route else "")
        )
    if c.identical_to:
        lines.append(f"tensors identical to {c.identical_to}")
    return "\n".join(lines)


def _shown(figure: Figure) -> str:
    return "n/a" if figure.value is None else decimal(figure.value, usual_error(figure))
