"""A GGUF that says the same bytes for ever: what it answers is known, and it never ends by itself.

Attention and the feed-forward layers add nothing, so that a token's embedding arrives at the head unchanged,
and the head's row of each byte is the embedding of the byte before it.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import tiny_chat


@cache
def chain(line: bytes, seed: int = 0) -> Path:
    """A model that repeats a line, as GGUF by our own export.

    Args:
        line: what it says, one token a byte; ends in a newline, which also ends the prompt of ChatML.
            No byte stands in it twice, as the byte before decides the next one.
        seed: of the weights; models of different seeds say the same.
    """
    import numpy as np
    from safetensors.numpy import load_file, save_file

    assert len(set(line)) == len(line) and line.endswith(b"\n")
    out = tiny_chat.home() / f"chain-{line[:4].hex()}-{seed}"
    shutil.copytree(tiny_chat.folder(), out, dirs_exist_ok=True)  # an export before may have failed
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1_000_000}))
    names = json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]
    spelled = _byte_names()
    ids = [names[spelled[byte]] for byte in line]
    weights = load_file(out / "model.safetensors")
    dice = np.random.default_rng(seed)
    shape = weights["model.embed_tokens.weight"].shape
    # Random directions in 64 dimensions are far enough from each other for the right one to win.
    known = dice.standard_normal(shape).astype(np.float32)
    head = np.zeros_like(known)
    for before, after in zip([ids[-1], *ids[:-1]], ids, strict=True):
        head[after] = known[before]
    weights |= {"model.embed_tokens.weight": known, "lm_head.weight": head}
    weights["model.norm.weight"] = np.ones_like(weights["model.norm.weight"])
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = np.zeros_like(weights[name])
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return tiny_chat.exported(str(out), tiny_chat.home() / f"{out.name}-gguf", quant=("F32",))


def _byte_names() -> dict[int, str]:
    """GPT-2's spelling of bytes in vocabularies: printable ones as they are, others from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    names = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in names)
    return names | {byte: chr(0x100 + number) for number, byte in enumerate(others)}
