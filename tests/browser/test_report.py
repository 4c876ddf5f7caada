"""The page in a real browser: no errors, no requests, everything is in its place, and it fits a phone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.browser.conftest import Browser, column_titles

from bitloss.divergence.factorial import Cells, attribute
from bitloss.records import Attribution, Blocks, Cross, Figure, Results
from bitloss.report.write import write_report

# pairs of boxes that lie on one another, of a chart's words, of what is pressed, and of blocks of the page
OVERLAPS = """(() => {
    const seen = (e) => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
    const meet = (a, b) => { const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
        return p.left < q.right - 1.5 && q.left < p.right - 1.5 && p.top < q.bottom - 3 && q.top < p.bottom - 3; };
    const groups = [...document.querySelectorAll('svg.chart')].map((svg) => [...svg.querySelectorAll('text')]);
    const free = (e) => !e.closest('.scroll, #worst-list');  // what scrolls may be scrolled out of sight
    groups.push([...document.querySelectorAll('main button, main select, summary')].filter(free));
    groups.push([...document.querySelectorAll('header, nav, main > section, footer')]);
    groups.push([...document.querySelectorAll('.findings > li')], [...document.querySelectorAll('figure > *')]);
    const found = [];
    for (const group of groups) {
        const boxes = group.filter(seen);
        boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => { if (meet(a, b))
            found.push([a.textContent.slice(0, 40), b.textContent.slice(0, 40)]); }));
    }
    return found; })()"""


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("which", ["page", "ladder", "long"])
def test_nothing_lies_on_anything_else(
    browser: Browser, request: pytest.FixtureRequest, which: str, width: int
) -> None:
    browser.open(request.getfixturevalue(which), width=width)
    assert browser.js(OVERLAPS) == []
    out = browser.js(
        """[...document.querySelectorAll('svg.chart text')].filter((t) => {
            const r = t.getBoundingClientRect(), s = t.ownerSVGElement.getBoundingClientRect();
            return r.width && (r.left < s.left - 1 || r.right > s.right + 1); }).map((t) => t.textContent)"""
    )
    assert out == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_long_names_do_not_push_the_page_sideways(
    browser: Browser, long: Path, width: int, theme: str
) -> None:
    browser.open(long, width=width, theme=theme)
    assert browser.console() == []
    assert browser.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    beyond = browser.js(
        """[...document.querySelectorAll('main *, header *')].filter((e) => !e.closest('.scroll, details, svg') &&
            e.getBoundingClientRect().right > document.documentElement.clientWidth).map((e) => e.outerHTML)"""
    )
    assert beyond == []
    title = browser.js("document.querySelector('#measurements thead th span[title]').title")
    assert title == "Merge" * 34 + "Q8_0/bf16"  # shortened, with the whole of it to be read
    if kept := os.environ.get("BITLOSS_SCREENSHOTS"):
        browser.keep(Path(kept) / f"long-names-{width}-{theme}.png", width)


def test_a_table_that_goes_on_says_so(browser: Browser, page: Path, ladder: Path) -> None:
    browser.open(page)
    hints = browser.js("[...document.querySelectorAll('[data-right]')].map((e) => e.closest('section').id)")
    assert set(hints) <= {"all"}  # all of its tables fit, but the one of every figure with both its errors
    browser.open(ladder)
    frame = "document.querySelector('#measurements .frame')"
    browser.until(f"{frame}.hasAttribute('data-right')")
    assert browser.js(f"getComputedStyle({frame}, '::after').content") == '"›"'
    browser.js(f"({frame}.firstElementChild.scrollLeft = 99999, 0)")
    browser.until(f"!{frame}.hasAttribute('data-right')")
    tall = "document.querySelector('#comparisons .frame')"
    assert browser.js(f"{tall}.hasAttribute('data-down')")


@pytest.mark.parametrize("width", [320, 390, 900, 1280])
def test_every_section_can_be_gone_to(browser: Browser, page: Path, width: int) -> None:
    """No link of the navigation lies under the switch of the theme, or outside the window."""
    browser.open(page, width=width)
    free = """(() => { const button = document.getElementById('theme').getBoundingClientRect();
      return [...document.querySelectorAll('nav a')].every((link) => { const at = link.getBoundingClientRect();
        return at.left >= 0 && at.right <= innerWidth
          && (at.right <= button.left + 1 || at.bottom <= button.top || at.top >= button.bottom); }); })()"""
    assert browser.js(free)


@pytest.mark.parametrize("width", [1280, 1440])
def test_the_tables_of_the_demo_fit(
    browser: Browser, sample_document: dict[str, Any], tmp_path: Path, width: int
) -> None:
    """Five files and the floor, perplexities of 40, and what was crossed."""
    first = sample_document["candidates"][0]
    first["metrics"] |= {k: Figure(value=40.552444, se=0.507370) for k in ("ppl", "ppl_base")}
    names = ("Q8_0/f32", "Q8_0/f16", "Q4_K_M/f32", "Q4_K_M/f16", "Q4_K_M/f32+f16")
    sample_document["candidates"] = [
        first | {"name": name, "tensors_sha256": f"{k:064d}"} for k, name in enumerate(names)
    ]
    sample_document["comparisons"] = ()
    a, b = np.random.default_rng(0).exponential(1e-5, (2, 240))
    attribution = Attribution(
        type="Q4_K_M",
        a="f32",
        b="f16",
        file_a="Q4_K_M/f32",
        file_b="Q4_K_M/f16",
        weights_of_b="Q4_K_M/f16+f32",
        imatrix_of_b="Q4_K_M/f32+f16",
        blocks=Blocks.model_validate(
            dict.fromkeys(Blocks.model_fields, 0) | {"total": 20_736, "whole": 190, "imatrix": 190}
        ),
        tensors=(),
        kld=attribute(Cells(a, a, b, b), np.repeat(np.arange(12), 20)),
    )
    cross = Cross(attributions=(attribution,), imatrices=(), halves=())
    results = Results.model_validate(sample_document).model_copy(update={"cross": cross})
    browser.open(write_report(results, tmp_path).html, width=width)
    assert column_titles(browser)[-1] == "noise floor"
    assert len(browser.all("#cross thead th")) == 9 + 6  # the importance matrices' as well
    for section in ("measurements", "cross"):
        table = f"document.querySelector('#{section} .scroll')"
        assert browser.js(f"{table}.scrollWidth <= {table}.clientWidth"), section


def test_cells_without_a_value_are_explained_once(browser: Browser, few: Path) -> None:
    browser.open(few)
    line = browser.one("#comparisons .missing")
    assert line.text == "– not available: no clustered standard error: 3 chunks, at least 10 needed."
    cells = browser.all("#comparisons .na")
    assert len(cells) > 500
    assert {cell.text for cell in cells[:20]} == {"–"}
    why = "not available: no clustered standard error: 3 chunks, at least 10 needed"
    assert cells[0].get_attribute("title") == why
    assert "n/a" not in browser.one("#comparisons").text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_heat_map_and_its_legend_have_the_same_colours(browser: Browser, ladder: Path, theme: str) -> None:
    browser.open(ladder, theme=theme)
    rects = browser.js(
        """[...document.querySelectorAll('#error-map svg.wide rect:not(.hollow)')].map((r) =>
            [!!r.dataset.tip, getComputedStyle(r).fill])"""
    )
    key, cells = [fill for tip, fill in rects if not tip], {fill for tip, fill in rects if tip}
    assert len(set(key)) == len(key) == 20
    assert len(cells) > 10
    assert cells <= set(key)


def test_evidence_leads_to_the_file(browser: Browser, page: Path) -> None:
    browser.open(page)
    link = next(a for a in browser.all(".evidence a") if a.text == "Q8_0/f16")
    browser.click(link)
    row = browser.one("tr:target")
    assert row.find_element("css selector", "th").text == "Q8_0/f16"
    shown = browser.js("getComputedStyle(document.querySelector('tr:target > td')).backgroundColor")
    assert shown != browser.js("getComputedStyle(document.querySelector('#files tr > td')).backgroundColor")


def test_a_key_number_stands_on_each_card_that_has_one(browser: Browser, page: Path) -> None:
    browser.open(page)
    size = "parseFloat(getComputedStyle(document.querySelector('{}')).fontSize)"
    assert browser.js(size.format(".key b")) > browser.js(size.format(".findings h4"))
    widest = browser.js(
        "Math.max(...[...document.querySelectorAll('.reasons li, .reasons p')].map((e) => e.offsetWidth))"
    )
    assert widest <= 36 * 16  # a measure that can be read


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_twenty_files_open_at_once_and_fit(browser: Browser, ladder: Path, width: int, theme: str) -> None:
    assert ladder.stat().st_size < 6_000_000
    browser.open(ladder, width=width, theme=theme)
    assert browser.load_ms() < 2000
    assert browser.console() == []
    assert browser.requested() == [ladder.as_uri()]
    assert browser.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert len(browser.all("#worst-of option")) == 20
    looks = browser.js(
        """[...document.querySelectorAll('#kld-percentiles svg.wide .series:not(.kn)')].map((g) =>
            g.getAttribute('class') + (g.querySelector('path').getAttribute('stroke-dasharray') || ''))"""
    )
    assert len(set(looks)) == len(looks) == 20  # no two files look alike
    if kept := os.environ.get("BITLOSS_SCREENSHOTS"):
        browser.keep(Path(kept) / f"twenty-files-{width}-{theme}.png", width)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_opens_quietly_and_fits(browser: Browser, page: Path, width: int, theme: str) -> None:
    browser.open(page, width=width, theme=theme)
    assert browser.console() == []
    assert browser.requested() == [page.as_uri()]
    assert browser.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert width - 20 <= browser.js("document.documentElement.clientWidth") <= width
    assert browser.load_ms() < 2000
    shown = [svg.is_displayed() for svg in browser.all("svg.chart.narrow")]
    assert len(shown) == 6  # all but the audit
    assert set(shown) == {width == 390}
    wide = [svg.is_displayed() for svg in browser.all("svg.chart.wide")]
    assert set(wide) == {width != 390}
    if kept := os.environ.get("BITLOSS_SCREENSHOTS"):
        browser.keep(Path(kept) / f"report-{width}-{theme}.png", width)


def test_hostile_names_are_shown_and_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.driver.title == "Mistral-Nemo-Instruct-2407: what the bits cost"
    assert browser.all("img") == []
    assert len(browser.all("script")) == 2
    text = browser.all("#files table")[0].text
    assert '<img src=x onerror="document.title=1">\\u' in text  # cut in the middle, as long names are
    assert "\\u202e\\x07" in browser.js("document.getElementById('size-kld').innerHTML")
    assert "\u202e" not in browser.js("document.documentElement.outerHTML")
    panel = browser.one("#worst-panel")
    assert '<img src=x onerror="document.title=1">\\u{202e}\\u{7}' in panel.text


def test_the_policy_stops_what_is_not_the_pages_own_script(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
        "document.body.append(s); return 0; })()"
    )
    assert browser.js("window.ran") is None
    assert any("Content Security Policy" in line for line in browser.console())
