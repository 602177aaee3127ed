"""Weights that llama.cpp multiplies with without asking whether an adapter changes them, by architecture.

There it calls `ggml_mul_mat` in place of `build_lora_mm` (src/models, as of llama-cpp-python 0.3.36). The
tests apply adapters to linear layers and stacks of experts of each family, and compare the answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LATENT = r"blk\.\d+\.attn_(q|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b)\.weight"
_EACH_LAYER = r"per_layer_(model_proj|token_embd)\.weight"


@dataclass(frozen=True, slots=True)
class NeverAsked:
    """Such weights of an architecture.

    Attributes:
        pattern: of their GGUF names.
        words: what they are, for people.
    """

    pattern: str
    words: str


NEVER_ASKED = {
    "deepseek2": NeverAsked(rf"{_LATENT}|output\.weight", "the projections to q, k and v, and the head"),
    "gemma3n": NeverAsked(
        rf"{_EACH_LAYER}|altup_\w+\.weight|blk\.\d+\.altup_router\.weight",
        "the embeddings of each layer, and AltUp",
    ),
    "gemma4": NeverAsked(_EACH_LAYER, "the embeddings of each layer"),
    "minicpm3": NeverAsked(_LATENT, "the projections to q, k and v"),
    "nemotron_h_moe": NeverAsked(
        r"blk\.\d+\.ffn_latent_(down|up)\.weight", "the projections around the experts"
    ),
}


def is_asked(arch: str, name: str) -> bool:
    """Whether llama.cpp asks an adapter for a weight.

    Args:
        arch: llama.cpp's name of the architecture.
        name: the weight's GGUF name.
    """
    never = NEVER_ASKED.get(arch)
    return never is None or re.fullmatch(never.pattern, name) is None
