"""CSV that a spreadsheet opens as what it is: no text becomes a formula, no number becomes text."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tokens import token_table, with_worst, write_table

from bitloss.display import decimal, percent
from bitloss.records import Results
from bitloss.report.page import to_csv
from bitloss.report.sheets import csv_text
from bitloss.report.tables import Table
from bitloss.report.write import write_report


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("'=1", "''=1"),
        ("\t=1", "\\x09=1"),
        ("\r\n=1", "\\x0d\\x0a=1"),
        ("a\x1b[2J\u202eb", "a\\x1b[2J\\u202eb"),
        ("'s", "'s"),
        ("don't = do", "don't = do"),
        ("a-b", "a-b"),
        ("-0.256 ± 0.010 %", "-0.256 ± 0.010 %"),
        ("-0.256 ± 0.015 (0.010) %", "-0.256 ± 0.015 (0.010) %"),
        ("-5.100e-05 .. 3.300e-05", "-5.100e-05 .. 3.300e-05"),
        ("-0.100 % .. 0.300 %", "-0.100 % .. 0.300 %"),
        ("-0.5", "-0.5"),
        (-0.5, "-0.5"),
        (-7, "-7"),
        (-1e-9, "-1e-09"),
        (None, ""),
        (True, "True"),
        ("", ""),
    ],
)
def test_a_cell(value: object, cell: str) -> None:
    assert read(csv_text([["title", "other"], [value, 1]])) == [["title", "other"], [cell, "1"]]


@given(st.text(min_size=1, max_size=30).map(lambda text: "=" + text) | st.text("=+-@ '1.e", max_size=12))
def test_text_comes_back(text: str) -> None:
    """Whatever is printable, by the rule that the module gives."""
    (cell,) = read(csv_text([[text, "x"]]))[0][:1]
    assert not re.match(r"\s*[=+@]", cell)
    if text.isprintable():
        assert (cell[1:] if re.match(r"'+ *[=+\-@\uff1d\uff0b\uff0d\uff20]", cell) else cell) == text


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e300))
def test_figures_stay_as_they_are_shown(value: float, se: float) -> None:
    shown = [decimal(value), decimal(value, se), percent(value / 1000, se / 1000), percent(value / 1000)]
    assert read(csv_text([shown])) == [shown]


def test_a_copied_table_has_the_same_cells() -> None:
    table = Table(("=name", "n"), (("=1+1", "-0.5"), ("a\nb", "n/a (1)")))
    assert read(to_csv(table)) == [["'=name", "n"], ["'=1+1", "-0.5"], ["a\\x0ab", "n/a (1)"]]


def test_no_file_of_a_report_holds_a_formula(sample_document: dict[str, Any], tmp_path: Path) -> None:
    """Names and words from outside in every place where one can stand."""
    evil = '=HYPERLINK("http://x","y")\x1b\r\n'
    sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63}
    names = {c["name"]: evil + c["name"] for c in sample_document["candidates"]}
    for each in sample_document["candidates"]:
        each["name"], each["file"], each["type"] = names[each["name"]], "=1+1.gguf", "@type"
        if each.get("identical_to"):
            each["identical_to"] = names[each["identical_to"]]
    for each in sample_document["comparisons"]:
        each["a"], each["b"] = names[each["a"]], names[each["b"]]
    for each in sample_document["costs"]:
        each["step"] = "+" + each["step"]
    results = Results.model_validate(sample_document)
    pieces = dict.fromkeys(range(400), evil)
    write_table(with_worst(token_table(12, 63), pieces), tmp_path, "q4", results.candidates[0].tensors_sha256)
    write_report(results, tmp_path)
    files = sorted((tmp_path / "tables").glob("*.csv"))
    assert {"figures", "files", "comparisons", "costs", "worst-tokens", "size-kld"} <= {f.stem for f in files}
    seen = 0
    for path in files:
        text = path.read_bytes().decode()
        assert "\r" not in text
        for row in read(text):
            for cell in row:
                assert cell.isprintable(), path
                assert cell[:1] not in {"=", "+", "@"}, (path, cell)
                assert cell[:1] != "-" or re.fullmatch(r"[-\d.e+ ±%()]+", cell), (path, cell)
                seen += cell.startswith("'=HYPERLINK")
    assert seen > 50
    with (tmp_path / "tables" / "comparisons.csv").open() as file:
        assert [row["difference"] for row in csv.DictReader(file)][:2] == ["-9e-06", "-0.017251"]
