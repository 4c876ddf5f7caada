"""GGUF files as input: the same model in another precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import quantize as encode

from bitloss.convert.convert import ConvertOptions, SourceType, convert, default_name
from bitloss.errors import FileProblem, GgufError, UnsupportedError, UsageError
from bitloss.model.gguf import GgufFile, GgufType, GgufValue
from bitloss.model.gguf_split import COUNT, NO, TENSORS
from bitloss.model.gguf_writer import GgufStream, TensorPlan
from bitloss.run.proof import prove

DATA = Path(__file__).parents[2] / "data" / "families"


@pytest.fixture
def bf16(tmp_path: Path) -> Path:
    convert(DATA / "qwen3-moe", [SourceType.BF16], tmp_path / "in")
    return tmp_path / "in" / "qwen3-moe-bf16.gguf"


def rewrite(
    file: GgufFile, path: Path, kind: GGMLQuantizationType, names: list[str], marks: dict[str, int]
) -> None:
    """Write some tensors of a file again, matrices in another type."""
    stored = {}
    for name in names:
        values = file.tensor_f32(name)
        plain = file.info(name).ggml_type == GGMLQuantizationType.F32
        stored[name] = (GGMLQuantizationType.F32, values) if plain else (kind, encode(values, kind))
    first = marks.get(NO, 0) == 0
    kept = file.metadata if first else {"general.architecture": file.metadata["general.architecture"]}
    types = {NO: GgufType.UINT16, COUNT: GgufType.UINT16, TENSORS: GgufType.INT32}
    metadata = {**kept, **{key: GgufValue(types[key], value) for key, value in marks.items()}}
    plans = [TensorPlan(name, file.info(name).shape, int(stored[name][0])) for name in names]
    with GgufStream(path, metadata, plans) as stream:
        for name in names:
            stream.write(stored[name][1])


def test_bf16_to_all_types_is_as_from_the_folder(tmp_path: Path, bf16: Path) -> None:
    direct = convert(DATA / "qwen3-moe", list(SourceType), tmp_path / "direct")
    again = convert(bf16, list(SourceType), tmp_path / "again", ConvertOptions(prover=prove))
    assert [each.sha256 for each in again.outputs] == [each.sha256 for each in direct.outputs]
    assert again.model == "qwen3-moe"
    assert again.architecture == again.gguf_architecture == "qwen3moe"
    assert [each.name for each in again.checkpoint] == [bf16.name]
    assert again.notes == ()
    assert again.proof is not None
    assert again.proof.tokens is None
    assert again.proof.tensors is not None
    assert again.proof.tensors.used == again.proof.tensors.written == len(GgufFile.open(bf16).tensors)
    assert len(again.proof.engine) == 3


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_a_quantized_file_is_decoded(tmp_path: Path, bf16: Path, kind: str) -> None:
    source = GgufFile.open(bf16)
    rewrite(source, tmp_path / "q.gguf", GGMLQuantizationType[kind], list(source.tensors), {})
    record = convert(tmp_path / "q.gguf", [SourceType.F32, SourceType.F16], tmp_path / "out")
    quantized, file = GgufFile.open(tmp_path / "q.gguf"), GgufFile.open(tmp_path / "out" / "q-f32.gguf")
    assert list(file.tensors) == list(quantized.tensors)
    for name in file.tensors:
        assert np.array_equal(file.tensor_f32(name), quantized.tensor_f32(name))
    assert file.value("general.file_type") == 0
    told = "decoded from Q8_0: what quantizing lost does not come back" if kind == "Q8_0" else None
    assert told is None or record.notes == (told,)


def test_small_blocks_give_the_same_bytes(
    tmp_path: Path, bf16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = GgufFile.open(bf16)
    rewrite(source, tmp_path / "q.gguf", GGMLQuantizationType.Q8_0, list(source.tensors), {})
    one = convert(tmp_path / "q.gguf", list(SourceType), tmp_path / "a")
    monkeypatch.setattr("bitloss.convert.material.BLOCK", 100)
    many = convert(tmp_path / "q.gguf", list(SourceType), tmp_path / "b")
    assert [each.sha256 for each in one.outputs] == [each.sha256 for each in many.outputs]


def test_a_split_model_becomes_one_file(tmp_path: Path, bf16: Path) -> None:
    source = GgufFile.open(bf16)
    names = list(source.tensors)
    parts = [names[:10], names[10:20], names[20:]]
    for number, mine in enumerate(parts):
        marks = {NO: number, COUNT: 3, TENSORS: len(names)}
        path = tmp_path / f"big-{number + 1:05}-of-00003.gguf"
        rewrite(source, path, GGMLQuantizationType.BF16, mine, marks)
    record = convert(tmp_path / "big-00001-of-00003.gguf", [SourceType.BF16], tmp_path / "out")
    assert [each.file for each in record.outputs] == ["big-bf16.gguf"]
    assert len(record.checkpoint) == 3
    whole = GgufFile.open(tmp_path / "out" / "big-bf16.gguf")
    assert whole.tensors_sha256() == source.tensors_sha256()
    assert not set(whole.metadata) & {NO, COUNT, TENSORS}
    with pytest.raises(UsageError, match="not the first part"):
        convert(tmp_path / "big-00002-of-00003.gguf", [SourceType.BF16], tmp_path / "out")
    (tmp_path / "big-00003-of-00003.gguf").unlink()
    with pytest.raises(FileProblem, match=r"part of a split model is missing"):
        convert(tmp_path / "big-00001-of-00003.gguf", [SourceType.BF16], tmp_path / "out")


def test_the_model_itself_is_never_replaced(tmp_path: Path, bf16: Path) -> None:
    before = bf16.read_bytes()
    with pytest.raises(UsageError, match="take the place of the model"):
        convert(bf16, [SourceType.BF16], bf16.parent)
    assert bf16.read_bytes() == before


def test_names() -> None:
    assert default_name(Path("a/Model-F16.gguf")) == "Model"
    assert default_name(Path("a/Model-bf16-00001-of-00002.gguf")) == "Model"
    assert default_name(Path("a/Model-Q8_0.gguf")) == "Model-Q8_0"
    assert default_name(Path("a/-f16.gguf")) == "-f16"


def test_integers_and_damage_are_refused(tmp_path: Path, bf16: Path) -> None:
    path = tmp_path / "i.gguf"
    metadata = {"general.architecture": GgufValue(GgufType.STRING, "llama")}
    with GgufStream(
        path, metadata, [TensorPlan("a.weight", (4, 2), int(GGMLQuantizationType.I32))]
    ) as stream:
        stream.write(np.zeros(8, np.int32))
    with pytest.raises(UnsupportedError, match=r"\[a\.weight\]: I32 cannot be decoded"):
        convert(path, [SourceType.F16], tmp_path / "out")
    path.write_bytes(bf16.read_bytes()[:-100])
    with pytest.raises(GgufError):
        convert(path, [SourceType.F16], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 4)])
def test_a_tensor_without_values_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    metadata = {"general.architecture": GgufValue(GgufType.STRING, "llama")}
    with GgufStream(tmp_path / "e.gguf", metadata, [TensorPlan("x.weight", shape, 0)]) as stream:
        stream.write(np.zeros(shape, np.float32))
    with pytest.raises(UnsupportedError, match=r"e\.gguf\[x\.weight\]: a tensor without values"):
        convert(tmp_path / "e.gguf", [SourceType.F16], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(), (1,), (4, 2, 3, 2)])
def test_shapes_of_few_and_many_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    metadata = {"general.architecture": GgufValue(GgufType.STRING, "llama")}
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape[::-1]) + 0.5
    with GgufStream(tmp_path / "e.gguf", metadata, [TensorPlan("x.weight", shape, 0)]) as stream:
        stream.write(values)
    convert(tmp_path / "e.gguf", list(SourceType), tmp_path / "out")
    for kind in SourceType:
        file = GgufFile.open(tmp_path / "out" / f"e-{kind}.gguf")
        assert file.info("x.weight").shape == shape
        assert np.array_equal(file.tensor_f32("x.weight"), values)
