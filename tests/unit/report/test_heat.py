"""Heat maps: every tensor has its cell, strength goes by the value, what is not known has no colour."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from bitloss.records import Candidate, Raised, Results, Sensitivity, TensorError
from bitloss.records.sensitivity import GroupKind
from bitloss.report.colours import HEAT, HEAT_DARK, STYLE, ink_on, luminance
from bitloss.report.export import write_tables
from bitloss.report.heat import cross_blocks, place, sensitivity, tensor_errors
from bitloss.report.looks import Look, series_of
from bitloss.report.page import css
from bitloss.report.svg import NARROW, WIDE

NAMES = [f"blk.{layer}.{kind}.weight" for layer in range(3) for kind in ("ffn_down", "attn_q", "odd_new")]
NAMES += ["token_embd.weight", "output.weight"]
GAINS: tuple[tuple[GroupKind, float], ...] = (("attention", 0.002), ("feed-forward", -0.001))


def look(results: Results) -> Look:
    return Look(results, {}, None, series_of(results.candidates))


def with_errors(results: Results, *, count: int) -> Results:
    def told(c: Candidate, scale: float) -> Candidate:
        errors = tuple(
            TensorError(name=n, type="Q4_K", rms=scale * (k + 1), rms_weighted=None)
            for k, n in enumerate(NAMES)
        )
        return c.model_copy(
            update={"tensor_errors": (*errors[:-1], errors[-1].model_copy(update={"rms": None}))}
        )

    changed = tuple(
        told(c, 0.01 if k < 2 else 0.001) if k < count else c for k, c in enumerate(results.candidates)
    )
    return results.model_copy(update={"candidates": changed})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.12.attn_q.weight", ("attn_q", 12)),
        ("blk.0.ffn_gate_exps.weight", ("ffn_gate_exps", 0)),
        ("blk.3.ssm_a", ("ssm_a", 3)),
        ("output.weight", ("output", None)),
        ("blk.x.attn_q.weight", ("blk.x.attn_q", None)),
    ],
)
def test_where_a_tensor_stands(name: str, expected: tuple[str, int | None]) -> None:
    assert place(name) == expected


def test_every_tensor_has_its_cell(sample_results: Results) -> None:
    plot = tensor_errors(look(with_errors(sample_results, count=4)))
    assert plot is not None
    assert len(plot.table.rows) == 3 * len(NAMES)  # the twin is not drawn again
    assert plot.table.rows[0] == ("Q4_K_M/f32", NAMES[0], "Q4_K", "1.000 %", "n/a")
    assert plot.table.rows[10][3] == "n/a"
    assert "Q8_0/f16 (as Q8_0/f32)" in plot.caption
    assert "A frame alone is a tensor whose error is not known." in plot.caption
    for size in (WIDE, NARROW):
        root = ET.fromstring(f"<svg>{plot.draw(size).content()}</svg>")
        cells = [r for r in root.iter("rect") if r.get("data-tip")]
        assert len(cells) == 3 * len(NAMES)
        assert [r.get("class") for r in cells].count("none") == 3  # not known
        strength = {
            r.get("data-tip", "").split(",")[0]: int(r.get("class", "").removeprefix("h")) for r in cells[:10]
        }
        assert strength["blk.0.ffn_down.weight"] < strength["blk.2.ffn_down.weight"]
        rows = [
            t.text for t in root.iter("text") if t.get("text-anchor") == "end" and t.get("class") == "small"
        ]
        assert rows[:5] == ["attn_q", "ffn_down", "odd_new", "token_embd", "output"]
        for each in cells:
            x, width = float(each.get("x", "")), float(each.get("width", ""))
            assert 0 <= x < x + width <= size.width


def test_the_legend_has_the_colours_of_the_cells(sample_results: Results) -> None:
    plot = tensor_errors(look(with_errors(sample_results, count=4)))
    assert plot is not None
    assert "error (logarithmic)" in plot.draw(WIDE).content()
    for size in (WIDE, NARROW):
        root = ET.fromstring(f"<svg>{plot.draw(size).content()}</svg>")
        rects = list(root.iter("rect"))
        key = [r.get("class") for r in rects if not r.get("data-tip") and r.get("class") != "hollow"]
        cells = [r.get("class") for r in rects if r.get("data-tip")]
        assert key == [f"h{step}" for step in range(len(HEAT))]
        assert set(cells) <= {*key, "none"}
        by_file = [set(cells[k : k + len(NAMES)]) for k in range(0, len(cells), len(NAMES))]
        assert "h0" in by_file[2]  # the file with a tenth of the error: other colours, the first among them
        assert f"h{len(HEAT) - 1}" in by_file[1]
        assert len(by_file[2]) > 4
    html = str(css())
    assert all(f".{each} {{ fill: var(--{each})" in html and f"--{each}: " in html for each in key)
    assert all(f".{each}{{fill:" in STYLE for each in key)


def test_what_is_written_on_a_colour_stands_out() -> None:
    for fills, paper in ((HEAT, "#fdfdfc"), (HEAT_DARK, "#14171b")):
        away = [contrast(fill, paper) for fill in fills]
        assert away == sorted(away)  # more is further from the paper, in either theme
        assert all(contrast(fill, ink_on(fill)) >= 4.5 for fill in fills)


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_values_are_written_where_there_is_room(sample_results: Results) -> None:
    plot = tensor_errors(look(with_errors(sample_results, count=1)))
    assert plot is not None
    assert ">1.000 %</text>" in plot.draw(WIDE).content()
    many = [
        TensorError(name=f"blk.{k}.attn_q.weight", type="Q4_K", rms=0.01, rms_weighted=None)
        for k in range(64)
    ]
    first = sample_results.candidates[0].model_copy(update={"tensor_errors": tuple(many)})
    plot = tensor_errors(look(sample_results.model_copy(update={"candidates": (first,), "comparisons": ()})))
    assert plot is not None
    assert plot.draw(NARROW).content().count("1.000 %</text>") == 1  # the key's


def test_what_is_far_below_the_rest_does_not_stretch_the_scale(sample_results: Results) -> None:
    few = [
        TensorError(name=f"blk.{k}.attn_q.weight", type="Q4_K", rms=rms, rms_weighted=None)
        for k, rms in enumerate((1e-9, 0.001, 0.1))
    ]
    first = sample_results.candidates[0].model_copy(update={"tensor_errors": tuple(few)})
    plot = tensor_errors(look(sample_results.model_copy(update={"candidates": (first,), "comparisons": ()})))
    assert plot is not None
    drawn = plot.draw(WIDE).content()
    assert "≤ 0.010 %" in drawn
    cells = re.findall(r'data-tip="blk[^>]*class="(\w+)"', drawn)
    assert cells == ["h0", "h6", f"h{len(HEAT) - 1}"]


def test_nothing_without_numbers(sample_results: Results) -> None:
    assert tensor_errors(look(sample_results)) is None
    assert sensitivity(look(sample_results)) is None
    assert cross_blocks(look(sample_results)) is None


def test_many_files_are_cut_and_said(sample_document: dict[str, Any], tmp_path: Any) -> None:
    first = sample_document["candidates"][0]
    sample_document["candidates"] = [
        first | {"name": f"Q{k}/x", "tensors_sha256": f"{k:064d}", "file": f"{k}.gguf"} for k in range(6)
    ]
    sample_document["comparisons"] = ()
    results = with_errors(Results.model_validate(sample_document), count=6)
    plot = tensor_errors(look(results))
    assert plot is not None
    assert "Drawn for the first 4 of 6" in plot.caption
    assert len(plot.table.rows) == 6 * len(NAMES)
    assert plot.draw(WIDE).content().count("data-tip") == 4 * len(NAMES)
    names = {path.name for path in write_tables(results, [plot], (), tmp_path)}
    assert "tensor-errors.parquet" in names


@pytest.mark.parametrize("per_layer", [True, False])
def test_sensitivity_by_layer_and_as_a_whole(sample_results: Results, per_layer: bool) -> None:
    groups = tuple(
        Raised(
            group=f"layer {layer} {kind}" if per_layer else kind,
            kind=kind,
            layer=layer if per_layer else None,
            candidate="Q8_0/f32",
            tensors=4,
            bits_per_weight_added=0.25,
            gain=gain,
            se=1e-4,
        )
        for layer in range(2 if per_layer else 1)
        for kind, gain in GAINS
    )
    found = Sensitivity(
        source="m.gguf", type="Q4_K_M", plain="Q4_K_M/f32", imatrix=None, per_layer=per_layer, groups=groups
    )
    plot = sensitivity(look(sample_results.model_copy(update={"sensitivity": found})))
    assert plot is not None
    drawn = plot.draw(WIDE).content()
    assert len(re.findall("gain in mean KLD 0.002000 ± 0.000100", drawn)) == (2 if per_layer else 1)
    assert drawn.count('class="none"') == (2 if per_layer else 1)  # a loss has no colour
    assert (">layer</text>" in drawn) == per_layer
