"""Marks and names on a picture: none covers another, and nothing moves that need not."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from bitloss.records import Results
from bitloss.report.looks import Look, series_of
from bitloss.report.placing import Box, Named, beside_each_other, draw_labels
from bitloss.report.scatter import ppl_kld, size_kld
from bitloss.report.svg import NARROW, WIDE, Chart, Scale, Series

places = st.lists(st.tuples(st.floats(70, 740), st.floats(40, 340)), min_size=1, max_size=20)


@given(places)
def test_no_mark_covers_another(points: list[tuple[float, float]]) -> None:
    at = beside_each_other(points, 58, 746)
    moved = [(x, y) for x, (_, y) in zip(at, points, strict=True)]
    assert all(math.dist(p, q) >= 8.999 for p, q in combinations(moved, 2))
    assert all(64 <= x <= 740 for x in at)


@given(places)
def test_what_has_room_stays(points: list[tuple[float, float]]) -> None:
    apart = [p for i, p in enumerate(points) if all(math.dist(p, q) > 40 for q in points[:i])]
    assert beside_each_other(apart, 58, 746) == [x for x, _ in apart]


def test_three_on_one_spot_stand_in_a_row() -> None:
    assert beside_each_other([(100.0, 50.0)] * 3, 58, 746) == [100, 112, 124]
    assert beside_each_other([(738.0, 50.0)] * 3, 58, 746) == [738, 726, 714]


@given(places)
def test_names_lie_on_no_mark_and_no_name(points: list[tuple[float, float]]) -> None:
    chart = Chart(WIDE, Scale(0, 1, ()), Scale(0, 1, ()), "", "")
    at = beside_each_other(points, chart.left, chart.right)
    marks = [
        Named(f"Q{i}_K", Series("", 0, 0), x, y, (y, y))
        for i, (x, (_, y)) in enumerate(zip(at, points, strict=True))
    ]
    draw_labels(chart, marks)
    root = ET.fromstring(f"<svg>{''.join(chart.body)}</svg>")
    boxes = []
    for each in root.iter("text"):
        x, y = float(each.get("x", "")), float(each.get("y", ""))
        boxes.append(Box(x, y - 8, x + 6 * len(each.text or ""), y))
    assert not any(a.meets(b) for a, b in combinations(boxes, 2))
    assert not any(box.meets(Box(m.x - 4, m.y - 4, m.x + 4, m.y + 4)) for box in boxes for m in marks)


def test_files_on_one_spot_are_all_seen(sample_results: Results) -> None:
    first = sample_results.candidates[0]
    alike = tuple(
        first.model_copy(update={"name": f"Q4_K_M/{k}", "tensors_sha256": f"{k:064d}"}) for k in range(3)
    )
    results = sample_results.model_copy(update={"candidates": alike, "comparisons": ()})
    look = Look(results, {}, None, series_of(results.candidates))
    for plot in (size_kld(look), ppl_kld(look)):
        assert plot is not None
        assert "Marks that would cover each other stand side by side" in plot.caption
        for size in (WIDE, NARROW):
            drawn = plot.draw(size).content()
            marks = [float(x) for x in re.findall(r'class="mark"[^>]*><circle cx="([\d.]+)"', drawn)]
            assert len(marks) == 3
            assert min(abs(a - b) for a, b in combinations(marks, 2)) >= 9
            assert all(f">Q4_K_M/{k}</text>" in drawn for k in range(3))
    alone = size_kld(Look(sample_results.model_copy(update={"candidates": alike[:1]}), {}, None, look.series))
    assert alone is not None
    assert "side by side" not in alone.caption
