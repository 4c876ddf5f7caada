"""Sentences, names and empty cells, as the page shows them."""

from __future__ import annotations

import pytest

from bitloss.report.words import cell, prose, sentences, whole_in_title


def test_a_paragraph_in_sentences() -> None:
    said = sentences("Files differ by 0.5 %. Two of them (see A. B) do not: one. 3 more, e.g. these, do.")
    plain = [each.words.striptags() for each in said]
    assert plain == [
        "Files differ by 0.5 %.",
        "Two of them (see A.",
        "B) do not: one.",
        "3 more, e.g. these, do.",
    ]


def test_what_a_sentence_lists_becomes_points() -> None:
    (only,) = sentences("On the same tokens: KLD: a tie (p; q: 0.4); same top p: a tie; PPL: B is better.")
    assert only.words.striptags() == "On the same tokens:"
    assert [part.striptags() for part in only.parts] == [
        "KLD: a tie (p; q: 0.4)",
        "same top p: a tie",
        "PPL: B is better.",
    ]
    for plain in ("One; two: three.", "No list: here.", "A (b: c; d)."):
        assert [each.parts for each in sentences(plain)] == [()]


def test_nothing_in_a_finding_is_markup() -> None:
    (only,) = sentences("<b>x</b>: <i>; &amp;.")
    assert only.words == "&lt;b&gt;x&lt;/b&gt;:"
    assert only.parts == ("&lt;i&gt;", "&amp;amp;.")
    assert prose("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"


def test_long_names_are_cut_with_the_whole_in_a_title() -> None:
    name = "Merge-" * 30 + '"<Q4'
    said = prose(f"{name} is better")
    assert said.startswith('<span title="Merge-Merge-')
    assert "&#34;&lt;Q4" in said
    assert len(said.striptags()) < 80
    assert whole_in_title("Q4_K_M/f32") == "Q4_K_M/f32"
    assert len(whole_in_title(name).striptags()) == 80
    assert '<span class="n">' not in prose("1" * 150)  # else one line of 150 digits


@pytest.mark.parametrize(
    ("text", "notes", "shown"),
    [
        ("n/a (2)", 3, '<span class="na" role="img" aria-label="n/a (2)">–<sup>2</sup></span>'),
        ("n/a (1)", 1, '<span class="na" role="img" aria-label="n/a (1)">–</span>'),
        ("n/a", 0, '<span class="na" role="img" aria-label="n/a">–</span>'),
        ("2^-30", 0, "2⁻³⁰"),
        ("n/a <x>", 1, "n/a &lt;x&gt;"),
        ("0.018110 ± 0.000112", 1, "0.018110 ± 0.000112"),
    ],
)
def test_cells(text: str, notes: int, shown: str) -> None:
    assert cell(text, notes) == shown
