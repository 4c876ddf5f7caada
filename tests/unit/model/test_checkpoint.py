from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bitloss.errors import BitlossError, CheckpointError, FileProblem, UnsupportedError
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint, write_safetensors
from bitloss.model.safetensors import SafetensorsFile

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array([1.5, -2], dtype=np.float16),
    "none": np.zeros((0, 4), dtype=np.int64),
}


def test_reads_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(ARRAYS, path)

    file = SafetensorsFile.open(path)

    assert list(file.tensors) == ["a", "b", "none"]
    for name, array in ARRAYS.items():
        assert np.array_equal(file.tensor(name), array)
        assert file.tensor(name).dtype == array.dtype
    assert not file.tensor("b").flags.writeable


def test_the_safetensors_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, ARRAYS | {"h": np.array([1, 2], dtype=ml_dtypes.bfloat16)})
    with safetensors.safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == ["a", "b", "h", "none"]
        assert np.array_equal(file.get_tensor("b"), ARRAYS["b"])
    half = SafetensorsFile.open(path).tensor("h")
    assert half.dtype == ml_dtypes.bfloat16
    assert half.tolist() == [1, 2]


def test_shards_hold_the_same_tensors_as_one_file(tmp_path: Path) -> None:
    one = Checkpoint.open(random_checkpoint(tmp_path / "one"))
    three = Checkpoint.open(random_checkpoint(tmp_path / "three", CheckpointOptions(shards=3)))
    assert sorted(one.names()) == sorted(three.names())
    assert len(three.weight_files) == 3
    for name in one.names():
        assert one.info(name).shape == three.info(name).shape
        assert np.array_equal(one.tensor(name).view(np.uint16), three.tensor(name).view(np.uint16))
    assert one.architecture == "MistralForCausalLM"
    assert [path.name for path in one.files()] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with pytest.raises(CheckpointError, match="no such tensor"):
        one.tensor("x")


def header(entries: Any, data: int = 0) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def f32(shape: list[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


BAD: dict[str, tuple[bytes, type[BitlossError], str]] = {
    "empty": (b"", CheckpointError, "the file is empty"),
    "short": (b"\1\0\0", CheckpointError, "ends inside the length of the header"),
    "length": (b"\xff" * 8 + b"{}", CheckpointError, "bad header length"),
    "zero length": (bytes(16), CheckpointError, "bad header length"),
    "encoding": (header(b"{\xff}"), CheckpointError, "not valid JSON"),
    "json": (header(b'{"a":'), CheckpointError, "not valid JSON"),
    "surrogate": (header(b'{"\\ud800":1}'), CheckpointError, "not valid JSON.*surrogates"),
    "deep": (header(b"[" * 100_000), CheckpointError, "not valid JSON"),
    "list": (header(b"[]"), CheckpointError, "not a JSON object.*list"),
    "twice": (header(b'{"a":1,"a":2}'), CheckpointError, "the name 'a' occurs twice"),
    "entry": (header({"t": 3}), CheckpointError, r"\[t\]: bad header entry"),
    "keys": (header({"t": {"dtype": "F32", "shape": []}}), CheckpointError, "bad header entry"),
    "dtype": (
        header({"t": f32([1], 0, 4) | {"dtype": "F4"}}, 4),
        UnsupportedError,
        "unknown dtype.*found F4",
    ),
    "shape": (header({"t": f32([-1], 0, 4)}, 4), CheckpointError, "bad shape"),
    "bool shape": (header({"t": f32([True], 0, 4)}, 4), CheckpointError, "bad shape"),
    "huge": (header({"t": f32([1 << 62, 1 << 62], 0, 4)}, 4), CheckpointError, "shape does not fit the data"),
    "offsets": (header({"t": f32([1], 4, 0)}, 4), CheckpointError, "bad data offsets"),
    "size": (header({"t": f32([2], 0, 4)}, 4), CheckpointError, "expected 8 bytes, found 4"),
    "hole": (header({"t": f32([1], 4, 8)}, 8), CheckpointError, "holes or overlaps"),
    "overlap": (header({"t": f32([1], 0, 4), "u": f32([1], 0, 4)}, 4), CheckpointError, "holes or overlaps"),
    "cut": (header({"t": f32([1], 0, 4)}, 3), CheckpointError, "cut off.*found .* bytes. Copy or fetch"),
    "more": (header({"t": f32([1], 0, 4)}, 5), CheckpointError, "not as long as the header says"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_fault_of_a_safetensors_file_has_its_own_line(tmp_path: Path, case: str) -> None:
    content, kind, message = BAD[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        SafetensorsFile.open(path)
    assert type(caught.value) is kind
    assert "x.safetensors" in str(caught.value)


def remove(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Any:
    return lambda folder: (folder / name).write_text(content)


def index(change: Any) -> Any:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        data = json.loads(path.read_text())
        change(data["weight_map"])
        path.write_text(json.dumps(data))

    return apply


FIRST = "model-00001-of-00002.safetensors"
FOLDERS: dict[str, tuple[int, Any, type[BitlossError], str]] = {
    "no config": (1, remove("config.json"), FileProblem, "no config.json in the folder.*or a GGUF file"),
    "config": (1, write("config.json", "{"), CheckpointError, "config.json: not valid JSON"),
    "config list": (1, write("config.json", "[]"), CheckpointError, "not a JSON object"),
    "no weights": (1, remove("model.safetensors"), FileProblem, "no weights in the folder"),
    "missing shard": (2, remove(FIRST), FileProblem, "1 weight file.*missing.*00001-of-00002"),
    "no index": (
        2,
        remove("model.safetensors.index.json"),
        FileProblem,
        "the index of the weight files is missing",
    ),
    "no map": (2, write("model.safetensors.index.json", "{}"), CheckpointError, "no weight_map"),
    "escape": (
        2,
        index(lambda m: m.update(x="../x.safetensors")),
        CheckpointError,
        "no plain safetensors file",
    ),
    "absolute": (
        2,
        index(lambda m: m.update(x="/x.safetensors")),
        CheckpointError,
        "no plain safetensors file",
    ),
    "pickle": (2, index(lambda m: m.update(x="x.bin")), CheckpointError, "no plain safetensors file"),
    "number": (2, index(lambda m: m.update(x=3)), CheckpointError, "no plain safetensors file"),
    "unlisted": (
        2,
        index(lambda m: m.pop("lm_head.weight")),
        CheckpointError,
        r"\[lm_head.weight\].*not in the index",
    ),
    "elsewhere": (2, index(lambda m: m.update(x=FIRST)), CheckpointError, r"\[x\].*not in its file"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_every_fault_of_a_folder_has_its_own_line(tmp_path: Path, case: str) -> None:
    shards, damage, kind, message = FOLDERS[case]
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shards=shards))
    damage(folder)
    with pytest.raises(kind, match=message) as caught:
        Checkpoint.open(folder)
    assert type(caught.value) is kind


def test_the_same_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shards=2))
    second = SafetensorsFile.open(folder / "model-00002-of-00002.safetensors")
    tensors = {name: np.array(second.tensor(name)) for name in second.tensors}
    twice = next(iter(SafetensorsFile.open(folder / FIRST).tensors))
    write_safetensors(second.path, tensors | {twice: np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match=rf"\[{twice}\]: tensor is not in the index"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "pytorch_model-00001-of-00002.bin"]
)
def test_pickles_are_refused_by_name_and_never_opened(tmp_path: Path, name: str) -> None:
    folder = random_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / name).mkdir()  # opening it would fail with another error
    with pytest.raises(
        UnsupportedError, match=rf"{name}: only pickled weights.*Save the model as safetensors"
    ):
        Checkpoint.open(folder)


def test_other_layouts_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such folder"):
        Checkpoint.open(tmp_path / "none")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"an adapter \(LoRA\), not a model\. Merge it"):
        Checkpoint.open(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"Mistral's own layout \(params.json\)"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "consolidated.safetensors").write_text("")
    with pytest.raises(UnsupportedError, match=r"Mistral's own layout \(consolidated"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("value", [None, [], ["A", "B"], "A", [3]])
def test_an_architecture_that_cannot_be_told(tmp_path: Path, value: Any) -> None:
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(config={"architectures": value}))
    with pytest.raises(CheckpointError, match="cannot tell the architecture"):
        _ = Checkpoint.open(folder).architecture
