"""Names out of other people's files cannot break a table, a page or a terminal."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bitloss.explain.findings import findings
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
    assert len(headings) == 9


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
