"""Makes a stage's package callable: `lorafold.export(config)` and `lorafold.export.gguf.plan` both work.

The packages are called like their stage functions. A module that is called would be an error; a subclass of
the module type may say what a call does (Python reference, "Customizing module attribute access").
It also imports a stage's functions when they are first used: `lorafold --help` loads neither torch nor numba.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from types import ModuleType
from typing import Any


class Stage(ModuleType):
    """A package whose public names live in its modules, and whose call is the function of its own name."""

    _homes: Mapping[str, str]
    _config: Callable[..., Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{self.__name__}.{self._homes[name]}"), name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the stage function with a config, or with what makes one.

        Args:
            arguments: a config, or its positional fields.
            named: `progress`, and the config's other fields if `arguments` is no config.
        """
        function = getattr(self, self.__name__.rpartition(".")[2])
        if arguments and is_dataclass(arguments[0]):
            return function(*arguments, **named)
        progress = {"progress": named.pop("progress")} if "progress" in named else {}
        self._refuse_unknown(named)
        return function(self._config(*arguments, **named), **progress)

    def _refuse_unknown(self, named: Mapping[str, Any]) -> None:
        """Raise TypeError, with what was most likely meant, for a name that the config does not have."""
        from lorafold.commandline.hints import meant

        known = inspect.signature(self._config).parameters
        for name in named:
            if name not in known:
                near = meant(name, list(known)) or f"see help({self._config.__name__})"
                stage = self.__name__.rpartition(".")[2]
                raise TypeError(f"lorafold.{stage}() got an unexpected argument {name!r}: {near}")


def make_stage(package: str, homes: Mapping[str, str], config: Callable[..., Any]) -> None:
    """Turn a package that is being imported into a `Stage`.

    Args:
        package: the package's `__name__`.
        homes: module by public name.
        config: class of the stage's config.
    """
    module = sys.modules[package]
    module.__class__ = Stage
    module.__dict__.update(_homes=homes, _config=config)
