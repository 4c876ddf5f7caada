"""The page says the same numbers as the other renderings, and nothing in it can act."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from markupsafe import Markup
from tests.tokens import token_table, with_worst, write_table

from bitloss.display import decimal
from bitloss.explain.findings import findings
from bitloss.records import Figure, Results
from bitloss.report.looks import series_of
from bitloss.report.page import Page, json_script, render_html
from bitloss.report.tables import founding_table, full_table, to_markdown
from bitloss.report.texts import texts_table
from bitloss.report.uncertainty import Uncertainty
from bitloss.report.words import Said, prose, sentences
from bitloss.report.write import write_report

_ASIDE = ("badge", "swatch", "u-t", "u-b")


class _Cells(HTMLParser):
    """Text of the cells of the table in a section, those hidden by style too, badges left out."""

    def __init__(self, section: str) -> None:
        super().__init__()
        self.section, self.inside, self.skip = section, False, 0
        self.rows: list[list[str]] = []
        self.cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag == "section":
            self.inside = said.get("id") == self.section
        if not self.inside:
            return
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.cell = []
        elif tag == "span" and (self.skip or (said.get("class") or "").startswith(_ASIDE)):
            self.skip += 1
        elif tag == "span" and said.get("class") == "na" and self.cell is not None:
            self.cell.append(said.get("aria-label") or "")  # shown as a dash
            self.skip += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self.skip:
            self.skip -= 1
        if tag in {"td", "th"} and self.cell is not None:
            self.rows[-1].append("".join(self.cell).strip())
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None and not self.skip:
            self.cell.append(data)


def cells(page: str, section: str) -> list[list[str]]:
    parser = _Cells(section)
    parser.feed(page)
    return parser.rows


@pytest.fixture
def explained(sample_results: Results) -> Results:
    return sample_results.model_copy(update={"findings": findings(sample_results)})


def rendered(results: Results) -> str:
    return render_html(Page(results, (), series_of(results.candidates)))


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def test_the_same_cells_in_html_markdown_and_csv(explained: Results) -> None:
    page = rendered(explained)
    data = data_of(page)
    table = founding_table(explained)
    assert cells(page, "measurements") == [list(row) for row in (table.columns, *table.rows)]
    everything = full_table(explained, uncertainty=Uncertainty.BOTH)
    assert cells(page, "all") == [list(row) for row in (everything.columns, *everything.rows)]
    for uncertainty in Uncertainty:
        table = founding_table(explained, uncertainty=uncertainty)
        assert data["copies"]["founding"]["markdown"][uncertainty.value] == to_markdown(table)
        read = list(csv.reader(io.StringIO(data["copies"]["founding"]["csv"][uncertainty.value])))
        assert read == [list(row) for row in (table.columns, *table.rows)]


def _joined(said: Said) -> str:
    parts = "; ".join(part.striptags() for part in said.parts)
    return f"{said.words.striptags()} {parts}".strip()


def test_nothing_is_fetched(explained: Results) -> None:
    page = rendered(explained)
    assert re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page) == [
        "data:,",
        *re.findall(r'href="(#[a-z0-9-]+)"', page),
    ]
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_findings_and_verdicts_come_first(explained: Results) -> None:
    page = rendered(explained)
    assert page.index('id="answer"') < page.index('id="measurements"') < page.index('id="comparisons"')
    for finding in explained.findings:
        assert prose(finding.title) in page
        plain = " ".join(finding.text.replace("`", "").split())
        assert Markup(prose(finding.text)).striptags() == plain
        said = sentences(finding.text)
        assert all(each.words in page and all(part in page for part in each.parts) for each in said)
        assert " ".join(_joined(each) for each in said) == plain  # nothing is left out
    assert '<span class="badge even">tie</span>' in page
    assert '<span class="badge even">identical</span>' in page
    assert '<span class="badge good">Q8_0/f32 is better</span>' in page


@pytest.mark.parametrize("evil", ["</script><script>alert(1)</script>", "<!--", "]]>", "&lt;", "' onload='x"])
def test_what_is_named_stays_text(sample_document: dict[str, Any], evil: str) -> None:
    name = evil.replace("/", "\u2215")
    sample_document["model"]["name"] = sample_document["text"]["name"] = sample_document["base"]["file"] = (
        name
    )
    sample_document["machine"]["cpu"] = evil
    sample_document["commands"] = (evil,)
    page = rendered(Results.model_validate(sample_document))
    elements: list[str] = []
    words: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            elements.extend([tag, *(key for key, _ in attrs)])

        def handle_comment(self, data: str) -> None:
            elements.append("comment")

        def handle_data(self, data: str) -> None:
            words.append(data)

    Reader().feed(page)
    assert elements.count("script") == 2
    assert "comment" not in elements
    assert [each for each in elements if each.startswith("on")] == []
    assert any(evil in each for each in words)


def test_numbers_in_sentences_stay_in_one_piece() -> None:
    said = prose("noise <1.946e-08>, -0.010 %, 6.4 ± 0.1 nats, 1 min 02 s of f16 and Q8_0, 512.")
    kept = ["1.946e-08", "-0.010 %", "6.4 ± 0.1 nats", "1 min 02 s", "512"]
    assert re.findall('<span class="n">(.*?)</span>', said) == kept
    assert html.unescape(said.striptags()) == (
        "noise <1.946e-08>, -0.010 %, 6.4 ± 0.1 nats, 1 min 02 s of f16 and Q8_0, 512."
    )
    assert "<1" not in said
    assert prose("</span><b>\u202e") == "&lt;/span&gt;&lt;b&gt;\\u202e"


def test_each_text_by_itself(sample_document: dict[str, Any]) -> None:
    assert 'id="texts"' not in rendered(Results.model_validate(sample_document))
    part = {"sha256": "0" * 64, "tokens_sha256": "1" * 64, "chunks": 3, "scored_tokens": 765}
    sample_document["texts"] = [part | {"name": "prose.txt"}, part | {"name": "code<b>.txt"}]
    for each in sample_document["candidates"]:
        each["by_text"] = [each["metrics"], each["metrics"]]
    results = Results.model_validate(sample_document)
    table = texts_table(results)
    assert cells(rendered(results), "texts") == [list(row) for row in (table.columns, *table.rows)]
    assert [row[0] for row in table.rows] == ["prose.txt"] * 4 + ["code<b>.txt"] * 4


def test_tables_tell_each_text_by_itself(sample_document: dict[str, Any], tmp_path: Path) -> None:
    part = {"sha256": "0" * 64, "tokens_sha256": "1" * 64, "chunks": 3, "scored_tokens": 765}
    sample_document["texts"] = [part | {"name": "prose.txt"}, part | {"name": "code.txt"}]
    for each in sample_document["candidates"]:
        other = each["metrics"] | {"kld_mean": Figure(value=0.5, se=0.25)}
        each["by_text"] = [each["metrics"], other]
    results = Results.model_validate(sample_document)
    write_report(results, tmp_path)
    rows = pq.read_table(tmp_path / "tables" / "figures-by-text.parquet").to_pylist()
    found = {(r["text"], r["candidate"], r["metric"]): (r["value"], r["shown"]) for r in rows}
    assert found["code.txt", "Q8_0/f32", "kld_mean"] == (0.5, "0.500000 ± 0.250000")
    assert found["prose.txt", "Q8_0/f32", "kld_mean"][0] == 0.000859
    files = pq.read_table(tmp_path / "tables" / "files.parquet").to_pylist()
    assert "by_text" not in files[0]


def test_what_to_keep_in_mind_is_said_first(sample_document: dict[str, Any]) -> None:
    sample_document["base"] |= {"limits": "16 bits <only>", "forced": ["another text"]}
    sample_document["text"]["documents"] = {
        "split": "conversations",
        "scored": 7,
        "cut": 1,
        "unscored": 0,
        "unused": 2,
    }
    page = rendered(Results.model_validate(sample_document))
    top = page[: page.index('id="answer"')]
    assert "What this base cannot tell: 16 bits &lt;only&gt;." in top
    assert "(accepted with --force): another text." in top
    assert "the assistant&#39;s tokens scored" in top
    assert "conversations: 7 scored (1 of them longer than a chunk" in page


def test_sums_stand_apart(explained: Results) -> None:
    page = rendered(explained)
    foot = page[page.index("<tfoot>") : page.index("</tfoot>")]
    assert re.findall('<th scope="row">(.*?)</th>', foot) == ["all", "this run"]
    assert page.count("<tfoot>") == 1


def test_json_cannot_leave_its_element() -> None:
    value = {"a": "</script><!--<script>\u2028&'"}
    text = json_script(value)
    assert not re.search(r"[<>&'\u2028]", text)
    assert json.loads(text) == value


def test_an_empty_table(sample_document: dict[str, Any], tmp_path: Path) -> None:
    sample_document |= {"candidates": (), "comparisons": (), "costs": (), "commands": (), "noise_floor": None}
    sample_document["calibration"] = None
    results = Results.model_validate(sample_document)
    written = write_report(results, tmp_path)
    page = written.html.read_text(encoding="utf-8")
    assert "No candidates yet: nothing was measured against f32 on wiki.test.raw" in page
    assert "This run has no candidates yet: no file was measured against f32." in page
    assert written.files == []


def test_all_that_is_shown_is_also_in_tables(sample_document: dict[str, Any], tmp_path: Path) -> None:
    sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63}
    results = Results.model_validate(sample_document)
    table = with_worst(token_table(12, 63), {})
    write_table(table, tmp_path, "q4", results.candidates[0].tensors_sha256)
    written = write_report(results, tmp_path)
    names = {p.name for p in written.files if p.parent.name == "tables"}
    stems = {
        "figures",
        "files",
        "comparisons",
        "costs",
        "worst-tokens",
        "size-kld",
        "kld-percentiles",
        "ppl-kld",
    }
    stems |= {"kld-position", "kld-confidence"}
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "parquet")}
    for stem in stems:
        parquet = pq.read_table(tmp_path / "tables" / f"{stem}.parquet").to_pylist()
        read = list(
            csv.DictReader(io.StringIO((tmp_path / "tables" / f"{stem}.csv").read_text(encoding="utf-8")))
        )
        assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in parquet] == read
    figures = pq.read_table(tmp_path / "tables" / "figures.parquet").to_pylist()
    row = next(r for r in figures if (r["candidate"], r["metric"]) == ("Q4_K_M/f32", "kld_mean"))
    assert (row["value"], row["se"], row["shown"]) == (0.018110, 0.000112, "0.018110 ± 0.000168 (0.000112)")
    worst = pq.read_table(tmp_path / "tables" / "worst-tokens.parquet").to_pylist()
    assert worst[0]["text"] == " target"
    assert worst[0]["kld"] == table.metrics.kld.max()
    assert [r["kld"] for r in worst] == sorted((r["kld"] for r in worst), reverse=True)


def test_the_worst_token_stands_in_its_text(sample_document: dict[str, Any], tmp_path: Path) -> None:
    sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63}
    results = Results.model_validate(sample_document)
    table = with_worst(token_table(12, 63), {})
    write_table(table, tmp_path, "q4", results.candidates[0].tensors_sha256)
    data = data_of(write_report(results, tmp_path).html.read_text(encoding="utf-8"))
    entry = data["worst"][0]["tokens"][0]
    assert entry["context"][entry["at"]][0] == " target"
    assert entry["context"][entry["at"]][1:] == [1.0, entry["kld"]]
    row = int(table.metrics.kld.argmax())
    before = entry["context"][entry["at"] - 1]
    assert table.chunk[row - 1] == table.chunk[row]
    assert before[2] == decimal(float(table.metrics.kld[row - 1]))
    assert entry["base"][0] == [" word3", "50.000 %", 0.5, 3]


def test_getting_ready_compiles_the_templates() -> None:
    script = (
        "import threading\nfrom bitloss.report import page, render, write\nwrite.get_ready()\n"
        "[t.join() for t in threading.enumerate() if t is not threading.main_thread()]\n"
        "assert render.template.cache_info().currsize == 1\n"
        "assert {name for _, name in page._environment().cache} >= {'report.html.j2', 'table.html.j2', 'report.css'}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
