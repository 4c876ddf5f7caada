"""Random-weight HF folders of any shape: the counterpart of `random_model` on the other side of a conversion.

A folder has config.json, weights as one safetensors file or as shards with an index, tokenizer.json and
tokenizer_config.json. The vocabulary is that of `random_model`, under the splitting rule of Mistral-Nemo or
Llama 3. Any setting of config.json can be overridden, to try what a converter does with odd or wrong ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np

from bitloss.model.random_model import SPECIALS, RandomShape, synthetic_bpe
from bitloss.model.safetensors import DTYPES
from bitloss.model.tokenizer import PRE_TOKENIZERS, WHOLE_WORDS

if TYPE_CHECKING:
    from pathlib import Path

Dtype = Literal["float32", "float16", "bfloat16"]
_DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """What a random checkpoint is like.

    Attributes:
        shape: its numbers; experts are not made.
        architecture: the class named in config.json.
        dtype: type of the weights.
        pre: llama.cpp's name of the splitting rule ("tekken", "llama-bpe").
        shards: number of weight files; more than one makes an index.
        config: settings of config.json to put in or, with the value None, to leave out.
        std: spread of the weights.
        seed: of the weights.
    """

    shape: RandomShape = field(default_factory=RandomShape)
    architecture: str = "MistralForCausalLM"
    dtype: Dtype = "bfloat16"
    pre: str = "tekken"
    shards: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    std: float = 0.1
    seed: int = 0


def random_checkpoint(folder: Path, options: CheckpointOptions | None = None) -> Path:
    """Write a random checkpoint into `folder`, made when missing, and return it.

    The same options give the same bytes. Weights are held in memory.
    """
    options = options or CheckpointOptions()
    folder.mkdir(parents=True, exist_ok=True)
    config = checkpoint_config(options) | dict(options.config)
    write_json(folder / "config.json", {name: value for name, value in config.items() if value is not None})
    write_json(folder / "tokenizer.json", tokenizer_json(options.shape.n_vocab, options.pre))
    specials = {"unk_token": SPECIALS[0], "bos_token": SPECIALS[1], "eos_token": SPECIALS[2]}
    write_json(folder / "tokenizer_config.json", {"add_bos_token": True, "add_eos_token": False} | specials)
    rng = np.random.default_rng(options.seed)
    dtype = _DTYPES[options.dtype]
    weights = {
        name: (rng.standard_normal(shape, np.float32) * options.std + (len(shape) == 1)).astype(dtype)
        for name, shape in weight_shapes(options.shape).items()
    }
    names = list(weights)
    if options.shards == 1:
        write_safetensors(folder / "model.safetensors", weights)
        return folder
    index: dict[str, str] = {}
    for part in range(options.shards):
        file = f"model-{part + 1:05}-of-{options.shards:05}.safetensors"
        mine = names[part :: options.shards]
        write_safetensors(folder / file, {name: weights[name] for name in mine})
        index |= dict.fromkeys(mine, file)
    total = sum(array.nbytes for array in weights.values())
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index}
    )
    return folder


def checkpoint_config(options: CheckpointOptions) -> dict[str, Any]:
    """Return config.json without overrides."""
    shape = options.shape
    return {
        "architectures": [options.architecture],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff,
        "max_position_embeddings": shape.n_ctx_train,
        "model_type": options.architecture.removesuffix("ForCausalLM").lower(),
        "num_attention_heads": shape.n_head,
        "num_hidden_layers": shape.n_layer,
        "num_key_value_heads": shape.n_head_kv,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": options.dtype,
        "vocab_size": shape.n_vocab,
    }


def weight_shapes(shape: RandomShape) -> dict[str, tuple[int, ...]]:
    """Return name -> shape (NumPy order) of a Llama or Mistral checkpoint's tensors."""
    width, q, kv = shape.n_embd, shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.n_vocab, width)}
    for layer in range(shape.n_layer):
        block = {
            "input_layernorm": (width,),
            "self_attn.q_proj": (q, width),
            "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, q),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (shape.n_ff, width),
            "mlp.up_proj": (shape.n_ff, width),
            "mlp.down_proj": (width, shape.n_ff),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": size for name, size in block.items()}
    shapes["model.norm.weight"] = (width,)
    if not shape.tied:
        shapes["lm_head.weight"] = (shape.n_vocab, width)
    return shapes


def tokenizer_json(n_vocab: int, pre: str) -> dict[str, Any]:
    """Return a tokenizer.json with the synthetic vocabulary and the splitting rule of that name.

    Raises:
        StopIteration: the rule is not in `PRE_TOKENIZERS` with a pattern of its own.
    """
    tokens, merges = synthetic_bpe(n_vocab)
    rule = next((plain for plain, whole in WHOLE_WORDS.items() if whole == pre), pre)
    pattern = next(s[0] for s, name in PRE_TOKENIZERS.items() if name == rule and s[0].startswith("split "))
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern[6:]}, "behavior": "Isolated", "invert": False}
    bos = {"SpecialToken": {"id": SPECIALS[1], "type_id": 0}}
    text, other = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, content in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, by_bytes]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, bos, other],
            "special_tokens": {SPECIALS[1]: {"id": SPECIALS[1], "ids": [1], "tokens": [SPECIALS[1]]}},
        },
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in WHOLE_WORDS.values(),
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays as a safetensors file; bfloat16 as `ml_dtypes.bfloat16`."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.tobytes())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
