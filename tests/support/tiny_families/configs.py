"""The table of tiny models: for each family its config class, and where it departs from the common sizes."""

from __future__ import annotations

from typing import Any

from tiny_models import SIZES

from tiny_families.shapes import (
    GEMMA4_SIZES,
    GLM_EXPERTS,
    GPT2_SIZES,
    GRANITE_EXPERTS,
    LATENT_SIZES,
    LFM2_SIZES,
    LINEAR_EXPERTS,
    LINEAR_SIZES,
    LLAMA3_ROPE,
    LLAMA_INSIDE,
    MAMBA_SIZES,
    MINISTRAL3_ROPE,
    OLMO3,
    PIXTRAL,
    QWEN_EXPERTS,
    QWEN_VL,
    TINY_VISION,
    YARN,
)

# family -> (transformers' config class, what departs from tiny_models.SIZES)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "llama-biased": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "num_key_value_heads": 1},
    ),
    "llama-linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-untied": ("Qwen2Config", {"tie_word_embeddings": False}),
    "qwen2-yarn": ("Qwen2Config", {"rope_parameters": YARN}),
    "llama-yarn-factor": ("LlamaConfig", {"rope_parameters": YARN | {"attention_factor": 1.3}}),
    "olmo2-yarn-mscale": ("Olmo2Config", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    "glm4-yarn": ("Glm4Config", {"head_dim": 16, "rope_parameters": YARN | {"partial_rotary_factor": 0.5}}),
    "phi3-longrope-factor": (
        "Phi3Config",
        {
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "long_factor": [2.0] * 8,
                "short_factor": [1.5] * 8,
                "attention_factor": 1.2,
            },
        },
    ),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5}),
    "mixtral": (
        "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, "num_hidden_layers": 2},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2-moe": ("Qwen2MoeConfig", QWEN_EXPERTS | {"shared_expert_intermediate_size": 96}),
    "qwen3-moe": ("Qwen3MoeConfig", QWEN_EXPERTS | {"head_dim": 32, "norm_topk_prob": True}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 7},
    ),
    "gemma3-linear": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "num_hidden_layers": 6,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "gemma3-multimodal": (
        "Gemma3Config",
        {
            "text_config": SIZES
            | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 6},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": 5,
            "eoi_token_index": 6,
            "image_token_index": 7,
        },
    ),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 256}),
    "phi3-longrope": (
        "Phi3Config",
        {
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "long_factor": [1.5, 2.5, 4.0, 8.0],
                "short_factor": [1.0, 1.1, 1.2, 1.5],
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "glm4": ("Glm4Config", {"head_dim": 16}),
    "granite": (
        "GraniteConfig",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    "olmo2-tied": ("Olmo2Config", {"tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {"head_dim": 32}),
    "ministral3": ("Ministral3Config", {"head_dim": 16, "rope_parameters": MINISTRAL3_ROPE}),
    "mistral3-wrapped": (
        "Mistral3Config",
        {
            "text_config": SIZES
            | {"model_type": "ministral3", "head_dim": 16, "rope_parameters": MINISTRAL3_ROPE},
            "vision_config": PIXTRAL,
            "tie_word_embeddings": False,
        },
    ),
    "mistral3-older": (
        "Mistral3Config",
        {
            "text_config": SIZES
            | {"model_type": "mistral", "head_dim": 32, "sliding_window": None, "tie_word_embeddings": True},
            "vision_config": PIXTRAL,
            "tie_word_embeddings": True,
        },
    ),
    "olmo": ("OlmoConfig", {"clip_qkv": 0.5}),
    "olmo3": ("Olmo3Config", OLMO3),
    "olmo3-yarn": (
        "Olmo3Config",
        OLMO3
        | {
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            }
        },
    ),
    "olmoe": ("OlmoeConfig", QWEN_EXPERTS | {"num_key_value_heads": 4, "norm_topk_prob": False}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "cohere-plus": ("CohereConfig", {"num_hidden_layers": 64, "use_qk_norm": True, "hidden_size": 32}),
    "cohere2": (
        "Cohere2Config",
        {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 5, "rotary_pct": 1.0},
    ),
    "seed-oss": ("SeedOssConfig", {"head_dim": 32}),
    "exaone4": (
        "Exaone4Config",
        {
            "sliding_window": None,
            "layer_types": ["full_attention"] * 3,
            "rope_parameters": LLAMA3_ROPE,
            "tie_word_embeddings": True,
        },
    ),
    "exaone4-windows": (
        "Exaone4Config",
        {"sliding_window": 8, "num_hidden_layers": 64, "hidden_size": 32, "rope_parameters": LLAMA3_ROPE},
    ),
    "hunyuan": ("HunYuanDenseV1Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "hunyuan-alpha": (
        "HunYuanDenseV1Config",
        {
            "head_dim": 16,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "dynamic",
                "alpha": 1000.0,
                "factor": 1.0,
                "rope_theta": 10000.0,
            },
        },
    ),
    "ernie4.5": ("Ernie4_5Config", {"head_dim": 32}),
    "ernie4.5-moe": (
        "Ernie4_5_MoeConfig",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 48,
            # The converter divides this by the key-value heads to get two experts' width.
            "intermediate_size": 192,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 2,
        },
    ),
    "dots1": (
        "Dots1Config",
        {
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
            "scoring_func": "sigmoid",
            "sliding_window": None,
        },
    ),
    "glm4-moe": ("Glm4MoeConfig", GLM_EXPERTS),
    "glm4-moe-normed": ("Glm4MoeConfig", GLM_EXPERTS | {"use_qk_norm": True, "attention_bias": True}),
    "qwen2-vl": ("Qwen2VLConfig", QWEN_VL),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        QWEN_VL | {"text_config": QWEN_VL["text_config"] | {"tie_word_embeddings": False}},
    ),
    "qwen3-vl": (
        "Qwen3VLConfig",
        {
            "text_config": SIZES
            | {
                "head_dim": 32,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000000.0,
                    "mrope_section": [6, 5, 5],
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "depth": 2,
                "num_heads": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            "tie_word_embeddings": True,
        },
    ),
    "llava": ("LlavaConfig", {"text_config": LLAMA_INSIDE, "vision_config": TINY_VISION}),
    "smolvlm": (
        "SmolVLMConfig",
        {"text_config": LLAMA_INSIDE, "vision_config": TINY_VISION, "tie_word_embeddings": True},
    ),
    "internvl": (
        "InternVLConfig",
        {
            "text_config": SIZES | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
            "vision_config": TINY_VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
        },
    ),
    "phi2": ("PhiConfig", {"intermediate_size": 256, "num_key_value_heads": 4}),
    "starcoder2": ("Starcoder2Config", {}),
    "starcoder2-untied": ("Starcoder2Config", {"tie_word_embeddings": False}),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True}),
    "stablelm-parallel": ("StableLmConfig", {"use_parallel_residual": True, "qk_layernorm": True}),
    "nemotron": ("NemotronConfig", {"head_dim": 16}),
    "nemotron-linear": (
        "NemotronConfig",
        {
            "head_dim": 16,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.5},
        },
    ),
    "lfm2": ("Lfm2Config", LFM2_SIZES),
    "lfm2-adjusted": (
        "Lfm2Config",
        LFM2_SIZES | {"block_auto_adjust_ff_dim": True, "block_multiple_of": 32},
    ),
    "lfm2-moe": (
        "Lfm2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv"],
        },
    ),
    "granite-moe": ("GraniteMoeConfig", GRANITE_EXPERTS),
    "granite-moe-shared": ("GraniteMoeSharedConfig", GRANITE_EXPERTS | {"shared_intermediate_size": 96}),
    "arcee": ("ArceeConfig", {"head_dim": 32}),
    "qwen3-next": (
        "Qwen3NextConfig",
        LINEAR_SIZES
        | LINEAR_EXPERTS
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}},
    ),
    "qwen35": ("Qwen3_5TextConfig", LINEAR_SIZES),
    "qwen35-multimodal": (
        "Qwen3_5Config",
        {
            "text_config": SIZES | LINEAR_SIZES | {"linear_num_value_heads": 2},
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
            },
            "tie_word_embeddings": True,
        },
    ),
    "qwen35-moe": ("Qwen3_5MoeTextConfig", LINEAR_SIZES | LINEAR_EXPERTS),
    "gemma4": (
        "Gemma4TextConfig",
        GEMMA4_SIZES
        | {
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma4-moe": (
        "Gemma4TextConfig",
        GEMMA4_SIZES
        | {
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 48,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "glm4-flash": (
        "Glm4MoeLiteConfig",
        LATENT_SIZES | {"n_routed_experts": 4, "scoring_func": "sigmoid"},
    ),
    "granite-hybrid": (
        "GraniteMoeHybridConfig",
        MAMBA_SIZES
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 96,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 2,
            "head_dim": 32,
            "sliding_window": 8,
            "rope_parameters": YARN,
            "intermediate_size": 96,
        },
    ),
    "deepseek-v2": (
        "DeepseekV2Config",
        LATENT_SIZES
        | {
            "num_hidden_layers": 26,  # by which llama.cpp knows that there is no q_lora_rank
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "scoring_func": "softmax",
        },
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        LATENT_SIZES
        | {
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "scoring_func": "sigmoid",
            "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "gpt2": ("GPT2Config", GPT2_SIZES),
    "gpt2-narrow": ("GPT2Config", GPT2_SIZES | {"n_inner": 96}),
}


# Models of 64 layers, by which llama.cpp tells a kind: slow where each layer is worked on.
DEEP = ("cohere-plus", "exaone4-windows")

# Families that are another family saved in another way.
RESAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-fused": ("mixtral", {"save_original_format": False}),
    "qwen3-moe-fused": ("qwen3-moe", {"save_original_format": False}),
    "qwen2-moe-sharded": ("qwen2-moe", {"max_shard_size": "60KB"}),
}

# Families without their head, as embedding models are released, and what they are made of.
HEADLESS: dict[str, str] = {
    "llama-headless": "llama",
    "qwen2-headless": "qwen2",
    "qwen3-headless": "qwen3",
    "lfm2-headless": "lfm2",
}

# Families with a layer that predicts a further token, which transformers neither makes nor loads: here a copy
# of the last layer, and what only such a layer has.
FURTHER: dict[str, str] = {"glm4-moe-further": "glm4-moe"}

# Families whose model class transformers does not hold; their twin is a Llama that computes the same.
TWINS = ("index", "internlm2")
