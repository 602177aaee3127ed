"""MosaicML: MPT, whose LayerNorms have no bias; its distances are those of ALiBi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafold.export.arch.conditions import TIED, TIED_HEAD, Condition, switched_off
from lorafold.export.arch.hyperparameters import ModelConfig, f32, u32
from lorafold.export.arch.rules import EMBEDDING, HEAD_COPY, OUTPUT_NORM, Architecture, layer


def _attention(field: str, default: Any = None) -> Any:
    """A getter of a field of `attn_config`."""

    def get(config: ModelConfig) -> Any:
        given = config.get("attn_config")
        return given.get(field, default) if isinstance(given, Mapping) else default

    return get


def _plain(field: str, expected: Any) -> Condition:
    return Condition(
        f"attn_config.{field}",
        lambda config: bool(_attention(field, expected)(config) == expected),
        f"{expected!r}: llama.cpp computes no other here",
    )


MPT = Architecture(
    classes=("MptForCausalLM", "MPTForCausalLM"),
    model_types=("mpt",),
    gguf="mpt",
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        layer("attn_norm.weight", "norm_1.weight", "width"),
        layer("attn_qkv.weight", "attn.Wqkv.weight", "qkv", "width"),
        layer("attn_output.weight", "attn.out_proj.weight", "width", "width"),
        layer("ffn_norm.weight", "norm_2.weight", "width"),
        layer("ffn_up.weight", "ffn.up_proj.weight", "ff", "width"),
        layer("ffn_down.weight", "ffn.down_proj.weight", "width", "ff"),
    ),
    hyperparameters=(
        u32("context_length", "max_position_embeddings"),
        u32("embedding_length", "hidden_size"),
        u32("block_count", "num_hidden_layers"),
        u32("feed_forward_length", "intermediate_size"),
        u32("attention.head_count", "num_attention_heads"),
        u32("attention.head_count_kv", lambda config: _attention("kv_n_heads")(config) or None),
        f32("attention.layer_norm_epsilon", lambda _: 1e-5),
        f32("attention.clamp_kqv", _attention("clip_qkv")),
        f32("attention.max_alibi_bias", lambda config: float(_attention("alibi_bias_max", 8)(config))),
    ),
    defaults={
        "intermediate_size": lambda config: config.integer("hidden_size") * config.integer("expansion_ratio"),
        "expansion_ratio": 4,
        "hidden_size": 2048,
        "max_position_embeddings": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "vocab_size": 50368,
        "num_key_value_heads": lambda config: _attention("kv_n_heads")(config),
        TIED: True,
    },
    aliases={
        "hidden_size": "d_model",
        "max_position_embeddings": "max_seq_len",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    },
    spellings=(
        ("transformer.blocks.", "model.layers."),
        ("transformer.wte.", "model.embed_tokens."),
        ("transformer.norm_f.", "model.norm."),
    ),
    skipped=HEAD_COPY,
    required=(
        TIED_HEAD,
        _plain("alibi", True),
        _plain("qk_ln", False),
        _plain("prefix_lm", False),
        _plain("softmax_scale", None),
        Condition(
            "no_bias",
            lambda config: config.get("no_bias") in (None, True),
            "true: a bias has no place in this row",
        ),
        switched_off("logit_scale"),
    ),
)
