"""A tiny random model of each architecture in the table, and what its config departs in.

Comes in: a family's name and a folder. Goes out: config.json and safetensors as transformers writes them (for
the two families that transformers does not hold, in the layout of their own repositories), and a tokenizer.json
with as many tokens as the embedding has rows, which Gemma 3's conversion counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_models import SIZES, VOCABULARY, write_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# family -> (transformers' config class, what departs from tiny_models.SIZES)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "llama-biased": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "num_key_value_heads": 1},
    ),
    "llama-linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-untied": ("Qwen2Config", {"tie_word_embeddings": False}),
    "qwen2-yarn": (
        "Qwen2Config",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}


def tiny_family(family: str, folder: Path, dtype: str = "float32", seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random model.

    Args:
        family: key of `FAMILIES`.
        folder: where it goes; its name becomes general.name.
        dtype: of the weights.
        seed: of the weights.
        changes: config fields beyond the family's own.

    Returns:
        `folder`.
    """
    import transformers

    name, fields = FAMILIES[family]
    config = getattr(transformers, name)(**(SIZES | fields | changes))
    write_model(config, folder, dtype, seed)
    write_tokenizer(folder, config.vocab_size)
    return folder


def write_tokenizer(folder: Path, size: int = VOCABULARY) -> None:
    """Write a tokenizer.json that holds `size` tokens and nothing else of use."""
    vocabulary = {chr(0x100 + number): number for number in range(size)}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
