"""Which 16-bit model a packed one was made from, by the name of its repository or by its model card."""

from __future__ import annotations

import re
from pathlib import Path

# Ends of names under which a repository holds another one's weights packed.
_ENDS = re.compile(
    r"(?:-unsloth)?-bnb-[48]bit$"
    r"|-(?:GPTQ|AWQ)(?:-INT[348]|-[348]bit)?$"
    r"|-FP8(?:-(?:dynamic|block|static))?$"
    r"|-quantized\.w\d+a\d+$|[-.]w\d+a16(?:-g\d+)?$"
    r"|-(?:MLX-)?[2-8]bit$|-MXFP4(?:-Q\d)?$",
    re.IGNORECASE,
)
# Who keeps packed models beside the 16-bit ones; others pack somebody else's.
KEEP_BOTH = ("unsloth", "Qwen", "deepseek-ai", "ibm-granite", "google", "mistralai", "tiiuae", "OpenGVLab")


def original_of(id_: str, folder: Path) -> str | None:
    """The hub id of the 16-bit original, or None if neither name nor card tells.

    Args:
        id_: what the packed base is called: a hub id, or a path.
        folder: where it lies; its README.md may have the hub's data.
    """
    owner, _, name = id_.rpartition("/")
    if owner in KEEP_BOTH and _ENDS.search(name):
        return f"{owner}/{_ENDS.sub('', name)}"
    return _of_card(folder / "README.md")


def _of_card(card: Path) -> str | None:
    """`base_model` of the card's head, if the card says that this is a packed copy of it."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return None
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    if head is None or not re.search(r"^base_model_relation:\s*quantized\s*$", head[1], re.MULTILINE):
        return None
    named = re.search(r"^base_model:\s*(?:\n\s*-\s*)?([\w.-]+/[\w.-]+)\s*$", head[1], re.MULTILINE)
    return named[1] if named else None
