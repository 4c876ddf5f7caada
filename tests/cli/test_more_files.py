"""`bitloss measure` of more files into a folder: what was measured there before stays, paired on the same tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.conftest import snapshot
from tests.cli.test_bad_input import refused

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

TINY = ("--ctx", 32, "--chunks", 4)


@pytest.fixture
def files(cli: Cli, inputs: Inputs, tmp_path: Path) -> list[Path]:
    types = "Q8_0,Q4_K_M,Q4_0"
    assert cli("quantize", inputs.source, "--types", types, "-o", tmp_path, "-q").code == 0
    return [tmp_path / f"tiny-f32-{kind}.gguf" for kind in types.split(",")]


@pytest.fixture(params=["gguf", "folder", "kld"])
def base(cli: Cli, inputs: Inputs, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[object, ...]:
    """How the base is given."""
    text = ("--text", inputs.text, *TINY)
    if request.param == "gguf":
        return ("--base", inputs.source, *text)
    also = ("--kld", tmp_path / "base.kld") if request.param == "kld" else ()
    assert cli("base", inputs.source, *text, "-o", tmp_path / "base", *also, "-q").code == 0
    return ("--base", tmp_path / ("base.kld" if also else "base"))


def told(cli: Cli, *arguments: object) -> Any:
    done = cli(*arguments, "--json", "-q")
    assert done.code == 0, done.err
    return json.loads(done.out)


def names(document: Any) -> list[str]:
    return [each["name"] for each in document["candidates"]]


def test_files_measured_one_after_another_are_as_if_measured_together(
    cli: Cli, files: list[Path], base: tuple[object, ...], tmp_path: Path
) -> None:
    together = told(cli, "measure", *files, *base, "-o", tmp_path / "together")
    out = tmp_path / "out"
    told(cli, "measure", files[0], *base, "-o", out)
    files[0].unlink()  # its results are enough
    told(cli, "measure", files[1], *base, "-o", out)
    third = told(cli, "measure", files[2], *base, "-o", out)
    for key in ("candidates", "comparisons", "text", "model"):
        assert third[key] == together[key], key
    assert json.loads((out / "results.json").read_text()) == third
    assert "tiny-f32-Q8_0" in (out / "report.md").read_text()
    assert len(third["commands"]) == 3
    again = [cost["step"] for cost in third["costs"] if cost["reused"]]
    assert again[-2:] == ["measure tiny-f32-Q8_0", "measure tiny-f32-Q4_K_M"]
    # the same once more changes nothing, not even the order
    repeated = told(cli, "measure", files[1], *base, "-o", out)
    assert repeated["candidates"] == third["candidates"]
    assert repeated["commands"] == third["commands"]


@pytest.mark.parametrize("base", ["gguf"], indirect=True)
def test_a_file_that_changed_takes_the_place_of_what_it_was(
    cli: Cli, files: list[Path], base: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = told(cli, "measure", *files[:2], *base, "-o", out)
    files[0].write_bytes(files[2].read_bytes())
    second = told(cli, "measure", files[0], *base, "-o", out)
    assert names(second) == names(first)
    assert second["candidates"][0]["type"] == "Q4_0"
    assert second["candidates"][1] == first["candidates"][1]
    files[0].write_bytes(files[1].read_bytes())
    third = cli("measure", files[0], *base, "-o", out, "-q")
    assert third.err == (
        "bitloss: warning: tiny-f32-Q8_0 was another file when it was measured here before: its figures are replaced. "
        "To keep both, give one another name\n"
    )
    assert cli("measure", files[0], *base, "-o", out, "-q").err == ""


@pytest.mark.parametrize("base", ["gguf"], indirect=True)
def test_results_that_cannot_be_kept_are_not_dropped(
    cli: Cli, files: list[Path], base: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = told(cli, "measure", files[0], *base, "-o", out)
    tokens = out / "tokens" / first["candidates"][0]["tokens"]
    tokens.write_bytes(tokens.read_bytes()[:-7])
    before = (out / "results.json").read_bytes()
    said = "files measured here before would be lost"
    refused(cli("measure", files[1], *base, "-o", out, "-q"), 1, said, "tiny-f32-Q8_0", "Name them as well")
    assert (out / "results.json").read_bytes() == before
    assert names(told(cli, "measure", *files[:2], *base, "-o", out)) == ["tiny-f32-Q8_0", "tiny-f32-Q4_K_M"]


@pytest.mark.parametrize("damage", ["cut", "newer"])
@pytest.mark.parametrize("base", ["gguf"], indirect=True)
def test_results_that_cannot_be_read_are_not_dropped(
    cli: Cli, files: list[Path], base: tuple[object, ...], tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "out"
    told(cli, "measure", *files[:2], *base, "-o", out)
    results = out / "results.json"
    whole = json.loads(results.read_text())
    text = (
        results.read_text()[:-100]
        if damage == "cut"
        else json.dumps(whole | {"schema": "bitloss/results@99"})
    )
    results.write_text(text)
    refused(
        cli("measure", files[2], *base, "-o", out, "-q"), 1, "cannot be read, and would be lost", "remove it"
    )
    assert results.read_text() == text
    results.unlink()
    assert names(told(cli, "measure", files[2], *base, "-o", out)) == ["tiny-f32-Q4_0"]


@pytest.mark.parametrize("base", ["gguf"], indirect=True)
def test_another_llama_cpp_is_refused_before_it_replaces_the_base(
    cli: Cli, files: list[Path], base: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = told(cli, "measure", files[0], *base, "-o", out)
    before = snapshot(out / "base")
    with monkeypatch.context() as patch:
        patch.setattr("bitloss.engine.llama.engine_version", lambda: "0 (another)")
        refused(cli("measure", files[1], *base, "-o", out, "-q"), 1, "would be lost", "tiny-f32-Q8_0")
        steps = (out / "events.jsonl").read_text()
    assert snapshot(out / "base") == before
    assert steps.count("step-started") == 2  # of the first command
    assert told(cli, "measure", files[1], *base, "-o", out)["candidates"][0] == first["candidates"][0]


@pytest.mark.parametrize("base", ["gguf"], indirect=True)
def test_what_files_of_one_content_took_counts_once(
    cli: Cli, files: list[Path], base: tuple[object, ...], tmp_path: Path
) -> None:
    twin = tmp_path / "twin.gguf"
    twin.write_bytes(files[0].read_bytes())
    told(cli, "measure", files[0], *base, "-o", tmp_path / "out")
    done = told(cli, "measure", files[1], twin, *base, "-o", tmp_path / "out")
    assert names(done) == ["tiny-f32-Q8_0", "tiny-f32-Q4_K_M", "twin"]
    assert done["candidates"][2]["identical_to"] == "tiny-f32-Q8_0"
    assert sum(cost["kind"] == "measure" for cost in done["costs"]) == 2


@pytest.mark.parametrize("base", ["gguf"], indirect=True)
def test_a_rule_to_stop_by_takes_all_files_or_none(
    cli: Cli, files: list[Path], base: tuple[object, ...], tmp_path: Path
) -> None:
    command = (*base, "--precision", "90%", "-o", tmp_path / "out")
    told(cli, "measure", *files[:2], *command)
    refused(cli("measure", files[2], *command, "-q"), 1, "would be lost", "looks at all files together")
    assert len(names(told(cli, "measure", *files, *command))) == 3


def test_a_ranking_is_not_lost(cli: Cli, inputs: Inputs, files: list[Path], tmp_path: Path) -> None:
    text = ("--text", inputs.text, *TINY)
    rank = ("sensitivity", inputs.source, "--type", "Q4_0", *text)
    measure = ("measure", files[0], "--base", inputs.source, *text)
    told(cli, *rank, "-o", tmp_path / "ranked")
    refused(
        cli(*measure, "-o", tmp_path / "ranked", "-q"),
        1,
        "results of `bitloss sensitivity`",
        "another folder",
    )
    told(cli, *measure, "-o", tmp_path / "measured")
    refused(cli(*rank, "-o", tmp_path / "measured", "-q"), 1, "results of `bitloss measure`")
    assert not (tmp_path / "measured" / "candidates").exists()


def test_a_link_keeps_the_name_it_was_given(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    """Hugging Face's cache: files named by their hash, with links to them that have the names."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for name, blob in (("model-f16.gguf", "aaaa"), ("mine-Q8_0.gguf", "bbbb")):
        shutil.copy(inputs.source, blobs / blob)
        (snapshot / name).symlink_to(blobs / blob)
    base = snapshot / "model-f16.gguf"
    done = cli(
        *("measure", snapshot / "mine-Q8_0.gguf", "--base", base, "-f", inputs.text, "-c", 32),
        *("-o", tmp_path / "m", "--json", "-q"),
    )
    told = json.loads(done.out)
    assert told["candidates"][0]["file"] == "mine-Q8_0.gguf"
    assert told["base"]["file"] == "model-f16.gguf"
    assert not any(
        "aaaa" in text or "bbbb" in text for text in (done.out, (tmp_path / "m" / "report.md").read_text())
    )
