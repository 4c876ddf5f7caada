"""The page in a real browser: no errors, no requests, everything on it works, and it fits a phone."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.browser.conftest import Browser
from tests.ladder import ladder_run
from tests.tokens import token_table, with_worst, write_table

from bitloss.divergence.factorial import Cells, attribute
from bitloss.explain.findings import findings
from bitloss.records import Attribution, Blocks, Cross, Figure, Results, TensorError
from bitloss.report.page import PAGE_NAME
from bitloss.report.write import write_report

EVIL = '<img src=x onerror="document.title=1">\u202e\x07 </script><script>document.title=2</script>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def page(sample_document: dict[str, Any], folder: Path) -> Path:
    """The founding experiment's page, with tokens, and with names nobody should give."""
    if not (folder / PAGE_NAME).exists():
        sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63, "n_ctx": 128}
        for each in sample_document["candidates"]:
            each["metrics"] |= {
                f"dp_{name}": Figure(value=0.001 * k)
                for k, name in enumerate(
                    ("p0_1", "p1", "p5", "p25", "median", "p75", "p95", "p99", "p99_9"), -4
                )
            }
            each["file"] = each["file"].replace("Mistral", EVIL.replace("/", "\u2215"))
        results = Results.model_validate(sample_document)
        results = results.model_copy(update={"findings": findings(results)})
        for k, each in enumerate(results.candidates[:3]):
            table = with_worst(token_table(12, 63, scale=1 / (1 + 5 * (k == 2)), seed=k), {5: EVIL, 9: "\n"})
            write_table(table, folder, each.name.replace("/", "-"), each.tensors_sha256)
        write_report(results, folder)
    return folder / PAGE_NAME


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of twenty files, with the 50 worst tokens of each in their text."""
    folder = tmp_path_factory.mktemp("ladder")
    results = ladder_run(folder, chunks=20)
    names = [f"blk.{k}.{kind}.weight" for k in range(48) for kind in ("attn_q", "attn_output", "ffn_down")]
    errors = tuple(
        TensorError(name=name, type="Q4_K", rms=0.01 + 0.001 * k, rms_weighted=None)
        for k, name in enumerate([*names, "output.weight"])
    )
    told = tuple(c.model_copy(update={"tensor_errors": errors}) for c in results.candidates)
    audit = {
        "matrices": {"lowest_exponent": -30, "exponents": [5, 0, 7, *(10 ** (k // 4) for k in range(28)), 3]}
    }
    return write_report(results.model_copy(update={"candidates": told, "audit": audit}), folder).html


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose names have 150 characters and more, none of them a space."""
    folder = tmp_path_factory.mktemp("long")
    document = json.loads(ladder_run(folder, chunks=12).model_dump_json(by_alias=True))
    names = {c["name"]: "Merge" * 34 + c["name"] for c in document["candidates"][:5]}
    document["candidates"] = document["candidates"][:5]
    for each in document["candidates"]:
        each["name"], each["file"] = names[each["name"]], "7" * 170 + each["file"]
        each["weights_from"] = each["imatrix_from"] = None
        tensor = "blk.0." + "x" * 150
        each["tensor_errors"] = [{"name": tensor, "type": "Q4_K", "rms": 0.01, "rms_weighted": None}]
    document["candidates"][1]["identical_to"] = document["candidates"][0]["name"]
    document["candidates"][1]["tensors_sha256"] = document["candidates"][0]["tensors_sha256"]
    rows = [c for c in document["comparisons"] if {c["a"], c["b"]} <= names.keys()]
    document["comparisons"] = [c | {"a": names[c["a"]], "b": names[c["b"]]} for c in rows]
    document["model"]["name"], document["text"]["name"] = "M" * 160, "t" * 200
    document["costs"] = [c | {"step": "quantize " + "y" * 150} for c in document["costs"]]
    document["base"]["forced"] = ["z" * 300]
    results = Results.model_validate_json(json.dumps(document))
    results = results.model_copy(update={"findings": findings(results)})
    return write_report(results, folder).html


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of files measured on too few chunks for any test."""
    folder = tmp_path_factory.mktemp("few")
    return write_report(ladder_run(folder, chunks=3), folder).html


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


def column_titles(browser: Browser) -> list[str]:
    return [cell.text for cell in browser.all("#measurements thead th")]


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
