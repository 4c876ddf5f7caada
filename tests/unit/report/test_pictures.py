"""Pictures show what the tables say: scales, fronts, labels, files."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokens import token_table

from bitloss.records import Results
from bitloss.records.texts import Documents
from bitloss.report.looks import Look, series_of
from bitloss.report.pictures import png, write_pictures
from bitloss.report.plots import all_plots
from bitloss.report.scatter import pareto
from bitloss.report.summary import summarize_tokens
from bitloss.report.svg import NARROW, WIDE, linear, logarithmic, probit, standalone, text


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Rows of RGBA of a PNG without interlacing; the filters are those of the PNG specification, section 9."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    assert (depth, colour, interlaced) == (8, 6, 0)
    packed, at = b"", 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(packed)
    assert len(raw) == height * (4 * width + 1)
    return np.frombuffer(raw, np.uint8).reshape(height, 4 * width + 1)


@pytest.fixture
def look(sample_document: dict[str, Any]) -> Look:
    results = Results.model_validate(sample_document)
    tokens = {c.name: summarize_tokens(token_table(12, 63, seed=i)) for i, c in enumerate(results.candidates)}
    return Look(results, tokens, None, series_of(results.candidates))


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_no_other_beats(found: list[tuple[int, int]]) -> None:
    front = pareto(found)
    for i, (x, y) in enumerate(found):
        beaten = any(a <= x and b <= y and (a, b) != (x, y) for a, b in found)
        assert (found[i] in [found[k] for k in front]) == (not beaten)
    assert [found[k] for k in front] == sorted({found[k] for k in front})


def read(label: str) -> float:
    """The number a label of an axis says: ``0.002``, ``10,000``, ``2×10⁻⁵``."""
    factor, _, power = label.rpartition("×")
    if not (found := re.fullmatch("10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", power)):
        return float(label.replace(",", ""))
    exponent = found[1].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return float(factor or 1) * 10.0 ** int(exponent)


@given(st.floats(1e-12, 1e3), st.floats(1.0, 1e9))
def test_logarithmic_ticks_lie_inside_and_are_few(low: float, factor: float) -> None:
    scale = logarithmic(low, low * factor)
    assert scale.low < low
    assert low * factor < scale.high
    assert all(scale.low <= t.value <= scale.high for t in scale.ticks)
    assert len(scale.ticks) <= 12
    for tick in scale.ticks:
        assert read(tick.label) == pytest.approx(tick.value, rel=1e-9)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_linear_ticks_are_evenly_spaced(low: float, width: float) -> None:
    scale = linear(low, low + width)
    values = [t.value for t in scale.ticks]
    assert len(values) <= 10
    if width > 1e-6 * max(1, abs(low)):
        assert len(values) >= 3
        np.testing.assert_allclose(np.diff(values), values[1] - values[0], rtol=1e-3)


def test_percentiles_are_spaced_as_a_normal_distribution() -> None:
    scale = probit([0.001, 0.5, 0.999])
    assert scale.at(0.5, 0, 100) == pytest.approx(50)
    assert scale.at(0.8413447, 0, 100) == pytest.approx(50 + 50 / 3.0902, abs=1e-3)  # one sigma of 3.09


def test_marks_lie_where_their_values_are(look: Look) -> None:
    plot = next(p for p in all_plots(look) if p.id == "size-kld")
    chart = plot.draw(WIDE)
    x = 7_477_208_192 / 2**30
    assert chart.left < chart.px(x) < chart.right
    assert f'<circle cx="{chart.px(x):.1f}" cy="{chart.py(0.018110):.1f}"' in chart.content()
    assert [row[0] for row in plot.table.rows] == ["Q4_K_M/f32", "Q4_K_M/f16", "Q8_0/f32"]
    assert plot.table.rows[0][4] == "0.018110 ± 0.000168"


def test_every_picture_is_well_formed_at_both_sizes(look: Look) -> None:
    plots = all_plots(look)
    assert [p.id for p in plots] == [
        "size-kld",
        "kld-percentiles",
        "ppl-kld",
        "kld-position",
        "kld-confidence",
    ]
    for plot in plots:
        for drawn in plot.both():
            root = ET.fromstring(drawn)
            assert root.get("aria-label", "").startswith(plot.title)
        for size in (WIDE, NARROW):
            assert "nan" not in plot.draw(size).content()


def test_what_of_a_chunk_is_scored_is_said_as_it_is(look: Look) -> None:
    def caption(of: Look) -> str:
        return next(plot.caption for plot in all_plots(of) if plot.id == "kld-position")

    assert "in the chunk; only its second half is scored." in caption(look)
    documents = Documents(split="blank-line", scored=12, cut=0, unscored=0, unused=0)
    text = look.results.text.model_copy(update={"documents": documents})
    split = look._replace(results=look.results.model_copy(update={"text": text}))
    assert "by their position in the chunk. Not" in caption(split)


def test_long_names_stay_inside(sample_document: dict[str, Any]) -> None:
    long = {c["name"]: "Merge-" * 30 + c["name"] for c in sample_document["candidates"]}
    for each in sample_document["candidates"]:
        each |= {"name": long[each["name"]], "identical_to": long.get(each.get("identical_to") or "")}
    sample_document["comparisons"] = ()
    results = Results.model_validate(sample_document)
    tokens = {c.name: summarize_tokens(token_table(12, 63, seed=i)) for i, c in enumerate(results.candidates)}
    for plot in all_plots(Look(results, tokens, None, series_of(results.candidates))):
        for size in (WIDE, NARROW):
            for each in ET.fromstring(f"<svg>{plot.draw(size).content()}</svg>").iter("text"):
                assert len(each.text or "") * 6 < size.width, each.text
        words = re.findall(r"\S+", plot.caption)
        assert max(map(len, words)) <= 60
    plot = all_plots(Look(results, tokens, None, series_of(results.candidates)))[0]
    heading = re.findall('class="head">(.*?)<', standalone(plot.draw(WIDE), f"{'M' * 160}: size", ()))
    assert len(heading[0]) * 9 < WIDE.width
    assert heading[0].endswith(": size")


def test_twins_share_a_mark(look: Look) -> None:
    plot = next(p for p in all_plots(look) if p.id == "size-kld")
    assert "Q8_0/f32 = Q8_0/f16" in plot.draw(WIDE).content()
    curve = next(p for p in all_plots(look) if p.id == "kld-percentiles")
    assert [s.name for s in curve.legend] == ["Q4_K_M/f32", "Q4_K_M/f16", "Q8_0/f32"]


def test_an_audit_adds_its_histogram(look: Look) -> None:
    audit = {"matrices": {"lowest_exponent": -30, "exponents": [5, 0, 7, *[100] * 20, 3]}}
    results = look.results.model_copy(update={"audit": audit})
    plot = all_plots(look._replace(results=results))[-1]
    assert plot.id == "exponents"
    assert plot.table.rows[0] == ("2^-30", "5", "below F16's smallest value")
    assert plot.table.rows[1] == ("2^-28", "7", "below F16's smallest value")
    assert plot.table.rows[-1] == ("2^-7", "3", "in F16's range")
    for drawn in (*plot.both(), standalone(plot.draw(WIDE), "x", ())):
        ET.fromstring(drawn)
        assert "2⁻³⁰" in drawn
        assert "2^" not in drawn
        assert drawn.index('class="range"') < drawn.index('class="grid"') < drawn.index('class="axis"')
    assert "below 2⁻¹⁴" in plot.caption
    for other in (None, {}, {"matrices": {"exponents": [1]}}, {"matrices": 3}):
        results = look.results.model_copy(update={"audit": other})
        assert all_plots(look._replace(results=results))[-1].id != "exponents"


def test_files_without_a_browser(look: Look, tmp_path: Path) -> None:
    plots = all_plots(look)
    written = write_pictures(plots, tmp_path, model='A<b>&"c"\u202e')
    assert sorted(p.name for p in written) == sorted(f"{p.id}.{s}" for p in plots for s in ("svg", "png"))
    for path in written:
        if path.suffix == ".svg":
            root = ET.fromstring(path.read_text(encoding="utf-8"))
            title = root.find("{http://www.w3.org/2000/svg}title")
            assert title is not None
            assert str(title.text).startswith('A<b>&"c"\\u202e: ')
            assert "var(--" not in path.read_text(encoding="utf-8")
        else:
            image = pixels(path.read_bytes())
            assert image.shape[1] == 4 * 2 * (WIDE.width + 32) + 1  # a margin on both sides
            assert len(np.unique(image[40:120])) > 8  # the heading: words need a font


def test_words_are_drawn_with_the_font_that_comes_along() -> None:
    def drawn(words: str) -> int:
        picture = png(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="80" height="30"><text x="2" y="20">{words}</text></svg>'
        )
        return int((pixels(picture)[:, 1:] > 128).sum())

    assert drawn(" ") == 0
    assert drawn("KLD Δp ≈") > 300
    assert drawn("\ue000") != drawn("⁻") < drawn("⁻³⁰")  # digits of powers are in it, not boxes


def test_names_are_escaped() -> None:
    assert text('<a href="x">&\x00\u200f') == '&lt;a href="x"&gt;&amp;\\x00\\u200f'
