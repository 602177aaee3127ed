"""Small configurations and headers of every row of the architecture table, without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lorafold.export.arch import ARCHITECTURES, Architecture, find
from lorafold.export.arch.hyperparameters import ModelConfig
from lorafold.export.arch.rules import STACKS
from lorafold.export.arch.tensors import layers_of, sizes_of
from lorafold.export.gguf.parts import MappedTensor
from lorafold.weights import TensorInfo

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
EXPERTS = {"num_experts": 12, "num_local_experts": 12}
LINEAR = {
    "full_attention_interval": 2,
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "shared_expert_intermediate_size": 24,
}
MAMBA = {
    "layer_types": ["mamba", "attention"],
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_n_heads": 8,
}
LATENT = {
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "n_routed_experts": 12,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 32, "attention_factor": 1.1}
LONGROPE = {"long_factor": [1.5] * 8, "short_factor": [1.0] * 8}


STATES = {
    "head_dim": 16,
    "mamba_d_state": 16,
    "mamba_head_dim": 16,
    "mamba_n_groups": 2,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "n_groups": 2,
    "ssm_state_size": 16,
}
FIXED: dict[str, dict[str, Any]] = {
    "Gemma2ForCausalLM": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "Gemma3ForCausalLM": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "Gemma4ForConditionalGeneration": {
        "global_head_dim": 32,
        "head_dim": 16,
        "hidden_size_per_layer_input": 24,
        "vocab_size_per_layer_input": 320,
    },
    "Qwen2MoeForCausalLM": EXPERTS,
    "Qwen3MoeForCausalLM": EXPERTS | {"norm_topk_prob": True},
    "MixtralForCausalLM": EXPERTS,
    "Exaone4ForCausalLM": {"sliding_window": None},
    "Qwen2VLForConditionalGeneration": {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
    "Qwen3VLForConditionalGeneration": {"rope_scaling": {"mrope_section": [24, 20, 20]}},
    "Ernie4_5_MoeForCausalLM": {"moe_num_experts": 12},
    "Dots1ForCausalLM": {
        "num_key_value_heads": 4,
        "n_routed_experts": 12,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    },
    "Glm4MoeForCausalLM": {"n_routed_experts": 12},
    "OlmoeForCausalLM": EXPERTS | {"num_key_value_heads": 4},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Lfm2MoeForCausalLM": EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "GraniteMoeForCausalLM": EXPERTS | {"shared_intermediate_size": 96},
    "Qwen3NextForCausalLM": LINEAR | EXPERTS,
    "Qwen3_5ForCausalLM": LINEAR,
    "Qwen3_5MoeForCausalLM": LINEAR | EXPERTS,
    "GraniteMoeHybridForCausalLM": EXPERTS | MAMBA,
    "GptOssForCausalLM": EXPERTS | {"head_dim": 16},
    "DeepseekV2ForCausalLM": LATENT,
    "DeepseekV3ForCausalLM": LATENT,
    "Glm4MoeLiteForCausalLM": LATENT,
    "GPT2LMHeadModel": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128, "vocab_size": 320},
    "AfmoeForCausalLM": EXPERTS | {"mup_enabled": True, "num_dense_layers": 1},
    "BloomForCausalLM": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "Cohere2MoeForCausalLM": EXPERTS | {"num_shared_experts": 2, "first_k_dense_replace": 1},
    "Exaone4_5_ForConditionalGeneration": {"sliding_window": None},
    "ExaoneMoeForCausalLM": EXPERTS,
    "FalconH1ForCausalLM": STATES | {"mamba_d_ssm": 128, "ssm_multipliers": [1.0, 2.0, 3.0, 4.0, 5.0]},
    "FalconMambaForCausalLM": {"intermediate_size": 128},
    "Gemma3nForCausalLM": {
        "activation_sparsity_pattern": [0.95] * 2,
        "head_dim": 16,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 300,
    },
    "GlmForCausalLM": {"head_dim": 16},
    "Glm4vForConditionalGeneration": {"rope_scaling": {"mrope_section": [2, 3, 3]}},
    "Glm4vMoeForConditionalGeneration": {
        "n_routed_experts": 12,
        "rope_scaling": {"mrope_section": [2, 3, 3]},
    },
    "GPTBigCodeForCausalLM": {"n_positions": 128},
    "GraniteMoeSWAForCausalLM": EXPERTS | {"shared_intermediate_size": 96},
    "HYV3ForCausalLM": EXPERTS,
    "HunYuanMoEV1ForCausalLM": EXPERTS | {"moe_intermediate_size": [160, 160]},
    "JambaForCausalLM": EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1},
    "LagunaForCausalLM": EXPERTS | {"layer_types": ["full_attention", "sliding_attention"]},
    "Llama4ForConditionalGeneration": EXPERTS | {"interleave_moe_layer_step": 2},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16},
    "MambaForCausalLM": {"intermediate_size": 128},
    "MellumForCausalLM": EXPERTS
    | {"layer_types": ["full_attention", "sliding_attention"], "rope_scaling": {"rope_theta": 10000.0}},
    "MiniCPM3ForCausalLM": LATENT,
    "MiniMaxM2ForCausalLM": EXPERTS,
    "NemotronHForCausalLM": STATES
    | {"layers_block_type": ["full_attention", "moe", "linear_attention"], "num_hidden_layers": 3}
    | {"n_routed_experts": 12, "moe_latent_size": 32},
    "PhimoeForCausalLM": EXPERTS,
    "Qwen3ASRForConditionalGeneration": {"rope_scaling": {"mrope_section": [24, 20, 20]}},
    "Qwen3VLMoeForConditionalGeneration": EXPERTS | {"rope_scaling": {"mrope_section": [24, 20, 20]}},
    "SolarOpenForCausalLM": {"n_routed_experts": 12},
    "YoutuForCausalLM": LATENT,
}
# By general.architecture, for classes with two rows.
OTHER_ROWS: dict[str, dict[str, Any]] = {
    "nemotron_h": STATES | {"hybrid_override_pattern": "M*-", "num_hidden_layers": 3},
}


def config_of(class_name: str, **changes: Any) -> dict[str, Any]:
    """A small config.json of a class that passes every condition."""
    own = FIXED.get(class_name, {})
    sizes = {} if class_name == "GPT2LMHeadModel" else SMALL
    return {"architectures": [class_name], **sizes, **own, **changes}


def config_for(row: Architecture) -> dict[str, Any]:
    """`config_of` for a row of the table."""
    return config_of(row.classes[0], **OTHER_ROWS.get(row.gguf, {}))


def tensors_of(config: Mapping[str, Any], variant: int = 0) -> dict[str, TensorInfo]:
    """Headers of every tensor that a config asks for, as one file would hold them."""
    row = find(config)
    view = ModelConfig(config, row.defaults, row.aliases)
    sizes = sizes_of(row, view)
    found = {}
    for rule in (*row.tensors, *(row.variants[variant] if row.variants else ())):
        if rule.when and view.flag(rule.when.removeprefix("not ")) == rule.when.startswith("not "):
            continue
        if rule.unless and view.flag(rule.unless):
            continue
        for layer in layers_of(rule, view):
            for number in range(sizes[rule.stacked] if rule.stacked else 1):
                marks = {mark.strip("{}"): number for mark in STACKS}
                name = rule.source.format(layer=layer, **marks)
                found[name] = header(name, *(sizes[size] for size in rule.shape))
    return found


def header(name: str, *shape: int, file: str = "model.safetensors") -> TensorInfo:
    """A tensor's header."""
    return TensorInfo(name, "BF16", shape, Path(file), 0, 0)


def every_row() -> list[Any]:
    """Each row of the table by its class."""
    return [pytest.param(row, id=f"{row.classes[0]}-{row.gguf}") for row in ARCHITECTURES]


def named(tensors: list[MappedTensor]) -> dict[str, MappedTensor]:
    """Tensors by name; each name once."""
    found = {tensor.name: tensor for tensor in tensors}
    assert len(found) == len(tensors)
    return found
