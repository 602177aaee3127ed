"""The table: one row for each Hugging Face architecture that becomes GGUF.

In: nothing. Out: `ARCHITECTURES`. Facts are from transformers' modelling code and config classes (names,
shapes, defaults), and from llama.cpp's loader, graphs and converter (names, header entries, what is fixed in
the graph). A new architecture is a new row; what it shares with others is in `arch_rules`.
"""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch_rules import (
    ALWAYS_HEAD,
    ATTENTION_OUTPUT,
    COMMON,
    FULL_ATTENTION,
    GIVEN_HEAD,
    KEY,
    MLP,
    MODEL,
    NORMS,
    PLAIN_HEADS,
    QUERY,
    ROTATED,
    VALUE,
    VOCABULARY,
    Architecture,
    activation,
    with_bias,
)
from lorafold.export.rope import llama3_factors

# llama.cpp's llama graph rotates adjacent pairs, Hugging Face's halves.
_QUERY = replace(QUERY, op="interleave_rows", group="head_dim")
_KEY = replace(KEY, op="interleave_rows", group="head_dim")
_ROTATED_BIAS = {"op": "interleave_cols"}
_LLAMA_ATTENTION = (
    *with_bias(_QUERY, "attention_bias", **_ROTATED_BIAS),
    *with_bias(_KEY, "attention_bias", **_ROTATED_BIAS),
    *with_bias(VALUE, "attention_bias"),
    *with_bias(ATTENTION_OUTPUT, "attention_bias"),
)
_LLAMA_MLP = tuple(rule for linear in MLP for rule in with_bias(linear, "mlp_bias"))

_LLAMA_DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

LLAMA = Architecture(
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_types=("llama",),
    gguf="llama",
    tensors=(*MODEL, *NORMS, *_LLAMA_ATTENTION, *_LLAMA_MLP),
    hyperparameters=(*COMMON, *ALWAYS_HEAD),
    extensions=(VOCABULARY, ROTATED),
    generated=llama3_factors,
    defaults=_LLAMA_DEFAULTS,
    required=(activation("silu"),),
)

MISTRAL = replace(
    LLAMA,
    classes=("MistralForCausalLM",),
    model_types=("mistral",),
    tensors=(*MODEL, *NORMS, _QUERY, _KEY, VALUE, ATTENTION_OUTPUT, *MLP),
    defaults=_LLAMA_DEFAULTS
    | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    caveats=(FULL_ATTENTION,),
)

QWEN2 = Architecture(
    classes=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    gguf="qwen2",
    tensors=(*MODEL, *NORMS, *with_bias(QUERY), *with_bias(KEY), *with_bias(VALUE), ATTENTION_OUTPUT, *MLP),
    hyperparameters=(*COMMON, *GIVEN_HEAD),
    defaults=_LLAMA_DEFAULTS
    | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False},
    required=(activation("silu"), PLAIN_HEADS),
    caveats=(FULL_ATTENTION,),
)

ARCHITECTURES = (LLAMA, MISTRAL, QWEN2)
