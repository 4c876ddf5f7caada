"""Make ``docs/gallery``: the pictures of the demo's run, and of its report in a browser.

    uv run python scripts/make_gallery.py [RUN]

Without RUN the demo is run first, into a temporary folder. Charts are copied as SVG; the report is photographed in
headless Chromium (Debian: ``chromium``, ``chromium-driver``), without which only the charts are made and the
photographs there are stay. The old gallery is there until the new one is whole.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "docs" / "gallery"
MOST_BYTES, MOST_TOGETHER = 300_000, 2_000_000
sys.path.insert(0, str(ROOT))  # the tests' browser

from bitloss.records import read_results  # noqa: E402
from bitloss.report.looks import Look, series_of  # noqa: E402
from bitloss.report.plots import all_plots  # noqa: E402
from bitloss.report.summary import noise_file, token_files  # noqa: E402
from bitloss.report.write import gather  # noqa: E402


class Shot(NamedTuple):
    """A photograph of a part of the report.

    Attributes:
        name: of the file.
        words: what it shows.
        width: of the window.
        theme: of the system.
        first: CSS of the element it begins at; the page's top when empty.
        last: CSS of the element it ends below, so that nothing is cut.
        height: most pixels.
    """

    name: str
    words: str
    width: int
    theme: str
    first: str
    last: str
    height: int = 1200


_TABLE = "#measurements .frame"
SHOTS = (
    Shot("report", "The report: the answer first", 1280, "light", "", "#question-2 + ul"),
    Shot("table", "The table of the founding experiment, with its ties marked", 1440, "light", "#measurements", _TABLE),
    Shot("worst-tokens", "The worst tokens in their text", 1280, "dark", "#worst", "#worst .worst"),
    Shot("phone", "On a phone", 390, "light", "#question-1", "#question-1 + ul > li"),
)  # fmt: skip
_MARGIN, _BELOW = 16, 6


def photographs(page: Path, folder: Path) -> list[Shot]:
    """Take the pictures there is a browser for, into a folder."""
    from tests.browser.conftest import Browser, start

    with tempfile.TemporaryDirectory() as profile:
        driver = start(Path(profile))
        if driver is None:
            sys.stderr.write("no Chromium with its driver: the report itself is not photographed\n")
            return []
        try:
            return [shot for shot in SHOTS if _photograph(Browser(driver), page, shot, folder)]
        finally:
            driver.quit()


def _photograph(browser: Any, page: Path, shot: Shot, folder: Path) -> bool:
    browser.cdp(
        "Emulation.setScrollbarsHidden", hidden=True
    )  # else what is measured is narrower than what is taken
    browser.open(page, width=shot.width, theme=shot.theme)
    top = 0
    if shot.first:
        if not browser.all(shot.first):
            return False
        top = browser.js(
            "document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY - arguments[1]",
            *(shot.first, _MARGIN),
        )
    end = browser.js(
        "document.querySelector(arguments[0])?.getBoundingClientRect().bottom + scrollY", shot.last
    )
    height = shot.height if end is None else min(shot.height, end - top + _BELOW)
    clip = {"x": 0, "y": top, "width": shot.width, "height": height, "scale": 1}
    taken = browser.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    (folder / f"{shot.name}.png").write_bytes(base64.b64decode(taken["data"]))
    return True


def index(shots: list[Shot], charts: list[tuple[str, str, str]]) -> str:
    """The gallery's own page."""
    lines = [
        "# Gallery",
        "",
        "Everything here is of `bitloss demo`, made by `uv run python scripts/make_gallery.py`.",
    ]
    for shot in shots:
        lines += ["", f"## {shot.words}", "", f"![{shot.words}]({shot.name}.png)"]
    for id_, title, caption in charts:
        lines += ["", f"## {title}", "", f"![{title}]({id_}.svg)", "", caption]
    return "\n".join(lines) + "\n"


def make(run: Path) -> None:
    """Put what is made from a run in the gallery's place."""
    with tempfile.TemporaryDirectory(dir=GALLERY.parent) as scratch:
        made = Path(scratch) / GALLERY.name
        made.mkdir()
        fill(made, run)
        sizes = {path.name: path.stat().st_size for path in made.iterdir()}
        for name, size in sizes.items():
            if size > MOST_BYTES:
                raise SystemExit(f"{name}: {size} bytes, more than {MOST_BYTES}")
        if sum(sizes.values()) > MOST_TOGETHER:
            raise SystemExit(f"{sum(sizes.values())} bytes together, more than {MOST_TOGETHER}")
        shutil.rmtree(GALLERY, ignore_errors=True)
        made.rename(GALLERY)
    sys.stdout.write("".join(f"{name}  {size / 1000:.0f} kB\n" for name, size in sorted(sizes.items())))


def fill(folder: Path, run: Path) -> None:
    """Charts, photographs and the page that shows them."""
    results = read_results(run)
    gathered = gather(results, token_files(results, run), noise_file(run))
    plots = all_plots(Look(results, gathered.tokens, gathered.floor, series_of(results.candidates)))
    for plot in plots:
        shutil.copy2(run / "plots" / f"{plot.id}.svg", folder)
    shots = photographs(run / "report.html", folder)
    if not shots:
        shots = [shot for shot in SHOTS if (GALLERY / f"{shot.name}.png").is_file()]
        for shot in shots:
            shutil.copy2(GALLERY / f"{shot.name}.png", folder)
    charts = [(plot.id, plot.title, plot.caption) for plot in plots]
    (folder / "README.md").write_text(index(shots, charts), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="the demo's run folder; made when left out")
    given = parser.parse_args().run
    if given is not None:
        make(given)
        return
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "bitloss-demo"
        subprocess.run([sys.executable, "-m", "bitloss", "demo", "--out", str(run)], check=True)
        make(run)


if __name__ == "__main__":
    main()
