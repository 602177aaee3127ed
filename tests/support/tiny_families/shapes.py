"""Parts that several tiny models have in common: how wide, how many experts, which rotation of positions."""

from __future__ import annotations

from typing import Any

from tiny_models import SIZES, VOCABULARY

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}

MINISTRAL3_ROPE = YARN | {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 8,
}

# Parts that see images, as small as their classes take them.
TINY_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
PIXTRAL = TINY_VISION | {"model_type": "pixtral", "head_dim": 16}

OLMO3 = {"sliding_window": 8, "num_hidden_layers": 5}

QWEN_VL: dict[str, Any] = {
    "text_config": SIZES
    | {
        "tie_word_embeddings": True,
        # llama.cpp does not read it for these, and it shows in a model as small as this.
        "rms_norm_eps": 1e-12,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": [2, 3, 3],
        },
    },
    "vision_config": {
        "embed_dim": 32,
        "hidden_size": 64,
        "out_hidden_size": 64,
        "intermediate_size": 48,
        "depth": 1,
        "num_heads": 2,
    },
}

LLAMA_INSIDE = SIZES | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 16}

LFM2_SIZES = {
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
}

GLM_EXPERTS = {
    "head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "num_nextn_predict_layers": 0,
}

GRANITE_EXPERTS = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 48,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}

QWEN_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
}

GPT2_SIZES = {
    "num_key_value_heads": None,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 256,
    "n_ctx": 256,  # transformers 5 no longer writes it, the converter still reads it
}

# Two key heads for four value heads, whose order changes.
LINEAR_SIZES = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mtp_num_hidden_layers": 1,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
LINEAR_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 96,
}

LATENT_SIZES = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 48,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}

GEMMA4_SIZES = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 24,
    "vocab_size_per_layer_input": VOCABULARY,
}

MAMBA_SIZES = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
