"""What is known about each architecture: one `Family` entry of data each.

An entry says which llama.cpp architecture runs the model, which settings of config.json become which GGUF
keys, and which checkpoint tensors become which GGUF tensors. To add an architecture that llama.cpp's
converter maps the same way, add an entry to `FAMILIES`; nothing else changes.

Follows `conversion/llama.py` and `conversion/base.py` of llama.cpp. Defaults are those of the `transformers`
configuration class, which llama.cpp's converter goes through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bitloss.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

Rope = Literal["q", "k"]


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A setting that becomes a GGUF key.

    Attributes:
        key: GGUF key without the architecture ("block_count").
        config: its name in config.json.
        kind: "int" is written as UINT32, "float" as FLOAT32.
        default: value when config.json lacks it, the name of another setting to take it from, or None:
        required.
    """

    key: str
    config: str
    kind: Literal["int", "float"] = "int"
    default: int | float | str | None = None


@dataclass(frozen=True, slots=True)
class TensorRule:
    """A checkpoint tensor that becomes a GGUF tensor.

    Attributes:
        source: name in the checkpoint; ``{}`` is the layer.
        target: name in the GGUF file; ``{}`` is the layer.
        shape: NumPy order, in words of `Dimensions`.
        rope: reorder the rows of each query or key head from halves (HF) to neighbouring pairs (ggml).
        required: whether a model without it is incomplete.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    rope: Rope | None = None
    required: bool = True


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    Attributes:
        architecture: the class named in config.json.
        gguf: llama.cpp's name of the architecture.
        hyperparameters: GGUF keys in the order written.
        tensors: all tensors the model may have.
        output: checkpoint name of the output layer, which may be absent when tied to the embedding.
        unused: settings that llama.cpp's architecture does not know, with what that means.
    """

    architecture: str
    gguf: str
    hyperparameters: tuple[Hyperparameter, ...]
    tensors: tuple[TensorRule, ...]
    output: str
    unused: Mapping[str, str]


def _llama_tensors() -> tuple[TensorRule, ...]:
    hf, gg = "model.layers.{}.", "blk.{}."
    attention, mlp = hf + "self_attn.", hf + "mlp."
    return (
        TensorRule("model.embed_tokens.weight", "token_embd.weight", ("vocab", "embd")),
        TensorRule("model.norm.weight", "output_norm.weight", ("embd",)),
        TensorRule("lm_head.weight", "output.weight", ("vocab", "embd")),
        TensorRule(hf + "input_layernorm.weight", gg + "attn_norm.weight", ("embd",)),
        TensorRule(attention + "q_proj.weight", gg + "attn_q.weight", ("q", "embd"), rope="q"),
        TensorRule(attention + "k_proj.weight", gg + "attn_k.weight", ("kv", "embd"), rope="k"),
        TensorRule(attention + "v_proj.weight", gg + "attn_v.weight", ("kv", "embd")),
        TensorRule(attention + "o_proj.weight", gg + "attn_output.weight", ("embd", "q")),
        TensorRule(attention + "q_proj.bias", gg + "attn_q.bias", ("q",), rope="q", required=False),
        TensorRule(attention + "k_proj.bias", gg + "attn_k.bias", ("kv",), rope="k", required=False),
        TensorRule(attention + "v_proj.bias", gg + "attn_v.bias", ("kv",), required=False),
        TensorRule(attention + "o_proj.bias", gg + "attn_output.bias", ("embd",), required=False),
        TensorRule(hf + "post_attention_layernorm.weight", gg + "ffn_norm.weight", ("embd",)),
        TensorRule(mlp + "gate_proj.weight", gg + "ffn_gate.weight", ("ff", "embd")),
        TensorRule(mlp + "up_proj.weight", gg + "ffn_up.weight", ("ff", "embd")),
        TensorRule(mlp + "down_proj.weight", gg + "ffn_down.weight", ("embd", "ff")),
        TensorRule(mlp + "gate_proj.bias", gg + "ffn_gate.bias", ("ff",), required=False),
        TensorRule(mlp + "up_proj.bias", gg + "ffn_up.bias", ("ff",), required=False),
        TensorRule(mlp + "down_proj.bias", gg + "ffn_down.bias", ("embd",), required=False),
    )


def _llama_hyperparameters(n_head_kv: int | str) -> tuple[Hyperparameter, ...]:
    return (
        Hyperparameter("block_count", "num_hidden_layers"),
        Hyperparameter("context_length", "max_position_embeddings"),
        Hyperparameter("embedding_length", "hidden_size"),
        Hyperparameter("feed_forward_length", "intermediate_size"),
        Hyperparameter("attention.head_count", "num_attention_heads"),
        Hyperparameter("attention.head_count_kv", "num_key_value_heads", default=n_head_kv),
        Hyperparameter("attention.layer_norm_rms_epsilon", "rms_norm_eps", "float", 1e-6),
        Hyperparameter("vocab_size", "vocab_size"),
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        architecture="MistralForCausalLM",
        gguf="llama",
        hyperparameters=_llama_hyperparameters(n_head_kv=8),
        tensors=_llama_tensors(),
        output="lm_head.weight",
        unused={"sliding_window": "llama.cpp attends to the whole context"},
    ),
    Family(
        architecture="LlamaForCausalLM",
        gguf="llama",
        hyperparameters=_llama_hyperparameters(n_head_kv="num_attention_heads"),
        tensors=_llama_tensors(),
        output="lm_head.weight",
        unused={},
    ),
)


def family_of(architecture: str) -> Family:
    """Return the entry of an architecture.

    Raises:
        UnsupportedError: there is none.
    """
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    raise UnsupportedError(
        "architecture that cannot be converted here",
        where=architecture,
        expected=", ".join(family.architecture for family in FAMILIES),
        mend="make a GGUF with llama.cpp's convert_hf_to_gguf.py and give that",
    )


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The numbers of config.json that shapes are made of.

    Attributes:
        vocab: tokens. embd: width. ff: feed-forward width. layers: blocks.
        n_head: query heads. n_head_kv: key/value heads. head: width of a head.
    """

    vocab: int
    embd: int
    ff: int
    layers: int
    n_head: int
    n_head_kv: int
    head: int

    def resolve(self, shape: tuple[str, ...]) -> tuple[int, ...]:
        """Return a rule's shape in numbers."""
        words = {
            "vocab": self.vocab,
            "embd": self.embd,
            "ff": self.ff,
            "q": self.n_head * self.head,
            "kv": self.n_head_kv * self.head,
        }
        return tuple(words[word] for word in shape)


def settings(family: Family, config: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the family's settings by their names in config.json, checked, defaults put in.

    Raises:
        CheckpointError: a required setting is missing, or a value makes no sense.
    """
    found: dict[str, int | float] = {}
    for hyper in family.hyperparameters:
        default = found[hyper.default] if isinstance(hyper.default, str) else hyper.default
        value = config[hyper.config] if config.get(hyper.config) is not None else default
        kinds = (int,) if hyper.kind == "int" else (int, float)
        if type(value) not in kinds or value is None or not 0 < value < 1 << 31:
            raise CheckpointError(
                "bad or missing setting",
                where=f"config.json[{hyper.config}]",
                expected=f"a positive {hyper.kind}",
                found=repr(value)[:40],
            )
        found[hyper.config] = value
    return found


def dimensions(config: Mapping[str, Any], found: Mapping[str, int | float]) -> Dimensions:
    """Return the dimensions of a model from its config.json and checked `settings`.

    Raises:
        CheckpointError: heads that do not fit the width or each other.
    """
    n_head, n_head_kv = int(found["num_attention_heads"]), int(found["num_key_value_heads"])
    width = int(found["hidden_size"])
    head = config.get("head_dim")
    if head is None:
        if width % n_head:
            raise CheckpointError(
                "hidden_size is no multiple of the heads",
                where="config.json",
                expected=f"x {n_head}",
                found=width,
            )
        head = width // n_head
    if type(head) is not int or not 0 < head < 1 << 16 or head % 2:
        raise CheckpointError(
            "bad head width",
            where="config.json[head_dim]",
            expected="a positive even number",
            found=repr(head)[:40],
        )
    if n_head % n_head_kv:
        raise CheckpointError(
            "heads do not share key/value heads evenly",
            where="config.json[num_key_value_heads]",
            expected=f"a divisor of {n_head}",
            found=n_head_kv,
        )
    return Dimensions(
        vocab=int(found["vocab_size"]),
        embd=width,
        ff=int(found["intermediate_size"]),
        layers=int(found["num_hidden_layers"]),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head=head,
    )
