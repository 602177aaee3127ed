"""Recipes: known settings as YAML, found by name or by path, that answer for the flags that are not given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from cyclopts.config import Dict

from lorafold.errors import InputError, UnsafeInputError, UsageError
from lorafold.files.home import expanded

_MOST_VALUES = 100_000
FIX = "`lorafold recipes` lists the known ones; a file of your own is given by its path"


@dataclass(frozen=True, slots=True)
class NamedSettings:
    """A recipe.

    Attributes:
        name: of its file, without .yaml.
        text: the YAML.
        values: by flag name, without the dashes before it.
    """

    name: str
    text: str
    values: dict[str, Any]

    @property
    def about(self) -> str:
        """The first sentence of the comment that it begins with."""
        lines = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# "))
        return " ".join(lines).partition(". ")[0].rstrip(".")


def known_recipes() -> list[NamedSettings]:
    """The recipes that come with the program, by name."""
    found = sorted(_folder().iterdir(), key=lambda path: path.name)
    return [_parse(path, _stem(path)) for path in found if path.name.endswith(".yaml")]


def read_recipe(name: str) -> NamedSettings:
    """A recipe by the name of one that comes with the program, or by the path of a file.

    Raises:
        InputError: there is no such file, or it is not YAML of keys and values.
        UnsafeInputError: it would fill the memory.
        UsageError: no name is given.
    """
    if not name:
        raise UsageError("--recipe needs a name or a file", fix=FIX)
    path = expanded(name)
    if path.is_file():
        return _parse(path, str(path))
    if (found := _folder() / f"{path.name.removesuffix('.yaml')}.yaml").is_file():
        return _parse(found, _stem(found))
    begun = [recipe.name for recipe in known_recipes() if recipe.name.startswith(path.name.lower())]
    raise InputError("no such recipe", at=name, fix=f"--recipe {' or '.join(begun)}" if begun else FIX)


def answers(app: Any, commands: tuple[str, ...], arguments: Any) -> None:
    """Fill the flags that were not given from the recipe that was: one of cyclopts' configuration sources.

    Args:
        app: of the command line.
        commands: the command's name.
        arguments: what cyclopts read from the words; filled in place.

    Raises:
        InputError: as `read_recipe`.
    """
    argument = next((found for found in arguments if found.field_info.name == "recipe"), None)
    if argument is None or not argument.tokens:
        return
    recipe = read_recipe(argument.tokens[-1].value)
    source: Callable[..., None] = Dict(dict.fromkeys(commands, recipe.values), source=recipe.name)
    source(app, commands, arguments)


def _folder() -> Traversable:
    return files("lorafold.recipes")


def _stem(path: Traversable) -> str:
    return path.name.removesuffix(".yaml")


def _parse(path: Traversable | Path, name: str) -> NamedSettings:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        loaded = yaml.safe_load(text)  # safe: builds no objects
    # A date that is none, no UTF-8; deep nesting.
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problem = f"not readable as YAML ({' '.join(str(error).split())})"
        raise InputError(problem, at=name, fix="correct the file") from error
    if not isinstance(loaded, dict):
        raise InputError(f"expected keys and values, got {type(loaded).__name__}", at=name)
    if _expanded(loaded, {}) > _MOST_VALUES:
        problem = f"its anchors stand for more than {_MOST_VALUES:,} values, which would fill the memory"
        raise UnsafeInputError(problem, at=name, fix="write the values out")
    values = {str(key).replace("_", "-"): _texts_for_keys(value) for key, value in loaded.items()}
    return NamedSettings(name, text, values)


def _texts_for_keys(value: Any) -> Any:
    """A value whose objects have texts for keys: YAML reads `off` as false, and cyclopts joins the keys."""
    if isinstance(value, dict):
        return {str(key): _texts_for_keys(part) for key, part in value.items()}
    return [_texts_for_keys(part) for part in value] if isinstance(value, list) else value


def _expanded(value: Any, known: dict[int, int]) -> int:
    """Values in a value, counted as often as its anchors repeat them; `known` has those that were counted."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES + 1  # if it holds itself
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(value)]
