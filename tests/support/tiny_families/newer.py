"""Further families of tiny models: the config class of each, and where it departs from the common sizes.

`RELEASED` holds what the makers' config.json says and transformers 5 drops or renames when it writes one.
"""

from __future__ import annotations

from typing import Any

from tiny_models import SIZES

from tiny_families.shapes import LATENT_SIZES, LLAMA3_ROPE, TINY_VISION

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
# Older classes: four times the width inside, which the converter takes for granted, and no shared heads.
_WIDE = {"intermediate_size": 256, "num_key_value_heads": None}
_TWICE = {"intermediate_size": 128, "state_size": 16, "time_step_rank": 12}
_STATES = {"mamba_d_state": 16, "mamba_d_head": 16, "mamba_n_heads": 8, "mamba_n_groups": 2}
_WINDOWS = {"sliding_window": 8, "num_hidden_layers": 5}
_MULTIPLIED = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
_NEMOTRON = {
    "head_dim": 16,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "chunk_size": 16,
}
_GLM_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "image_size": 28,
}
_GLM_ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "mrope_section": [2, 1, 1],
}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_QWEN_ROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [4, 2, 2]}

NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (
        "AfmoeConfig",
        _EXPERTS
        | _WINDOWS
        | {"head_dim": 16, "mup_enabled": True, "num_dense_layers": 1, "num_shared_experts": 2}
        | {"route_norm": True, "route_scale": 1.5},
    ),
    "apertus": ("ApertusConfig", {"rope_parameters": LLAMA3_ROPE}),
    "bloom": ("BloomConfig", _WIDE | {"seq_length": 256}),
    "cohere2-moe": (
        "Cohere2MoeConfig",
        _EXPERTS
        | _WINDOWS
        | {"head_dim": 16, "intermediate_size": 48, "prefix_dense_intermediate_size": 160}
        | {"first_k_dense_replace": 1, "num_shared_experts": 1, "expert_selection_fn": "sigmoid"},
    ),
    "exaone-moe": (
        "ExaoneMoeConfig",
        _EXPERTS
        | _WINDOWS
        | {"num_shared_experts": 1, "first_k_dense_replace": 1, "scoring_func": "sigmoid"}
        | {"head_dim": 16, "num_nextn_predict_layers": 0},
    ),
    "falcon": ("FalconConfig", _WIDE | {"ffn_hidden_size": 256, "num_kv_heads": 1}),
    "falcon-groups": (
        "FalconConfig",
        _WIDE | {"ffn_hidden_size": 256, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "falcon-h1": (
        "FalconH1Config",
        _STATES
        | {"mamba_d_ssm": 128, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "head_dim": 16}
        | {"attention_in_multiplier": 1.2, "attention_out_multiplier": 0.8, "key_multiplier": 0.5}
        | {"embedding_multiplier": 3.0, "lm_head_multiplier": 0.25, "mlp_multipliers": [0.9, 1.1]}
        | {"ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.7, "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9]},
    ),
    "falcon-mamba": ("FalconMambaConfig", _TWICE | {"mixer_rms_eps": 1e-5}),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            "activation_sparsity_pattern": [0.95] * 4,
            "head_dim": 32,
            "hidden_size_per_layer_input": 256,
            # llama.cpp's deviation is that of a sample, transformers' that of a population.
            "intermediate_size": 8192,
            "laurel_rank": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 0,
            "sliding_window": 8,
            "vocab_size_per_layer_input": 304,
        },
    ),
    "glm": ("GlmConfig", {"head_dim": 16}),
    "glm4-vision": (
        "Glm4vConfig",
        {"text_config": SIZES | {"rope_parameters": _GLM_ROPE}, "vision_config": _GLM_VISION},
    ),
    "glm4-moe-vision": (
        "Glm4vMoeConfig",
        {
            "text_config": SIZES
            | {
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 48,
                "first_k_dense_replace": 1,
                "num_nextn_predict_layers": 0,
                "head_dim": 16,
                "rope_parameters": _GLM_ROPE,
            },
            "vision_config": _GLM_VISION,
        },
    ),
    "gpt-bigcode": ("GPTBigCodeConfig", _WIDE | {"n_inner": 256, "n_positions": 256}),
    "gpt-neox": (
        "GPTNeoXConfig",
        {
            "num_key_value_heads": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    "granite-swa": ("GraniteSWAConfig", _WINDOWS | _MULTIPLIED),
    "granite-moe-swa": (
        "GraniteMoeSWAConfig",
        _WINDOWS
        | _MULTIPLIED
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
        | {"shared_intermediate_size": 80},
    ),
    "hunyuan-moe": ("HunYuanMoEV1Config", {"num_experts": 4, "moe_topk": 2, "head_dim": 16}),
    "hy3": ("HYV3Config", _EXPERTS | {"head_dim": 16, "num_shared_experts": 1}),
    "jais2": ("Jais2Config", {"head_dim": 16}),
    "jamba": (
        "JambaConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"mamba_d_state": 16, "mamba_dt_rank": 12, "use_mamba_kernels": False, "num_hidden_layers": 4},
    ),
    "laguna": (
        "LagunaConfig",
        _EXPERTS
        | _WINDOWS
        | {"head_dim": 16, "shared_expert_intermediate_size": 80, "moe_routed_scaling_factor": 1.5}
        | {"layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"]},
    ),
    "llama4": (
        "Llama4TextConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48, "head_dim": 16}
        | {"intermediate_size_mlp": 160, "interleave_moe_layer_step": 2, "num_hidden_layers": 4},
    ),
    "mamba": ("MambaConfig", _TWICE),
    "mamba2": (
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16, "chunk_size": 16}
        | {"intermediate_size": 128},
    ),
    "mellum": (
        "MellumConfig",
        _EXPERTS
        | _WINDOWS
        | {
            "head_dim": 16,
            "layer_types": [*["sliding_attention"] * 3, "full_attention", "sliding_attention"],
            "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _PLAIN_ROPE),
        },
    ),
    "minicpm3": ("MiniCPM3Config", LATENT_SIZES),
    "minimax-m2": (
        "MiniMaxM2Config",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48, "head_dim": 16}
        | {"rotary_dim": 8, "scoring_func": "sigmoid"},
    ),
    "mpt": (
        "MptConfig",
        {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 256}
        | {"num_key_value_heads": None, "intermediate_size": None},
    ),
    "muse-glimmer": (
        "MuseGlimmerConfig",
        {
            "text_config": SIZES | _WINDOWS | {"head_dim": 16},
            "vision_config": TINY_VISION,
            "out_hidden_size": 64,
            "projector_hidden_size": 32,
        },
    ),
    "nemotron-h": (
        "NemotronHConfig",
        _NEMOTRON | {"layers_block_type": ["linear_attention", "mlp", "full_attention"]},
    ),
    "nemotron-h-moe": (
        "NemotronHConfig",
        _NEMOTRON
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
        | {"moe_shared_expert_intermediate_size": 80, "routed_scaling_factor": 1.5, "num_hidden_layers": 4}
        | {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    ),
    "paddle-ocr": (
        "PaddleOCRVLConfig",
        {
            "text_config": SIZES | {"head_dim": 16, "rope_parameters": _QWEN_ROPE},
            "vision_config": TINY_VISION,
        },
    ),
    "phi-moe": (
        "PhimoeConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True},
    ),
    "qwen3-vl-moe": (
        "Qwen3VLMoeConfig",
        {
            "text_config": SIZES | _EXPERTS | {"head_dim": 16, "rope_parameters": _QWEN_ROPE},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "depth": 2,
                "num_heads": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
        },
    ),
    "solar-open": (
        "SolarOpenConfig",
        {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
        | {"head_dim": 16, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}},
    ),
    "youtu": (
        "YoutuConfig",
        {"num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 24}
        # transformers clears the padding token's row, which the tied head would show.
        | {"qk_rope_head_dim": 8, "v_head_dim": 16, "pad_token_id": None},
    ),
}

# family -> fields of config.json as it is released
RELEASED: dict[str, dict[str, Any]] = {
    "falcon": {"n_head_kv": 1},
    "gpt-neox": {"rotary_pct": 0.5},
    "hunyuan-moe": {
        "moe_intermediate_size": [160] * 3,
        "moe_topk": [2] * 3,
        "num_shared_expert": [1] * 3,
    },
    "nemotron-h": {"hybrid_override_pattern": "M-*"},
    "nemotron-h-moe": {"hybrid_override_pattern": "ME*E"},
    "mpt": {"architectures": ["MPTForCausalLM"]},
    "phi-moe": {"architectures": ["PhiMoEForCausalLM"], "original_max_position_embeddings": 256},
}
# Experts that are released as (experts, in, out), and that transformers 5 itself saves the other way round.
TRANSPOSED = ("qwen3-vl-moe",)
