"""Bilibili: Index, a Llama whose head may be normalised row by row."""

from __future__ import annotations

from dataclasses import replace

from lorafold.export.arch.families.llama import LLAMA
from lorafold.export.arch.hyperparameters import ModelConfig
from lorafold.export.arch.rules import (
    EMBEDDING,
    INTERLEAVED_ATTENTION,
    MLP,
    NORMS,
    OUTPUT,
    OUTPUT_ALWAYS,
    OUTPUT_NORM,
)


def _index_theta(config: ModelConfig) -> float:
    """Index's base frequency, which its 32K variant gives as a multiple of 10,000."""
    return 10000.0 * (config.number("rope_ratio") if config.get("rope_ratio") is not None else 1.0)


INDEX = replace(
    LLAMA,
    classes=("IndexForCausalLM",),
    model_types=("index",),
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        replace(OUTPUT, when="not norm_head"),
        # The head's rows are normalised in every forward pass; here once and for all.
        replace(OUTPUT_ALWAYS, when="norm_head", op="l2_normalize"),
        *NORMS,
        *INTERLEAVED_ATTENTION,
        *MLP,
    ),
    defaults=LLAMA.defaults | {"rope_theta": _index_theta},
)

INDEX_ROWS = (INDEX,)
