"""Tables show what the records hold, digit for digit."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bitloss.display import decimal
from bitloss.divergence.comparison import Metric
from bitloss.divergence.metrics import token_metrics_reference
from bitloss.divergence.statistics import summarize
from bitloss.records import Figure, Results
from bitloss.report.page import to_csv
from bitloss.report.tables import (
    FOUNDING,
    TITLES,
    Notes,
    Table,
    comparisons_table,
    costs_table,
    files_table,
    form_of,
    founding_table,
    full_table,
    show_figure,
    to_markdown,
)
from bitloss.report.terminal import Fitted
from bitloss.report.uncertainty import Uncertainty

# The published table this tool was made to explain, cell by cell.
PUBLISHED = """
Mean PPL(Q) | 6.445459 ± 0.039767 | 6.445574 ± 0.039771 | 6.344932 ± 0.038989 | 6.344932 ± 0.038989
Mean PPL(base) | 6.337070 ± 0.038896 | 6.337070 ± 0.038896 | 6.337070 ± 0.038896 | 6.337070 ± 0.038896
Cor(ln(PPL(Q)), ln(PPL(base))) | 99.62 % | 99.62 % | 99.98 % | 99.98 %
Mean PPL(Q)/PPL(base) | 1.017104 ± 0.000548 | 1.017122 ± 0.000549 | 1.001241 ± 0.000131 | 1.001241 ± 0.000131
Mean KLD | 0.018110 ± 0.000112 | 0.018119 ± 0.000114 | 0.000859 ± 0.000005 | 0.000859 ± 0.000005
Maximum KLD | 3.371759 | 2.833701 | 0.377813 | 0.377813
Median KLD | 0.009176 | 0.009167 | 0.000549 | 0.000549
Mean Δp | -0.256 ± 0.010 % | -0.251 ± 0.010 % | -0.017 ± 0.002 % | -0.017 ± 0.002 %
RMS Δp | 3.966 ± 0.033 % | 3.978 ± 0.033 % | 0.848 ± 0.007 % | 0.848 ± 0.007 %
Same top p | 93.893 ± 0.062 % | 93.864 ± 0.062 % | 98.515 ± 0.031 % | 98.515 ± 0.031 %
"""


def row(table: Table, title: str) -> tuple[str, ...]:
    return next(r for r in table.rows if r[0] == title)


def rendered(table: Table, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(Fitted(table))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_the_published_table_comes_out_as_published(sample_results: Results) -> None:
    table = founding_table(sample_results, uncertainty=Uncertainty.TOKENS)
    assert table.columns == ("Metric", "Q4_K_M/f32", "Q4_K_M/f16", "Q8_0/f32", "Q8_0/f16", "noise floor")
    published = [tuple(c.strip() for c in line.split("|")) for line in PUBLISHED.strip().splitlines()]
    assert [r[:5] for r in table.rows[: len(FOUNDING)]] == published


def test_what_identifies_the_files(sample_results: Results) -> None:
    table = founding_table(sample_results)
    assert row(table, "Bits per weight")[1:] == ("4.8800", "4.8800", "8.5000", "8.5000", "")
    assert row(table, "File size")[3] == "12.13 GiB"
    hashes = row(table, "Hash of the tensors")
    assert hashes[3] == hashes[4] != hashes[1]
    assert row(table, "sha256")[3] != row(table, "sha256")[4]
    assert row(table, "Tensors identical to") == ("Tensors identical to", "", "", "", "Q8_0/f32", "")
    without = sample_results.model_copy(
        update={"candidates": sample_results.candidates[:2], "noise_floor": None}
    )
    titles = [r[0] for r in founding_table(without).rows]
    assert "Tensors identical to" not in titles
    assert len(founding_table(without).columns) == 3


def test_ties_are_marked(sample_results: Results) -> None:
    title = "Mean KLD a tie with"
    assert row(founding_table(sample_results), title)[1:] == ("Q4_K_M/f16", "Q4_K_M/f32", "", "", "")
    rest = sample_results.model_copy(update={"comparisons": sample_results.comparisons[1:]})
    assert title not in [r[0] for r in founding_table(rest).rows]
    tie = sample_results.comparisons[0]
    others = tuple(tie.model_copy(update={"b": c.name}) for c in sample_results.candidates[1:])
    many = row(founding_table(sample_results.model_copy(update={"comparisons": others})), title)
    assert many[1:] == ("3 files", "Q4_K_M/f32", "Q4_K_M/f32", "Q4_K_M/f32", "")


def test_tokens_that_are_not_finite_have_a_row_when_there_are_any(sample_results: Results) -> None:
    assert TITLES["nonfinite_tokens"] not in [r[0] for r in founding_table(sample_results).rows]
    first = sample_results.candidates[0]
    metrics = first.metrics | {"nonfinite_tokens": Figure(value=3)}
    changed = (first.model_copy(update={"metrics": metrics}), *sample_results.candidates[1:])
    table = founding_table(sample_results.model_copy(update={"candidates": changed}))
    assert row(table, TITLES["nonfinite_tokens"])[1:3] == ("3", "0")


@pytest.mark.parametrize(
    ("uncertainty", "ppl", "rms"),
    [
        (Uncertainty.TOKENS, "6.445459 ± 0.039767", "3.966 ± 0.033 %"),
        (Uncertainty.CLUSTERED, "6.445459 ± 0.059650", "3.966 ± 0.050 %"),
        (Uncertainty.BOTH, "6.445459 ± 0.059650 (0.039767)", "3.966 ± 0.050 (0.033) %"),
    ],
)
def test_both_kinds_of_error(sample_results: Results, uncertainty: Uncertainty, ppl: str, rms: str) -> None:
    table = founding_table(sample_results, uncertainty=uncertainty)
    assert row(table, "Mean PPL(Q)")[1] == ppl
    assert row(table, "RMS Δp")[1] == rms


def test_nulls_have_numbered_reasons() -> None:
    notes = Notes()
    both = Uncertainty.BOTH
    assert show_figure(Figure(value=None, reason="one chunk"), "ppl", both, notes) == "n/a (1)"
    assert show_figure(None, "ppl", both, notes) == "n/a (2)"
    assert show_figure(Figure(value=None, reason="one chunk"), "ppl", both, notes) == "n/a (1)"
    assert show_figure(Figure(value=1.0, se=0.5), "ppl", both, notes) == "1.000000 ± 0.500000"
    assert notes.reasons == ["one chunk", "not measured"]
    text = to_markdown(Table(("a", "b"), (("x", "n/a (1)"),), ("one | chunk",)))
    assert text.endswith("\n\n(1) one \\| chunk")


def test_the_full_table_keeps_llama_perplexitys_order(sample_results: Results) -> None:
    first = sample_results.candidates[0]
    metrics = first.metrics | {"a_metric_of_tomorrow": Figure(value=0.5)}
    changed = (first.model_copy(update={"metrics": metrics}), *sample_results.candidates[1:])
    table = full_table(sample_results.model_copy(update={"candidates": changed}))
    titles = [r[0] for r in table.rows]
    assert titles[:3] == ["Mean PPL(Q)", "Mean PPL(base)", "Cor(ln(PPL(Q)), ln(PPL(base)))"]
    assert titles.index("Maximum KLD") + 1 == titles.index("99.9% KLD")
    assert titles[-1] == "a_metric_of_tomorrow"
    assert table.notes == ("fewer than 1000 tokens", "not measured")


def test_every_metric_of_the_design_has_a_title_and_a_form() -> None:
    kld = [f"kld_p{p}" for p in ("99_9", "99", "95", "90", "10", "5", "1", "0_1")]
    named = {
        *kld,
        *(k.replace("kld", "dp") for k in kld),
        "kld_min",
        "kld_max",
        "kld_median",
        "kld_reverse_mean",
    }
    assert named | {"js_mean", "top5_overlap", "top10_overlap", "nonfinite_tokens", "ppl_difference"} <= set(
        TITLES
    )
    assert TITLES["kld_p0_1"] == "0.1% KLD"
    forms = {name: form_of(name).value for name in TITLES}
    assert forms["dp_p99_9"] == forms["same_top"] == forms["top10_overlap"] == "percent"
    assert forms["kld_mean"] == forms["ppl_ratio"] == forms["entropy"] == "decimal"
    assert (forms["cor_ln_ppl"], forms["nonfinite_tokens"]) == ("correlation", "count")


def test_comparisons(sample_results: Results) -> None:
    table = comparisons_table(sample_results)
    tie = ("-9.000e-06", "-5.100e-05 .. 3.300e-05", "0.67", "1.00", "tie")
    assert table.rows[0] == ("Q4_K_M/f32", "Q4_K_M/f16", "Mean KLD", *tie)
    assert table.rows[1][-1] == "Q8_0/f32 is better"
    assert table.rows[2][3:] == ("0.000000", "n/a (1)", "n/a (1)", "n/a (1)", "identical")
    assert table.notes == ("the same tensors",)


def test_files(sample_results: Results) -> None:
    table = files_table(sample_results)
    assert table.rows[0][:4] == (
        "f32 (base)",
        "Mistral-Nemo-Instruct-2407-f32.gguf",
        "45.64 GiB",
        "49004000000",
    )
    assert table.rows[4][0] == "Q8_0/f16"
    assert table.rows[4][-1] == "Q8_0/f32"


def test_costs_are_summed(sample_results: Results) -> None:
    table = costs_table(sample_results)
    assert ("imatrix f32", "f32", "32 min 40 s", "6.96 MiB", "taken over") in table.rows
    assert table.rows[-2] == ("all", "", "1 h 45 min", "109.79 GiB", "")
    assert table.rows[-1] == ("this run", "", "1 h 12 min", "109.78 GiB", "")
    fresh = sample_results.model_copy(update={"costs": sample_results.costs[:2]})
    assert [r[0] for r in costs_table(fresh).rows] == ["convert f32", "convert f16", "all"]


def test_markdown_is_a_table_of_equal_width(sample_results: Results) -> None:
    lines = to_markdown(founding_table(sample_results)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == set("| -:")
    assert [c.strip() for c in lines[2].split("|")][1:3] == ["Mean PPL(Q)", "6.445459 ± 0.059650"]


def test_the_terminal_shows_the_same_cells(sample_results: Results) -> None:
    table = founding_table(sample_results)
    text = rendered(table)
    for cells in table.rows:
        for cell in cells:
            assert cell in text
    assert "(1) one chunk" in rendered(Table(("a",), (("n/a (1)",),), ("one chunk",)))


def test_columns_and_cells_must_agree() -> None:
    cells: Any = (("only one",),)
    with pytest.raises(AssertionError):
        Table(("a", "b"), cells)


def test_every_figure_that_is_measured_has_a_title() -> None:
    rng = np.random.default_rng(5)
    base = rng.normal(size=(120, 32)).astype(np.float32)
    candidate = base + rng.normal(scale=0.1, size=base.shape).astype(np.float32)
    tokens = token_metrics_reference(base, candidate, rng.integers(0, 32, 120, dtype=np.int32))
    figures = summarize(tokens, np.repeat(np.arange(12), 10))
    assert set(figures) <= set(TITLES)
    assert set(FOUNDING) <= set(figures)
    assert {metric.value for metric in Metric} <= set(TITLES)
    same_top = 100 * float(np.mean(base.argmax(1) == candidate.argmax(1)))
    shown = show_figure(figures["same_top"], "same_top", Uncertainty.TOKENS, Notes())
    assert shown.startswith(f"{same_top:.3f} ± ")
    assert shown.endswith(" %")


def test_a_narrow_terminal_breaks_no_number(sample_results: Results) -> None:
    table = founding_table(sample_results)
    console = Console(file=io.StringIO(), width=100, color_system=None, force_terminal=True)
    console.print(Fitted(table))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert (
        sum(line.split()[:1] == ["Metric"] for line in lines) == 2
    )  # parts below each other, the titles in each
    for index, title in enumerate(table.columns[1:], 1):
        part = text[text.index(title) :]
        for row in table.rows:
            assert not row[index] or row[index] in part, (title, row[0])
    assert rendered(table, 400).count("Metric") == 1
    console = Console(file=io.StringIO(), width=60, color_system=None, force_terminal=True)
    console.print(Fitted(table))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Bits per weight" not in text[text.index("noise floor") :]  # a row that says nothing there


def test_one_formatting_everywhere(sample_results: Results) -> None:
    """The same strings on the terminal, in Markdown, CSV and HTML, and in what JSON's numbers become."""
    table = founding_table(sample_results)
    cells = [[c for c in row if c] for row in (table.columns, *table.rows)]
    terminal = [
        re.split(r"\s{2,}", line.strip()) for line in rendered(table, 400).splitlines() if "─" not in line
    ]
    assert [row for row in terminal if row != [""]] == cells
    markdown = [re.split(r"\s*\|\s*", line.strip("| ")) for line in to_markdown(table).splitlines()]
    assert [[c.replace("\\", "") for c in row if c] for row in (markdown[0], *markdown[2:])] == cells
    assert [[c for c in row if c] for row in csv.reader(io.StringIO(to_csv(table)))] == cells
    document = Results.model_validate_json(sample_results.model_dump_json(by_alias=True))
    assert founding_table(document) == table
    for k, each in enumerate(document.candidates, 1):
        value = document.model_dump(mode="json")["candidates"][k - 1]["metrics"]["kld_mean"]
        assert row(table, "Mean KLD")[k] == decimal(value["value"], value["se_clustered"]), each.name
