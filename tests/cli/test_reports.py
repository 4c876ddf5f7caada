"""report, card, pick: from results and tokens alone, several runs, and runs that have not finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli
from tests.tokens import token_table, write_table

from bitloss.records import Results, write_results


@pytest.fixture
def run(sample_document: dict[str, Any], tmp_path: Path) -> Path:
    """A finished run whose models are gone."""
    sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63}
    results = Results.model_validate(sample_document)
    folder = tmp_path / "run"
    for k, each in enumerate(results.candidates[:3]):
        write_table(token_table(12, 63, seed=k), folder, each.name.replace("/", "-"), each.tensors_sha256)
    write_results(results, folder / "results.json")
    return folder


def test_a_report_from_results_and_tokens_alone(cli: Cli, run: Path) -> None:
    done = cli("report", run)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [str(run / "report.md"), str(run / "report.html")]
    assert len(list((run / "plots").glob("*.png"))) == 5
    assert (run / "tables" / "figures.parquet").is_file()
    first = (run / "report.html").read_bytes()
    shutil.rmtree(run / "plots")
    assert json.loads(cli("report", run, "--json").out) == {
        "report": "report.md",
        "html": "report.html",
        "finished": True,
    }
    assert (run / "report.html").read_bytes() == first


def test_a_damaged_file_of_tokens_costs_its_pictures_only(cli: Cli, run: Path) -> None:
    (run / "tokens" / "Q8_0-f32.parquet").write_bytes(b"PAR1 and nothing more")
    assert cli("report", run).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Per-token results are not here for Q8_0/f32, Q8_0/f16" in page
    shutil.rmtree(run / "tokens")
    assert cli("report", run).code == 0


def test_side_by_side(cli: Cli, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert cli("report", run, other).code == 2
    out = tmp_path / "both"
    assert cli("report", run, other, "-o", out).code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "other: Q4_K_M/f32" in page
    document = json.loads((other / "results.json").read_text())
    document["base"]["sha256"] = "0" * 64
    (other / "results.json").write_text(json.dumps(document))
    done = cli("report", run, other, "-o", out)
    assert (done.code, done.out) == (1, "")
    assert f"{other}: the run has another base than run" in done.err


def test_a_newer_schema_is_named(cli: Cli, run: Path) -> None:
    document = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(document | {"schema": "bitloss/results@2"}))
    for verb in (("report",), ("card",), ("pick", "--vram", "8GiB")):
        done = cli(verb[0], run, *verb[1:])
        assert done.code == 1
        assert "expected bitloss/results@1, found bitloss/results@2" in done.err


def test_a_run_that_goes_on_shows_what_there_is(cli: Cli, run: Path) -> None:
    (run / "results.json").unlink()
    (run / "run.json").write_text("{}")
    (run / "steps").mkdir()
    (run / "steps" / "quantize-1.json").write_text(
        json.dumps(
            {
                "schema": "bitloss/step@1",
                "kind": "quantize",
                "key": "0" * 64,
                "outputs": [{"path": "candidates/a<b>.gguf", "bytes": 2048, "sha256": "0" * 64}],
                "result": None,
                "seconds": 61.0,
                "started": "2026-11-23T20:00:00Z",
            }
        )
    )
    (run / "steps" / "quantize-2.json").write_text("{")
    (run / "tokens" / "half.parquet").write_bytes(b"PAR1")
    done = cli("report", run)
    assert done.code == 0, done.err
    assert "has not finished" in done.err
    for name in ("report.md", "report.html"):
        text = (run / name).read_text(encoding="utf-8")
        assert "not finished" in text
        assert "1 step done, 3 files measured" in text
        assert "Could not be read: half." in text
        assert "1 min 01 s" in text
        assert "a&lt;b&gt;.gguf" in text
        assert "Mean KLD" in text
    assert not (run / "plots").exists()
    for arguments in (
        ("compare", run),
        ("card", run),
        ("pick", run, "--vram", "1GiB"),
        ("report", run, run, "-o", run / "x"),
    ):
        refused = cli(*arguments)
        assert (refused.code, refused.out) == (1, "")
        assert f"{run}: the run has not finished: there are no results yet" in refused.err
        assert refused.err.count("\n") == 1
    assert not (run / "x").exists()


def test_card(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("card", run).out == f"{run / 'README.md'}\n"
    assert (run / "README.md").read_text().startswith("---\nbase_model: ")
    assert cli("card", run, "-o", tmp_path / "card.md", "-q").out == ""
    assert (tmp_path / "card.md").read_bytes() == (run / "README.md").read_bytes()


def test_pick(cli: Cli, run: Path, inputs: Any) -> None:
    done = cli("pick", run, "--vram", "8GiB", "--ctx", 4096)
    assert done.code == 0
    assert "For 8.00 GiB and a context of 4096 tokens: Q4_K_M/f16" in done.out
    assert "Only weights are counted" in done.out
    document = json.loads(
        cli("pick", run, "--vram", "8GiB", "--ctx", 64, "--model", inputs.source, "--json").out
    )
    assert document["best"] == "Q4_K_M/f16"
    assert document["besides_weights"] > 0
    assert document["told_by"] == inputs.source.name
    none = json.loads(cli("pick", run, "--vram", "1KiB", "--json").out)
    assert (none["best"], none["fits"][0]["fits"]) == (None, False)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--vram", "lots"), "--vram"),
        (("--vram", "8GiB", "--ctx", "1"), "--ctx"),
        (("--vram", "8GiB", "--ctx", "99999", "--model", "MODEL"), "context longer"),
    ],
)
def test_pick_refuses(cli: Cli, run: Path, inputs: Any, arguments: tuple[str, ...], word: str) -> None:
    done = cli("pick", run, *(str(inputs.source) if a == "MODEL" else a for a in arguments))
    assert done.code == 2
    assert word in done.err
    assert done.err.count("\n") == 1
