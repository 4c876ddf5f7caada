"""Qwen2, Qwen2-MoE, Qwen3, Qwen3-MoE: halves are rotated, so rows stay in order."""

from __future__ import annotations

from bitloss.convert.tables.words import (
    BLOCK_NORMS,
    GG,
    HEAD_NORMS,
    HF,
    NO_WINDOW,
    SILU,
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

_EITHER = VocabularyRules(("sentencepiece", "bytes"))
_EXPERT = HF + "mlp.experts.{}."
# In the order in which llama.cpp's converter writes the stacks.
_EXPERTS = (
    TensorRule(HF + "mlp.gate.weight", GG + "ffn_gate_inp.weight", ("experts", "embd")),
    TensorRule(_EXPERT + "down_proj.weight", GG + "ffn_down_exps.weight", ("embd", "ff_expert")),
    TensorRule(_EXPERT + "gate_proj.weight", GG + "ffn_gate_exps.weight", ("ff_expert", "embd")),
    TensorRule(_EXPERT + "up_proj.weight", GG + "ffn_up_exps.weight", ("ff_expert", "embd")),
)
_SHARED = HF + "mlp.shared_expert."
_SHARED_EXPERT = (
    TensorRule(_SHARED + "down_proj.weight", GG + "ffn_down_shexp.weight", ("embd", "ff_shared")),
    TensorRule(_SHARED + "gate_proj.weight", GG + "ffn_gate_shexp.weight", ("ff_shared", "embd")),
    TensorRule(_SHARED + "up_proj.weight", GG + "ffn_up_shexp.weight", ("ff_shared", "embd")),
    TensorRule(HF + "mlp.shared_expert_gate.weight", GG + "ffn_gate_inp_shexp.weight", ("one", "embd")),
)
_SPARSE = (
    Needs("decoder_sparse_step", (1,), "every layer has experts"),
    Needs("mlp_only_layers", ([],), "every layer has experts"),
)
QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    gguf="qwen2",
    hyperparameters=common_hyperparameters(32),
    tensors=(
        *outer_tensors(),
        *norm_tensors(BLOCK_NORMS),
        *attention_tensors(biases="qkv"),
        *gated_tensors(),
    ),
    vocabulary=_EITHER,
    needs=(SILU, NO_WINDOW),
)
QWEN2_MOE = Family(
    architecture="Qwen2MoeForCausalLM",
    gguf="qwen2moe",
    hyperparameters=(
        *common_hyperparameters(16),
        Hyperparameter("expert_count", "num_experts", default=60),
        Hyperparameter("expert_used_count", "num_experts_per_tok", default=4),
        Hyperparameter("expert_feed_forward_length", "moe_intermediate_size", default=1408),
        Hyperparameter("expert_shared_feed_forward_length", "shared_expert_intermediate_size", default=5632),
    ),
    tensors=(
        *outer_tensors(),
        *norm_tensors(BLOCK_NORMS),
        *attention_tensors(biases="qkv"),
        *_EXPERTS,
        *_SHARED_EXPERT,
    ),
    needs=(
        SILU,
        NO_WINDOW,
        *_SPARSE,
        Needs("norm_topk_prob", (False,), "the shares of the chosen experts are not normalized"),
    ),
)
QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    gguf="qwen3",
    hyperparameters=common_hyperparameters(32),
    tensors=(
        *outer_tensors(),
        *norm_tensors(BLOCK_NORMS),
        *attention_tensors(),
        *HEAD_NORMS,
        *gated_tensors(),
    ),
    vocabulary=_EITHER,
    head_keys="always",
    head_default=128,
    needs=(SILU, NO_WINDOW),
)
QWEN3_MOE = Family(
    architecture="Qwen3MoeForCausalLM",
    gguf="qwen3moe",
    hyperparameters=(
        *common_hyperparameters(4),
        Hyperparameter("expert_count", "num_experts", default=128, also="num_local_experts"),
        Hyperparameter("expert_used_count", "num_experts_per_tok", default=8),
        Hyperparameter("expert_feed_forward_length", "moe_intermediate_size", default=768),
    ),
    tensors=(
        *outer_tensors(),
        *norm_tensors(BLOCK_NORMS),
        *attention_tensors(),
        *HEAD_NORMS,
        *_EXPERTS,
    ),
    needs=(
        SILU,
        NO_WINDOW,
        *_SPARSE,
        # The class's default is false.
        Needs("norm_topk_prob", (True,), "the shares of the chosen experts are normalized", absent=False),
    ),
)
FAMILIES = (QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE)
