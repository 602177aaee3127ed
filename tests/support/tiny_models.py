"""Tiny random Hugging Face models, one per family, written as ordinary folders by transformers itself.

A folder gets config.json and safetensors as `save_pretrained` writes them, and the files of the tokenizer if
one is given. Sizes are small enough for a conversion
within a second and odd enough that a transposed or cut tensor shows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY = 320

# What all families share: 4 heads of 16 with 2 key-value heads, 3 layers.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _llama(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**(SIZES | {"tie_word_embeddings": False} | changes))


def _qwen2(**changes: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**(SIZES | {"tie_word_embeddings": True} | changes))


CONFIGS: dict[str, Callable[..., Any]] = {"llama": _llama, "qwen2": _qwen2}


def tiny_model(
    family: str,
    folder: Path,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: Path | None = None,
    **changes: Any,
) -> Path:
    """Write a random model.

    Args:
        family: key of `CONFIGS`.
        folder: where it goes; created.
        dtype: "float32", "float16" or "bfloat16".
        seed: of the weights.
        tokenizer: a folder whose tokenizer files are copied in; `vocab_size` then grows to hold them.
        changes: config fields that depart from the family's defaults.

    Returns:
        `folder`.
    """
    if tokenizer is not None:
        changes.setdefault("vocab_size", _vocabulary_size(tokenizer))
    return write_model(CONFIGS[family](**changes), folder, dtype, seed, tokenizer)


def write_model(
    config: Any, folder: Path, dtype: str, seed: int, tokenizer: Path | None = None, norm_centre: float = 1.0
) -> Path:
    """Write the random causal model of a transformers config, every weight drawn anew.

    transformers starts norms at one and biases at zero, which would hide a swapped or forgotten one, so all
    are drawn here: matrices with standard deviation 0.08, norms around `norm_centre`, biases around zero.
    """
    import torch

    from lorafold.libraries.causal_lm import automatic_class

    model = automatic_class(config).from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            centre = norm_centre if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(centre + 0.08 * drawn)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer is not None:
        for file in sorted(tokenizer.iterdir()):
            if file.is_file() and file.name != "config.json":
                shutil.copyfile(file, folder / file.name)
    return folder


def load_model(folder: Path) -> Any:
    """A model folder in float32, by the class that its config.json means."""
    from transformers import AutoConfig

    from lorafold.libraries.causal_lm import automatic_class

    kind = automatic_class(AutoConfig.from_pretrained(folder))
    return kind.from_pretrained(folder, dtype="float32").eval()


def _vocabulary_size(tokenizer: Path) -> int:
    """Rows that hold every token of tokenizer.json, rounded up to a multiple of 64."""
    from tokenizers import Tokenizer

    size: int = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    return -(-size // 64) * 64
