"""The nodes of a parsed Go template: what `parse.py` makes and `evaluate.py` executes."""

from __future__ import annotations

from dataclasses import dataclass


class GoTemplateError(ValueError):
    """The source is not a template of the subset, or fails while it runs."""


@dataclass(frozen=True, slots=True)
class Text:
    """Literal bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Constant:
    """A string (as bytes), an integer or a boolean."""

    value: bytes | int | bool


@dataclass(frozen=True, slots=True)
class Dot:
    """`.`, or `.A.B`."""

    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """`$`, `$name` or `$name.A.B`; "$" has the empty name."""

    name: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments."""

    name: str
    arguments: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands, each but the first taking the one before as its last argument."""

    commands: tuple[Operand, ...]


Operand = Constant | Dot | Variable | Call | Pipeline


@dataclass(frozen=True, slots=True)
class Action:
    """`{{ pipeline }}`."""

    value: Pipeline


@dataclass(frozen=True, slots=True)
class Assign:
    """`{{ $name := pipeline }}`, or `=` where `new` is False."""

    name: str
    new: bool
    value: Pipeline


@dataclass(frozen=True, slots=True)
class If:
    """A test with its two sides."""

    test: Pipeline
    yes: tuple[Node, ...]
    no: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """A loop; `names` are the variables for index and element, or for the element alone."""

    names: tuple[str, ...]
    value: Pipeline
    body: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Include:
    """`{{ template "name" pipeline }}`."""

    name: str
    value: Pipeline | None


Node = Text | Action | Assign | If | Range | Include
