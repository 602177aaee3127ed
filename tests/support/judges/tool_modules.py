"""The programs of tools/ as modules, for the tests that call their functions."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from oracles import REPOSITORY


def tool(path: str) -> ModuleType:
    """A program below tools/, as a module of its own name; what it adds to `sys.path` is taken off again."""
    file, before = REPOSITORY / "tools" / path, list(sys.path)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module
