"""report, card, pick: from results and tokens alone, several runs, and runs that have not finished."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.cli.conftest import Cli
from tests.tokens import token_table, write_table

from bitloss import report
from bitloss.records import Results, read_results, write_results
from bitloss.report.card import MARK
from bitloss.report.pictures import NAMES


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
    path = run / "tokens" / "Q8_0-f32.parquet"
    assert cli("report", run).err == ""
    path.write_bytes(b"PAR1 and nothing more")
    done = cli("report", run)
    assert done.code == 0
    assert [line for line in done.err.splitlines() if not line.startswith("bitloss: warning: ")] == []
    assert "Q8_0/f32" in done.err
    assert "pictures of tokens and the worst tokens lack" in done.err
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Per-token results are not here for Q8_0/f32, Q8_0/f16" in page
    drawn = run / "plots" / "kld-percentiles.svg"
    own = run / "plots" / "mine.svg"
    own.write_text("<svg/>")
    assert drawn.is_file()
    shutil.rmtree(run / "tokens")
    done = cli("report", run, "--quiet")
    assert done.code == 0
    assert "bitloss: warning: Per-token results are not here for" in done.err
    results = read_results(run)
    named = results.candidates[0].model_copy(update={"tokens": "a.parquet"})
    write_results(
        results.model_copy(update={"candidates": (named, *results.candidates[1:])}), run / "results.json"
    )
    assert f"not here for {named.name} (tokens/a.parquet), " in cli("report", run).err
    assert not drawn.exists()
    assert not (run / "tables" / "kld-percentiles.csv").exists()
    assert not (run / "tables" / "worst-tokens.csv").exists()
    assert own.is_file()


def test_every_picture_has_a_known_name(cli: Cli, run: Path) -> None:
    assert cli("report", run).code == 0
    assert {path.stem for path in (run / "plots").iterdir()} <= set(NAMES)
    sources = "".join(path.read_text() for path in Path(report.__file__).parent.glob("*.py"))
    assert all(sources.count(f'"{name}"') > 1 for name in NAMES)  # here, and where it is drawn


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
    other = run.with_name("other")
    shutil.copytree(run, other)
    (other / "results.json").write_text(json.dumps(document))
    done = cli("report", other, run, "-o", run.with_name("both"))
    assert (done.code, done.out) == (1, "")
    assert f"{run / 'results.json'}: results of another version of bitloss" in done.err
    assert not run.with_name("both").exists()


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
    for name in ("report.md", "report.html"):
        assert "± is the standard error clustered by chunk" in (run / name).read_text(encoding="utf-8")
    other = run.with_name("other")
    shutil.copytree(run, other)
    for arguments in (
        ("compare", run),
        ("card", run),
        ("pick", run, "--vram", "1GiB"),
        ("report", run, other, "-o", run / "x"),
    ):
        refused = cli(*arguments)
        assert (refused.code, refused.out) == (1, "")
        assert f"{run}: the run has not finished: there are no results yet" in refused.err
        assert refused.err.count("\n") == 1
    assert not (run / "x").exists()


def test_a_run_that_has_only_begun(cli: Cli, tmp_path: Path) -> None:
    """No step is done, or one file of tokens without a single row is there: no figures are made of it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    assert cli("report", run).code == 0
    for name in ("report.md", "report.html"):
        text = (run / name).read_text(encoding="utf-8")
        assert "0 steps done, no candidates measured yet" in text
        assert text.count("Nothing yet.") == 2
        assert "Mean KLD" not in text
    write_table(token_table(0, 63), run, "begun")
    assert cli("report", run).code == 0
    assert "Could not be read: begun." in (run / "report.md").read_text(encoding="utf-8")


def test_a_file_of_tokens_without_a_row_is_called_empty(cli: Cli, run: Path) -> None:
    results = read_results(run)
    write_table(token_table(0, 63), run, "Q8_0-f32", results.candidates[2].tensors_sha256)
    write_table(token_table(5, 63), run, "Q4_K_M-f32", results.candidates[0].tensors_sha256)
    assert cli("report", run).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Left out of the pictures: Q8_0-f32.parquet: an empty file, no token is in it." in page
    assert "Left out of the pictures: Q4_K_M-f32.parquet: per-token results of another text." in page


def test_tokens_of_a_newer_schema_cost_their_pictures_only(cli: Cli, run: Path) -> None:
    path = run / "tokens" / "Q4_K_M-f32.parquet"
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"bitloss"]) | {"schema": "bitloss/tokens@9"}
    pq.write_table(table.replace_schema_metadata({"bitloss": json.dumps(facts)}), path)
    assert cli("report", run).code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Left out of the pictures: Q4_K_M-f32.parquet: of another version." in page


def test_the_same_run_twice_is_refused(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "both"
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    for again in (run, "run", "run/../run", "link", run / "results.json"):
        done = cli("report", run, again, "-o", out)
        assert (done.code, done.out) == (2, "")
        assert f"{again}: the same run twice" in done.err
        assert "Name each run once" in done.err
        assert done.err.count("\n") == 1
    assert not out.exists()
    missing = cli("report", "nothing-1", "nothing-2", "-o", out)
    assert missing.code == 1
    assert "nothing-1" in missing.err
    assert "twice" not in missing.err


def test_a_run_without_candidates_is_said_to_be_one(cli: Cli, run: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    shutil.copytree(run, full)
    document = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(document | {"candidates": [], "comparisons": []}))
    nothing = "This run has no candidates yet: no file was measured against f32."
    assert cli("report", run).code == 0
    assert nothing in (run / "report.md").read_text()
    assert cli("card", run).code == 0
    assert (run / "README.md").read_text().endswith(f"{nothing}\n\n{MARK}\n")
    compared = cli("compare", run)
    assert (compared.code, compared.out) == (0, "No comparisons: this run has no candidates yet.\n")
    assert json.loads(cli("compare", run, "--json").out) == []
    picked = cli("pick", run, "--vram", "8GiB")
    assert (picked.code, picked.out) == (1, "Nothing to pick from. This run has no candidates yet.\n")
    document = json.loads(cli("pick", run, "--vram", "8GiB", "--json").out)
    assert (document["best"], document["fits"], document["left_out"]) == (None, [], [])
    out = tmp_path / "both"
    assert cli("report", full, run, "-o", out).code == 0
    for name in ("report.md", "report.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "run: this run has no candidates yet: no file was measured against f32." in text
        assert "4 files measured" in text


def test_one_candidate_has_nothing_to_be_compared_with(cli: Cli, run: Path) -> None:
    document = json.loads((run / "results.json").read_text())
    document |= {"candidates": document["candidates"][:1], "comparisons": []}
    (run / "results.json").write_text(json.dumps(document))
    assert cli("compare", run).out == (
        "No comparisons: this run has one candidate, Q4_K_M/f32, and a comparison takes two.\n"
    )


def test_a_folder_that_holds_a_base_alone(cli: Cli, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "base.json").write_text("{}")
    for arguments in (("report", base), ("card", base), ("compare", base), ("pick", base, "--vram", "8GiB")):
        done = cli(*arguments)
        assert (done.code, done.out) == (2, "")
        assert f"{base}: a stored base, nothing measured against it yet" in done.err
        assert "bitloss measure FILE.gguf --base" in done.err
        assert done.err.count("\n") == 1
    assert [path.name for path in base.iterdir()] == ["base.json"]


def test_card(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("card", run).out == f"{run / 'README.md'}\n"
    assert (run / "README.md").read_text().startswith("---\nlibrary_name: gguf\n")
    assert cli("card", run, "-o", tmp_path / "card.md", "-q").out == ""
    assert (tmp_path / "card.md").read_bytes() == (run / "README.md").read_bytes()


def test_a_card_replaces_a_card_and_nothing_else_unless_forced(cli: Cli, run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "README.md"
    mine.write_text("# My project\n")
    done = cli("card", run, "-o", mine)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert f"{mine}: already there, and not a card that bitloss made" in done.err
    assert "--force" in done.err
    assert mine.read_text() == "# My project\n"
    assert cli("card", run, "-o", mine, "--force").code == 0
    made = mine.read_text()
    assert made.endswith(f"{MARK}\n")
    assert cli("card", run, "-o", mine, "--base-model", "owner/name").code == 0
    assert mine.read_text() == made.replace(
        "---\n", '---\nbase_model: "owner/name"\nbase_model_relation: quantized\n', 1
    )
    refused = cli("card", run, "-o", mine, "--base-model", "f32.gguf")
    assert (refused.code, refused.out) == (2, "")
    assert "--base-model: no id of the hub: expected owner/name, found f32.gguf" in refused.err


def test_pick(cli: Cli, run: Path, inputs: Any) -> None:
    done = cli("pick", run, "--vram", "8GiB", "--ctx", 4096)
    assert done.code == 0
    assert "By weights alone, for 8.00 GiB and a context of 4096 tokens: Q4_K_M/f16" in done.out
    assert "Whether it fits with its cache is not known" in done.out
    assert " yes" not in done.out
    assert done.out.count("not known (weights do)") == 2
    blind = json.loads(cli("pick", run, "--vram", "8GiB", "--json").out)
    assert blind["besides_weights"] is None
    assert [each["fits"] for each in blind["fits"]] == [False, False, None, None]
    document = json.loads(
        cli("pick", run, "--vram", "8GiB", "--ctx", 64, "--model", inputs.source, "--json").out
    )
    assert document["best"] == "Q4_K_M/f16"
    assert document["besides_weights"] > 0
    assert document["told_by"] == inputs.source.name
    assert [each["fits"] for each in document["fits"]] == [False, False, True, True]
    lying = inputs.folder / read_results(run).candidates[0].file
    shutil.copy(inputs.source, lying)  # where the command had it
    results = read_results(run).model_copy(
        update={"commands": (shlex.join(["bitloss", "measure", str(lying)]),)}
    )
    write_results(results, run / "results.json")
    assert json.loads(cli("pick", run, "--vram", "8GiB", "--json").out)["told_by"] == lying.name
    lying.unlink()
    shown = cli("pick", run, "--vram", "8GiB", "--model", inputs.source).out
    assert "For 8.00 GiB and a context of 256 tokens: Q4_K_M/f16" in shown
    assert "not known" not in shown


def test_a_script_can_tell_that_nothing_fits(cli: Cli, run: Path, inputs: Any) -> None:
    """Exit code 1, the answer printed all the same and nothing on standard error; documented in the help."""
    for model in ((), ("--ctx", 64, "--model", inputs.source)):
        done = cli("pick", run, "--vram", "1KiB", *model)
        assert (done.code, done.err) == (1, "")
        assert "No file fits into 1.00 KiB and a context of" in done.out
        machine = cli("pick", run, "--vram", "1KiB", "--json", *model)
        assert (machine.code, machine.err) == (1, "")
        none = json.loads(machine.out)
        assert (none["best"], none["file"], none["tied"]) == (None, None, [])
        assert [each["fits"] for each in none["fits"]] == [False] * 4
    assert "1 when none fits" in " ".join(cli("pick", "--help").out.split())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--vram", "lots"), "--vram: not a size: expected a size like 8GiB or 500MB, found lots"),
        (("--vram", ""), "--vram: not a size"),
        (("--vram", "-8GiB"), "--vram: not a size"),
        (("--vram", "nan"), "--vram: not a size"),
        (("--vram", "0"), "--vram: a size of nothing"),
        (("--vram", "0.4"), "--vram: a size of nothing"),
        (("--vram", "99999999999TiB"), "--vram: larger than any memory"),
        (("--vram", "9" * 400), "--vram: larger than any memory"),
        (("--vram", "8GiB", "--ctx", "99999999999"), "--ctx"),
        (("--vram", "8GiB", "--ctx", "1"), "--ctx"),
        (("--vram", "8GiB", "--ctx", "99999", "--model", "MODEL"), "context longer"),
    ],
)
def test_pick_refuses(cli: Cli, run: Path, inputs: Any, arguments: tuple[str, ...], word: str) -> None:
    done = cli("pick", run, *(str(inputs.source) if a == "MODEL" else a for a in arguments))
    assert done.code == 2
    assert word in done.err
    assert done.err.count("\n") == 1
