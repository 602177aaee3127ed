"""OpenAI: GPT-2, whose Conv1D weights are stored transposed, and gpt-oss, whose experts are.

gpt-oss stores gate and up projection of an expert as the even and the odd columns of one matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorafold.export.arch.conditions import LIMITS, SILU, TIED, Condition, activation, fixed, switched_off
from lorafold.export.arch.hyperparameters import ModelConfig, f32, u32
from lorafold.export.arch.rope import read_rope
from lorafold.export.arch.rules import (
    ATTENTION,
    COMMON,
    DEFAULTS,
    EMBEDDING,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
    WINDOW,
    Architecture,
    Sizes,
    TensorRule,
    layer,
    layer_kinds,
    with_bias,
)
from lorafold.export.gguf.parts import ColumnRange


def _block(name: str, source: str, *shape: str, transpose: bool = False) -> TensorRule:
    """A rule for a tensor of each of GPT-2's layers."""
    return TensorRule("blk.{layer}." + name, "h.{layer}." + source, shape, transpose=transpose)


def _conv1d(name: str, source: str, rows: str, cols: str) -> tuple[TensorRule, TensorRule]:
    """A Conv1D, whose weight is stored (cols, rows), and its bias."""
    return (
        _block(f"{name}.weight", f"{source}.weight", cols, rows, transpose=True),
        _block(f"{name}.bias", f"{source}.bias", rows),
    )


def _layer_norm(name: str, source: str) -> tuple[TensorRule, TensorRule]:
    """A LayerNorm's weight and bias in each layer."""
    return (
        _block(f"{name}.weight", f"{source}.weight", "width"),
        _block(f"{name}.bias", f"{source}.bias", "width"),
    )


GPT2 = Architecture(
    classes=("GPT2LMHeadModel",),
    model_types=("gpt2",),
    gguf="gpt2",
    tensors=(
        TensorRule(EMBEDDING.name, "wte.weight", EMBEDDING.shape),
        TensorRule("position_embd.weight", "wpe.weight", ("positions", "width")),
        TensorRule("output_norm.weight", "ln_f.weight", ("width",)),
        TensorRule("output_norm.bias", "ln_f.bias", ("width",)),
        TensorRule("output.weight", "lm_head.weight", EMBEDDING.shape, unless=TIED),
        *_layer_norm("attn_norm", "ln_1"),
        *_layer_norm("ffn_norm", "ln_2"),
        *_conv1d("attn_qkv", "attn.c_attn", "qkv", "width"),
        *_conv1d("attn_output", "attn.c_proj", "width", "width"),
        *_conv1d("ffn_up", "mlp.c_fc", "ff", "width"),
        *_conv1d("ffn_down", "mlp.c_proj", "width", "ff"),
    ),
    hyperparameters=(
        u32("block_count", "num_hidden_layers"),
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("feed_forward_length", "intermediate_size"),
        u32("attention.head_count", "num_attention_heads"),
        f32("attention.layer_norm_epsilon", "layer_norm_eps"),
    ),
    defaults={
        "activation_function": "gelu_new",
        "hidden_size": 768,
        "intermediate_size": lambda config: 4 * config.integer("hidden_size"),
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "scale_attn_weights": True,
        "vocab_size": 50257,
        TIED: True,
    },
    aliases={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "layer_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    spellings=(("transformer.", ""),),
    required=(
        activation("gelu_new", "gelu_pytorch_tanh", of="activation_function"),
        Condition(
            "scale_attn_weights",
            lambda config: config.flag("scale_attn_weights"),
            "true: llama.cpp computes no other here",
        ),
        switched_off("scale_attn_by_inverse_layer_idx"),
        switched_off("add_cross_attention"),
    ),
)


def _every_second(first: int) -> Callable[[Sizes], list[ColumnRange]]:
    """The even (0) or odd (1) columns of gate and up projection."""
    return lambda sizes: [(first, 2 * sizes["ff"], 2)]


def _gate_or_up(name: str, first: int) -> tuple[TensorRule, TensorRule]:
    """One half of the stacked and interleaved experts, and its bias."""
    shape = ("experts", "width", "2_ff")
    part: dict[str, Any] = {"columns": _every_second(first)}
    return (
        layer(
            f"{name}.weight",
            "mlp.experts.gate_up_proj",
            *shape,
            becomes=("experts", "ff", "width"),
            transpose=True,
            **part,
        ),
        layer(
            f"{name}.bias",
            "mlp.experts.gate_up_proj_bias",
            *("experts", "2_ff"),
            becomes=("experts", "ff"),
            **part,
        ),
    )


def _alternating(config: ModelConfig) -> list[str]:
    """A window in every other layer, the first one included."""
    layers = range(config.integer("num_hidden_layers"))
    return ["full_attention" if number % 2 else "sliding_attention" for number in layers]


_YARN = Condition(
    "rope_scaling",
    lambda config: (
        read_rope(config).kind in ("default", "dynamic", "yarn")
        and (read_rope(config).full.get("beta_fast") or 32) == 32
        and (read_rope(config).full.get("beta_slow") or 1) == 1
    ),
    "'default', 'dynamic', or 'yarn' with beta_fast 32 and beta_slow 1: llama.cpp computes no other here",
)

GPT_OSS = Architecture(
    classes=("GptOssForCausalLM",),
    model_types=("gpt_oss",),
    gguf="gpt-oss",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT_ALWAYS,
        layer("attn_norm.weight", "input_layernorm.weight", "width"),
        layer("post_attention_norm.weight", "post_attention_layernorm.weight", "width"),
        *(rule for linear in ATTENTION for rule in with_bias(linear)),
        layer("attn_sinks.weight", "self_attn.sinks", "heads"),
        *with_bias(layer("ffn_gate_inp.weight", "mlp.router.weight", "experts", "width")),
        *_gate_or_up("ffn_gate_exps", 0),
        *_gate_or_up("ffn_up_exps", 1),
        layer("ffn_down_exps.weight", "mlp.experts.down_proj", *("experts", "ff", "width"), transpose=True),
        layer("ffn_down_exps.bias", "mlp.experts.down_proj_bias", "experts", "width"),
    ),
    hyperparameters=COMMON,
    extensions=(
        WINDOW,
        u32("expert_feed_forward_length", "intermediate_size"),
    ),
    defaults=DEFAULTS
    | {
        "attention_bias": True,
        "head_dim": 64,
        "layer_types": _alternating,
        "max_position_embeddings": 131072,
        "num_experts": 128,
        "num_experts_per_tok": 4,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    aliases={"num_experts": "num_local_experts"},
    required=(
        SILU,
        _YARN,
        fixed("swiglu_alpha", 1.702),
        fixed("swiglu_limit", 7.0),
        fixed("attention_bias", True),
        Condition(
            "layer_types",
            lambda config: layer_kinds(config) == _alternating(config),
            "windows in every other layer from the first on: llama.cpp's graph is built so",
        ),
        Condition("sliding_window", lambda config: bool(config.get("sliding_window")), "a number above 0"),
    ),
    caveats=(
        *LIMITS[1:],
        Condition(
            "rope_scaling",
            lambda config: read_rope(config).full.get("truncate", True) is not False,
            "YaRN with truncate: llama.cpp rounds the borders of the ramp to whole columns; the "
            "difference is small",
        ),
    ),
)

OPENAI_ROWS = (GPT2, GPT_OSS)
