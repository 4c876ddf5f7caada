"""Heat maps over a model's tensors, layers across and kinds of tensors down, a panel for each file.

Three of them: how far each tensor is from the source's (`quantize --errors`, ``errors`` of an experiment), what the
file gains when a group of tensors is raised (`bitloss sensitivity`), and the share of blocks that differ between the
files of two routes (``cross``). Strength of colour goes by the value, from 0 or on a logarithmic scale, the same for
all panels of a picture; a cell that is not there has no colour.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bitloss.display import decimal, percent
from bitloss.explain.routes import is_whole
from bitloss.report.looks import Look, Plot, distinct, twins
from bitloss.report.svg import CHARACTER, NARROW, Chart, Scale, Series, Size, Tick, tip_attribute
from bitloss.report.tables import Table

_LAYER = re.compile(r"blk\.(\d+)\.(.+?)(?:\.weight)?$")
_ORDER = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_PANELS = 4
_ROW, _HEAD = 17, 30
_FAINT = 0.1


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
        colour: of the file.
    """

    title: str
    cells: Sequence[Cell]
    colour: Series


class _Told(NamedTuple):
    """A picture's words and numbers (see `Plot`)."""

    id: str
    title: str
    caption: str
    table: Table


class _Shade(NamedTuple):
    """How strong a value is drawn."""

    low: float
    high: float
    logarithmic: bool
    write: Callable[[float], str]

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            share = (math.log(value) - math.log(self.low)) / max(math.log(self.high / self.low), 1e-9)
        else:
            share = value / self.high
        return _FAINT + (1 - _FAINT) * min(max(share, 0.0), 1.0)


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
        "Root mean square of what quantizing changed, as a share of the root mean square of the tensor. Strong colour "
        "is where a file gave up most; a jump within a row is a tensor that the type's plan gave more bits, or fewer."
        f"{_left_out(len(panels))}{twins(look)}",
        Table(titles, tuple(rows), right=frozenset({3, 4})),
    )
    return _plot(told, panels, logarithmic=True, write=percent)


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
        "What mean KLD falls by when one group of tensors is kept at the source's precision. Strong colour is where "
        "more bits help most; gains of several groups need not add up.",
        Table(titles, tuple(rows), right=frozenset({1, 2, 3})),
    )
    panels = [Panel(f"{found.plain}, one group raised at a time", cells, Series(found.plain, 0, 0))]
    return _plot(told, panels, logarithmic=False, write=decimal)


def cross_blocks(look: Look) -> Plot | None:
    """Share of the blocks of each tensor that differ between two routes' files."""
    colours = {series.name: series for series in look.series}
    panels, rows = [], []
    for each in look.results.cross.attributions if look.results.cross else ():
        cells = []
        for tensor in each.tensors:
            share = tensor.blocks.whole / max(tensor.blocks.total, 1)
            kind, layer = place(tensor.name)
            count = f"{tensor.blocks.whole:,} of {tensor.blocks.total:,} blocks, {percent(share)}"
            cells.append(Cell(kind, layer, share, f"{tensor.name}, {tensor.type}\n{count} differ"))
            rows.append((f"{each.file_a} and {each.file_b}", tensor.name, tensor.type, percent(share)))
        if cells:
            series = colours.get(each.file_a, Series(each.file_a, 0, 0))
            panels.append(Panel(f"{each.file_a} and {each.file_b}", cells, series))
    told = _Told(
        "difference-map",
        "Where two routes' files differ",
        "Share of the blocks of each tensor that are not the same in the files of two routes to one type. A tensor "
        f"that is not drawn is equal, and so are files that are not drawn.{_left_out(len(panels))}",
        Table(("Files", "Tensor", "Type", "Blocks that differ"), tuple(rows), right=frozenset({3})),
    )
    return _plot(told, panels, logarithmic=False, write=percent)


def place(name: str) -> tuple[str, int | None]:
    """Kind and layer of a tensor, by llama.cpp's names; what belongs to no layer goes by its own."""
    found = _LAYER.match(name)
    if found is None:
        return name.removesuffix(".weight"), None
    return found[2], int(found[1])


def _left_out(count: int) -> str:
    return (
        f" Drawn for the first {_PANELS} of {count}; the rest is in the numbers." if count > _PANELS else ""
    )


def _plot(
    told: _Told, panels: Sequence[Panel], *, logarithmic: bool, write: Callable[[float], str]
) -> Plot | None:
    known = [c.value for p in panels for c in p.cells if c.value is not None and c.value > 0]
    if not known:
        return None
    shade = _Shade(min(known), max(known), logarithmic and min(known) < max(known), write)

    def draw(of: Size) -> Chart:
        return _draw(of, panels[:_PANELS], shade)

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


def _draw(of: Size, panels: Sequence[Panel], shade: _Shade) -> Chart:
    layers = [c.layer for p in panels for c in p.cells if c.layer is not None]
    last = max(layers, default=0)
    every = next(n for n in (1, 2, 4, 5, 10, 20, 50, 100, 10_000) if last / n <= (8 if of is NARROW else 20))
    ticks = tuple(Tick(float(n), str(n)) for n in range(0, last + 1, every)) if layers else ()
    rows = [_kinds(panel) for panel in panels]
    label = max(len(kind) for kinds in rows for kind in kinds) * 11 * CHARACTER + 12
    height = 28 + sum(_HEAD + _ROW * len(kinds) for kinds in rows) + 44
    blank = Scale(0.0, 1.0, ())
    x = Scale(-0.5, last + 0.5, ticks)
    chart = Chart(
        Size(of.width, height), x, blank, "layer" if layers else "", "", left=min(label, of.width * 0.4)
    )
    _key(chart, shade)
    y = chart.top
    for panel, kinds in zip(panels, rows, strict=True):
        chart.note(0, y + _HEAD - 9, panel.title, css="small strong")
        y += _HEAD
        chart.body.append(f'<g class="{panel.colour.css}">')
        for kind in kinds:
            chart.note(chart.left - 6, y + _ROW - 5, kind, anchor="end", css="small")
            chart.body += [_rect(chart, c, y, shade) for c in panel.cells if c.kind == kind]
            y += _ROW
        chart.body.append("</g>")
    return chart


def _rect(chart: Chart, cell: Cell, y: float, shade: _Shade) -> str:
    if cell.layer is None:
        left, right = chart.left, chart.right
    else:
        left, right = chart.px(cell.layer - 0.5), chart.px(cell.layer + 0.5)
    gap = 1.0 if right - left > 6 else 0.3
    look = (
        f'fill-opacity="{shade(cell.value):.2f}"'
        if cell.value is not None and cell.value > 0
        else 'class="none"'
    )
    return (
        f'<rect {tip_attribute(cell.tip)} x="{left + gap / 2:.1f}" y="{y + 0.5:.1f}" '
        f'width="{right - left - gap:.1f}" height="{_ROW - 1}" fill="currentColor" {look}/>'
    )


def _key(chart: Chart, shade: _Shade) -> None:
    """The scale of colours, at the upper right."""
    least = shade.write(shade.low) if shade.logarithmic else "0"
    most, steps, width = shade.write(shade.high), 12, 7
    right = chart.right - len(most) * 11 * CHARACTER - 6
    left = right - steps * width
    chart.note(chart.right, 15, most, anchor="end", css="small")
    chart.note(left - 6, 15, least, anchor="end", css="small")
    for k in range(steps):
        strength = _FAINT + (1 - _FAINT) * k / (steps - 1)
        chart.body.append(
            f'<rect x="{left + k * width:.1f}" y="6" width="{width}" height="10" class="key" '
            f'fill-opacity="{strength:.2f}"/>'
        )
