"""The scripts in ``examples/`` go on from a run's tables and tokens, and find what the results say."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
from tests.ladder import ladder_run

from bitloss.records import Results
from bitloss.report.write import write_report

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("it's a run")
    write_report(ladder_run(folder, chunks=10, per_chunk=63), folder)
    return folder


@pytest.fixture(scope="module")
def results(run: Path) -> Results:
    from bitloss.records import read_results

    return read_results(run)


def example(name: str, *arguments: object) -> str:
    pytest.importorskip(name.removesuffix(".py").rpartition("_")[2])
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kld(results: Results, name: str) -> float:
    value = results.candidate(name).metrics["kld_mean"].value
    assert value is not None
    return value


def test_pandas_finds_the_front_of_the_picture(run: Path, results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(example("shortlist_pandas.py", run))))
    picture = list(csv.DictReader(io.StringIO((run / "tables" / "size-kld.csv").read_text(encoding="utf-8"))))
    assert {r["name"] for r in rows} == {r["Name"] for r in picture if r["On the front"] == "yes"}
    assert len(rows) > 5
    assert [float(r["value"]) for r in rows] == [kld(results, r["name"]) for r in rows]
    assert all(float(r["times_kld"]) > 1 > float(r["share_of_size"]) for r in rows[1:])


def test_polars_reads_every_file_of_tokens(run: Path, results: Results) -> None:
    printed = example("concentration_polars.py", run)
    rows = [line.strip("│ ").split("┆") for line in printed.splitlines() if "┆" in line]
    rows = [[cell.strip() for cell in row] for row in rows]
    assert rows[0][:3] == ["file", "tokens", "kld_mean"]
    found = {row[0]: row for row in rows if f"{row[0]}/bf16" in {c.name for c in results.candidates}}
    assert len(found) == 20
    for name, row in found.items():
        assert int(row[1]) == 630
        assert float(row[2]) == pytest.approx(kld(results, f"{name}/bf16"), rel=1e-3)
        assert 0.01 < float(row[3]) < 0.5


def test_duckdb_pairs_two_files_as_the_comparison_does(run: Path, results: Results) -> None:
    first = example("two_files_duckdb.py", run, "Q4_0", "IQ4_NL").splitlines()[0]
    difference, error = (float(x) for x in first.rpartition(": ")[2].split(" ± "))
    row = next(
        c for c in results.comparisons if (c.a, c.b, c.metric) == ("Q4_0/bf16", "IQ4_NL/bf16", "kld_mean")
    )
    assert row.difference is not None
    assert row.ci95 is not None
    assert difference == pytest.approx(row.difference, rel=1e-3)
    from scipy import stats

    half = (row.ci95[1] - row.ci95[0]) / 2
    assert error == pytest.approx(half / stats.t.ppf(0.975, 9), rel=0.05)  # 10 chunks; two digits are printed
