"""OLMo 2: norms after attention and feed-forward, and over all of a query's or key's heads at once."""

from __future__ import annotations

from bitloss.convert.tables.words import (
    GG,
    HF,
    SILU,
    Family,
    TensorRule,
    attention_tensors,
    common_hyperparameters,
    gated_tensors,
    norm_tensors,
    outer_tensors,
)

OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    gguf="olmo2",
    hyperparameters=common_hyperparameters("num_attention_heads", 1e-5),
    tensors=(
        *outer_tensors(),
        *norm_tensors(
            {
                "post_attention_layernorm": "post_attention_norm",
                "post_feedforward_layernorm": "post_ffw_norm",
            }
        ),
        *attention_tensors(),
        TensorRule(HF + "self_attn.q_norm.weight", GG + "attn_q_norm.weight", ("q",)),
        TensorRule(HF + "self_attn.k_norm.weight", GG + "attn_k_norm.weight", ("kv",)),
        *gated_tensors(),
    ),
    needs=(SILU,),
)
FAMILIES = (OLMO2,)
