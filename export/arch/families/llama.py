"""Meta: Llama, and what is saved as one."""

from __future__ import annotations

from lorafold.export.arch.hyperparameters import divided_width
from lorafold.export.arch.rope import (
    llama3_factors,
)
from lorafold.export.arch.rules import (
    ATTENTION_OUTPUT,
    COMMON,
    DEFAULTS,
    EVEN_HEADS,
    INTERLEAVED_KEY,
    INTERLEAVED_QUERY,
    LIMITS,
    MLP,
    MODEL,
    NORMS,
    ROTATED,
    SILU,
    VALUE,
    VOCABULARY,
    Architecture,
    rope_kinds,
    with_bias,
)

_BIASED_ATTENTION = (
    *with_bias(INTERLEAVED_QUERY, "attention_bias", op="interleave_cols"),
    *with_bias(INTERLEAVED_KEY, "attention_bias", op="interleave_cols"),
    *with_bias(VALUE, "attention_bias"),
    *with_bias(ATTENTION_OUTPUT, "attention_bias"),
)


_BIASED_MLP = tuple(rule for linear in MLP for rule in with_bias(linear, "mlp_bias"))


LLAMA = Architecture(
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_types=("llama",),
    gguf="llama",
    tensors=(*MODEL, *NORMS, *_BIASED_ATTENTION, *_BIASED_MLP),
    hyperparameters=COMMON,
    extensions=(VOCABULARY, ROTATED),
    generated=llama3_factors,
    defaults=DEFAULTS | {"max_position_embeddings": 2048, "head_dim": divided_width},
    required=(SILU, EVEN_HEADS, *rope_kinds("linear", "yarn", "llama3")),
    caveats=LIMITS,
)

LLAMA_ROWS = (LLAMA,)
