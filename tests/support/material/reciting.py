"""A model that recites: after one prompt it gives one text, token by token, and then ends.

A GPT-2 whose layers add nothing and whose position says which token comes next: embeddings are random and
thus nearly at right angles, and the place p holds many times the embedding of the token that follows it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tiny_chat
from safetensors.numpy import save_file
from tiny_base import tiny_tokenizer
from tokenizers import Tokenizer

PLACES, WIDE, LAYERS = 2048, 96, 1
LOUD = 20.0  # how much more a place says than the token that stands there


def reciting(folder: Path, prompt: str, text: str, end: str = "<|im_end|>") -> Path:
    """A GGUF that answers a prompt (or any of its length) with a text and the token that ends it.

    Args:
        folder: where the model and its GGUF are written.
        prompt: with its control tokens.
        text: the answer.
        end: the token behind it.
    """
    size = tiny_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [*tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.token_to_id(end)]
    start = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    tokens = np.random.default_rng(0).standard_normal((size, WIDE)).astype(np.float32)
    places = np.zeros((PLACES, WIDE), np.float32)
    places[start - 1 : start - 1 + len(ids)] = LOUD * tokens[ids]
    weights = {"wte.weight": tokens, "wpe.weight": places}
    weights |= _norm("ln_f")
    for layer in range(LAYERS):
        weights |= _norm(f"h.{layer}.ln_1") | _norm(f"h.{layer}.ln_2")
        for name, wide in (("attn.c_attn", 3), ("attn.c_proj", 1), ("mlp.c_fc", 4)):
            weights |= _nothing(f"h.{layer}.{name}", WIDE, wide * WIDE)
        weights |= _nothing(f"h.{layer}.mlp.c_proj", 4 * WIDE, WIDE)
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": size,
        "n_embd": WIDE,
        "n_head": 4,
        "n_layer": LAYERS,
        "n_positions": PLACES,
        "n_ctx": PLACES,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    prefixed = {f"transformer.{name}": weight for name, weight in weights.items()}
    save_file(prefixed, folder / "model.safetensors", metadata={"format": "pt"})
    return tiny_chat.exported(str(folder), folder.with_name(f"{folder.name}-gguf"), quant=("F32",))


def _norm(name: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": np.ones(WIDE, np.float32), f"{name}.bias": np.zeros(WIDE, np.float32)}


def _nothing(name: str, wide: int, out: int) -> dict[str, np.ndarray]:
    return {f"{name}.weight": np.zeros((wide, out), np.float32), f"{name}.bias": np.zeros(out, np.float32)}
