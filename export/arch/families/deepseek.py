"""DeepSeek: V2 and V3, whose keys and values are kept as one narrow latent vector (MLA), and models of other
makers that took it over: Tencent's Youtu, OpenBMB's MiniCPM 3.

llama.cpp multiplies the queries by the transposed key half of `kv_b_proj`, and what attention gives by its
value half, so that it caches the latent vector alone:

    kv_b_proj, for each head: | keys without rope: nope rows | values: v rows |   of `rank` columns
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import (
    LIMITS,
    SILU,
    TIED,
    Condition,
    fixed,
    plain_rope,
    rope_kinds,
    switched_off,
)
from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    ModelConfig,
    divided_width,
    f32,
    kv_heads,
    u32,
)
from lorafold.export.arch.rope import FREQUENCY_BASE, SCALING, longrope_factors, read_rope, scaling_name
from lorafold.export.arch.rules import (
    DEFAULTS,
    DENSE_BLOCKS,
    EXPERT_GROUPS,
    EXPERT_SCALE,
    EXPERT_WIDTH,
    EXPERTS,
    MLP,
    MODEL,
    NORMS,
    RMS_EPSILON,
    ROUTER,
    ROUTER_BIAS,
    SHARED,
    SIZES,
    VOCABULARY,
    Architecture,
    Sizes,
    expert_variants,
    has_experts,
    in_layers,
    is_dense,
    layer,
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
    *EXPERT_GROUPS,
    u32("expert_gating_func", _gating),
)
LATENT_EXTENSIONS = (
    DENSE_BLOCKS,
    VOCABULARY,
    u32("attention.q_lora_rank", "q_lora_rank"),
    u32("attention.kv_lora_rank", "kv_lora_rank"),
    *WIDTHS,
    u32(
        "attention.key_length_mla",
        lambda config: config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim"),
    ),
    u32("attention.value_length_mla", "v_head_dim"),
    EXPERT_WIDTH,
    u32("expert_shared_count", "n_shared_experts"),
    EXPERT_SCALE,
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
    variants=expert_variants(has_experts),
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

YOUTU_LLM = replace(
    DEEPSEEK3,
    classes=("YoutuForCausalLM",),
    model_types=("youtu",),
    tensors=(*MODEL, *NORMS, *latent_attention(lambda config, layer: True), *MLP),
    variants=(),
    hyperparameters=(
        *(entry for entry in LATENT_HEADER if not entry.key.startswith("expert_")),
        *WIDTHS,
    ),
    extensions=(
        u32("leading_dense_block_count", "num_hidden_layers"),
        *(entry for entry in LATENT_EXTENSIONS if not entry.key.startswith(("expert_", "leading_", "rope."))),
        u32("expert_feed_forward_length", "intermediate_size"),
        u32("expert_shared_count", lambda _: 0),
        *(entry for entry in LATENT_EXTENSIONS if entry.key.startswith("rope.")),
    ),
    defaults=DEFAULTS
    | {
        "head_dim": lambda config: config.integer("qk_rope_head_dim"),
        "kv_lora_rank": 512,
        "max_position_embeddings": 131072,
        "moe_intermediate_size": lambda config: config.integer("intermediate_size"),
        "n_shared_experts": 0,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        TIED: True,
    },
    aliases={},
    required=LATENT_REQUIRED,
)

MINICPM3 = Architecture(
    classes=("MiniCPM3ForCausalLM",),
    model_types=("minicpm3",),
    gguf="minicpm3",
    tensors=(
        *(*MODEL, *NORMS),
        # Its keys and values are expanded in every step.
        *(
            rule
            for rule in latent_attention(lambda config, layer: True)
            if rule.name not in ("blk.{layer}.attn_k_b.weight", "blk.{layer}.attn_v_b.weight")
        ),
        layer("attn_kv_b.weight", "self_attn.kv_b_proj.weight", "keys_values", "rank"),
        *MLP,
    ),
    hyperparameters=(),
    extensions=(
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("block_count", "num_hidden_layers"),
        u32("feed_forward_length", "intermediate_size"),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", kv_heads),
        RMS_EPSILON,
        VOCABULARY,
        u32("attention.q_lora_rank", "q_lora_rank"),
        u32("attention.kv_lora_rank", "kv_lora_rank"),
        u32(
            "attention.key_length",
            lambda config: config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim"),
        ),
        u32("rope.dimension_count", "qk_rope_head_dim"),
    ),
    generated=longrope_factors,
    sizes=_latent_sizes,
    defaults=DEFAULTS
    | {
        "dim_model_base": 256,
        "head_dim": lambda config: config.integer("qk_rope_head_dim"),
        "kv_lora_rank": 256,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": lambda config: config.integer("intermediate_size"),
        "n_shared_experts": 0,
        "num_key_value_heads": None,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "rms_norm_eps": 1e-5,
        "scale_depth": 1.4,
        "scale_emb": 12,
        "v_head_dim": divided_width,
        TIED: True,
    },
    required=(
        SILU,
        switched_off("attention_bias"),
        switched_off("mlp_bias"),
        fixed("scale_emb", 12),
        fixed("scale_depth", 1.4),
        fixed("dim_model_base", 256),
        plain_rope(10000.0),
        Condition(
            "v_head_dim",
            lambda config: config.integer("v_head_dim") == divided_width(config),
            "hidden_size / num_attention_heads: llama.cpp takes no other here",
        ),
        Condition(
            "num_key_value_heads",
            lambda config: kv_heads(config) == config.integer("num_attention_heads"),
            "num_attention_heads: each head has its own part of kv_b_proj",
        ),
    ),
)

DEEPSEEK_ROWS = (DEEPSEEK2, DEEPSEEK3, MINICPM3, YOUTU_LLM)
