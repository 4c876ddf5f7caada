"""The report of 20 files on 300,000 tokens: how large, how quick to open, how much memory to write.

    uv run python benchmarks/report_size.py --work FOLDER

Runs are made up (no model): every file has its own per-token results and its 50 worst tokens in 73 tokens of text.
Asserted: the page is under 6 MB; headless Chromium opens it in under 2 s, wide and narrow; writing the report of 20
files takes at most 1.25 times the memory that the report of 2 of them takes, because tokens are aggregated one file at
a time and never embedded; and the page's mean KLD of every file is that of its tokens.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq

from bitloss.display import decimal
from bitloss.records import RESULTS_NAME, Results, read_results, write_results
from llama_tools import run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests' made-up run and their browser
CHUNKS, PER_CHUNK = 1177, 255  # 300,135 tokens
MOST_BYTES, MOST_MS, MOST_GROWTH = 6e6, 2000.0, 1.25


def make_runs(many: Path, two: Path) -> None:
    """Make up the run of all files, and that of the first two."""
    from tests.ladder import ladder_run

    few(ladder_run(many, chunks=CHUNKS, per_chunk=PER_CHUNK), many, two, 2)


def few(results: Results, folder: Path, target: Path, count: int) -> None:
    """Write the run of the first `count` files alone, with the same tokens."""
    kept = results.candidates[:count]
    names = {c.name for c in kept}
    rows = tuple(row for row in results.comparisons if {row.a, row.b} <= names)
    part = results.model_copy(update={"candidates": kept, "comparisons": rows, "findings": ()})
    (target / "tokens").mkdir(parents=True)
    for each in kept:
        assert each.tokens is not None
        shutil.copy2(folder / "tokens" / each.tokens, target / "tokens")
    write_results(part, target / RESULTS_NAME)


def opened(page: Path, work: Path) -> dict[int, float]:
    """Milliseconds to open the page by width, the better of two; empty without a browser."""
    from tests.browser.conftest import Browser, start

    driver = start(work / "profile")
    if driver is None:
        return {}
    browser = Browser(driver)
    try:
        return {w: min(browser.open(page, width=w).load_ms() for _ in range(2)) for w in (1440, 390)}
    finally:
        driver.quit()


def check_answer(results: Results, folder: Path) -> None:
    """The page's mean KLD of each file is the mean of its column."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    row = html[html.index(">Mean KLD</button>") :]
    cells = re.findall(r'<span class="u-t">([^<]+)</span>', row[: row.index("</tr>")])
    for each, cell in zip(results.candidates, cells, strict=False):
        tokens = pq.read_table(folder / "tokens" / str(each.tokens), columns=["kld"])["kld"].to_numpy()
        assert cell.startswith(decimal(float(tokens.mean()))), (each.name, cell)
    assert len(cells) >= len(results.candidates)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="scratch folder; removed and made anew")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    many, two = args.work / "twenty", args.work / "two"
    # in a process of its own: a child's peak counts what its parent held when it was started
    maker = multiprocessing.get_context("spawn").Process(target=make_runs, args=(many, two))
    maker.start()
    maker.join()
    assert maker.exitcode == 0
    made = {folder: run([sys.executable, "-m", "bitloss", "report", folder, "-q"]) for folder in (two, many)}
    for folder, done in made.items():
        size = (folder / "report.html").stat().st_size
        print(
            f"{folder.name:6}: {done.seconds:5.1f} s, peak {done.peak_bytes / 2**20:6.1f} MiB, "
            f"page {size / 1e6:.2f} MB"
        )
    check_answer(read_results(many), many)
    growth = made[many].peak_bytes / made[two].peak_bytes
    print(f"memory of 20 files / of 2: {growth:.2f}")
    took = opened(many / "report.html", args.work)
    print(", ".join(f"opens in {ms:.0f} ms at {width} px" for width, ms in took.items()) or "no browser here")
    assert (many / "report.html").stat().st_size < MOST_BYTES, "the page is too large"
    assert growth < MOST_GROWTH, "memory grows with the number of files"
    assert all(ms < MOST_MS for ms in took.values()), "the page opens too slowly"


if __name__ == "__main__":
    main()
