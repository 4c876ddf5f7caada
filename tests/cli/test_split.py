"""Models in parts go where models in one file go, named by their first part, with the same figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitloss.model.gguf_split import open_model
from bitloss.model.source import model_bytes, model_sha256
from bitloss.store import content_key, sha256_file

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

TINY = ("--ctx", 32, "--chunks", 4)


@pytest.fixture
def parts(cli: Cli, inputs: Inputs, tmp_path: Path) -> list[Path]:
    """The source in parts."""
    done = cli("convert", inputs.source, "--to", "f32", "--split-max-size", "1M", "-o", tmp_path / "p", "-q")
    assert done.code == 0, done.err
    paths = [Path(line) for line in done.out.splitlines()]
    assert len(paths) >= 2
    assert paths[0].name == f"tiny-f32-00001-of-{len(paths):05d}.gguf"
    return paths


def told(cli: Cli, *arguments: object) -> Any:
    done = cli(*arguments, "-q", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def metrics(document: Any) -> list[Any]:
    return [(each["name"], each["metrics"]) for each in document["candidates"]]


def test_the_hash_is_that_of_all_parts(parts: list[Path], inputs: Inputs) -> None:
    before = model_sha256(parts[0])
    assert before == content_key("split model", {"parts": [sha256_file(part) for part in parts]})
    assert model_bytes(parts[0]) == sum(part.stat().st_size for part in parts)
    assert model_sha256(inputs.source) == sha256_file(inputs.source)
    data = bytearray(parts[-1].read_bytes())
    data[-1] ^= 1
    parts[-1].write_bytes(data)
    assert model_sha256(parts[0]) != before


def test_imatrix_base_and_measure(cli: Cli, inputs: Inputs, tmp_path: Path, parts: list[Path]) -> None:
    for source, name in ((inputs.source, "whole"), (parts[0], "parts")):
        out = tmp_path / name
        assert cli("imatrix", source, "--text", inputs.text, *TINY, "-o", out / "i.gguf", "-q").code == 0
        told(cli, "base", source, "--text", inputs.text, *TINY, "-o", out / "base")
    assert (tmp_path / "whole" / "i.gguf").read_bytes() == (tmp_path / "parts" / "i.gguf").read_bytes()
    headers = [
        json.loads((tmp_path / each / "base" / "base.json").read_text()) for each in ("whole", "parts")
    ]
    for key in ("tensors_sha256", "output_sha256", "vocabulary_sha256", "tokens_sha256", "shards"):
        assert headers[0][key] == headers[1][key], key
    assert headers[1]["model"] == parts[0].name

    # in F16: of a quantized type it would fit into one part
    (made,) = told(
        cli, "quantize", inputs.source, "--types", "F16", "--split-max-size", "1M", "-o", tmp_path / "q"
    )
    assert len(made["parts"]) >= 2
    first = tmp_path / "q" / made["file"]
    told(cli, "quantize", inputs.source, "--types", "F16", "-o", tmp_path / "q1")
    one = tmp_path / "q1" / "tiny-f32-F16.gguf"
    documents = [
        told(cli, "measure", candidate, "--base", base, "-o", tmp_path / f"m{number}")
        for number, (candidate, base) in enumerate(
            ((one, tmp_path / "whole" / "base"), (first, tmp_path / "parts" / "base"))
        )
    ]
    assert metrics(documents[0]) == metrics(documents[1])
    own = documents[1]["candidates"][0]
    assert own["name"] == "tiny-f32-F16"
    assert own["file"] == first.name
    assert own["bytes"] == open_model(first).size
    assert own["sha256"] == model_sha256(first)
    assert documents[1]["base"]["bytes"] == model_bytes(parts[0])

    direct = told(
        cli, "measure", first, "--base", parts[0], "--text", inputs.text, *TINY, "-o", tmp_path / "m2"
    )
    assert metrics(direct) == metrics(documents[0])


def test_a_run(cli: Cli, inputs: Inputs, tmp_path: Path, parts: list[Path]) -> None:
    common = ("--quants", "Q8_0,Q4_0", "--text", inputs.text, "--calibration", inputs.text, *TINY)
    whole = told(cli, "run", inputs.source, *common, "-o", tmp_path / "a")
    split = told(cli, "run", parts[0], *common, "-o", tmp_path / "b")
    assert metrics(split) == metrics(whole)
    assert [each["file"] for each in split["candidates"]] == ["tiny-f32-Q8_0.gguf", "tiny-f32-Q4_0.gguf"]
    assert [each["tensors_sha256"] for each in split["candidates"]] == [
        each["tensors_sha256"] for each in whole["candidates"]
    ]
    assert split["model"]["sha256"] == model_sha256(parts[0])
    assert split["model"]["parameters"] == whole["model"]["parameters"]
    assert split["base"]["bytes"] == model_bytes(parts[0])
    again = cli("run", parts[0], *common, "-o", tmp_path / "b")
    assert again.code == 0
    assert again.err.count("done before") == len(split["costs"])
    data = bytearray(parts[-1].read_bytes())
    data[-1] ^= 1
    parts[-1].write_bytes(data)
    code, _, line = cli("run", parts[0], *common, "-o", tmp_path / "b", "-q")
    assert (code, "the folder holds a run of another experiment" in line) == (1, True)


def test_groups_of_a_model_in_parts(cli: Cli, inputs: Inputs, tmp_path: Path, parts: list[Path]) -> None:
    document = told(
        cli, "sensitivity", parts[0], "--type", "Q4_0", "--text", inputs.text, *TINY, "-o", tmp_path / "s"
    )
    assert document["sensitivity"]["plain"] == "tiny-f32-Q4_0"
    assert len(document["sensitivity"]["groups"]) >= 3


@pytest.mark.parametrize("verb", ["imatrix", "base", "run", "measure", "quantize", "convert"])
def test_a_later_part_and_a_missing_one(
    verb: str, cli: Cli, inputs: Inputs, tmp_path: Path, parts: list[Path]
) -> None:
    more: dict[str, tuple[object, ...]] = {
        "imatrix": ("--text", inputs.text),
        "base": ("--text", inputs.text),
        "run": ("--text", inputs.text, *TINY),
        "measure": ("--base", inputs.source, "--text", inputs.text, *TINY),
        "quantize": ("--types", "Q8_0"),
        "convert": (),
    }

    def refused(source: Path, message: str) -> None:
        code, out, line = cli(verb, source, *more[verb], "-o", tmp_path / "out", "-q")
        assert (code in (1, 2), out, line.count("\n")) == (True, "", 1), line
        assert message in line
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

    refused(parts[1], f"{parts[1].name}: not the first part of a split model: expected {parts[0].name}")
    parts[1].unlink()
    refused(parts[0], f"{parts[1].name}: a part of a split model is missing")
