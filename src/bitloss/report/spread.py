"""Pictures of how KLD and Δp are spread over the tokens."""

from __future__ import annotations

from bitloss.display import decimal, percent, percentage_points, rough_percent
from bitloss.records import Candidate, Figure, Metrics
from bitloss.report.looks import FLOOR, Look, Plot, distinct, twins
from bitloss.report.summary import LEVELS, TokenSummary
from bitloss.report.svg import (
    NARROW,
    Chart,
    Scale,
    Series,
    Size,
    fitting,
    linear,
    logarithmic,
    probit,
    tip_attribute,
)
from bitloss.report.tables import Table

# Percentiles that are also rows of the table: their marks can be pointed at.
_PRINTED = {
    0.001: "kld_p0_1",
    0.01: "kld_p1",
    0.05: "kld_p5",
    0.1: "kld_p10",
    0.5: "kld_median",
    0.9: "kld_p90",
    0.95: "kld_p95",
    0.99: "kld_p99",
    0.999: "kld_p99_9",
}
_HEAD = 6
_TAILS = (("dp_p0_1", "dp_p99_9"), ("dp_p1", "dp_p99"), ("dp_p5", "dp_p95"), ("dp_p25", "dp_p75"))


def kld_curve(look: Look) -> Plot | None:
    """Percentiles of KLD over the tokens."""
    curves: list[tuple[Series, Metrics, list[tuple[float, float]]]] = []
    results = look.results
    for i in distinct(look):
        each = results.candidates[i]
        curves.append((look.series[i], each.metrics, _curve(look.tokens.get(each.name), each.metrics)))
    if results.noise_floor and curves:
        floor = results.noise_floor.metrics
        curves.append((Series(FLOOR, -1, 1), floor, _curve(look.floor, floor)))
    curves = [curve for curve in curves if len(curve[2]) > 1]
    if not curves:
        return None

    def draw(of: Size) -> Chart:
        values = [y for _, _, points in curves for _, y in points]
        levels = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999]
        chart = Chart(
            of,
            probit(levels),
            logarithmic(min(values), max(values)),
            "percentile of the tokens",
            "KLD, nats (logarithmic)",
        )
        for k, (series, metrics, points) in enumerate(curves):
            chart.group(series, k)
            chart.line(series, points)
            for level, key in _PRINTED.items():
                figure = metrics.get(key)
                if figure is not None and figure.value is not None and figure.value > 0:
                    tip = f"{series.name}\n{100 * level:g}% KLD\n{decimal(figure.value)}"
                    chart.mark(series, level, figure.value, tip)
            chart.end()
        return chart

    rows = tuple(
        (series.name, *(_plain(metrics.get(key)) for key in _PRINTED.values()))
        for series, metrics, _ in curves
    )
    return Plot(
        "kld-percentiles",
        "How KLD is spread over the tokens",
        "Each line gives, for one file, the KLD that this share of the tokens stays below. The right end is the tail: "
        "the tokens a file gets most wrong." + twins(look),
        draw,
        tuple(series for series, _, _ in curves),
        Table(
            ("Name", *(rough_percent(level, digits=3) for level in _PRINTED)),
            rows,
            right=frozenset(range(1, 10)),
        ),
    )


def _curve(summary: TokenSummary | None, metrics: Metrics) -> list[tuple[float, float]]:
    if summary is not None and summary.kld and summary.left_out == 0:
        return [(level, v) for level, v in zip(LEVELS, summary.kld, strict=True) if v > 0]
    points = [(level, metrics.get(key)) for level, key in _PRINTED.items()]
    return [(level, f.value) for level, f in points if f is not None and f.value is not None and f.value > 0]


def dp_bands(look: Look) -> Plot | None:
    """Percentile bands of Δp, a row a file."""
    rows = [(i, look.results.candidates[i]) for i in distinct(look)]
    rows = [(i, c) for i, c in rows if all(_value(c, key) is not None for pair in _TAILS for key in pair)]
    if not rows:
        return None
    reach = max(abs(_value(c, key) or 0.0) for _, c in rows for key in _TAILS[0]) * 100 or 1e-6

    def draw(of: Size) -> Chart:
        height = _HEAD + 56 + 34 * len(rows)
        scale = linear(-reach, reach, count=4 if of is NARROW else 8)
        blank = Scale(0.0, 1.0, ())
        chart = Chart(Size(of.width, height), scale, blank, "Δp, percentage points", "", left=14, head=_HEAD)
        for tick in scale.ticks:
            css = "axis" if tick.value == 0 else "grid"
            chart.body.append(
                f'<path d="M{chart.px(tick.value):.1f} {chart.top}V{chart.bottom}" class="{css}"/>'
            )
        for k, (i, c) in enumerate(rows):
            _draw_bands(chart, look.series[i], c, (i, chart.top + 22 + 34 * k))
        return chart

    keys = ("dp_p0_1", "dp_p1", "dp_p5", "dp_p25", "dp_median", "dp_p75", "dp_p95", "dp_p99", "dp_p99_9")
    table = Table(
        ("Name", *map(_level, keys)),
        tuple((c.name, *(percent(_value(c, key) or 0.0) for key in keys)) for _, c in rows),
        right=frozenset(range(1, len(keys) + 1)),
    )
    return Plot(
        "dp",
        "How the probability of the right token moves",
        "Δp is the candidate's probability of the token that follows minus the base's. From light to dark the bands "
        "hold 99.8, 98, 90 and 50 % of the tokens; the tick is the median. A band that leans left is a file that got "
        "worse at predicting the text." + twins(look),
        draw,
        (),
        table,
    )


def _level(key: str) -> str:
    """``dp_p99_9``: ``99.9 %``."""
    level = key.removeprefix("dp_")
    return f"{level[1:].replace('_', '.')} %" if level[0] == "p" else level


def _value(c: Candidate, key: str) -> float | None:
    figure = c.metrics.get(key)
    return None if figure is None else figure.value


def _draw_bands(chart: Chart, series: Series, c: Candidate, place: tuple[int, float]) -> None:
    index, y = place
    values = {
        key: 100 * (_value(c, key) or 0.0) for pair in (*_TAILS, ("dp_median", "dp_mean")) for key in pair
    }
    tips = [c.name] + [
        f"{name} %: {percentage_points(values[a] / 100)} .. {percentage_points(values[b] / 100)}"
        for name, (a, b) in zip(("99.8", "98", "90", "50"), _TAILS, strict=True)
    ]
    tip = tip_attribute("\n".join([*tips, f"mean {percentage_points(values['dp_mean'] / 100)}"]))
    chart.group(series, index)
    chart.body.append(f'<g class="mark" {tip}>')
    chart.note(chart.left, y - 9, fitting(c.name, chart.right - chart.left))
    for k, (low, high) in enumerate(_TAILS):
        a, b = chart.px(values[low]), chart.px(values[high])
        half = 3 + 1.2 * k
        chart.body.append(
            f'<rect x="{a:.1f}" y="{y - half + 3:.1f}" width="{max(b - a, 1):.1f}" height="{2 * half:.1f}" rx="2" '
            f'fill="currentColor" fill-opacity="{(0.18, 0.3, 0.45, 0.85)[k]}"/>'
        )
    m = chart.px(values["dp_median"])
    chart.body.append(f'<rect x="{m - 1:.1f}" y="{y - 6:.1f}" width="2" height="18" class="tickmark"/></g>')
    chart.end()


def _plain(figure: Figure | None) -> str:
    return "n/a" if figure is None or figure.value is None else decimal(figure.value)
