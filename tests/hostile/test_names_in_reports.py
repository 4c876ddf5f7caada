"""Names out of other people's files cannot break a table, a page or a terminal."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from bitloss.display import visible
from bitloss.explain.findings import findings
from bitloss.explain.questions import QUESTIONS
from bitloss.report.render import render_markdown
from bitloss.report.tables import Table, markdown_text, to_markdown, to_rich

if TYPE_CHECKING:
    from bitloss.records import Results

HOSTILE = [
    "a|b",
    "a\nb\n\n# heading",
    "<script>alert(1)</script>",
    "[click](http://example.org)",
    "![x](x)",
    "**bold** _it_ ~~no~~ `code` ```",
    "\x1b[2J\x1b]0;title\x07",
    "[red]rich[/red] [/] [link=http://example.org]",
    "\u202egnp.exe",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt; &amp;",
    "\\|",
    "x" * 5000,
    "| --- | --- |",
    "\r\n\t\0",
    "caf\udce9.gguf",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_cell_stays_a_cell(name: str) -> None:
    text = to_markdown(Table(("name", name), ((name, "1"), ("b", "2"))))
    lines = text.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3
        assert line.isprintable()


def cells_of(markdown: str) -> list[list[str]]:
    """Cells as another program's Markdown reader sees them; a token that is no text would be markup."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    rows: list[list[str]] = []
    for token in reader.parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            parts = token.children or []
            assert {part.type for part in parts} <= {"text", "text_special"}
            rows[-1].append("".join(part.content for part in parts))
    return rows


@given(st.text(max_size=60), st.text(st.sampled_from("_*`|<>[]()!~&#\\\n a1:/-"), max_size=30))
def test_a_markdown_reader_sees_the_names(first: str, second: str) -> None:
    rows = cells_of(to_markdown(Table(("h", second), ((first, second), (second, "x" + first + "x")))))
    shown = [
        [visible(cell).strip() for cell in row]
        for row in (("h", second), (first, second), (second, f"x{first}x"))
    ]
    assert [[cell.strip() for cell in row] for row in rows] == shown


@pytest.mark.parametrize("name", HOSTILE)
def test_a_markdown_reader_sees_hostile_names(name: str) -> None:
    rows = cells_of(to_markdown(Table(("name", "n"), ((name, "1"),))))
    assert rows == [["name", "n"], [visible(name).strip(), "1"]]


@given(st.text(max_size=100))
def test_no_text_acts_as_markup(text: str) -> None:
    shown = markdown_text(text)
    assert shown.isprintable()
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|~]|[<>]", shown)
    assert "://" not in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_the_terminal_shows_text(name: str) -> None:
    console = Console(file=io.StringIO(), width=300, force_terminal=True, color_system="truecolor")
    console.print(to_rich(Table(("name", "n"), ((name, "1"),), (name,))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b" not in plain
    assert "\x07" not in plain
    if name.startswith("[red]"):
        assert "[red]rich[/red]" in plain


@pytest.mark.parametrize("name", HOSTILE)
def test_the_report_keeps_its_shape(sample_results: Results, name: str) -> None:
    plain = render_markdown(_named(sample_results, "plain"))
    text = render_markdown(_named(sample_results, name))
    assert len(text.splitlines()) == len(plain.splitlines())
    marked = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert "<" not in marked
    assert ": 49 " not in text
    assert all(line.isprintable() for line in text.splitlines())
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(headings) == 9 + len(QUESTIONS)


def _named(results: Results, name: str) -> Results:
    """Put `name` wherever a text from outside can stand."""
    first, *others = results.candidates
    named = first.model_copy(update={"name": name, "file": name, "type": name})
    comparisons = tuple(
        c.model_copy(update={"a": name if c.a == first.name else c.a}) for c in results.comparisons
    )
    changed = results.model_copy(
        update={
            "candidates": (named, *others),
            "comparisons": tuple(
                c.model_copy(update={"b": name if c.b == first.name else c.b, "reason": name})
                for c in comparisons
            ),
            "model": results.model.model_copy(update={"name": name, "architecture": name, "dtype": name}),
            "text": results.text.model_copy(update={"name": name}),
            "base": results.base.model_copy(update={"name": name, "file": name}),
            "machine": results.machine.model_copy(
                update={"cpu": name, "os": name, "accelerator": "x" + name}
            ),
            "commands": (f"bitloss run {name}",),
        }
    )
    return changed.model_copy(update={"findings": findings(changed)})
