"""One kind of standard error everywhere, and each place says which."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bitloss.records import Figure, Results
from bitloss.report.card import render_card
from bitloss.report.looks import series_of
from bitloss.report.page import Page, render_html
from bitloss.report.render import render_markdown
from bitloss.report.tables import founding_table
from bitloss.report.texts import texts_said, texts_table
from bitloss.report.uncertainty import Uncertainty, fullest, said_of, usual, usual_error

CLUSTERED = "± is the standard error clustered by chunk, because"
TOKENS = "± is the standard error that llama-perplexity prints, which takes tokens as independent"


def _without(metrics: dict[str, Figure]) -> dict[str, Figure]:
    return {name: figure.model_copy(update={"se_clustered": None}) for name, figure in metrics.items()}


@pytest.fixture
def few(sample_document: dict[str, Any]) -> Results:
    """Too few chunks to cluster by."""
    for each in sample_document["candidates"]:
        each["metrics"] = _without(each["metrics"])
    sample_document["noise_floor"]["metrics"] = _without(sample_document["noise_floor"]["metrics"])
    return Results.model_validate(sample_document)


def page_of(results: Results) -> str:
    return render_html(Page(results, (), series_of(results.candidates)))


def test_clustered_wherever_there_is_such_an_error(sample_results: Results, tmp_path: Path) -> None:
    assert usual(sample_results) is Uncertainty.CLUSTERED
    assert fullest(sample_results) is Uncertainty.BOTH
    assert founding_table(sample_results).rows[0][1] == "6.445459 ± 0.059650"
    page = page_of(sample_results)
    assert '<section id="measurements" data-u="clustered"' in page
    assert re.findall(r'data-set-u="(\w+)" aria-pressed="true"', page) == ["clustered"]
    assert page.count(CLUSTERED) >= 2  # at the table, and at all figures
    assert "6.445459 ± 0.059650 (0.039767)" in page[page.index('id="all"') :]
    markdown = render_markdown(sample_results)
    assert "6.445459 ± 0.059650 (0.039767)" in markdown
    assert CLUSTERED in markdown
    assert "in brackets stands llama-perplexity's, which takes tokens as independent" in markdown
    card = render_card(sample_results, tmp_path)
    assert "its standard error clustered by chunk" in card
    assert "0.018110 ± 0.000168" in card


def test_with_few_chunks_llama_perplexitys_and_a_word_on_it(few: Results, tmp_path: Path) -> None:
    assert usual(few) is fullest(few) is Uncertainty.TOKENS
    assert founding_table(few).rows[0][1] == "6.445459 ± 0.039767"
    page = page_of(few)
    assert '<section id="measurements" data-u="tokens"' in page
    assert "data-set-u" not in page.split("<script", 1)[0]  # nothing to switch to
    for text in (page, render_markdown(few)):
        assert f"{TOKENS} and is usually too small: there are too few chunks" in text
        assert CLUSTERED not in text
    assert "tokens taken as independent (too few chunks to cluster by)" in render_card(few, tmp_path)


def test_what_is_said_fits_what_is_shown() -> None:
    both, clustered, tokens = Uncertainty.BOTH, Uncertainty.CLUSTERED, Uncertainty.TOKENS
    assert said_of(clustered, clustered).endswith("it is not the one that llama-perplexity prints.")
    assert "in brackets" in said_of(both, clustered)
    assert said_of(tokens, clustered) == f"{TOKENS}; clustered by chunk, errors are usually larger."
    assert "too few chunks" in said_of(tokens, tokens)
    assert "too few documents for errors clustered by document" in said_of(tokens, tokens, cluster="document")
    assert said_of(both, clustered, cluster="conversation", stratified=True).startswith(
        "± is the standard error clustered by conversation, because the tokens of a conversation have much in common, "
        "and taken about each text's own mean; in brackets"
    )
    assert usual_error(Figure(value=1.0, se=0.25)) == 0.25
    assert usual_error(Figure(value=1.0, se=0.25, se_clustered=0.5)) == 0.5
    assert usual_error(Figure(value=1.0)) is None


def test_a_text_of_few_chunks_is_named(sample_document: dict[str, Any]) -> None:
    part = {"sha256": "0" * 64, "tokens_sha256": "1" * 64, "scored_tokens": 765}
    names = {"prose.txt": 600, "code.txt": 3}
    sample_document["texts"] = [part | {"name": name, "chunks": n} for name, n in names.items()]
    for each in sample_document["candidates"]:
        each["by_text"] = [each["metrics"], _without(each["metrics"])]
    results = Results.model_validate(sample_document)
    shown = {(row[0], row[3]): row[4] for row in texts_table(results).rows}
    assert shown["prose.txt", "Q4_K_M/f32"] == "6.445459 ± 0.059650"
    assert shown["code.txt", "Q4_K_M/f32"] == "6.445459 ± 0.039767"
    said = texts_said(results)
    assert said.startswith(CLUSTERED)
    assert "For code.txt, with too few chunks for that, it is the one that llama-perplexity prints." in said
    for text in (page_of(results), render_markdown(results)):
        assert "For code.txt, with too few chunks for that" in text
    one = results.model_copy(
        update={
            "texts": results.texts[:1],
            "candidates": tuple(c.model_copy(update={"by_text": c.by_text[:1]}) for c in results.candidates),
        }
    )
    assert texts_said(one) == said_of(Uncertainty.CLUSTERED, Uncertainty.CLUSTERED)
