"""Write a random Mistral checkpoint (HF folder, BF16) of a chosen size, for benchmarks.

    python benchmarks/random_checkpoint.py --out FOLDER [--layers 15 --hidden 768 --ff 2048 --vocab 32000]

The tokenizer has the 256 bytes and fillers, so a text has about one token a byte: the numbers of such a model mean
nothing, its sizes do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from bitloss.model.random_model import byte_symbols

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of the model; the default has 155 million weights."""

    layers: int = 15
    hidden: int = 768
    ff: int = 2048
    vocab: int = 32000
    heads: int = 12
    kv_heads: int = 4
    head_dim: int = 64

    def weights(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(shape)) for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the checkpoint's tensors."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            yield f"{layer}.input_layernorm.weight", (self.hidden,)
            yield f"{layer}.post_attention_layernorm.weight", (self.hidden,)
            yield f"{layer}.self_attn.q_proj.weight", (q, self.hidden)
            yield f"{layer}.self_attn.k_proj.weight", (kv, self.hidden)
            yield f"{layer}.self_attn.v_proj.weight", (kv, self.hidden)
            yield f"{layer}.self_attn.o_proj.weight", (self.hidden, q)
            yield f"{layer}.mlp.gate_proj.weight", (self.ff, self.hidden)
            yield f"{layer}.mlp.up_proj.weight", (self.ff, self.hidden)
            yield f"{layer}.mlp.down_proj.weight", (self.hidden, self.ff)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocab, self.hidden)


def write_checkpoint(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Write config.json, tokenizer.json, tokenizer_config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ff,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(shape.vocab)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True})
    )
    rng = np.random.default_rng(seed)
    save_file({name: _draw(rng, name, size) for name, size in shape.tensors()}, folder / "model.safetensors")


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[ml_dtypes.bfloat16]:
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        values = 1 + np.float32(0.1) * values
    else:
        # outputs of unit size, and a wide enough spread of logits that tokens differ in probability
        values *= np.float32((3.0 if name.startswith("lm_head") else 1.0) / shape[1] ** 0.5)
    return values.astype(ml_dtypes.bfloat16)


def _tokenizer(n_vocab: int) -> dict[str, object]:
    specials = ["<unk>", "<s>", "</s>"]
    tokens = [*specials, *byte_symbols()]
    tokens += [f"<filler_{i}>" for i in range(n_vocab - len(tokens))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": TEKKEN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    for name, default in (("layers", 15), ("hidden", 768), ("ff", 2048), ("vocab", 32000), ("heads", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    args = vars(parser.parse_args())
    out, seed = args.pop("out"), args.pop("seed")
    shape = Shape(**args)
    write_checkpoint(out, shape, seed)
    print(f"{out}: {shape.weights() / 1e6:.1f} million weights")


if __name__ == "__main__":
    main()
