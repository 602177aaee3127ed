"""DeepSeek: V2 and V3, whose keys and values are kept as one narrow latent vector (MLA).

llama.cpp multiplies the queries by the transposed key half of `kv_b_proj`, and what attention gives by its
value half, so that it caches the latent vector alone:

    kv_b_proj, for each head: | keys without rope: nope rows | values: v rows |   of `rank` columns
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.hyperparameters import Hyperparameter, ModelConfig, f32, u32
from lorafold.export.arch.rope import FREQUENCY_BASE, SCALING, read_rope, scaling_name
from lorafold.export.arch.rules import (
    DEFAULTS,
    EXPERTS,
    LIMITS,
    MLP,
    MODEL,
    NORMS,
    RMS_EPSILON,
    SILU,
    SIZES,
    VOCABULARY,
    Architecture,
    Condition,
    Sizes,
    expert_rules,
    fixed,
    fused_experts,
    has_experts,
    in_layers,
    is_dense,
    layer,
    rope_kinds,
    shared_expert_rules,
    switched_off,
)


def _latent_sizes(config: ModelConfig) -> dict[str, int]:
    """Sizes of latent attention and of the experts."""
    heads = config.integer("num_attention_heads")
    nope, rope = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    value, rank = config.integer("v_head_dim"), config.integer("kv_lora_rank")
    sizes = {
        "nope": nope,
        "v": value,
        "rank": rank,
        "rank_rope": rank + rope,
        "2_width": 2 * config.integer("hidden_size"),
        "query": heads * (nope + rope),
        "keys_values": heads * (nope + value),
        "values": heads * value,
        "shared_ff": config.integer("n_shared_experts", least=0) * config.integer("moe_intermediate_size"),
    }
    if config.get("q_lora_rank"):
        sizes["query_rank"] = config.integer("q_lora_rank")
    return sizes


def _halves(values: bool) -> Callable[[Sizes], list[tuple[int, int]]]:
    """Rows of kv_b_proj: for each head those of its keys, or of its values."""

    def rows(sizes: Sizes) -> list[tuple[int, int]]:
        nope, both = sizes["nope"], sizes["nope"] + sizes["v"]
        starts = range(0, sizes["heads"] * both, both)
        return [(at + nope, at + both) if values else (at, at + nope) for at in starts]

    return rows


def latent_attention(which: Callable[[ModelConfig, int], bool]) -> tuple[Any, ...]:
    """Rules for attention in some layers."""
    return in_layers(
        which,
        layer("attn_q_a.weight", "self_attn.q_a_proj.weight", "query_rank", "width", when="q_lora_rank"),
        layer("attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight", "query_rank", when="q_lora_rank"),
        layer("attn_q_b.weight", "self_attn.q_b_proj.weight", "query", "query_rank", when="q_lora_rank"),
        layer("attn_q.weight", "self_attn.q_proj.weight", "query", "width", when="not q_lora_rank"),
        layer("attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight", "rank_rope", "width"),
        layer("attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight", "rank"),
        layer(
            "attn_k_b.weight",
            "self_attn.kv_b_proj.weight",
            *("keys_values", "rank"),
            rows=_halves(values=False),
            becomes=("heads", "rank", "nope"),
            transpose=True,
        ),
        layer(
            "attn_v_b.weight",
            "self_attn.kv_b_proj.weight",
            *("keys_values", "rank"),
            rows=_halves(values=True),
            becomes=("heads", "v", "rank"),
        ),
        layer("attn_output.weight", "self_attn.o_proj.weight", "width", "values"),
    )


ROUTER = layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width")
ROUTER_BIAS = layer("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", "experts")
SHARED = shared_expert_rules("mlp.shared_experts")
EXPERT_VARIANTS = tuple(
    in_layers(has_experts, *rules)
    for rules in (
        expert_rules(
            "mlp.experts.{expert}", "down_proj", "gate_proj", "up_proj", "expert_ff", "down gate up"
        ),
        fused_experts("expert_ff"),
    )
)


# DeepSeek-V2-Lite and its like, whose queries are not made from a latent vector.
_LITE = (26, 27)


def _gating(config: ModelConfig) -> int:
    """llama.cpp's number of the function that makes the router's weights."""
    functions = ["softmax", "sigmoid"]
    function = config.get("scoring_func")
    if function not in functions:
        raise config.wrong("scoring_func", function, "'softmax' or 'sigmoid'")
    return functions.index(function) + 1


def _yarn_weight(config: ModelConfig) -> float | None:
    """A tenth of mscale_all_dim, as llama.cpp's converter writes it for this architecture."""
    weight = read_rope(config).full.get("mscale_all_dim")
    return None if weight is None else 0.1 * float(weight)


def _latent_width(config: ModelConfig) -> int:
    return config.integer("kv_lora_rank") + config.integer("qk_rope_head_dim")


WIDTHS = (
    u32("attention.key_length", _latent_width),
    u32("attention.value_length", "kv_lora_rank"),
)
LATENT_HEADER = (
    *SIZES[:-1],
    u32("attention.head_count_kv", lambda _: 1),  # all heads share the latent vector
    *(entry for entry in SCALING if entry.key != "rope.scaling.attn_factor"),
    FREQUENCY_BASE,
    RMS_EPSILON,
    *EXPERTS,
    u32("expert_group_count", "n_group"),
    u32("expert_group_used_count", "topk_group"),
    u32("expert_gating_func", _gating),
)
LATENT_EXTENSIONS = (
    u32("leading_dense_block_count", "first_k_dense_replace"),
    VOCABULARY,
    u32("attention.q_lora_rank", "q_lora_rank"),
    u32("attention.kv_lora_rank", "kv_lora_rank"),
    *WIDTHS,
    u32(
        "attention.key_length_mla",
        lambda config: config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim"),
    ),
    u32("attention.value_length_mla", "v_head_dim"),
    u32("expert_feed_forward_length", "moe_intermediate_size"),
    u32("expert_shared_count", "n_shared_experts"),
    f32("expert_weights_scale", "routed_scaling_factor"),
    Hyperparameter(
        "expert_weights_norm", GGUFValueType.BOOL, lambda config: config.flag("norm_topk_prob") or None
    ),
    u32("rope.dimension_count", "qk_rope_head_dim"),
    f32("rope.scaling.yarn_log_multiplier", _yarn_weight),
)
LATENT_REQUIRED = (
    SILU,
    switched_off("attention_bias"),
    Condition(
        "num_key_value_heads",
        lambda config: config.get("num_key_value_heads") in (None, config.get("num_attention_heads")),
        "num_attention_heads: each head has its own part of kv_b_proj",
    ),
    Condition(
        "rope_interleave",
        lambda config: config.get("rope_interleave") in (None, True),
        "true: llama.cpp rotates neighbouring columns here",
    ),
    Condition(
        "q_lora_rank",
        lambda config: bool(config.get("q_lora_rank")) != (config.integer("num_hidden_layers") in _LITE),
        "a rank, but none in a model of 26 or 27 layers, by which llama.cpp knows the small ones",
    ),
    *rope_kinds("yarn", partial=True),
    Condition(
        "rope_scaling",
        lambda config: (
            scaling_name(config) != "yarn"
            or read_rope(config).full.get("mscale") == read_rope(config).full.get("mscale_all_dim")
        ),
        "one whose mscale is its mscale_all_dim: llama.cpp computes no other here",
    ),
)

DEEPSEEK3 = Architecture(
    classes=("DeepseekV3ForCausalLM",),
    model_types=("deepseek_v3",),
    gguf="deepseek2",
    tensors=(
        *MODEL,
        *NORMS,
        *latent_attention(lambda config, layer: True),
        *in_layers(is_dense, *MLP),
        *in_layers(has_experts, ROUTER, ROUTER_BIAS, *SHARED),
    ),
    variants=EXPERT_VARIANTS,
    hyperparameters=(*LATENT_HEADER, *WIDTHS),
    extensions=LATENT_EXTENSIONS,
    sizes=_latent_sizes,
    further="left out",
    defaults=DEFAULTS
    | {
        "first_k_dense_replace": 3,
        "head_dim": lambda config: config.integer("qk_rope_head_dim"),
        "kv_lora_rank": 512,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": 2048,
        "n_group": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_group": 4,
        "v_head_dim": 128,
    },
    aliases={"num_experts": "n_routed_experts"},
    required=(*LATENT_REQUIRED, fixed("scoring_func", "sigmoid")),
    caveats=LIMITS,
)

DEEPSEEK2 = replace(
    DEEPSEEK3,
    classes=("DeepseekV2ForCausalLM",),
    model_types=("deepseek_v2",),
    tensors=tuple(rule for rule in DEEPSEEK3.tensors if rule.name != ROUTER_BIAS.name),
    defaults=DEEPSEEK3.defaults
    | {
        "first_k_dense_replace": 0,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1407,
        "n_group": None,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_experts": 64,
        "num_experts_per_tok": None,
        "routed_scaling_factor": 1.0,
        "scoring_func": "softmax",
        "topk_group": None,
        "topk_method": "greedy",
    },
    required=(
        *LATENT_REQUIRED,
        fixed("scoring_func", "softmax"),
        Condition(
            "topk_method",
            lambda config: config.get("topk_method") == "greedy" or config.get("n_group") in (None, 1),
            "'greedy' or one group: llama.cpp judges a group by its two best experts, this model by its best",
        ),
        switched_off("mlp_bias"),
    ),
)

DEEPSEEK_ROWS = (DEEPSEEK2, DEEPSEEK3)
