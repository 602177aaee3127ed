"""What cyclopts leaves to us of a command line: `--recipe FILE`, and the line for one that cannot be meant.

In go the words as typed. A recipe is a YAML file of keys and values, named as the flags are; it answers for
flags that are not given.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError, MissingArgumentError

from lorafold.errors import InputError


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe.

    Attributes:
        path: the file.
        values: by flag name, without the dashes before it.
    """

    path: Path
    values: dict[str, Any]


def take_recipe(tokens: list[str]) -> tuple[list[str], Recipe | None]:
    """Take `--recipe FILE` out of the words of a command line.

    Returns:
        The other words, and the recipe where one is named.

    Raises:
        InputError: no file is named, it does not exist, or it is not YAML of keys and values.
    """
    for index, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name != "--recipe":
            continue
        if not equals:
            if index + 1 == len(tokens):
                raise InputError("--recipe needs a file", fix="--recipe recipes/NAME.yaml")
            value = tokens[index + 1]
        return tokens[:index] + tokens[index + (1 if equals else 2) :], _read_recipe(value)
    return tokens, None


def _read_recipe(name: str) -> Recipe:
    import yaml

    path = Path(name)
    if not path.is_file():
        raise InputError("no such recipe", at=name, fix="give a YAML file; the known ones are in recipes/")
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))  # safe: builds no objects
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = f"not readable as YAML ({' '.join(str(error).split())})"
        raise InputError(problem, at=path, fix="mend the file") from error
    if not isinstance(loaded, dict):
        raise InputError(f"expected keys and values, got {type(loaded).__name__}", at=path)
    return Recipe(path, {str(key).replace("_", "-"): value for key, value in loaded.items()})


def misused(error: CycloptsError, tokens: list[str], commands: Collection[str]) -> str:
    """The line for a command line that cannot be meant.

    cyclopts names what is missing; that an option with several values took it, only the words can tell.

    Args:
        error: what cyclopts says.
        tokens: the words.
        commands: of the program.
    """
    command = f"lorafold {tokens[0]}" if tokens and tokens[0] in commands else "lorafold"
    argument = error.argument
    if not isinstance(error, MissingArgumentError) or argument is None or error.keyword is not None:
        return f"{error}; fix: {command} --help".replace(".; fix", "; fix").replace("..;", "…;")
    if argument.index is None:
        return f"{argument.name} is missing; fix: add {argument.name} with its value, or see {command} --help"
    name = argument.name.lstrip("-").upper()
    option, values = _longest_list(tokens)
    if len(values) > 1:
        fix = f"write {name} before {option}: {command} {values[-1]} {option} {' '.join(values[:-1])}"
        return f"{name} is missing: {option} took all of {' '.join(values)}; fix: {fix}"
    return f"{name} is missing; fix: {command} {name} …, or see {command} --help"


def _longest_list(tokens: list[str]) -> tuple[str, list[str]]:
    """The option followed by most values, and these."""
    lists: list[tuple[str, list[str]]] = [("", [])]
    for token in tokens:
        if token.startswith("-"):
            lists.append((token, []))
        elif lists[-1][0]:
            lists[-1][1].append(token)
    return max(lists, key=lambda pair: len(pair[1]))
