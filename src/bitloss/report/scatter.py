"""Pictures with one mark a file: size and perplexity against mean KLD. Bars are 95 % intervals.

They are clustered by chunk; with too few chunks for that they take tokens as independent, and the caption says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bitloss.display import decimal, duration, size
from bitloss.explain.routes import is_whole
from bitloss.records import Candidate, Figure, Results
from bitloss.report.looks import FLOOR, Look, Plot, labels
from bitloss.report.svg import CHARACTER, WIDE, Chart, Scale, Size, linear, logarithmic
from bitloss.report.tables import Table
from bitloss.report.uncertainty import Uncertainty, usual, usual_error

_Z = 1.959963984540054
_GIB = float(1 << 30)


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
    title = "Size against divergence"

    def draw(of: Size) -> Chart:
        chart = _kld_chart(
            of, dots, linear(min(d.x for d in dots), max(d.x for d in dots)), f"file size, {unit}"
        )
        _draw_front(chart, [(dots[i].x, dots[i].y) for i in front])
        _draw_dots(chart, look, dots)
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
        title,
        "Down and to the left is better. The dashed steps join the files that no other file beats in both size and "
        f"mean KLD; bars are 95 % intervals, {_kind_of_error(look)}.{_floor_said(floor, _kld_scale(dots))}",
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

    def draw(of: Size) -> Chart:
        low, high = min(0.0, *(d.x for d in dots)), max(0.0, *(d.x for d in dots))
        chart = _kld_chart(of, dots, linear(low, high), "change of perplexity against the base, %")
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
        f"than the base and no nearer to it.{_floor_said(floor, _kld_scale(dots))}",
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
        return "clustered by chunk"
    return "with tokens taken as independent, which makes them too narrow (too few chunks for better ones)"


def _interval(d: _Dot) -> tuple[float, float]:
    return max(d.y - _Z * d.se, d.y / 20), d.y + _Z * d.se


def _kld_chart(of: Size, dots: Sequence[_Dot], x: Scale, x_title: str) -> Chart:
    return Chart(of, x, _kld_scale(dots), x_title, "mean KLD, nats (logarithmic)")


def _kld_scale(dots: Sequence[_Dot]) -> Scale:
    ends = [end for d in dots for end in _interval(d)]
    return logarithmic(min(ends), max(ends), pad=1.6)


def _draw_front(chart: Chart, points: Sequence[tuple[float, float]]) -> None:
    if len(points) > 1:
        steps = [f"M{chart.px(points[0][0]):.1f} {chart.py(points[0][1]):.1f}"]
        steps += [f"H{chart.px(x):.1f}V{chart.py(y):.1f}" for x, y in points[1:]]
        chart.body.append(f'<path d="{"".join(steps)}" class="front"/>')


def _draw_dots(chart: Chart, look: Look, dots: Sequence[_Dot]) -> None:
    for d in dots:
        chart.group(look.series[d.row], d.row)
        if d.se > 0:
            chart.spread(d.x, *_interval(d))
        chart.mark(look.series[d.row], d.x, d.y, _told(look.results, d), focus=True)
        chart.end()
    called = labels(look.results.candidates)
    _draw_labels(chart, [(d, _label(look, d, called)) for d in dots])


def _label(look: Look, d: _Dot, called: Mapping[str, str]) -> str:
    """A name; files with the same tensors share one mark. Of those made only to be crossed none is named."""
    candidates = look.results.candidates
    twins = [c.name for c in candidates if c.identical_to == d.candidate.name and is_whole(c)]
    more = f" = {len(twins) - 1} more" if len(twins) > 2 else ""
    return " = ".join(called[name][:40] for name in (d.candidate.name, *twins[: 1 if more else 2])) + more


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def _draw_labels(chart: Chart, names: Sequence[tuple[_Dot, str]]) -> None:
    """Names near their marks, on no other name or mark: the first free place around, joined by a hair when far.

    On a narrow picture a name that would stand far off is left out: pointing at the mark tells it, and the table.
    """
    tries = 60 if chart.size.width >= WIDE.width else 16
    marks = [(chart.px(d.x), chart.py(d.y)) for d, _ in names]
    taken = [_Box(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    taken += [_Box(0, y - 6, chart.left - 6, y + 6) for y in (chart.py(t.value) for t in chart.y.ticks)]
    for (x, y), (_, name) in zip(marks, names, strict=True):
        width = len(name) * 11 * CHARACTER + 2
        for k in range(tries):
            up, step = (k % 2 == 0), k // 4 * 13
            right = (k // 2 % 2 == 0) == (x + 14 + width < chart.right)
            left = x + 11 if right else x - 11 - width
            middle = y - 9 - step if up else y + 9 + step
            box = _Box(left, middle - 6, left + width, middle + 6)
            inside = box.left >= 2 and box.right <= chart.size.width - 2 and box.top > 18
            if inside and box.bottom < chart.bottom and not any(box.meets(other) for other in taken):
                break
        else:
            if chart.size.width < WIDE.width:
                continue
        taken.append(box)
        if abs(middle - y) > 16:
            end = left - 2 if right else left + width + 2
            far = math.hypot(end - x, middle - y)
            a, b = x + 7 * (end - x) / far, y + 7 * (middle - y) / far  # from the edge of the mark
            chart.body.append(f'<path d="M{a:.1f} {b:.1f}L{end:.1f} {middle:.1f}" class="lead"/>')
        chart.note(left if right else left + width, middle + 4, name, anchor="start" if right else "end")


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
