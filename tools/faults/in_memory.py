"""Where the tools of this folder work: in memory, if it can be."""

from __future__ import annotations

import os
import tempfile


def memory_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder in memory: thousands of syncs would wear a disk and wait for it."""
    shared = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None)
