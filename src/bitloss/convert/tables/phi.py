"""Phi-3, Phi-3.5 and Phi-4: fused projections stay fused, long contexts by two sets of rotary factors."""

from __future__ import annotations

from bitloss.convert.tables.words import (
    BLOCK_NORMS,
    GG,
    HF,
    SILU,
    Family,
    Hyperparameter,
    Needs,
    TensorRule,
    VocabularyRules,
    common_hyperparameters,
    norm_tensors,
    outer_tensors,
)

PHI3 = Family(
    architecture="Phi3ForCausalLM",
    gguf="phi3",
    hyperparameters=(
        *common_hyperparameters("num_attention_heads", 1e-5),
        # 0 tells Phi-4 from the others in llama.cpp.
        Hyperparameter("attention.sliding_window", "sliding_window", default=0, zero=True),
        Hyperparameter(
            "rope.scaling.original_context_length", "original_max_position_embeddings", default=4096
        ),
    ),
    tensors=(
        *outer_tensors(),
        *norm_tensors(BLOCK_NORMS),
        TensorRule(HF + "self_attn.qkv_proj.weight", GG + "attn_qkv.weight", ("q+2kv", "embd")),
        TensorRule(HF + "self_attn.o_proj.weight", GG + "attn_output.weight", ("embd", "q")),
        TensorRule(HF + "mlp.gate_up_proj.weight", GG + "ffn_up.weight", ("2ff", "embd")),
        TensorRule(HF + "mlp.down_proj.weight", GG + "ffn_down.weight", ("embd", "ff")),
    ),
    vocabulary=VocabularyRules(("sentencepiece", "bytes"), plain_added=True),
    head_keys="never",
    rope_dimensions=True,
    rope_kinds=("default", "longrope"),
    needs=(SILU, Needs("partial_rotary_factor", (1, 1.0), "whole heads are rotated")),
    unused={"sliding_window": "llama.cpp attends to the whole context"},
)
FAMILIES = (PHI3,)
