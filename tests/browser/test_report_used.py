"""The page in a real browser: what is sorted, pointed at, pressed, copied and read aloud works."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.browser.conftest import Browser, column_titles


def test_a_metric_sorts_the_files(browser: Browser, page: Path) -> None:
    browser.open(page)
    names = column_titles(browser)
    assert names == ["Metric", "Q4_K_M/f32", "Q4_K_M/f16", "Q8_0/f32", "Q8_0/f16", "noise floor"]
    kld = next(b for b in browser.all("#measurements tbody th button") if b.text.startswith("Mean KLD"))
    browser.click(kld)
    assert column_titles(browser)[1:] == ["Q8_0/f32", "Q8_0/f16", "Q4_K_M/f32", "Q4_K_M/f16", "noise floor"]
    row = kld.find_element("xpath", "ancestor::tr").find_elements("css selector", "td")
    assert row[0].text.startswith("0.000859 ± 0.000008")
    browser.click(kld)
    assert column_titles(browser)[1:] == ["Q4_K_M/f16", "Q4_K_M/f32", "Q8_0/f32", "Q8_0/f16", "noise floor"]
    assert "sorted by Mean KLD, descending" in browser.js("document.getElementById('live').textContent")


def test_a_column_sorts_the_rows_by_what_its_words_mean(browser: Browser, page: Path) -> None:
    browser.open(page)
    time = next(b for b in browser.all("#costs table thead button") if b.text.startswith("Time"))
    table = time.find_element("xpath", "ancestor::table")
    index = [h.text for h in table.find_elements("css selector", "thead th")].index(["Time", "↕"][0])
    browser.click(time)

    def column() -> list[str]:
        rows = table.find_elements("css selector", "tbody tr")
        return [row.find_elements("css selector", "th,td")[index].text for row in rows]

    expected = ["55.0 s", "1 min 00 s", "5 min 01 s", "6 min 52 s", "8 min 10 s", "8 min 21 s", "10 min 00 s"]
    assert column()[:7] == expected
    assert time.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    browser.click(time)
    assert column()[::-1][:7] == expected


def test_standard_errors_both_ways(browser: Browser, page: Path) -> None:
    browser.open(page)
    cell = browser.all("#measurements tbody tr:nth-child(5) td")[0]
    assert cell.text.splitlines()[0] == "0.018110 ± 0.000168"
    note = browser.all("#measurements > p.notes")[0]
    assert note.text.startswith("± is the standard error clustered by chunk")
    for way, shown, said in (
        ("tokens", "0.018110 ± 0.000112", "which takes tokens as independent; clustered by chunk, errors"),
        ("both", "0.018110 ± 0.000168 (0.000112)", "in brackets stands llama-perplexity's"),
        ("clustered", "0.018110 ± 0.000168", "it is not the one that llama-perplexity prints"),
    ):
        browser.click(browser.one(f"[data-set-u={way}]"))
        assert cell.text.splitlines()[0] == shown
        assert note.text.startswith("± is the standard error")
        assert said in note.text
    assert cell.text.splitlines()[1] == "≈ Q4_K_M/f16"


def test_pointing_and_the_keyboard_tell_the_same(browser: Browser, page: Path) -> None:
    browser.open(page)
    mark = browser.all("#size-kld svg.wide .mark")[0]
    tip = browser.one("#tip")
    assert not tip.is_displayed()
    browser.hover(mark)
    browser.until("!document.getElementById('tip').hidden")
    told = next(part for part in tip.text.split("\n\n") if part.startswith("Q4_K_M/f32\n"))
    assert "6.96 GiB" in told
    assert "4.8800 bits per weight" in told
    assert "mean KLD 0.018110 ± 0.000168" in told
    assert "quantized in 8 min 21 s, imatrix 32 min 40 s" in told
    browser.hover(browser.one("#h-pictures"))
    browser.until("document.getElementById('tip').hidden")
    browser.js("arguments[0].focus()", mark)
    assert tip.text == told
    assert mark.get_attribute("aria-label").startswith("Q4_K_M/f32 · ")


def test_a_legend_shows_one_line_alone(browser: Browser, page: Path) -> None:
    browser.open(page)
    figure = browser.one("#kld-percentiles")
    browser.click(browser.all("#kld-percentiles .legend button")[1])
    assert "dim" in figure.get_attribute("class")
    on = browser.all("#kld-percentiles svg.wide .series.on")
    assert [g.get_attribute("data-s") for g in on] == ["1"]


def test_the_theme_follows_the_system_until_it_is_chosen(browser: Browser, page: Path) -> None:
    def paper() -> str:
        return str(browser.js("getComputedStyle(document.body).backgroundColor"))

    browser.open(page, theme="dark")
    dark = paper()
    browser.open(page, theme="light")
    light = paper()
    assert light != dark
    browser.click(browser.one("#theme"))
    assert paper() == dark
    browser.click(browser.one("#theme"))
    assert paper() == light
    browser.js("localStorage.clear()")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Browser, page: Path, theme: str) -> None:
    """Contrast by WCAG: 4.5 for text, 3 for the lines of the pictures."""
    browser.open(page, theme=theme)
    ratios = browser.js(
        """(() => {
        const parse = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        const lum = (c) => { const [r, g, b] = parse(c); return .2126 * r + .7152 * g + .0722 * b; };
        const ratio = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((p, q) => q - p);
            return (x + .05) / (y + .05); };
        const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)$/.test(c) && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
        const text = [...document.querySelectorAll('h1,h2,h3,p,td,th,button,.badge,summary,dt,dd,a,figcaption')]
            .filter((e) => e.offsetParent)
            .map((e) => [ratio(getComputedStyle(e).color, behind(e)), e.textContent.slice(0, 30)]);
        const lines = [...document.querySelectorAll('svg.wide .series')]
            .map((e) => [ratio(getComputedStyle(e).color, behind(document.body)), e.className.baseVal]);
        return [text.sort((a, b) => a[0] - b[0])[0], lines.sort((a, b) => a[0] - b[0])[0]];
        })()"""
    )
    assert ratios[0][0] >= 4.5, ratios[0]
    assert ratios[1][0] >= 3, ratios[1]


def test_copying_gives_the_table_as_shown(browser: Browser, page: Path) -> None:
    browser.open(page)
    for button, first, cell in (
        ("founding:markdown", "| Metric ", "| 0.018110 ± 0.000168 |"),
        ("founding:csv", "Metric,Q4_K_M/f32", ",0.018110 ± 0.000168,"),
    ):
        browser.js(
            "(() => { window.copied = null; Object.defineProperty(navigator, 'clipboard', {configurable: true, "
            "value: {writeText: async (t) => { window.copied = t; }}}); return 0; })()"
        )
        browser.click(browser.one(f'[data-copy="{button}"]'))
        browser.until("window.copied !== null")
        copied = browser.js("window.copied")
        assert copied.startswith(first)
        assert cell in copied
    assert browser.all('[data-copy="founding:csv"]')[0].text == "Copied"


def test_copying_without_a_clipboard_falls_back(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js(
        "(() => { Object.defineProperty(navigator, 'clipboard', {configurable: true, value: undefined}); "
        "document.execCommand = (what) => { window.copied = [what, document.activeElement.value]; return true; }; "
        "return 0; })()"
    )
    browser.click(browser.one('[data-copy="files:csv"]'))
    browser.until("!!window.copied")
    what, text = browser.js("window.copied")
    assert what == "copy"
    assert text.startswith("Name,File,Size,Bytes,")


def test_worst_tokens_in_their_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert [o.text for o in browser.all("#worst-of option")] == ["Q4_K_M/f32", "Q4_K_M/f16", "Q8_0/f32"]
    assert len(browser.all("#worst-list button")) == 50
    first = browser.all("#worst-list button")[0]
    assert first.text.split("\n")[1] == "␣target"
    here = browser.one("#worst-panel .tokens .here")
    assert here.text.strip() == "target"
    tinted = browser.js("getComputedStyle(document.querySelector('#worst-panel .here')).backgroundColor")
    assert "0.7" in tinted  # the worst of all has the strongest tint
    row, seen = browser.js(
        "(() => { const l = document.getElementById('worst-list'); return [l.firstElementChild.offsetHeight, "
        "l.clientHeight]; })()"
    )
    assert seen % row <= 1  # no row is cut
    tops = [grid.text.split("\n") for grid in browser.all("#worst-panel .top")]
    assert tops[0][:4] == ["␣word3", "50.000 %", "␣word4", "25.000 %"]
    assert tops[1][:4] == ["␣word4", "40.000 %", "␣word3", "20.000 %"]
    kld = browser.one("#worst-panel h3").text
    browser.click(browser.all("#worst-list button")[7])  # its text was not kept
    assert browser.one("#worst-panel h3").text != kld
    assert browser.all("#worst-panel .tokens") == []
    browser.js(
        "(() => { const s = document.getElementById('worst-of'); s.selectedIndex = 2; "
        "s.dispatchEvent(new Event('change')); return 0; })()"
    )
    assert browser.one("#worst-panel h3").text != kld


def test_everything_has_a_name_for_a_screen_reader(browser: Browser, page: Path) -> None:
    browser.open(page)
    nodes = browser.cdp("Accessibility.getFullAXTree")["nodes"]
    unnamed = [
        n["role"]["value"]
        for n in nodes
        if not n.get("ignored")
        and n.get("role", {}).get("value")
        in {"button", "table", "image", "img", "combobox", "link", "region"}
        and not n.get("name", {}).get("value")
    ]
    assert unnamed == []
    assert browser.js(
        "[...document.querySelectorAll('table')].every((t) => t.querySelector('thead th[scope=col]'))"
    )
    levels = browser.js("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => +h.tagName[1])")
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
