"""Llama and what shares its graph or nearly: Mistral, Mixtral, SmolLM (a Llama), SmolLM3, Granite.

All of them rotate neighbouring pairs in llama.cpp, so query and key rows are reordered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitloss.convert.tables.words import (
    BLOCK_NORMS,
    GG,
    HF,
    SILU,
    VOCAB_SIZE,
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

_VOCABULARY = VocabularyRules(("sentencepiece", "fallback", "bytes"), space_prefix="asked", by_size=True)
_TENSORS = (
    *outer_tensors(),
    *norm_tensors(BLOCK_NORMS),
    *attention_tensors(permuted=True, biases="all"),
    *gated_tensors(biases=True),
)
_ROPE_KINDS = ("default", "linear", "yarn", "llama3")
_WHOLE_CONTEXT = {"sliding_window": "llama.cpp attends to the whole context"}


def _every_fourth(layers: Any, _config: Mapping[str, Any]) -> bool:
    return isinstance(layers, list) and layers == [int((i + 1) % 4 != 0) for i in range(len(layers))]


_EXPERT = HF + "block_sparse_moe.experts.{}."
LLAMA = Family(
    architecture="LlamaForCausalLM",
    gguf="llama",
    hyperparameters=(*common_hyperparameters("num_attention_heads"), VOCAB_SIZE),
    tensors=_TENSORS,
    vocabulary=_VOCABULARY,
    head_keys="always",
    rope_dimensions=True,
    rope_kinds=_ROPE_KINDS,
    needs=(SILU,),
)
MISTRAL = Family(
    architecture="MistralForCausalLM",
    gguf="llama",
    hyperparameters=(*common_hyperparameters(8), VOCAB_SIZE),
    tensors=_TENSORS,
    vocabulary=_VOCABULARY,
    head_keys="always",
    rope_dimensions=True,
    rope_kinds=_ROPE_KINDS,
    needs=(SILU,),
    unused=_WHOLE_CONTEXT,
)
MIXTRAL = Family(
    architecture="MixtralForCausalLM",
    gguf="llama",
    hyperparameters=(
        *common_hyperparameters(8, 1e-5),
        VOCAB_SIZE,
        Hyperparameter("expert_count", "num_local_experts", default=8),
        Hyperparameter("expert_used_count", "num_experts_per_tok", default=2),
    ),
    tensors=(
        *outer_tensors(),
        *norm_tensors(BLOCK_NORMS),
        *attention_tensors(permuted=True),
        TensorRule(HF + "block_sparse_moe.gate.weight", GG + "ffn_gate_inp.weight", ("experts", "embd")),
        # In the order in which llama.cpp's converter writes the stacks.
        TensorRule(_EXPERT + "w1.weight", GG + "ffn_gate_exps.weight", ("ff", "embd")),
        TensorRule(_EXPERT + "w2.weight", GG + "ffn_down_exps.weight", ("embd", "ff")),
        TensorRule(_EXPERT + "w3.weight", GG + "ffn_up_exps.weight", ("ff", "embd")),
    ),
    vocabulary=_VOCABULARY,
    rope_dimensions=True,
    rope_kinds=_ROPE_KINDS,
    rope_theta=1e6,
    needs=(SILU,),
    unused=_WHOLE_CONTEXT,
)
SMOLLM3 = Family(
    architecture="SmolLM3ForCausalLM",
    gguf="smollm3",
    hyperparameters=(*common_hyperparameters(4), VOCAB_SIZE),
    tensors=(
        *outer_tensors(),
        *norm_tensors(BLOCK_NORMS),
        *attention_tensors(permuted=True),
        *gated_tensors(),
    ),
    vocabulary=_VOCABULARY,
    rope_dimensions=True,
    rope_theta=2e6,
    tied=True,
    needs=(
        SILU,
        Needs("use_sliding_window", (False,), "the graph attends to the whole context"),
        Needs("no_rope_layers", _every_fourth, "every fourth layer has no rotary positions"),
        Needs("no_rope_layer_interval", (4,), "every fourth layer has no rotary positions"),
    ),
)
GRANITE = Family(
    architecture="GraniteForCausalLM",
    gguf="granite",
    hyperparameters=(
        *common_hyperparameters("num_attention_heads"),
        VOCAB_SIZE,
        Hyperparameter("attention.scale", "attention_multiplier", "float", 1.0),
        Hyperparameter("embedding_scale", "embedding_multiplier", "float", 1.0),
        Hyperparameter("residual_scale", "residual_multiplier", "float", 1.0),
        Hyperparameter("logit_scale", "logits_scaling", "float", 1.0),
    ),
    tensors=_TENSORS,
    # The same rule as "smollm"; published Granite files carry Refact's name for it.
    vocabulary=VocabularyRules(_VOCABULARY.sources, "asked", by_size=True, pre={"smollm": "refact"}),
    head_keys="never",
    rope_dimensions=True,
    rope_kinds=_ROPE_KINDS,
    needs=(
        SILU,
        Needs(
            "head_dim",
            lambda value, config: value * config.get("num_attention_heads", 0) == config.get("hidden_size"),
            "a head is hidden_size / heads wide",
        ),
    ),
)
FAMILIES = (MISTRAL, LLAMA, MIXTRAL, SMOLLM3, GRANITE)
