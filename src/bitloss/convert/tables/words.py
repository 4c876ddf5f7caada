"""The words a family's table is written in.

A table says which llama.cpp architecture runs the model, which settings of config.json become which GGUF keys, which
checkpoint tensors become which GGUF tensors, and which settings the graph of llama.cpp takes for granted. It holds
data only; what reads it is `bitloss.convert.plan` and `bitloss.convert.dimensions`.

Follows `conversion/*.py` of llama.cpp. Defaults are those of the `transformers` configuration class, which llama.cpp's
converter goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Rope = Literal["q", "k"]
Biases = Literal["all", "qkv", "none"]


@dataclass(frozen=True, slots=True)
class Hyperparameter:
    """A setting that becomes a GGUF key.

    Attributes:
        key: GGUF key without the architecture ("block_count"); empty: only read, not written.
        config: its name in config.json.
        kind: "int" is written as UINT32, "float" as FLOAT32.
        default: value when config.json lacks it, the name of another setting to take it from, or None: required.
        optional: left out of the file where config.json lacks it (or says 0), instead of being required.
        zero: whether 0 is allowed.
        also: another name of the setting.
    """

    key: str
    config: str
    kind: Literal["int", "float"] = "int"
    default: int | float | str | None = None
    optional: bool = False
    zero: bool = False
    also: str | None = None


@dataclass(frozen=True, slots=True)
class TensorRule:
    """A checkpoint tensor, or one per expert, that becomes a GGUF tensor.

    Attributes:
        source: name in the checkpoint; the first ``{}`` is the layer, a second one the expert.
        target: name in the GGUF file; ``{}`` is the layer.
        shape: of one checkpoint tensor, NumPy order, in words of `Dimensions`.
        rope: reorder the rows of each query or key head from halves (HF) to neighbouring pairs (ggml).
        required: whether a model without it is incomplete.
        shift: added to every value (Gemma stores the gains of its norms less one).
    """

    source: str
    target: str
    shape: tuple[str, ...]
    rope: Rope | None = None
    required: bool = True
    shift: float = 0.0

    @property
    def stacked(self) -> bool:
        """Whether the tensors of all experts are stacked into one."""
        return self.source.count("{}") == 2


@dataclass(frozen=True, slots=True)
class Needs:
    """A setting the graph of llama.cpp takes for granted: a model with another value would compute something else.

    Attributes:
        config: its name in config.json; absent or null agrees when `absent` does.
        values: values that agree, or a test of (value, whole config.json).
        why: what llama.cpp does.
        absent: whether a missing setting agrees.
    """

    config: str
    values: tuple[Any, ...] | Callable[[Any, Mapping[str, Any]], bool]
    why: str
    absent: bool = True

    def agrees(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json agrees."""
        value = config.get(self.config)
        if value is None:
            return self.absent
        return value in self.values if isinstance(self.values, tuple) else self.values(value, config)


@dataclass(frozen=True, slots=True)
class VocabularyRules:
    """How llama.cpp's converter treats the family's tokenizer.

    Attributes:
        sources: which files are tried, in order: "sentencepiece" (tokenizer.model), "fallback" (byte-fallback BPE of a
            tokenizer.json) and "bytes" (byte-level BPE of a tokenizer.json).
        space_prefix: the setting `add_prefix_space` of tokenizer_config.json ("asked"), always false ("never"), or not
            written at all.
        by_size: whether vocabularies are known by their size (no BOS with 49152 tokens, CodeLlama with 32016).
        pre: our name of a splitting rule -> the name published files of this family carry for the same rule.
        plain_added: added tokens are control tokens only where their file says so, and those of tokenizer.json
            count for a SentencePiece vocabulary too (Phi-3).
    """

    sources: tuple[Literal["sentencepiece", "fallback", "bytes"], ...] = ("bytes",)
    space_prefix: Literal["asked", "never", "unsaid"] = "unsaid"
    by_size: bool = False
    pre: Mapping[str, str] = field(default_factory=dict)
    plain_added: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    Attributes:
        architecture: the class named in config.json.
        gguf: llama.cpp's name of the architecture.
        hyperparameters: GGUF keys in the order written.
        tensors: all tensors the model may have.
        vocabulary: how its tokenizer is converted.
        head_keys: whether the width of a head is written: always, where config.json gives it, or never.
        head_default: width of a head when config.json lacks it; None: hidden_size / heads.
        rope_dimensions: whether the number of rotated dimensions is written.
        rope_theta: default base of the rotary frequencies; None: no rotary keys at all are written (Gemma 2).
        rope_kinds: kinds of rotary scaling that the graph has.
        rope_local: whether layers with a window have a base of their own.
        tied: whether output and embedding are one tensor when config.json does not say.
        needs: settings that must be as the graph has them.
        unused: settings that llama.cpp's architecture does not know, with what that means.
    """

    architecture: str
    gguf: str
    hyperparameters: tuple[Hyperparameter, ...]
    tensors: tuple[TensorRule, ...]
    vocabulary: VocabularyRules = VocabularyRules()
    head_keys: Literal["always", "given", "never"] = "given"
    head_default: int | None = None
    rope_dimensions: bool = False
    rope_theta: float | None = 10000.0
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    rope_local: bool = False
    tied: bool = False
    needs: tuple[Needs, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)


OUTPUT = "lm_head.weight"
"""Name of the output layer, which may be absent when it is tied to the embedding."""
EMBEDDING = "model.embed_tokens.weight"
HF, GG = "model.layers.{}.", "blk.{}."


def outer_tensors(*, output: bool = True) -> tuple[TensorRule, ...]:
    """Return the rules of embedding, last norm and output layer."""
    rules = (
        TensorRule(EMBEDDING, "token_embd.weight", ("vocab", "embd")),
        TensorRule("model.norm.weight", "output_norm.weight", ("embd",)),
    )
    return (*rules, TensorRule(OUTPUT, "output.weight", ("vocab", "embd"))) if output else rules


def attention_tensors(*, permuted: bool = False, biases: Biases = "none") -> tuple[TensorRule, ...]:
    """Return the rules of separate query, key, value and output projections.

    Args:
        permuted: whether llama.cpp's graph rotates neighbouring pairs (`Rope`).
        biases: "all" may be there, "qkv" must be.
    """
    q: Rope | None = "q" if permuted else None
    k: Rope | None = "k" if permuted else None
    at, to = HF + "self_attn.", GG + "attn_"
    rules = [
        TensorRule(at + "q_proj.weight", to + "q.weight", ("q", "embd"), rope=q),
        TensorRule(at + "k_proj.weight", to + "k.weight", ("kv", "embd"), rope=k),
        TensorRule(at + "v_proj.weight", to + "v.weight", ("kv", "embd")),
        TensorRule(at + "o_proj.weight", to + "output.weight", ("embd", "q")),
    ]
    if biases != "none":
        must = biases == "qkv"
        rules += [
            TensorRule(at + "q_proj.bias", to + "q.bias", ("q",), rope=q, required=must),
            TensorRule(at + "k_proj.bias", to + "k.bias", ("kv",), rope=k, required=must),
            TensorRule(at + "v_proj.bias", to + "v.bias", ("kv",), required=must),
        ]
    if biases == "all":
        rules.append(TensorRule(at + "o_proj.bias", to + "output.bias", ("embd",), required=False))
    return tuple(rules)


def gated_tensors(*, biases: bool = False) -> tuple[TensorRule, ...]:
    """Return the rules of a gated feed-forward network."""
    at, to = HF + "mlp.", GG + "ffn_"
    rules = [
        TensorRule(at + "gate_proj.weight", to + "gate.weight", ("ff", "embd")),
        TensorRule(at + "up_proj.weight", to + "up.weight", ("ff", "embd")),
        TensorRule(at + "down_proj.weight", to + "down.weight", ("embd", "ff")),
    ]
    if biases:
        rules += [
            TensorRule(at + "gate_proj.bias", to + "gate.bias", ("ff",), required=False),
            TensorRule(at + "up_proj.bias", to + "up.bias", ("ff",), required=False),
            TensorRule(at + "down_proj.bias", to + "down.bias", ("embd",), required=False),
        ]
    return tuple(rules)


def norm_tensors(names: Mapping[str, str], shift: float = 0.0) -> tuple[TensorRule, ...]:
    """Return the rules of a layer's norms: name in the checkpoint -> name in the file, of the model's width."""
    return tuple(
        TensorRule(f"{HF}{name}.weight", f"{GG}{target}.weight", ("embd",), shift=shift)
        for name, target in names.items()
    )


BLOCK_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
HEAD_NORMS = tuple(
    TensorRule(f"{HF}self_attn.{x}_norm.weight", f"{GG}attn_{x}_norm.weight", ("head",)) for x in "qk"
)


def common_hyperparameters(n_head_kv: int | str, rms_eps: float = 1e-6) -> tuple[Hyperparameter, ...]:
    """Return the keys every family has."""
    return (
        Hyperparameter("block_count", "num_hidden_layers"),
        Hyperparameter("context_length", "max_position_embeddings"),
        Hyperparameter("embedding_length", "hidden_size"),
        Hyperparameter("feed_forward_length", "intermediate_size"),
        Hyperparameter("attention.head_count", "num_attention_heads"),
        Hyperparameter("attention.head_count_kv", "num_key_value_heads", default=n_head_kv),
        Hyperparameter("attention.layer_norm_rms_epsilon", "rms_norm_eps", "float", rms_eps),
        Hyperparameter("", "vocab_size"),
    )


VOCAB_SIZE = Hyperparameter("vocab_size", "vocab_size")
SILU = Needs("hidden_act", ("silu", "swish"), "the graph's activation is SiLU")
NO_WINDOW = Needs("use_sliding_window", (False,), "the graph attends to the whole context")
