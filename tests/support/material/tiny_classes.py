"""A tiny random model of any class that transformers holds and llama.cpp's converter names.

Sizes are set by the name of the config's field, in the text part and in the others; `ODD` holds what single
classes need beyond that, `LEGACY` what the converter looks for in config.json and transformers 5 no longer
writes. Runs in a process with torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_families import write_tokenizer

from lorafold.chat.tokenizer import Encoded

# By the name of the field. Sizes differ from each other, so that a transposed or swapped tensor shows.
TEXT: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 192),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "encoder_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "ffn_hidden_size", "ffn_dim", "hidden_dim"), 96),
    **dict.fromkeys(("dense_intermediate_size", "intermediate_size_mlp"), 96),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(
        (
            *("shared_expert_intermediate_size", "shared_intermediate_size"),
            *("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"),
        ),
        80,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim", "kv_channels", "global_head_dim"), 16),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "context_length"), 128
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk", "num_experts_per_token"), 2
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "topk_groups"), 1),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_chunk_size", "max_window_layers"), 16),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 16),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank"), 12),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    "mamba_n_groups": 1,
    "n_groups": 1,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 24,
    "v_head_dim": 12,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 8,
    "laurel_rank": 8,
    "hidden_size_per_layer_input": 8,
    "query_pre_attn_scalar": 16,
    "num_linear_heads": 4,
    "linear_num_heads": 4,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "num_nextn_predict_layers": 0,
}
# Parts beside the language model.
OTHER: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim", "out_hidden_size", "projection_dim"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "mlp_dim", "adapter_input_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers", "num_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads"), 2),
    "num_key_value_heads": 2,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "vocab_size": 64,
}

# class -> fields that differ from the above; "text_config" and others hold those of a part.
_LATENT = {"num_key_value_heads": 4}
_LAYERS = ["linear_attention", "full_attention"] * 2
_INNER = {"intermediate_size": 128}
_SHORT = {"layer_types": ["conv", "full_attention"] * 2}
_NANO = {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2}
_DENSE_GEMMA = {**_NANO, "num_experts": None, "top_k_experts": None, "moe_intermediate_size": None}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
_SEES = {"text_config": {"rope_parameters": _MROPE}}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
_CHUNKS = {"attention_chunk_size": 8192}
_WINDOW = "sliding_attention"
ODD: dict[str, dict[str, Any]] = {
    "AfmoeForCausalLM": {"mup_enabled": True},
    "BambaForCausalLM": {"attn_layer_indices": [1, 3]},
    "DeepseekV2ForCausalLM": _LATENT,
    "DeepseekV32ForCausalLM": _LATENT,
    "DeepseekV3ForCausalLM": _LATENT,
    "Dots1ForCausalLM": {"n_shared_experts": 1, "num_key_value_heads": 4},
    "Dots3NoteForCausalLM": _LATENT,
    "Dots3NoteForConditionalGeneration": {"text_config": _LATENT},
    "Exaone4_5_ForConditionalGeneration": {
        "text_config": {"sliding_window": None, "layer_types": ["full_attention"] * 4}
    },
    "Exaone4ForCausalLM": {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    "FalconForCausalLM": {"num_kv_heads": 1},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 128},
    "FalconMambaForCausalLM": _INNER,
    "Gemma3nForCausalLM": _NANO
    | {"hidden_size_per_layer_input": 256, "laurel_rank": 64, "activation_sparsity_pattern": [0.95] * 4},
    "Gemma4ForCausalLM": _DENSE_GEMMA,
    "Gemma4ForConditionalGeneration": {"text_config": _DENSE_GEMMA},
    "Gemma4UnifiedForConditionalGeneration": {"text_config": _DENSE_GEMMA},
    "Glm4MoeLiteForCausalLM": _LATENT,
    "GlmMoeDsaForCausalLM": _LATENT,
    "GraniteMoeHybridForCausalLM": {"layer_types": _LAYERS},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "LagunaForCausalLM": {"layer_types": ["full_attention", *[_WINDOW] * 3]},
    "Lfm2MoeForCausalLM": _SHORT,
    "Llama4ForCausalLM": _CHUNKS,
    "Llama4ForConditionalGeneration": {"text_config": _CHUNKS},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "MambaForCausalLM": _INNER,
    "MellumForCausalLM": {
        "layer_types": ["full_attention", *[_WINDOW] * 3],
        "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _PLAIN),
    },
    "MiniCPM3ForCausalLM": _LATENT | {"v_head_dim": 16},
    "NemotronHForCausalLM": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    "OlmoeForCausalLM": _LATENT,
    "PhimoeForCausalLM": {"attention_bias": True, "lm_head_bias": True},
    "Qwen2_5_VLForConditionalGeneration": _SEES,
    "Qwen2VLForConditionalGeneration": _SEES,
    "Qwen2VLModel": _SEES,
    "Qwen3_5ForCausalLM": {"layer_types": _LAYERS},
    "Qwen3_5MoeForCausalLM": {"layer_types": _LAYERS},
    "Qwen3ASRForConditionalGeneration": _SEES,
    "Qwen3MoeForCausalLM": {"norm_topk_prob": True},
    "Qwen3NextForCausalLM": {"layer_types": _LAYERS},
    "Qwen3VLForConditionalGeneration": _SEES,
    "Qwen3VLMoeForConditionalGeneration": _SEES,
    "YoutuForCausalLM": _LATENT,
}

# class -> fields that the converter wants in config.json, and transformers 5 renames or drops.
_ROUTED = {"scoring_func": "sigmoid", "first_k_dense_replace": 1}
LEGACY: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"attn_layer_indices": [1, 3], "attn_rotary_emb": 8},
    "Cohere2ForCausalLM": {"rotary_pct": 1.0},
    "DeepseekV2ForCausalLM": {"scoring_func": "softmax", "first_k_dense_replace": 1},
    "DeepseekV32ForCausalLM": _ROUTED,
    "DeepseekV3ForCausalLM": _ROUTED,
    "FalconH1ForCausalLM": {"head_dim": 16},
    "FalconForCausalLM": {"n_head_kv": 1, "num_kv_heads": 1},
    "Glm4MoeLiteForCausalLM": _ROUTED,
    "GlmMoeDsaForCausalLM": _ROUTED,
    "Gemma4UnifiedForConditionalGeneration": {"text_config": {"moe_intermediate_size": 48}},
    "GPT2LMHeadModel": {"n_ctx": 128},
    "GPTNeoXForCausalLM": {"rotary_pct": 0.25},
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"] * 2},
    "HunYuanMoEV1ForCausalLM": {
        "moe_intermediate_size": [96] * 4,
        "moe_topk": [2] * 4,
        "num_shared_expert": [1] * 4,
    },
    "MiniMaxM2ForCausalLM": {"rotary_dim": 16},
    "NemotronHForCausalLM": {"layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "PhimoeForCausalLM": {"architectures": ["PhiMoEForCausalLM"], "original_max_position_embeddings": 128},
    "MptForCausalLM": {"architectures": ["MPTForCausalLM"]},
    "InternVLForConditionalGeneration": {"text_config": {"architectures": ["Qwen2ForCausalLM"]}},
    "Lfm2VlForConditionalGeneration": {"text_config": {"architectures": ["Lfm2ForCausalLM"]}},
    "SmolVLMForConditionalGeneration": {"text_config": {"architectures": ["LlamaForCausalLM"]}},
    "T5ForConditionalGeneration": {"decoder_start_token_id": 0},
}
# Classes that the converter finds under another name than transformers'.
ALIASES = (
    "InternVLForConditionalGeneration",
    "Lfm2VlForConditionalGeneration",
    "MptForCausalLM",
    "PhimoeForCausalLM",
    "SmolVLMForConditionalGeneration",
)


def tiny_config(name: str) -> Any:
    """The config of a class, with tiny sizes."""
    import transformers

    config_class = getattr(transformers, name).config_class
    try:
        default = config_class()
    except Exception:
        default = None  # its defaults alone are refused; the fields below are given all the same
    return config_class(**_fields(default, config_class, TEXT, ODD.get(name, {})))


def _fields(default: Any, config_class: Any, sizes: dict[str, Any], odd: dict[str, Any]) -> dict[str, Any]:
    known = set(vars(default)) if default is not None else set(sizes)
    known |= set(getattr(config_class, "attribute_map", {}))
    fields = {key: value for key, value in sizes.items() if key in known}
    for key, value in vars(default).items() if default is not None else ():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            own = odd.get(key, {})
            inner = _fields(value, type(value), TEXT if _is_text(key) else OTHER, own)
            fields[key] = {"model_type": value.model_type, **inner}
    for key, value in odd.items():
        if not isinstance(value, dict) or key not in fields:
            fields[key] = value
    return {key: value for key, value in fields.items() if value is not ...}


def _is_text(part: str) -> bool:
    return any(word in part for word in ("text", "llm", "language", "decoder", "thinker"))


def write_tiny(name: str, folder: Path, dtype: str = "bfloat16", seed: int = 0) -> Any:
    """Write a tiny random model of a class; returns its config.

    Every weight is drawn anew: transformers starts norms at one and biases at zero, which would hide a
    swapped one.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    config = tiny_config(name)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter_name, weight in model.named_parameters():
            centre = 1.0 if "norm" in parameter_name and weight.ndim == 1 else 0.0
            weight.copy_(centre + 0.08 * torch.randn(weight.shape))
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0  # as some classes do whenever they are loaded
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    write_tokenizer(folder, TEXT["vocab_size"])
    return config


def drawn_example(length: int, seed: int, trained: bool = True) -> Encoded:
    """An example of random tokens that every tiny model knows; all of them are trained, or none."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    return Encoded(torch.randint(4, 60, (length,), generator=draw).tolist(), [trained] * length)
