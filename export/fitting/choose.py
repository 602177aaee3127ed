"""The types that cost least together in a size: a choice for each tensor, with one price for a byte.

What types cost adds up over the tensors, and so do their bytes. Then the best mixture of its size gives each
tensor the type with the least loss + price · bytes, at some price (Everett, 1963). Between two prices that
meet the size from both sides the rest of the bytes is spent step by step, where a byte gains most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gguf import GGMLQuantizationType as Type

_HALVINGS = 80  # of the price, between a byte that costs nothing and one that nothing is worth
_CHEAPEST, _DEAREST = 1e-20, 1e3


@dataclass(frozen=True, slots=True)
class Option:
    """A type that a tensor may have.

    Attributes:
        loss: what it costs, in nats of KL.
        size: bytes in the file.
    """

    loss: float
    size: int


Options = Mapping[str, Mapping[Type, Option]]
Types = dict[str, Type]


def size_of(options: Options, types: Mapping[str, Type]) -> int:
    """Bytes of a choice."""
    return sum(options[name][kind].size for name, kind in types.items())


def smallest(options: Options) -> Types:
    """The choice with the fewest bytes."""
    return {
        name: min(kinds, key=lambda kind: (kinds[kind].size, kinds[kind].loss))
        for name, kinds in options.items()
    }


def largest(options: Options) -> Types:
    """The choice with the most bytes."""
    return {
        name: max(kinds, key=lambda kind: (kinds[kind].size, -kinds[kind].loss))
        for name, kinds in options.items()
    }


def choose(options: Options, room: int) -> Types:
    """The choice that costs least in a size.

    Args:
        options: by tensor and type; there is at least one for each.
        room: bytes that may be taken; if there are too few, the smallest choice is the answer.
    """
    low, high = math.log(_CHEAPEST), math.log(_DEAREST)
    best = smallest(options)
    for _ in range(_HALVINGS):
        price = math.exp((low + high) / 2)
        types = _at_price(options, price)
        if size_of(options, types) <= room:
            best, high = types, math.log(price)
        else:
            low = math.log(price)
    return _filled(options, best, room - size_of(options, best))


def _at_price(options: Options, price: float) -> Types:
    """Of each tensor the type with the least loss and price."""

    def cost(option: Option) -> tuple[float, float]:
        return option.loss + price * option.size, float(option.size)

    return {name: min(kinds, key=lambda kind: cost(kinds[kind])) for name, kinds in options.items()}


def _filled(options: Options, types: Types, room: int) -> Types:
    """Spend what is left, each time on the step that gains most for a byte."""
    types = dict(types)
    while steps := list(_steps(options, types, room)):
        _, name, kind = max(steps, key=lambda step: step[0])
        room -= options[name][kind].size - options[name][types[name]].size
        types[name] = kind
    return types


def _steps(options: Options, types: Types, room: int) -> Iterator[tuple[float, str, Type]]:
    for name, now in types.items():
        before = options[name][now]
        for kind, option in options[name].items():
            more, gain = option.size - before.size, before.loss - option.loss
            if more <= room and gain > 0:
                yield gain / max(more, 1), name, kind
