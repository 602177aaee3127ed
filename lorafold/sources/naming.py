"""What a model is called: on a hub, and after the folder in which it lies."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
"""A repository's name behind its owner's, as a regular expression."""
# Names that say nothing of the model in them: a Trainer's checkpoints, the steps of tutorials.
_NAMELESS = re.compile(
    r"(?:adapter|checkpoint|final|last|best|out|output|lora|model)(?:[-_]?\d+)?", re.IGNORECASE
)
# ModelScope's downloads spell a dot so.
_SPELLED_DOT = "___"


def speaking_name(folder: Path) -> str:
    """The folder's own name, or that of the first folder above whose name says something.

    In the hub's cache, models--ORG--NAME/snapshots/REVISION, it is NAME.
    """
    place = folder.resolve()
    if place.parent.name == "snapshots":
        return place.parent.parent.name.rpartition("--")[2]
    while _NAMELESS.fullmatch(place.name) and place.parent != place.parent.parent:
        place = place.parent
    return dotted(place.name)


def dotted(name: str) -> str:
    """A name of ModelScope's downloads ("Qwen2-1___5B") as its repository spells it ("Qwen2-1.5B")."""
    return name.replace(_SPELLED_DOT, ".")


def is_dotted(name: str) -> bool:
    """Whether a name is no download's spelling of another."""
    return _SPELLED_DOT not in name
