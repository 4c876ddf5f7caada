"""A checkpoint's settings and files that make no sense, lack, or are noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitloss.convert.cast import SourceType
from bitloss.convert.convert import convert
from bitloss.errors import BitlossError, CheckpointError, FileProblem, UnsupportedError, UsageError
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint

ALL = list(SourceType)


BAD: dict[str, tuple[dict[str, Any], type[BitlossError], str]] = {
    "architecture": (
        {"architectures": ["Qwen9ForCausalLM"]},
        UnsupportedError,
        r"m/config\.json\[architectures\].*one of Mistral.*found Qwen9ForCausalLM\. Let .*bitloss convert --",
    ),
    "quantized": (
        {"quantization_config": {"quant_method": "gptq"}},
        UnsupportedError,
        "already quantized.*unquantized model",
    ),
    "no layers": (
        {"num_hidden_layers": None},
        CheckpointError,
        r"\[num_hidden_layers\]: bad or missing setting",
    ),
    "zero": ({"hidden_size": 0}, CheckpointError, r"\[hidden_size\].*positive whole number, found 0"),
    "bool": ({"hidden_size": True}, CheckpointError, "found True"),
    "text": ({"rms_norm_eps": "small"}, CheckpointError, "positive number, found 'small'"),
    "heads": ({"num_key_value_heads": 3}, CheckpointError, "a divisor of 4, found 3"),
    "head": ({"head_dim": 7}, CheckpointError, r"\[head_dim\].*even number, found 7"),
    "width": ({"head_dim": None, "num_attention_heads": 5}, CheckpointError, "no multiple of the heads"),
    "more layers": (
        {"num_hidden_layers": 3},
        CheckpointError,
        r"missing tensor and 8 more: expected model.layers.2",
    ),
    "many layers": ({"num_hidden_layers": 1 << 30}, CheckpointError, "more layers than tensors"),
    "fewer layers": ({"num_hidden_layers": 1}, CheckpointError, r"layers.1.*no place in the architecture"),
    "shape": (
        {"intermediate_size": 96},
        CheckpointError,
        r"expected \[64, 96\], found \[64, 128\]|expected \[96, 64\]",
    ),
    "vocabulary": ({"vocab_size": 511}, CheckpointError, r"expected \[511, 64\], found \[512, 64\]"),
    "rope": ({"rope_scaling": {"rope_type": "longrope"}}, UnsupportedError, "found longrope"),
    "rope factor": ({"rope_scaling": {"rope_type": "linear"}}, CheckpointError, r"\[factor\]"),
    "rope bands": (
        {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4.0}},
        CheckpointError,
        "bad frequency bands",
    ),
    "rope list": ({"rope_scaling": [1]}, CheckpointError, "no JSON object"),
    "theta": ({"rope_theta": -1}, CheckpointError, r"\[rope_theta\].*found -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_make_no_sense(tmp_path: Path, case: str) -> None:
    config, kind, message = BAD[case]
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(config=config))
    with pytest.raises(kind, match=message) as caught:
        convert(folder, ALL, tmp_path / "out")
    assert type(caught.value) is kind
    assert not (tmp_path / "out").exists()


def test_settings_not_carried_over_are_noted(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(config={"sliding_window": 4096}))
    record = convert(folder, [SourceType.F16], tmp_path / "out")
    assert record.notes == (
        "sliding_window = 4096 is not carried over: llama.cpp attends to the whole context",
    )


def test_a_model_card_that_cannot_be_parsed_costs_only_the_names(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m")
    (folder / "README.md").write_text("---\n: [\n---\n")
    convert(folder, [SourceType.F16], tmp_path / "out")
    assert GgufFile.open(tmp_path / "out" / "m-f16.gguf").text("general.name") == "m"
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [a, b]\n---\n")
    convert(folder, [SourceType.F16], tmp_path / "out")
    file = GgufFile.open(tmp_path / "out" / "m-f16.gguf")
    assert file.text("general.license") == "mit"
    assert file.value("general.tags") == ["a", "b"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileProblem, match=r"tokenizer\.json: no such file"):
        convert(folder, ALL, tmp_path / "out")


def test_missing_folder_and_file_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such folder"):
        convert(tmp_path / "none", ALL, tmp_path / "out")
    folder = random_checkpoint(tmp_path / "m")
    (tmp_path / "out" / "m-f32.gguf").mkdir(parents=True)
    with pytest.raises(FileProblem, match="a folder is in the way"):
        convert(folder, ALL, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileProblem, match="file: a file is in the way of a folder"):
        convert(folder, ALL, tmp_path / "file")
    with pytest.raises(UsageError, match=r"a file of an HF folder, not a model\. Give /.*/m$"):
        convert(folder / "model.safetensors", ALL, tmp_path / "x")


def test_an_index_that_counts_other_bytes_is_noted(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shards=2))
    place = folder / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    held = Checkpoint.open(folder).n_bytes
    for stated, noted in ((held, False), (held + 1, True), (10**18, True), (-1, False), ("many", False)):
        place.write_text(json.dumps(index | {"metadata": {"total_size": stated}}))
        notes = convert(folder, [SourceType.F16], tmp_path / "out").notes
        told = f"model.safetensors.index.json says {stated} bytes of tensors, its files hold {held}"
        assert notes == ((told,) if noted else ())


def test_a_setting_is_told_with_its_folder(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(config={"rope_theta": "x"}))
    with pytest.raises(CheckpointError, match=rf"^{folder}/config\.json\[rope_theta\]: bad or missing"):
        convert(folder, ALL, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 512
