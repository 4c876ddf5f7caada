"""Tables of families: what contradicts them is refused by name, experts are stacked, shards do not matter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitloss.convert.convert import SourceType, convert, source_path
from bitloss.convert.families import FAMILIES
from bitloss.errors import BitlossError, CheckpointError, UnsupportedError
from bitloss.model.checkpoint import Checkpoint
from bitloss.model.gguf import GgufFile
from bitloss.model.random_checkpoint import write_json, write_safetensors

DATA = Path(__file__).parents[2] / "data" / "families"


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    def of(name: str, **settings: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(DATA / name, folder)
        config = json.loads((folder / "config.json").read_text()) | settings
        write_json(folder / "config.json", {key: value for key, value in config.items() if value != "absent"})
        return folder

    return of


def tensors_of(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    checkpoint = Checkpoint.open(folder)
    return {name: np.array(checkpoint.tensor(name)) for name in checkpoint.names()}


def test_the_tables_name_every_tensor_once() -> None:
    for family in FAMILIES:
        for names in ([r.source for r in family.tensors], [r.target for r in family.tensors]):
            assert len(set(names)) == len(names), family.architecture
        assert family.vocabulary.sources


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("qwen2", {"hidden_act": "gelu"}, r"\[hidden_act\].*SiLU.*found gelu"),
    "window": ("qwen2", {"use_sliding_window": True}, r"\[use_sliding_window\].*found True"),
    "dense layers": ("qwen2-moe", {"mlp_only_layers": [0]}, r"\[mlp_only_layers\].*every layer has experts"),
    "sparse step": ("qwen3-moe", {"decoder_sparse_step": 2}, r"\[decoder_sparse_step\]"),
    "shares of Qwen2": ("qwen2-moe", {"norm_topk_prob": True}, r"\[norm_topk_prob\].*not normalized"),
    "shares of Qwen3": ("qwen3-moe", {"norm_topk_prob": False}, r"\[norm_topk_prob\].*normalized"),
    "shares unsaid": ("qwen3-moe", {"norm_topk_prob": "absent"}, r"\[norm_topk_prob\].*found None"),
    "llama3 positions": (
        "qwen3",
        {"rope_scaling": {"rope_type": "llama3"}},
        "default, linear, yarn, found llama3",
    ),
    "dynamic positions": ("mixtral", {"rope_scaling": {"type": "dynamic"}}, "found dynamic"),
    "positions of Gemma 2": ("gemma2", {"rope_theta": 1e6}, r"\[rope_theta\].*10000"),
    "new positions of Gemma 2": (
        "gemma2",
        {"rope_parameters": {"rope_theta": 5.0}},
        r"expected 10000, found 5",
    ),
    "scaled Gemma 2": ("gemma2", {"rope_scaling": {"type": "linear", "factor": 2}}, "found linear"),
    "scale of queries": (
        "gemma2",
        {"query_pre_attn_scalar": 32},
        r"\[query_pre_attn_scalar\].*width of a head",
    ),
    "layers of Gemma 3": ("gemma3", {"layer_types": ["full_attention"] * 7}, r"\[layer_types\].*every 6th"),
    "pattern of Gemma 3": ("gemma3", {"sliding_window_pattern": 5}, r"\[sliding_window_pattern\]"),
    "both ways": ("gemma3", {"use_bidirectional_attention": True}, "looks back only"),
    "partial positions": ("phi3", {"partial_rotary_factor": 0.75}, r"\[partial_rotary_factor\]"),
    "layers without positions": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, r"\[no_rope_layers\].*fourth"),
    "width of heads": ("granite", {"head_dim": 32}, r"\[head_dim\].*hidden_size / heads"),
}
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "experts used": (
        "mixtral",
        {"num_experts_per_tok": 5},
        "bad number of experts: expected at most 4, found 5",
    ),
    "more experts": (
        "mixtral",
        {"num_local_experts": 5},
        r"layers\.0\..*gate\.weight.*\[5, 64\], found \[4, 64\]",
    ),
    "absurd experts": ("mixtral", {"num_local_experts": 1 << 30}, "expected at most 512, found 1073741824"),
    "width of an expert": (
        "qwen3-moe",
        {"moe_intermediate_size": 48},
        r"experts\.0\..*\[64, 48\], found \[64, 32\]",
    ),
    "factors": (
        "phi3",
        {"rope_scaling": {"type": "su", "long_factor": [1.0]}},
        "expected 8 positive numbers",
    ),
    "no window": ("gemma2", {"sliding_window": 0}, r"\[sliding_window\].*positive whole number, found 0"),
    "cap": ("gemma2", {"final_logit_softcapping": -1.0}, r"\[final_logit_softcapping\].*positive number"),
    "fused": ("phi3", {"num_key_value_heads": 4}, r"qkv_proj.*\[192, 64\], found \[128, 64\]"),
}


@pytest.mark.parametrize("case", [*REFUSED, *WRONG])
def test_settings_that_contradict_the_graph_or_the_tensors(case: str, copy: Any, tmp_path: Path) -> None:
    name, changes, message = (REFUSED | WRONG)[case]
    kind: type[BitlossError] = UnsupportedError if case in REFUSED else CheckpointError
    with pytest.raises(kind, match=message):
        convert(copy(name, **changes), [SourceType.F16], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_missing_and_a_surplus_expert(copy: Any, tmp_path: Path) -> None:
    folder = copy("mixtral")
    tensors = tensors_of(folder)
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    taken = tensors.pop(name)
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"missing tensor: expected {name}"):
        convert(folder, [SourceType.F16], tmp_path / "out")
    tensors |= {name: taken, name.replace("experts.2", "experts.4"): taken}
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"experts\.4\.w3.*no place.*2 layers and 4 experts"):
        convert(folder, [SourceType.F16], tmp_path / "out")


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gemma3", "phi3"])
def test_shards_hold_the_same_tensors(name: str, copy: Any, tmp_path: Path) -> None:
    whole = convert(copy(name), list(SourceType), tmp_path / "whole")
    folder = tmp_path / "parts" / name
    shutil.copytree(DATA / name, folder)
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    index: dict[str, str] = {}
    for part in range(3):
        file = f"model-{part + 1:05}-of-00003.safetensors"
        mine = list(tensors)[part::3]
        write_safetensors(folder / file, {each: tensors[each] for each in mine})
        index |= dict.fromkeys(mine, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    convert(folder, list(SourceType), tmp_path / "split")
    for output in whole.outputs:
        one, other = (GgufFile.open(tmp_path / way / output.file) for way in ("whole", "split"))
        assert set(one.tensors) == set(other.tensors)
        for each in one.tensors:
            assert np.array_equal(one.tensor_bytes(each), other.tensor_bytes(each)), each


def test_gains_of_gemma_are_stored_with_the_one_added(tmp_path: Path) -> None:
    convert(DATA / "gemma2", [SourceType.F16], tmp_path)
    file = GgufFile.open(source_path(tmp_path, "gemma2", "f16"))
    source = Checkpoint.open(DATA / "gemma2").tensor("model.norm.weight").astype(np.float32)
    assert np.array_equal(file.tensor_f32("output_norm.weight"), source + np.float32(1))


def test_a_copy_of_the_embedding_is_left_out_of_gemma(copy: Any, tmp_path: Path) -> None:
    folder = copy("gemma2")
    tensors = tensors_of(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    assert convert(folder, [SourceType.F16], tmp_path / "out").ignored_tensors == ("lm_head.weight",)


def test_new_spelling_of_positions_gives_the_same_file(copy: Any, tmp_path: Path) -> None:
    old = convert(copy("gemma3"), [SourceType.F16], tmp_path / "a")
    shutil.rmtree(tmp_path / "gemma3")
    spelled = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    gone = dict.fromkeys(("rope_scaling", "rope_theta", "rope_local_base_freq"), "absent")
    new = convert(copy("gemma3", rope_parameters=spelled, **gone), [SourceType.F16], tmp_path / "b")
    assert [each.sha256 for each in old.outputs] == [each.sha256 for each in new.outputs]
