"""Settings of the tiny checkpoints, one per family, spelled as the published config.json of that family is.

Widths are as small as the graph allows; what a family does in its own way is switched on and has a value that
shows in the logits: windows shorter than the text, several experts of which some are used, scales other than 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Vocabulary = Literal["llama-bpe", "qwen2", "dbrx", "refact", "smollm", "spm", "spm-gemma", "spm-json"]

BPE_VOCAB, SPM_PIECES, SPM_VOCAB = 320, 380, 384
_DENSE: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": BPE_VOCAB,
}
_QWEN = {"bos_token_id": 317, "eos_token_id": 318, "use_sliding_window": False, "sliding_window": 2048}
_SPM = {"bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0, "vocab_size": SPM_VOCAB}
_GEMMA = _SPM | {
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "head_dim": 24,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "sliding_window": 16,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class FamilyModel:
    """One checkpoint to make: folder name, kind of vocabulary, class and model_type, settings over `_DENSE`."""

    name: str
    vocabulary: Vocabulary
    architecture: str
    model_type: str
    settings: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        named = {"architectures": [self.architecture], "model_type": self.model_type}
        return dict(sorted((named | _DENSE | self.settings).items()))


_LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0],
}
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
FAMILY_MODELS = (
    FamilyModel("qwen2", "qwen2", "Qwen2ForCausalLM", "qwen2", _QWEN | {"tie_word_embeddings": True}),
    FamilyModel("qwen2-yarn", "qwen2", "Qwen2ForCausalLM", "qwen2", _QWEN | {"rope_scaling": _YARN}),
    FamilyModel(
        "qwen2-moe",
        "qwen2",
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        _QWEN
        | {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": 32,
            "norm_topk_prob": False,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 64,
        },
    ),
    FamilyModel(
        "qwen3", "qwen2", "Qwen3ForCausalLM", "qwen3", _QWEN | {"head_dim": 32, "attention_bias": False}
    ),
    FamilyModel(
        "qwen3-moe",
        "qwen2",
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        _QWEN
        | {
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "head_dim": 32,
            "mlp_only_layers": [],
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    FamilyModel(
        "mixtral",
        "spm",
        "MixtralForCausalLM",
        "mixtral",
        _SPM
        | {
            "num_experts_per_tok": 2,
            "num_local_experts": 4,
            "output_router_logits": False,
            "sliding_window": None,
        },
    ),
    FamilyModel(
        "gemma2",
        "spm-gemma",
        "Gemma2ForCausalLM",
        "gemma2",
        # Caps low enough to bend the logits.
        _GEMMA
        | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "cache_implementation": "hybrid"},
    ),
    FamilyModel(
        "gemma3",
        "spm-gemma",
        "Gemma3ForCausalLM",
        "gemma3_text",
        _GEMMA
        | {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 7,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_theta": 1000000.0,
            "sliding_window_pattern": 6,
        },
    ),
    FamilyModel(
        "phi3",
        "spm",
        "Phi3ForCausalLM",
        "phi3",
        _SPM
        | {
            "original_max_position_embeddings": 512,
            "pad_token_id": 2,
            "rope_scaling": _LONGROPE,
            "sliding_window": 2048,
        },
    ),
    FamilyModel(
        "phi4",
        "dbrx",
        "Phi3ForCausalLM",
        "phi3",
        {
            "bos_token_id": 317,
            "eos_token_id": 318,
            "original_max_position_embeddings": 2048,
            "pad_token_id": 319,
            "rope_theta": 250000.0,
            "sliding_window": None,
        },
    ),
    FamilyModel(
        "smollm3",
        "llama-bpe",
        "SmolLM3ForCausalLM",
        "smollm3",
        {
            "attention_bias": False,
            "bos_token_id": 317,
            "eos_token_id": 318,
            "mlp_bias": False,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0],
            "num_hidden_layers": 4,
            "pad_token_id": 319,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
    ),
    FamilyModel(
        "granite",
        "refact",
        "GraniteForCausalLM",
        "granite",
        {
            "attention_bias": False,
            "attention_multiplier": 0.2,
            "bos_token_id": 0,
            "embedding_multiplier": 3.0,
            "eos_token_id": 0,
            "logits_scaling": 4.0,
            "mlp_bias": False,
            "pad_token_id": 0,
            "residual_multiplier": 0.7,
            "tie_word_embeddings": True,
        },
    ),
    FamilyModel(
        "olmo2",
        "dbrx",
        "Olmo2ForCausalLM",
        "olmo2",
        {"attention_bias": False, "eos_token_id": 317, "pad_token_id": 319, "rope_theta": 500000.0},
    ),
    FamilyModel(
        "llama2-json",
        "spm-json",
        "LlamaForCausalLM",
        "llama",
        _SPM
        | {  # As many rows as tokens: llama.cpp's converter does not pad such a vocabulary.
            "vocab_size": SPM_PIECES,
            "attention_bias": False,
            "mlp_bias": False,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
    ),
    FamilyModel(
        "mistral",
        "spm",
        "MistralForCausalLM",
        "mistral",
        # As Mistral 7B v0.1: no width of a head of its own, and a window (longer than the text here).
        _SPM | {"num_attention_heads": 8, "rms_norm_eps": 1e-5, "sliding_window": 1024},
    ),
    FamilyModel(
        "smollm",
        "smollm",
        "LlamaForCausalLM",
        "llama",
        {
            "attention_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "hidden_size": 72,
            "mlp_bias": False,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-5,
            "rope_interleaved": False,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        },
    ),
)
