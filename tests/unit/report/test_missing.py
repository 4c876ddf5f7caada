"""What is not there is said where it would stand: candidates, comparisons, an audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitloss.explain.findings import findings
from bitloss.explain.questions import QUESTIONS
from bitloss.records import Results
from bitloss.report.card import MARK, render_card
from bitloss.report.missing import NO_AUDIT, NOTHING_TO_SAY, answered, no_candidates, no_comparisons
from bitloss.report.page import PAGE_NAME
from bitloss.report.write import write_report

NOTHING = "This run has no candidates yet: no file was measured against f32."


@pytest.fixture
def empty(sample_document: dict[str, Any]) -> Results:
    """A base, its noise, and nothing measured."""
    return Results.model_validate(sample_document | {"candidates": (), "comparisons": ()})


def written(results: Results, folder: Path) -> tuple[str, str]:
    report = write_report(results, folder)
    return report.markdown.read_text(encoding="utf-8"), report.html.read_text(encoding="utf-8")


def part(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0]


@pytest.mark.parametrize("floor", [True, False])
def test_a_run_without_candidates(empty: Results, tmp_path: Path, floor: bool) -> None:
    assert no_candidates(empty) == NOTHING
    results = empty if floor else empty.model_copy(update={"noise_floor": None})
    markdown, page = written(results, tmp_path)
    for text in (markdown, page):
        assert "No candidates yet: nothing was measured against f32 on wiki.test.raw" in text
        assert "None: this run has no candidates yet." in text
        assert "0 files" not in text
        assert NOTHING_TO_SAY not in text
        assert "spread over the tokens" not in text
        assert text.count(NOTHING) == 2  # in short, and in the table's place
        assert ("There are none." in text) is not floor  # figures of the noise floor, or none at all
    assert "\n\n\n" not in markdown
    assert "| Metric" not in part(markdown, "## Measurements", "\n## ")
    assert ("| Metric" in markdown) is floor
    assert "<table" not in part(page, 'id="measurements"', "</section>")


def test_a_card_without_candidates(empty: Results, tmp_path: Path) -> None:
    card = render_card(empty, tmp_path)
    assert card == (f"# Mistral-Nemo-Instruct-2407: no GGUF files measured yet\n\n{NOTHING}\n\n{MARK}\n")


def test_a_card_of_files_without_a_divergence(sample_document: dict[str, Any], tmp_path: Path) -> None:
    for each in sample_document["candidates"]:
        each["metrics"] = each["metrics"] | {"kld_mean": {"value": None, "reason": "not finite"}}
    card = render_card(Results.model_validate(sample_document), tmp_path)
    assert "No file has a mean KLD, so none can be recommended." in card
    assert "fits" not in card


def test_why_there_are_no_comparisons(sample_results: Results, empty: Results) -> None:
    assert no_comparisons(sample_results) is None
    none = sample_results.model_copy(update={"comparisons": ()})
    assert no_comparisons(none) == "None were made in this run."
    one = none.model_copy(update={"candidates": none.candidates[:1]})
    assert no_comparisons(one) == (
        "None: this run has one candidate, Q4_K_M/f32, and a comparison takes two."
    )
    assert no_comparisons(empty) == "None: this run has no candidates yet."


def test_a_run_without_an_audit_says_how_to_make_one(sample_document: dict[str, Any], tmp_path: Path) -> None:
    """Finished files were measured: no route is known, so no finding speaks of the audit."""
    for each in sample_document["candidates"]:
        each |= {"weights_from": None, "imatrix_from": None}
    results = Results.model_validate(sample_document)
    results = results.model_copy(update={"findings": findings(results)})
    assert "cast-not-counted" not in [f.id for f in results.findings]
    numbers = [answer.number for answer in answered(results)]
    assert numbers == sorted(numbers, key=lambda n: n or 9)
    assert 2 in numbers
    markdown, page = written(results, tmp_path)
    for text in (markdown, page):
        assert text.count(NO_AUDIT) == 1
        assert text.index(f"2. {QUESTIONS[2]}") < text.index(NO_AUDIT)
        assert "`bitloss audit MODEL` makes one" in text


def test_the_audit_is_asked_for_once(sample_results: Results, tmp_path: Path) -> None:
    told = sample_results.model_copy(update={"findings": findings(sample_results)})
    assert "cast-not-counted" in [f.id for f in told.findings]
    markdown, page = written(told, tmp_path)
    assert NO_AUDIT not in markdown + page
    assert page.count("bitloss audit MODEL</code> counts them") == 1
    bare = sample_results.model_copy(update={"findings": ()})
    assert answered(bare) == ()
    markdown, page = written(bare, tmp_path)
    for text in (markdown, page):
        assert text.count(NOTHING_TO_SAY) == 1
        assert NO_AUDIT not in text
    assert (tmp_path / PAGE_NAME).is_file()
