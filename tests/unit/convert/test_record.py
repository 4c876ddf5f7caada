"""conversion.json: files of earlier conversions stay in it while they are there and come from the same model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitloss.convert.convert import Conversion, ConvertOptions, SourceType, convert
from bitloss.convert.record import EngineProof, Proof
from bitloss.errors import FileProblem
from bitloss.model.gguf import GgufFile
from bitloss.model.random_checkpoint import random_checkpoint

DEMO = Path(__file__).parents[3] / "src" / "bitloss" / "assets" / "demo-model"
F32, F16, BF16 = SourceType.F32, SourceType.F16, SourceType.BF16


def prove(_model: Path, files: object, _progress: object) -> Proof:
    assert isinstance(files, dict)
    engine = tuple(EngineProof(file=name, logits=8, spread=1.0) for name in files)
    return Proof(tensors=None, tokens=None, engine=engine, llama_cpp="test")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "m")


def stored(out: Path) -> Conversion:
    return Conversion.model_validate_json((out / "conversion.json").read_text())


def files(out: Path) -> list[str]:
    return [output.file for output in stored(out).outputs]


def test_other_types_are_kept(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = convert(model, [F16, BF16], out)
    second = convert(model, [F32], out)
    assert [output.file for output in second.outputs] == ["m-f32.gguf"]
    assert stored(out).outputs == (*second.outputs, *first.outputs)
    third = convert(model, [F16], out)  # made again: named once
    assert files(out) == ["m-f16.gguf", "m-f32.gguf", "m-bf16.gguf"]
    assert stored(out).outputs[0] == third.outputs[0]


def test_parts_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = convert(DEMO, [F16], out, ConvertOptions(split_max_bytes=5_000_000))
    assert len(first.outputs[0].parts) > 1
    convert(DEMO, [BF16], out)
    assert stored(out).outputs[1:] == first.outputs
    (out / first.outputs[0].parts[-1].name).unlink()
    convert(DEMO, [BF16], out)
    assert files(out) == ["demo-model-bf16.gguf"]


@pytest.mark.parametrize("change", ["gone", "flipped", "longer", "other model", "record damaged"])
def test_what_is_no_longer_so_is_dropped(model: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    convert(model, [F16], out)
    file = out / "m-f16.gguf"
    data = file.read_bytes()
    if change == "gone":
        file.unlink()
    elif change == "flipped":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "longer":
        file.write_bytes(data + b"\0")
    elif change == "record damaged":
        (out / "conversion.json").write_text("{")
    else:
        config = model / "config.json"
        config.write_text(config.read_text() + "\n")
    convert(model, [F32], out)
    assert files(out) == ["m-f32.gguf"]


@pytest.mark.parametrize("change", ["foreign", "flipped", "other model", "record damaged", "record gone"])
def test_a_file_not_known_to_be_of_this_model_is_replaced_only_when_asked(
    model: Path, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "out"
    keep = ConvertOptions(replace=False)
    first = convert(model, [F16], out, keep)
    assert convert(model, [F16], out, keep).outputs == first.outputs  # the same again
    file = out / "m-f16.gguf"
    if change == "foreign":
        file.write_text("mine")
    elif change == "flipped":
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif change == "record damaged":
        (out / "conversion.json").write_text("{")
    elif change == "record gone":
        (out / "conversion.json").unlink()
    else:
        config = model / "config.json"
        config.write_text(config.read_text() + "\n")
    there = file.read_bytes()
    with pytest.raises(
        FileProblem, match=r"m-f16\.gguf: already there, and not known to be made from this model"
    ):
        convert(model, [F32, F16], out, keep)
    assert file.read_bytes() == there
    assert not (out / "m-f32.gguf").exists()
    assert convert(model, [F16], out).outputs == first.outputs
    assert convert(model, [F32, F16], out, keep).outputs[1] == first.outputs[0]


def test_parts_of_this_model_are_replaced_others_are_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    keep = ConvertOptions(split_max_bytes=5_000_000, replace=False)
    first = convert(DEMO, [F16], out, keep)
    assert convert(DEMO, [F16], out, keep).outputs == first.outputs
    second = out / first.outputs[0].parts[1].name
    second.write_text("mine")
    with pytest.raises(FileProblem, match="already there"):
        convert(DEMO, [F16], out, keep)
    assert second.read_text() == "mine"


def test_proofs_are_those_of_the_files_listed(model: Path, tmp_path: Path) -> None:
    out, proven = tmp_path / "out", ConvertOptions(prover=prove)

    def tensor_bytes(*kinds: str) -> int:
        opened = (GgufFile.open(out / f"m-{kind}.gguf") for kind in kinds)
        return sum(info.n_bytes for file in opened for info in file.tensors.values())

    convert(model, [F16, BF16], out, proven)
    (out / "m-bf16.gguf").unlink()
    convert(model, [F32], out, proven)
    proof = stored(out).proof
    assert proof is not None
    assert [each.file for each in proof.engine] == ["m-f32.gguf", "m-f16.gguf"]
    assert proof.tensors is not None
    assert proof.tensors.bytes_compared == tensor_bytes("f32", "f16")
    convert(model, [BF16], out)  # not proven
    proof = stored(out).proof
    assert proof is not None
    assert files(out) == ["m-bf16.gguf", "m-f32.gguf", "m-f16.gguf"]
    assert [each.file for each in proof.engine] == ["m-f32.gguf", "m-f16.gguf"]
    assert proof.tensors is not None
    assert proof.tensors.bytes_compared == tensor_bytes("f32", "f16")
    convert(model, [F16], out, proven)  # the file without a proof stays without one
    proof = stored(out).proof
    assert proof is not None
    assert files(out) == ["m-f16.gguf", "m-bf16.gguf", "m-f32.gguf"]
    assert [each.file for each in proof.engine] == ["m-f16.gguf", "m-f32.gguf"]
    assert proof.tensors is not None
    assert proof.tensors.bytes_compared == tensor_bytes("f32", "f16")
