"""Paths as users type them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` filled in; that of a user who does not exist stays as it is.

    `Path.expanduser` would end in a RuntimeError there.
    """
    return Path(os.path.expanduser(path))
