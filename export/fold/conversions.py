"""What transformers does to the names of a checkpoint when it loads it, and which tensors it never loads.

An adapter names the modules of the loaded model; a file names tensors as they were once released. The tables
are transformers' own (`conversion_mapping.py`, `_keys_to_ignore_on_load_unexpected`, 5.23) as far as they
concern weights that an adapter can touch; a test holds them against it. They go one way, from the file to the
model, because that is how transformers defines them. An adapter made with transformers 4 saw the file's
names, so the same rules bring its names to the model's.

What stacks the experts of a layer is not here: `experts` finds the pieces of a stack by their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Rule = tuple[re.Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_SPARSE = _rules((r"\.block_sparse_moe\.", ".mlp."))
_GRANITE = _rules(
    (r"block_sparse_moe\.input_linear(\.weight)?$", "block_sparse_moe.experts.gate_up_proj"),
    (r"block_sparse_moe\.output_linear(\.weight)?$", "block_sparse_moe.experts.down_proj"),
    (r"block_sparse_moe\.router\.layer\b", "block_sparse_moe.router"),
)

# By `model_type`, of the whole model or of its text part, or by the class that `architectures` names: what is
# found anywhere in a tensor's name is replaced once, in this order.
RENAMES: Mapping[str, tuple[Rule, ...]] = {
    "axk1": _rules((r"post_mlp_layernorm", "mlp.post_mlp_layernorm")),
    "aria_text": _rules(
        (r"mlp\.experts\.fc1\.weight", "mlp.experts.gate_up_proj"),
        (r"mlp\.experts\.fc2\.weight", "mlp.experts.down_proj"),
    ),
    "axk2": _rules(
        (r"W_down", "mlp.fc1"), (r"W_up", "mlp.fc2"), (r"self_attn\.q_b_proj\.", "self_attn.q_gate_proj.")
    ),
    "bailing_hybrid": _rules(
        (r"^model\.word_embeddings\.", "model.embed_tokens."),
        (r"\.attention\.", ".self_attn."),
        (r"self_attn\.f_proj\.", "self_attn.forget_gate.f_proj."),
        (r"\.self_attn\.dense\.", ".self_attn.o_proj."),
    ),
    "deepseek_v4": _rules(
        (r"\.attn\.", ".self_attn."),
        (r"\.ffn\.", ".mlp."),
        (r"\.indexer\.compressor\.", ".compressor.indexer."),
        (r"^embed\.", "embed_tokens."),
        (r"^head\.", "lm_head."),
        (r"\.attn_norm\.", ".input_layernorm."),
        (r"\.ffn_norm\.", ".post_attention_layernorm."),
        (r"\.indexer\.weights_proj\b", ".compressor.indexer.scorer.weights_proj"),
        (r"\.indexer\.wq_b\b", ".compressor.indexer.q_b_proj"),
        (r"\.norm\.", ".kv_norm."),
        (r"\.wq_a\b", ".q_a_proj"),
        (r"\.self_attn\.wq_b\b", ".self_attn.q_b_proj"),
        (r"\.wkv\b", ".kv_proj"),
        (r"\.wgate\b", ".gate_proj"),
        (r"\.wo_a\b", ".o_a_proj"),
        (r"\.wo_b\b", ".o_b_proj"),
        (r"\.q_norm\.", ".q_a_norm."),
        (r"\.shared_experts\.w1\b", ".shared_experts.gate_proj"),
        (r"\.shared_experts\.w2\b", ".shared_experts.down_proj"),
        (r"\.shared_experts\.w3\b", ".shared_experts.up_proj"),
    ),
    "glm5_next": _rules(
        (r"self_attn\.f_a_proj\.", "self_attn.forget_gate.f_a_proj."),
        (r"self_attn\.f_b_proj\.", "self_attn.forget_gate.f_b_proj."),
    ),
    "granitemoe": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoeshared": _GRANITE,
    "GPTNeoXForCausalLM": _rules((r"^embed_out\.", "lm_head.")),
    "hrm_text": _rules((r"\.attn\.o_proj\.", ".self_attn.o_proj.")),
    "hy_v3": _rules(
        (r"mlp\.router\.gate\b", "mlp.gate"),
        (r"mlp\.shared_mlp\.", "mlp.shared_experts."),
    ),
    "hy_v4": _rules((r"\.linear_gate", ".gate_proj")),
    "inkling2_text": _rules(
        (r"model\.llm\.unembed\b", "lm_head"),
        (r"model\.llm\.", "model."),
        (r"\bembed\.weight", "embed_tokens.weight"),
        (r"attn\.wq_du", "self_attn.q_proj"),
        (r"attn\.wk_dv", "self_attn.k_proj"),
        (r"attn\.wv_dv", "self_attn.v_proj"),
        (r"attn\.wr_du", "self_attn.r_proj"),
        (r"attn\.wo_ud", "self_attn.o_proj"),
        (r"attn\.gate_attn", "self_attn.gate_proj"),
        (r"attn\.attn_sink_proj", "self_attn.sink_proj"),
        (r"mlp_norm", "post_attention_layernorm"),
        (r"attn_norm", "input_layernorm"),
        (r"([qkv])_input_norm", r"\1_input_layernorm"),
    ),
    "kimi_linear": (
        *_rules(
            (r"self_attn\.f_a_proj\.", "self_attn.forget_gate.f_a_proj."),
            (r"self_attn\.f_b_proj\.", "self_attn.forget_gate.f_b_proj."),
        ),
        *_SPARSE,
    ),
    "kolibri1": _rules(
        (r"post_attn_norm", "post_self_attn_layernorm"), (r"post_ffn_norm", "post_mlp_layernorm")
    ),
    "laguna": _rules((r"mlp\.shared_expert\.", "mlp.shared_experts.")),
    "lfm3": _rules((r"\.self_attn\.gate_proj\.", ".self_attn.g_proj.")),
    "minimax": _SPARSE,
    "minimax_m2": _SPARSE,
    "mixtral": _SPARSE,
    "nemotron_h": _rules((r"backbone\.", "model.")),
    "olmo_hybrid": _rules(
        (r"attention_layer_norm", "input_layernorm"), (r"feedforward_layer_norm", "post_attention_layernorm")
    ),
    "phimoe": (*_SPARSE, *_rules((r"\.gate\b(?=\.weight|$)", ".router"))),
}

# By `model_type`: a tensor of the file, and the modules of the model that get equal parts of its rows.
SPLITS: Mapping[str, tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]] = {
    "hrm_text": (
        (re.compile(r"mlp\.gate_up_proj(?=\.weight$)"), ("mlp.gate_proj", "mlp.up_proj")),
        (
            re.compile(r"(?<=\.)attn\.gqkv_proj(?=\.weight$)"),
            ("self_attn.gate_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ),
    ),
}

# Heads for the prediction of several tokens, in every spelling that files have for them.
_MANY_TOKENS = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.")
_LAYER = re.compile(
    r"^(?:(?:model|language_model|text_model|backbone|transformer|gpt_neox|decoder)\.)*"
    r"(?:layers|h|blocks)\.(?P<number>\d+)\.(?P<rest>.*)"
)
_KEYS_AND_VALUES = re.compile(r"self_attn\.(?:k_proj|v_proj|k_norm|v_norm)\.")


def model_types(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of `RENAMES` and `SPLITS` that may hold for a base: of the whole, its text part, its class."""
    text = config.get("text_config")
    found = [config.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else None]
    classes = config.get("architectures")
    return tuple(str(name) for name in (*found, *(classes if isinstance(classes, list) else ())) if name)


def renamed(name: str, types: tuple[str, ...]) -> str:
    """A tensor's or module's name in the loaded model.

    Args:
        name: as the file, or an adapter of transformers 4, has it.
        types: of the base; see `model_types`.
    """
    for type in types:
        for pattern, replacement in RENAMES.get(type, ()):
            name = pattern.sub(replacement, name, count=1)
    return name


def split_names(name: str, types: tuple[str, ...]) -> tuple[str, ...]:
    """The model's tensors that get equal parts of a tensor's rows, in order; () if it stays whole."""
    for type in types:
        for pattern, parts in SPLITS.get(type, ()):
            if pattern.search(name):
                return tuple(pattern.sub(part, name, count=1) for part in parts)
    return ()


def is_loaded(name: str, config: Mapping[str, Any]) -> bool:
    """Whether transformers loads a tensor of the file at all, so that an adapter could have something for it.

    Three kinds stay in the file: heads that predict several tokens at once, layers behind the last one that
    the configuration counts (where some makers keep such heads), and the keys and values of layers that take
    those of an earlier layer (Gemma 3n and 4).

    Args:
        name: in the file.
        config: the base's config.json.
    """
    if _MANY_TOKENS.search(name):
        return False
    layer = _LAYER.match(name)
    if layer is None:
        return True
    number = int(layer["number"])
    counts = list(_numbers(config, "num_hidden_layers"))
    if counts and number >= counts[0]:
        return False
    shared = list(_numbers(config, "num_kv_shared_layers"))
    own = counts[0] - shared[0] if counts and shared else None
    return own is None or number < own or _KEYS_AND_VALUES.match(layer["rest"]) is None


def _numbers(config: Mapping[str, Any], name: str) -> Iterator[int]:
    """A number of the configuration, of the text part first."""
    for part in (config.get("text_config"), config):
        if isinstance(part, Mapping) and isinstance(part.get(name), int):
            yield part[name]
