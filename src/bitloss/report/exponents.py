"""The audit's picture: how large the weights are, by power of two, beside what F16 can hold."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from bitloss.report.looks import Look, Plot
from bitloss.report.svg import NARROW, Chart, Series, Size, linear, logarithmic, power, tip_attribute
from bitloss.report.tables import Table

_SMALLEST, _NORMAL, _LARGEST = -24, -14, 15
"""Exponents of F16's smallest subnormal, smallest normal and largest values."""


def exponents(look: Look) -> Plot | None:
    """Histogram of the matrices' exponents; None without an audit that counted them."""
    return exponents_of(look.results.audit)


def exponents_of(audit: Any) -> Plot | None:
    """As `exponents`, of an audit: a record or plain JSON."""
    counts = _counts(audit)
    if not counts:
        return None
    low, high = min(*counts, _SMALLEST) - 1, max(*counts, _LARGEST) + 1

    def draw(of: Size) -> Chart:
        x = linear(
            low, high, count=6 if of is NARROW else 10, label=lambda v: power(2, v) if v == int(v) else ""
        )
        chart = Chart(
            of,
            x,
            logarithmic(0.5, max(counts.values())),
            "size of a weight",
            "weights (logarithmic)",
            head=46,
        )
        names = ("fewer digits" if of is NARROW else "F16, fewer digits", "F16, all digits")
        for first, last, css, name in (
            (_SMALLEST, _NORMAL - 1, "range less", names[0]),
            (_NORMAL, _LARGEST, "range", names[1]),
        ):
            _shade(chart, (chart.px(first - 0.5), chart.px(last + 0.5)), css, name)
        chart.group(Series("weights", 0, 0), 0)
        half = max(1.0, (chart.px(1) - chart.px(0)) * 0.42)
        for exponent, count in sorted(counts.items()):
            cx, top = chart.px(exponent), chart.py(count)
            tip = tip_attribute(
                f"{power(2, exponent)} to {power(2, exponent + 1)}\n{count} weights\n{_place(exponent)}"
            )
            chart.body.append(
                f'<rect class="mark" {tip} x="{cx - half:.1f}" y="{top:.1f}" width="{2 * half:.1f}" '
                f'height="{chart.bottom - top:.1f}" fill="currentColor"/>'
            )
        chart.end()
        return chart

    rows = tuple((f"2^{e}", str(n), _place(e)) for e, n in sorted(counts.items()))
    return Plot(
        "exponents",
        "How large the weights are",
        f"Weights of all matrices by power of two. F16 holds those in the shaded ranges; in the paler one, below "
        f"{power(2, _NORMAL)}, with fewer digits. A value there is exact in F16 when its last set bit is at or above "
        f"{power(2, _SMALLEST)}.",
        draw,
        (),
        Table(("Size from", "Weights", "In F16"), rows, right=frozenset({0, 1})),
    )


def _shade(chart: Chart, ends: tuple[float, float], css: str, name: str) -> None:
    """A range under the grid and the axes, named above, where no bar reaches."""
    left, right = ends
    chart.under.append(
        f'<rect x="{left:.1f}" y="{chart.top:.1f}" width="{right - left:.1f}" '
        f'height="{chart.bottom - chart.top:.1f}" class="{css}"/>'
    )
    chart.note((left + right) / 2, chart.top - 6, name, anchor="middle")


def _place(exponent: int) -> str:
    if exponent > _LARGEST:
        return "too large for F16"
    if exponent < _SMALLEST:
        return "below F16's smallest value"
    return "in F16's range" if exponent >= _NORMAL else "with fewer digits in F16"


def _counts(audit: Any) -> dict[int, int]:
    """Weights by exponent, whether the audit is a record or plain JSON; empty where it has none."""
    told = audit.model_dump() if isinstance(audit, BaseModel) else audit
    matrices = told.get("matrices") if isinstance(told, dict) else None
    if not isinstance(matrices, dict):
        return {}
    lowest, counts = matrices.get("lowest_exponent"), matrices.get("exponents")
    if not isinstance(lowest, int) or not isinstance(counts, list | tuple):
        return {}
    return {lowest + i: n for i, n in enumerate(counts) if isinstance(n, int) and n > 0}
