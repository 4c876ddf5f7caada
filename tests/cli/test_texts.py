"""Several texts, documents, conversations, and what a text shares with the calibration, on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.cli.test_bad_input import refused

from bitloss.convert.convert import SourceType, convert, source_path
from bitloss.divergence.measure import read_tokens
from bitloss.records import read_results

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Done, Inputs

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "src" / "bitloss" / "assets" / "demo-model"


def _document(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document


@pytest.fixture
def other(inputs: Inputs) -> Path:
    path = inputs.folder / "other.txt"
    path.write_text(" ".join(f"some {n * n % 89} dogs ran over {n} hills" for n in range(70)) + "\n")
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as GGUF: it has a chat template."""
    out = tmp_path_factory.mktemp("demo")
    convert(DEMO, [SourceType("f16")], out)
    return source_path(out, "demo-model", "f16")


def test_several_texts_are_measured_each_and_together(
    cli: Cli, inputs: Inputs, other: Path, tmp_path: Path
) -> None:
    common = ("--calibration", inputs.text, "--imatrix-chunks", 2, "--quants", "Q4_0,Q8_0", "--ctx", 32)
    both = _document(
        cli(
            *("run", inputs.source, "--text", inputs.text, "--text", other, "--chunks", 3, *common),
            *("-o", tmp_path / "both", "--json", "-q"),
        )
    )
    alone = [
        _document(
            cli(
                *("run", inputs.source, "--text", text, "--chunks", 3, *common),
                *("-o", tmp_path / text.stem, "--json", "-q"),
            )
        )
        for text in (inputs.text, other)
    ]
    assert both["text"]["name"] == "text.txt + other.txt"
    assert both["text"]["chunks"] == 6
    assert both["text"]["scored_tokens"] == 6 * 15
    assert [part["name"] for part in both["texts"]] == ["text.txt", "other.txt"]
    for part, single in zip(both["texts"], alone, strict=True):
        assert {key: single["text"][key] for key in part} == part
        assert single["texts"] == []
    for i, candidate in enumerate(both["candidates"]):
        assert candidate["by_text"] == [single["candidates"][i]["metrics"] for single in alone]
        assert candidate["metrics"] not in candidate["by_text"]
        assert all(single["candidates"][i]["by_text"] == [] for single in alone)
    assert read_results(tmp_path / "both").texts[1].name == "other.txt"
    report = (tmp_path / "both" / "report.md").read_text()
    assert "## Texts" in report
    words = ("run", inputs.source, "--text", inputs.text, "--text", other, "--chunks", 3, *common)
    shown = cli(*words, "-o", tmp_path / "both", "-q").out
    assert shown.index("Mean KLD") < shown.index("Each text by itself") < shown.index("other.txt")
    assert (
        "Each text by itself" not in cli(*words[:4], *words[6:], "-o", tmp_path / inputs.text.stem, "-q").out
    )
    assert "| other.txt | " in report
    assert "## Texts" not in (tmp_path / "other" / "report.md").read_text()
    # a stored base of both holds all their chunks, and measure says the same
    base = tmp_path / "base"
    told = _document(
        cli(
            "base",
            inputs.source,
            "-f",
            inputs.text,
            "-f",
            other,
            "--ctx",
            32,
            "--chunks",
            3,
            "-o",
            base,
            "--json",
        )
    )
    assert told["n_chunks"] == 6
    assert [text["chunks"] for text in told["texts"]] == [3, 3]
    candidate = next((tmp_path / "both" / "candidates").glob("*Q4_0.gguf"))
    measured = _document(cli("measure", candidate, "--base", base, "-o", tmp_path / "m", "--json", "-q"))
    assert measured["candidates"][0]["metrics"] == both["candidates"][0]["metrics"]
    assert measured["candidates"][0]["by_text"] == both["candidates"][0]["by_text"]


def test_a_list_of_texts_in_an_experiment_file(cli: Cli, inputs: Inputs, other: Path, tmp_path: Path) -> None:
    spec = inputs.folder / "two.toml"
    spec.write_text(
        f'model = "{inputs.source}"\nfrom = ["f32"]\nquants = ["Q8_0"]\ntext = ["text.txt", "other.txt"]\n'
        "ctx = 32\nchunks = 2\n"
    )
    results = _document(cli("run", spec, "-o", tmp_path / "run", "--json", "-q"))
    assert results["text"]["name"] == "text.txt + other.txt"
    assert (
        f'text = [\n    "{inputs.text}",\n    "{other}",\n]' in (tmp_path / "run" / "spec.toml").read_text()
    )
    again = _document(cli("run", spec, "-o", tmp_path / "run", "--json", "-q"))
    assert all(cost["reused"] for cost in again["costs"])


def test_texts_with_stopping_by_a_rule(cli: Cli, inputs: Inputs, other: Path, tmp_path: Path) -> None:
    done = cli(
        *("run", inputs.source, "--text", inputs.text, "--text", other, "--ctx", 32, "--quants", "Q4_0,Q8_0"),
        *("--calibration", inputs.text, "--imatrix-chunks", 2, "--stop-when", "decided"),
        *("-o", tmp_path / "run", "--json", "-q"),
    )
    results = _document(done)
    assert results["stopping"] is not None
    assert sum(part["chunks"] for part in results["texts"]) == results["text"]["chunks"]
    assert sum(part["scored_tokens"] for part in results["texts"]) == results["text"]["scored_tokens"]
    assert len(results["candidates"][0]["by_text"]) == 2


def test_documents_are_measured_without_crossing_borders(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    text = inputs.folder / "documents.jsonl"
    documents = ["the cats sat on the mats " * n for n in (1, 2, 9)] + [""]
    text.write_text("\n".join(json.dumps({"text": each}) for each in documents))
    base = tmp_path / "base"
    told = _document(
        cli("base", inputs.source, "-f", text, "--documents", "jsonl", "--ctx", 32, "-o", base, "--json")
    )
    assert told["documents"] == "jsonl"
    candidate = tmp_path / "copy.gguf"
    candidate.write_bytes(inputs.source.read_bytes())
    results = _document(cli("measure", candidate, "--base", base, "-o", tmp_path / "m", "--json", "-q"))
    (measured,) = results["candidates"]
    assert measured["metrics"]["kld_max"]["value"] == 0
    assert results["text"]["documents"] == {
        "split": "jsonl", "scored": 3, "cut": 2, "unscored": 0, "unused": 0,
        "chunks": told["texts"][0]["document_chunks"],
    }  # fmt: skip
    assert sum(results["text"]["documents"]["chunks"]) == told["n_chunks"]
    assert "3 documents, at least 10 needed" in measured["metrics"]["ppl"]["reason"]
    assert results["text"]["scored_tokens"] == told["scored_tokens"]
    assert results["text"]["chunks"] == told["n_chunks"] > 3
    report = (tmp_path / "m" / "report.md").read_text()
    assert "every token but the first scored" in report
    assert "| Documents | jsonl: 3 scored (2 of them longer than a chunk" in report
    refused(
        cli("base", inputs.source, "-f", text, "--documents", "jsonl", "--kld", tmp_path / "b.kld",
            "--ctx", 32, "-o", tmp_path / "b2", "-q"),
        2, "llama-perplexity's file has no place", "--documents",
    )  # fmt: skip
    refused(
        cli("measure", candidate, candidate.rename(tmp_path / "again.gguf"), inputs.source, "--base", base,
            "--stop-when", "decided", "-o", tmp_path / "m2", "-q"),
        1, "no such candidate",
    )  # fmt: skip
    refused(
        cli("measure", tmp_path / "again.gguf", inputs.source, "--base", base, "--stop-when", "decided",
            "-o", tmp_path / "m2", "-q"),
        2, "chunks of one length",
    )  # fmt: skip


def _talks(path: Path, count: int) -> Path:
    with path.open("w") as file:
        for i in range(count):
            said = [f"What did he say about {i} houses?", f"He said that he had seen {i} of them by the sea."]
            talk = [
                {"role": role, "content": each}
                for role, each in zip(("user", "assistant") * 2, said * 2, strict=True)
            ]
            file.write(json.dumps({"messages": talk}) + "\n")
    return path


def test_conversations_are_rendered_with_the_models_template(cli: Cli, demo: Path, tmp_path: Path) -> None:
    text = _talks(tmp_path / "talks.jsonl", 12)
    results = _document(
        cli(
            *("run", demo, "--text", text, "--chat-template", "--ctx", 64, "--quants", "Q8_0"),
            *("--imatrix-chunks", 2, "-o", tmp_path / "run", "--json", "-q"),
        )
    )
    assert results["text"]["documents"]["split"] == "conversations"
    assert results["text"]["documents"]["scored"] == 12
    assert results["text"]["add_bos"]
    assert results["text"]["chunks"] >= 12
    assert results["candidates"][0]["metrics"]["kld_mean"]["value"] > 0
    assert results["candidates"][0]["metrics"]["kld_mean"]["se_clustered"] is not None
    assert results["noise_floor"]["metrics"]["kld_mean"]["value"] is not None
    report = (tmp_path / "run" / "report.md").read_text()
    assert "the assistant's tokens scored" in report
    assert "clustered by conversation, because the tokens of a conversation have much in common" in report
    assert "by conversation<" in (tmp_path / "run" / "report.html").read_text()
    assert "chat_template = true" in (tmp_path / "run" / "spec.toml").read_text()
    stop = ("--stop-when", "precise", "--precision", "5%")
    refused(
        cli("run", demo, "--text", text, "--chat-template", *stop, "-o", tmp_path / "r2", "-q"),
        2, "chunks of one length",
    )  # fmt: skip
    refused(
        cli("base", demo, "--text", text, "--chat-template", "--documents", "file", "-o", tmp_path / "b", "-q"),
        2, "conversations are documents already",
    )  # fmt: skip
    # a run that has not come to its end has the same errors
    (tmp_path / "run" / "results.json").unlink()
    assert cli("report", tmp_path / "run").code == 0
    unfinished = (tmp_path / "run" / "report.md").read_text()
    assert "clustered by conversation, because" in unfinished
    kld = next(line for line in report.splitlines() if line.startswith("| Mean KLD"))
    assert kld.split("|")[2].split("(")[0].strip() in unfinished


def _errors(results: dict[str, Any]) -> tuple[float, float]:
    figure = results["candidates"][0]["metrics"]["kld_mean"]
    return figure["se"], figure["se_clustered"]


def test_windows_of_a_document_are_one_cluster(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    """By document where the base says which chunk is of which; by chunk from a base that does not."""
    text = inputs.folder / "long.txt"
    text.write_text("\n\n".join(f"the {n} cats sat on the mats " * (2 + 3 * (n % 4)) for n in range(12)))
    base = tmp_path / "base"
    cli("base", inputs.source, "-f", text, "--documents", "blank-line", "--ctx", 32, "-o", base, "-q")
    assert cli("quantize", inputs.source, "--types", "Q4_0", "-o", tmp_path, "-q").code == 0
    (candidate,) = tmp_path.glob("*.gguf")
    measure = ("measure", candidate, "--base", base, "--json", "-q", "-o")
    results = _document(cli(*measure, tmp_path / "by-document"))
    windows = results["text"]["documents"]["chunks"]
    assert len(windows) == 12 < sum(windows) == results["text"]["chunks"]
    table, _ = read_tokens(next((tmp_path / "by-document" / "tokens").glob("*.parquet")))
    kld, sums = table.metrics.kld, np.zeros(12)
    for document, chunks in enumerate(np.split(np.arange(sum(windows)), np.cumsum(windows)[:-1])):
        mine = np.isin(table.chunk, chunks)
        sums[document] = np.sum(kld[mine] - kld.mean())
    assert _errors(results)[1] == pytest.approx(math.sqrt(12 / 11 * np.sum(sums**2)) / len(kld), rel=1e-12)
    header = json.loads((base / "base.json").read_text())
    del header["texts"][0]["document_chunks"], header["header_sha256"]  # as older bases are
    (base / "base.json").write_text(json.dumps(header))
    old = _document(cli(*measure, tmp_path / "by-chunk"))
    sums = np.bincount(table.chunk, weights=kld - kld.mean()).astype(np.float64)
    g = len(sums)
    assert g == sum(windows)
    assert _errors(old)[1] == pytest.approx(math.sqrt(g / (g - 1) * np.sum(sums**2)) / len(kld), rel=1e-12)
    assert _errors(old)[0] == _errors(results)[0]
    assert old["text"]["documents"]["chunks"] == []
    assert "clustered by chunk" in (tmp_path / "by-chunk" / "report.md").read_text()
    header["texts"][0]["document_chunks"] = [*windows, 1]
    (base / "base.json").write_text(json.dumps(header))
    refused(cli(*measure, tmp_path / "damaged"), 1, "the chunks of its documents are not its chunks")


def test_texts_are_strata_of_what_is_said_of_all(
    cli: Cli, inputs: Inputs, other: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("run", inputs.source, "--text", inputs.text, "--text", other, "--chunks", 8, "--ctx", 32)
    done = cli(*words, "--quants", "Q4_0,Q8_0", "--imatrix-chunks", 2, "-o", run, "--json", "-q")
    results = _document(done)
    assert results["text"]["stratified"]
    assert not any("stratified" in part for part in results["texts"])
    table, _ = read_tokens(run / "tokens" / results["candidates"][0]["tokens"])
    nll, variance = table.metrics.nll, 0.0
    for first in (0, 8):
        mine = (table.chunk >= first) & (table.chunk < first + 8)
        sums = np.bincount(table.chunk[mine] - first, weights=nll[mine] - nll[mine].mean())
        variance += 8 / 7 * np.sum(sums**2)
    ppl = results["candidates"][0]["metrics"]["ppl"]
    assert ppl["se_clustered"] == pytest.approx(ppl["value"] * math.sqrt(variance) / len(nll), rel=1e-12)
    assert "8 chunks, at least 10 needed" in results["candidates"][0]["by_text"][0]["ppl"]["reason"]
    report = (run / "report.md").read_text()
    assert "intervals and p-values are clustered by chunk, about each text's own mean," in report


def test_a_model_without_a_template_is_refused_before_anything_is_made(
    cli: Cli, inputs: Inputs, tmp_path: Path
) -> None:
    text = _talks(tmp_path / "talks.jsonl", 2)
    for model in (inputs.source, inputs.checkpoint):
        config = inputs.checkpoint / "tokenizer_config.json"
        if config.is_file():
            document = json.loads(config.read_text())
            document.pop("chat_template", None)
            config.write_text(json.dumps(document))
        done = cli("run", model, "--text", text, "--chat-template", "-o", tmp_path / "run", "-q")
        refused(done, 1, "the model has no chat template", model.name)
        assert not (tmp_path / "run").exists()
    done = cli("base", inputs.source, "--text", text, "--chat-template", "-o", tmp_path / "base", "-q")
    refused(done, 1, "tiny-f32.gguf", "the model has no chat template")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--documents", "pages"), ("--documents", "pages")),
        (
            ("--documents", "jsonl"),
            ("text.txt, line 1", "no JSON", '{"text": "..."}', "--documents blank-line"),
        ),
        (("--documents", "line=%%", "--ctx", 512), ("longer than", "at most 256")),
        (("--text", "SAME"), ("two texts have the same file name",)),
    ],
)
def test_texts_that_cannot_be_used(
    cli: Cli, inputs: Inputs, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    given = [str(inputs.text) if each == "SAME" else each for each in options]
    done = cli("base", inputs.source, "--text", inputs.text, "--ctx", 32, *given, "-o", tmp_path / "b", "-q")
    assert done.code in (1, 2)
    refused(done, done.code, *words)
    assert not (tmp_path / "b").exists()


def test_what_the_text_shares_with_the_calibration_is_told(
    cli: Cli, inputs: Inputs, other: Path, tmp_path: Path
) -> None:
    def run(calibration: Path, name: str) -> dict[str, Any]:
        return _document(
            cli(
                *(
                    "run",
                    inputs.source,
                    "--text",
                    inputs.text,
                    "--calibration",
                    calibration,
                    "--quants",
                    "Q4_0",
                ),
                *("--ctx", 32, "-o", tmp_path / name, "--json", "-q"),
            )
        )

    apart = run(other, "apart")
    assert apart["text"]["overlap"]["shared"] == 0
    assert apart["text"]["overlap"]["windows"] == apart["text"]["chunks"] * 32 - 31
    assert not [f for f in apart["findings"] if f["id"] == "calibrated-on-the-measured-text"]
    copied = inputs.folder / "copied.txt"
    words = inputs.text.read_text().split()
    copied.write_text(other.read_text() + " ".join(words[100:200]) + "\n")
    shared = run(copied, "shared")
    assert 0 < shared["text"]["overlap"]["share"] < 0.5
    (finding,) = [f for f in shared["findings"] if f["id"] == "calibrated-on-the-measured-text"]
    assert finding["evidence"]["shared"] == shared["text"]["overlap"]["shared"]
    report = (tmp_path / "shared" / "report.md").read_text()
    overlap = shared["text"]["overlap"]
    assert f"{overlap['shared']:,} of {overlap['windows']:,} windows" in report
    whole = run(inputs.text, "whole")
    assert whole["text"]["overlap"]["share"] == 1
    (finding,) = [f for f in whole["findings"] if f["id"] == "calibrated-on-the-measured-text"]
    assert "same content" in finding["text"]
