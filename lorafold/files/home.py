"""Paths as users type them, and names as files tell them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` filled in; that of a user who does not exist stays as it is.

    `Path.expanduser` would end in a RuntimeError there.
    """
    return Path(os.path.expanduser(path))


def is_name(text: str) -> bool:
    """Whether a file system can have a file of this name."""
    return 0 < len(text.encode("utf-8", "replace")) <= 255 and text.isprintable()
