"""Gemma 2 and Gemma 3 (text): four norms a layer with gains stored less one, windows, soft-capping.

The shift of the gains is computed in float32 (llama.cpp's converter computes it in float16 for checkpoints of that
type). An output layer in the checkpoint is a copy of the embedding and left out, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bitloss.convert.tables.words import (
    HEAD_NORMS,
    Family,
    Hyperparameter,
    Needs,
    TensorRule,
    VocabularyRules,
    attention_tensors,
    common_hyperparameters,
    gated_tensors,
    norm_tensors,
    outer_tensors,
)

_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_VOCABULARY = VocabularyRules(("sentencepiece",), space_prefix="never")


def _shifted(rules: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
    return tuple(replace(rule, shift=1.0 if rule.source.endswith("norm.weight") else 0.0) for rule in rules)


def _scale(layers_of_27b: int) -> Needs:
    def agrees(value: Any, config: Mapping[str, Any]) -> bool:
        heads, width = config.get("num_attention_heads"), config.get("hidden_size")
        if config.get("num_hidden_layers") == layers_of_27b and isinstance(heads, int) and heads > 0:
            return bool(value == (width or 0) // heads)
        return bool(value == config.get("head_dim", 256))

    return Needs(
        "query_pre_attn_scalar",
        agrees,
        "queries are scaled by the width of a head (27B: hidden_size / heads)",
    )


def _windows(every: int) -> Needs:
    def agrees(layers: Any, _config: Mapping[str, Any]) -> bool:
        return isinstance(layers, list) and layers == [
            "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(len(layers))
        ]

    return Needs(
        "layer_types", agrees, f"every {every}th layer attends to the whole context, the others to a window"
    )


_GELU = (
    Needs("hidden_activation", ("gelu_pytorch_tanh",), "the graph's activation is GELU, by tanh"),
    Needs("use_bidirectional_attention", (False,), "attention looks back only"),
)
_HYPERPARAMETERS = (
    *common_hyperparameters(4),
    Hyperparameter("attention.sliding_window", "sliding_window", default=4096),
)
GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    gguf="gemma2",
    hyperparameters=(
        *_HYPERPARAMETERS,
        Hyperparameter("attn_logit_softcapping", "attn_logit_softcapping", "float", 50.0),
        Hyperparameter("final_logit_softcapping", "final_logit_softcapping", "float", 30.0),
    ),
    tensors=_shifted(
        (*outer_tensors(output=False), *norm_tensors(_NORMS), *attention_tensors(), *gated_tensors())
    ),
    vocabulary=_VOCABULARY,
    head_keys="always",
    head_default=256,
    rope_theta=None,
    rope_kinds=("default",),
    tied=True,
    needs=(
        *_GELU,
        _scale(46),
        _windows(2),
        Needs("tie_word_embeddings", (True,), "the output layer is the embedding"),
        Needs("rope_theta", (10000, 10000.0), "the base of the rotary frequencies is 10000"),
    ),
)
GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    gguf="gemma3",
    hyperparameters=(
        *_HYPERPARAMETERS,
        Hyperparameter("final_logit_softcapping", "final_logit_softcapping", "float", optional=True),
    ),
    tensors=_shifted(
        (
            *outer_tensors(output=False),
            *norm_tensors(_NORMS),
            *attention_tensors(),
            *HEAD_NORMS,
            *gated_tensors(),
        )
    ),
    vocabulary=_VOCABULARY,
    head_keys="always",
    head_default=256,
    rope_theta=1e6,
    rope_kinds=("default", "linear"),
    rope_local=True,
    tied=True,
    needs=(
        *_GELU,
        _scale(62),
        _windows(6),
        Needs("sliding_window_pattern", (6,), "every sixth layer attends to the whole context"),
        Needs("tie_word_embeddings", (True,), "the output layer is the embedding"),
        Needs("attn_logit_softcapping", (), "attention is not capped"),
    ),
)
FAMILIES = (GEMMA2, GEMMA3)
