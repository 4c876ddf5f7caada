"""Base files of llama-perplexity on the command line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cli.test_bad_input import refused

from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.records import read_results

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

TINY = ("--ctx", 32, "--chunks", 2)


@pytest.fixture
def base(cli: Cli, inputs: Inputs, tmp_path: Path) -> Path:
    """A folder and a file of the same base: base/ and base.kld."""
    done = cli(
        *("base", inputs.source, "--text", inputs.text, *TINY, "-o", tmp_path / "base"),
        *("--kld", tmp_path / "base.kld", "--json"),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["kld"] == "base.kld"
    assert cli("quantize", inputs.source, "--types", "Q4_K_M,Q8_0", "-o", tmp_path, "-q").code == 0
    return tmp_path / "base.kld"


def _measured(cli: Cli, *arguments: object) -> dict[str, Any]:
    done = cli("measure", *arguments, "--json", "-q")
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document


def test_a_file_is_a_base_like_the_folder(cli: Cli, base: Path, tmp_path: Path) -> None:
    files = [tmp_path / "tiny-f32-Q4_K_M.gguf", tmp_path / "tiny-f32-Q8_0.gguf"]
    by_file = _measured(cli, *files, "--base", base, "-o", tmp_path / "a")
    by_folder = _measured(cli, *files, "--base", tmp_path / "base", "-o", tmp_path / "b")
    for told, exact in zip(by_file["candidates"], by_folder["candidates"], strict=True):
        for figure in ("value", "se"):  # the last bit depends on what the candidate is compared with
            assert told["metrics"]["ppl"][figure] == pytest.approx(exact["metrics"]["ppl"][figure], rel=1e-12)
        for key in ("ppl_base", "kld_mean", "kld_max", "dp_rms", "js_mean", "kld_reverse_mean"):
            assert told["metrics"][key]["value"] == pytest.approx(
                exact["metrics"][key]["value"], rel=2e-2, abs=1e-6
            )
    assert by_file["text"] == by_folder["text"] | {"name": "base.kld", "sha256": None}
    assert by_file["model"]["sha256"] is None
    assert by_file["base"]["bytes"] == by_file["base"]["stored_bytes"] == base.stat().st_size
    assert "16 bits" in by_file["base"]["limits"]
    assert "0 of 30 scored tokens lie below the cut" in by_file["base"]["limits"]
    assert by_folder["base"]["limits"] is None
    assert read_results(tmp_path / "a").base.limits == by_file["base"]["limits"]
    report = (tmp_path / "a" / "report.md").read_text()
    assert "What this base cannot tell: the base is a file of llama-perplexity" in report


def test_a_second_time_is_found_and_another_file_is_another_experiment(
    cli: Cli, base: Path, tmp_path: Path
) -> None:
    candidate, out = tmp_path / "tiny-f32-Q8_0.gguf", tmp_path / "m"
    first = _measured(cli, candidate, "--base", base, "-o", out)
    moved = base.rename(tmp_path / "by-another-name.bin")
    again = _measured(cli, candidate, "--base", moved, "-o", out)
    assert [cost["reused"] for cost in first["costs"] + again["costs"]] == [False, True]
    assert again["candidates"] == first["candidates"]
    content = bytearray(moved.read_bytes())
    content[20:24] = struct.pack("<i", (struct.unpack_from("<i", content, 20)[0] + 1) % 320)
    moved.write_bytes(content)
    refused(cli("measure", candidate, "--base", moved, "-o", out, "-q"), 1, "another experiment")


def test_files_that_do_not_belong_are_refused_before_anything_is_made(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = random_gguf(tmp_path / "other.gguf", RandomShape(n_vocab=321))
    short = random_gguf(tmp_path / "short.gguf", RandomShape(n_vocab=320, n_ctx_train=16))
    damaged = tmp_path / "damaged.kld"
    damaged.write_bytes(base.read_bytes()[:-1])

    def measure(candidate: Path, kld: Path, *more: object) -> Any:
        return cli("measure", candidate, "--base", kld, "-o", out, "-q", *more)

    refused(measure(other, base), 1, "other.gguf", "the 320 tokens of base.kld", "321 tokens")
    refused(
        measure(short, base), 1, "base.kld", "longer than short.gguf was made for", "at most 16", "found 32"
    )
    refused(measure(inputs.source, damaged), 1, "damaged.kld", "cut short")
    damaged.write_bytes(b"x" * 99)
    refused(measure(inputs.source, damaged), 1, "damaged.kld", "not a base file of llama-perplexity")
    refused(measure(inputs.source, base, "--text", inputs.text), 2, "--text")
    refused(measure(inputs.source, base, "--base-model", inputs.source), 2, "--base-model")
    assert not out.exists()


def test_a_damaged_row_is_named_and_nothing_is_kept(cli: Cli, base: Path, tmp_path: Path) -> None:
    content = bytearray(base.read_bytes())
    content[20 + 4 * 64 : 24 + 4 * 64] = struct.pack("<f", float("nan"))
    base.write_bytes(content)
    candidate, out = tmp_path / "tiny-f32-Q8_0.gguf", tmp_path / "m"
    refused(
        cli("measure", candidate, "--base", base, "-o", out, "-q"),
        1,
        "base.kld[chunk 0, position 16]",
        "damaged row",
    )
    assert not (out / "results.json").exists()
    assert not list(out.glob("tokens/*"))


def test_an_existing_file_is_left_alone(cli: Cli, inputs: Inputs, base: Path, tmp_path: Path) -> None:
    before = base.read_bytes()
    done = cli(
        *("base", inputs.source, "--text", inputs.text, *TINY, "-o", tmp_path / "new", "--kld", base, "-q")
    )
    refused(done, 1, "base.kld", "already there", "--kld")
    assert base.read_bytes() == before
    assert not (tmp_path / "new").exists()
