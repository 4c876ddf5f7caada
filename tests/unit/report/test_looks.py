"""How candidates look in pictures: by type, and every file apart from the others."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bitloss.records import Candidate
from bitloss.report.looks import series_of
from bitloss.report.svg import VARIANTS, WIDE, Chart, Series, linear, shape


def of(document: dict[str, Any], types: list[str]) -> tuple[Series, ...]:
    first = document["candidates"][0]
    return series_of(
        [Candidate.model_validate(first | {"name": f"f{i}", "type": t}) for i, t in enumerate(types)]
    )


def drawn(series: Series) -> tuple[str, str, str]:
    """Colour, mark and dash, as they are drawn."""
    chart = Chart(WIDE, linear(0, 1), linear(0, 1), "x", "y")
    chart.line(series, [(0, 0), (1, 1)])
    dash = re.search('stroke-dasharray="([^"]+)"', chart.body[0])
    return series.css, shape(series, 0, 0), dash[1] if dash else ""


@pytest.mark.parametrize("n", [5, VARIANTS, 20, 64])
def test_files_of_one_type_all_look_different(sample_document: dict[str, Any], n: int) -> None:
    looks = [drawn(each) for each in of(sample_document, ["Q4_K_M"] * n)]
    assert len({(colour, mark) for colour, mark, _ in looks}) == n
    assert len({(colour, dash) for colour, _, dash in looks}) == n
    assert len({colour for colour, _, _ in looks}) == -(-n // VARIANTS)  # one colour as long as marks last


def test_types_have_colours_and_two_routes_of_many_types_look_different(
    sample_document: dict[str, Any],
) -> None:
    looks = of(sample_document, ["Q8_0", "Q8_0", "Q4_K_M", "Q4_K_M"])
    assert [(each.colour, each.variant) for each in looks] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    types = [f"T{i // 2}" for i in range(64)]  # 32 types, four to a colour
    many = of(sample_document, types)
    assert len({drawn(each) for each in many}) == 64
    assert all(a.colour == b.colour for a, b in zip(many[::2], many[1::2], strict=True))
