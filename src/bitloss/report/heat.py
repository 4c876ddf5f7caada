"""Heat maps over a model's tensors, layers across and kinds of tensors down, a panel for each file.

Three of them: how far each tensor is from the source's (`quantize --errors`, ``errors`` of an experiment), what the
file gains when a group of tensors is raised (`bitloss sensitivity`), and the share of blocks that differ between the
files of two routes (``cross``). One scale of colours for all panels of a picture, logarithmic, because values of one
picture differ by orders (types, tensors with more bits); what is less than a thousandth of the largest has the first
colour. Where cells are wide enough the value is written in them. A cell without a value is a frame; one that is not
there is nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bitloss.display import decimal, percent
from bitloss.explain.routes import is_whole
from bitloss.report.colours import HEAT
from bitloss.report.looks import Look, Plot, distinct, twins
from bitloss.report.svg import (
    NARROW,
    Chart,
    Scale,
    Series,
    Size,
    Tick,
    fitting,
    shape,
    text,
    tip_attribute,
    width_of,
)
from bitloss.report.tables import Table

_LAYER = re.compile(r"blk\.(\d+)\.(.+?)(?:\.weight)?$")
_ORDER = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_PANELS = 4
_ROW, _HEAD, _TOP = 18, 30, 40
_ORDERS = 1e3


class Cell(NamedTuple):
    """One tensor, or one group of them.

    Attributes:
        kind: the row it stands in.
        layer: the column; None for what belongs to no layer, over the whole width.
        value: what its colour says; None where it is not known.
        tip: what it says when pointed at, lines.
    """

    kind: str
    layer: int | None
    value: float | None
    tip: str


class Panel(NamedTuple):
    """One map.

    Attributes:
        title: what it is of.
        cells: its tensors.
        series: of the file; None where it is of two.
    """

    title: str
    cells: Sequence[Cell]
    series: Series | None


class _Told(NamedTuple):
    """A picture's words and numbers (see `Plot`), and what its colours stand for."""

    id: str
    title: str
    caption: str
    table: Table
    scale: str


class _Shade(NamedTuple):
    """Which of the colours a value has."""

    low: float
    high: float
    clipped: bool
    write: Callable[[float], str]

    def __call__(self, value: float) -> int:
        if self.low == self.high:
            return len(HEAT) - 1
        share = (math.log(value) - math.log(self.low)) / math.log(self.high / self.low)
        return min(max(int(share * len(HEAT)), 0), len(HEAT) - 1)


def tensor_errors(look: Look) -> Plot | None:
    """Error of each tensor of a file, as a share of the source's root mean square."""
    panels, rows = [], []
    for i in distinct(look):
        each = look.results.candidates[i]
        if not is_whole(each):  # made only to be crossed
            continue
        cells = []
        for error in each.tensor_errors:
            kind, layer = place(error.name)
            shown, weighted = ("n/a" if x is None else percent(x) for x in (error.rms, error.rms_weighted))
            tip = f"{error.name}, {error.type}\nerror {shown}"
            if error.rms_weighted is not None:
                tip += f"\nweighted by importance {weighted}"
            cells.append(Cell(kind, layer, error.rms, tip))
            rows.append((each.name, error.name, error.type, shown, weighted))
        if cells:
            panels.append(Panel(each.name, cells, look.series[i]))
    titles = ("Name", "Tensor", "Type", "Error", "Weighted by importance")
    told = _Told(
        "error-map",
        "Error of each tensor",
        "Root mean square of what quantizing changed, as a share of the root mean square of the tensor. A jump within "
        "a row is a tensor that the type's plan gave more bits, or fewer. All files have the same scale, which is "
        f"logarithmic.{_unknown(panels)}{_left_out(len(panels))}{twins(look)}",
        Table(titles, tuple(rows), right=frozenset({3, 4})),
        "error (logarithmic)",
    )
    return _plot(told, panels, percent)


def sensitivity(look: Look) -> Plot | None:
    """Gain in mean KLD of each group of tensors raised to the source's precision."""
    found = look.results.sensitivity
    if found is None:
        return None
    cells, rows = [], []
    for each in found.groups:
        gain = "n/a" if each.gain is None else decimal(each.gain, each.se)
        added = f"{each.bits_per_weight_added:.4f}"
        tip = f"{each.group}\ngain in mean KLD {gain}\n{added} bits per weight more"
        cells.append(Cell(each.kind, each.layer, each.gain, tip))
        rows.append((each.group, str(each.tensors), added, gain))
    titles = ("Raised", "Tensors", "Bits per weight added", "Gain in mean KLD")
    told = _Told(
        "sensitivity-map",
        "Which tensors matter",
        "What mean KLD falls by when one group of tensors is kept at the source's precision, on a logarithmic scale; "
        "a frame alone is a group that gains nothing. Gains of several groups need not add up.",
        Table(titles, tuple(rows), right=frozenset({1, 2, 3})),
        "gain in mean KLD, nats (logarithmic)",
    )
    panels = [Panel(f"{found.plain}, one group raised at a time", cells, None)]
    return _plot(told, panels, decimal)


def cross_blocks(look: Look) -> Plot | None:
    """Share of the blocks of each tensor that differ between two routes' files."""
    panels, rows = [], []
    for each in look.results.cross.attributions if look.results.cross else ():
        cells = []
        for tensor in each.tensors:
            share = tensor.blocks.whole / max(tensor.blocks.total, 1)
            kind, layer = place(tensor.name)
            count = f"{tensor.blocks.whole:,} of {tensor.blocks.total:,} {tensor.unit}s, {percent(share)}"
            cells.append(Cell(kind, layer, share, f"{tensor.name}, {tensor.type}\n{count} differ"))
            rows.append((f"{each.file_a} and {each.file_b}", tensor.name, tensor.type, percent(share)))
        if cells:
            panels.append(Panel(f"{each.file_a} and {each.file_b}", cells, None))
    told = _Told(
        "difference-map",
        "Where two routes' files differ",
        "Share of the blocks of each tensor (of one that is not quantized, of its values) that are not the same in the "
        "files of two routes to one type, on a logarithmic scale. "
        "A tensor that is not drawn is equal, and so are files that are not drawn."
        f"{_left_out(len(panels))}",
        Table(("Files", "Tensor", "Type", "Blocks that differ"), tuple(rows), right=frozenset({3})),
        "share of blocks that differ (logarithmic)",
    )
    return _plot(told, panels, percent)


def place(name: str) -> tuple[str, int | None]:
    """Kind and layer of a tensor, by llama.cpp's names; what belongs to no layer goes by its own."""
    found = _LAYER.match(name)
    if found is None:
        return name.removesuffix(".weight"), None
    return found[2], int(found[1])


def _unknown(panels: Sequence[Panel]) -> str:
    some = any(cell.value is None for panel in panels[:_PANELS] for cell in panel.cells)
    return " A frame alone is a tensor whose error is not known." if some else ""


def _left_out(count: int) -> str:
    return (
        f" Drawn for the first {_PANELS} of {count}; the rest is in the numbers." if count > _PANELS else ""
    )


def _plot(told: _Told, panels: Sequence[Panel], write: Callable[[float], str]) -> Plot | None:
    known = [c.value for p in panels for c in p.cells if c.value is not None and c.value > 0]
    if not known:
        return None
    least = max(known) / _ORDERS
    shade = _Shade(max(min(known), least), max(known), min(known) < least, write)

    def draw(of: Size) -> Chart:
        return _draw(of, panels[:_PANELS], shade, told.scale)

    return Plot(told.id, told.title, told.caption, draw, (), told.table)


def _kinds(panel: Panel) -> list[str]:
    """Rows of a panel: kinds within layers in the order of a layer's work, then what belongs to none."""
    inside = dict.fromkeys(c.kind for c in panel.cells if c.layer is not None)
    outside = dict.fromkeys(c.kind for c in panel.cells if c.layer is None)
    order = {kind: at for at, kind in enumerate(_ORDER)}
    return [
        *sorted(inside, key=lambda kind: order.get(kind, len(order))),
        *(k for k in outside if k not in inside),
    ]


def _draw(of: Size, panels: Sequence[Panel], shade: _Shade, scale: str) -> Chart:
    layers = [c.layer for p in panels for c in p.cells if c.layer is not None]
    last = max(layers, default=0)
    every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100, 10_000) if last / n <= (8 if of is NARROW else 20))
    ticks = tuple(Tick(float(n), str(n)) for n in range(0, last + 1, every)) if layers else ()
    rows = [_kinds(panel) for panel in panels]
    label = max(width_of(kind) for kinds in rows for kind in kinds) + 12
    height = _TOP + sum(_HEAD + _ROW * len(kinds) for kinds in rows) + 44
    blank = Scale(0.0, 1.0, ())
    x = Scale(-0.5, last + 0.5, ticks)
    left = min(label, of.width * 0.4)
    chart = Chart(Size(of.width, height), x, blank, "layer" if layers else "", scale, left=left, head=_TOP)
    _key(chart, shade)
    y = chart.top
    for panel, kinds in zip(panels, rows, strict=True):
        _title(chart, panel, y + _HEAD - 9)
        y += _HEAD
        for kind in kinds:
            named = fitting(kind, left - 6)
            chart.note(left - 6, y + _ROW - 5, named, anchor="end", css="small")
            for cell in panel.cells:
                if cell.kind == kind:
                    _cell(chart, cell, y, shade)
            y += _ROW
    return chart


def _title(chart: Chart, panel: Panel, y: float) -> None:
    at = 0
    if panel.series is not None:
        at = 16
        chart.body.append(f'<g class="{panel.series.css}">{shape(panel.series, 6, y - 4)}</g>')
    title = fitting(panel.title, chart.right - at, size=12.5)  # bold is wider
    chart.note(at, y, title, css="small strong")


def _cell(chart: Chart, cell: Cell, y: float, shade: _Shade) -> None:
    left, right = chart.left, chart.right
    if cell.layer is not None:
        left, right = chart.px(cell.layer - 0.5), chart.px(cell.layer + 0.5)
    gap = 1.0 if right - left > 6 else 0.3
    known = cell.value is not None and cell.value > 0
    step = shade(cell.value) if known and cell.value is not None else 0
    css = f"h{step}" if known else "none"
    chart.body.append(
        f'<rect {tip_attribute(cell.tip)} x="{left + gap / 2:.1f}" y="{y + 0.5:.1f}" '
        f'width="{right - left - gap:.1f}" height="{_ROW - 1}" class="{css}"/>'
    )
    if known and cell.value is not None:
        shown = shade.write(cell.value)
        if width_of(shown, 10.5) + 6 < right - left:
            chart.body.append(
                f'<text x="{(left + right) / 2:.1f}" y="{y + _ROW - 5:.1f}" text-anchor="middle" class="o{step}">'
                f"{text(shown)}</text>"
            )


def _key(chart: Chart, shade: _Shade) -> None:
    """The scale of colours, from the least to the most, below what it is of."""
    least, most = f"{'≤ ' if shade.clipped else ''}{shade.write(shade.low)}", shade.write(shade.high)
    y, width = 31.0, 7
    x = 0.0
    if shade.low < shade.high:
        chart.note(0, y, least, css="small")
        x = width_of(least) + 8
    steps = range(len(HEAT)) if shade.low < shade.high else range(len(HEAT) - 1, len(HEAT))
    for k, step in enumerate(steps):
        chart.body.append(
            f'<rect x="{x + k * width:.1f}" y="{y - 9:.1f}" width="{width + 0.2}" height="11" class="h{step}"/>'
        )
    chart.note(x + len(steps) * width + 8, y, most, css="small")
