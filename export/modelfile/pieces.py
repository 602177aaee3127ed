"""Texts cut into pieces that belong together, and what the beginnings and ends of several share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

from lorafold.export.modelfile.probe import DATE

CONDITIONS = ("think_set", "think", "system", "first", "second", "last", "late")

Value = TypeVar("Value")
Key = tuple[bool, ...]  # one flag per condition


@dataclass(frozen=True, slots=True)
class Choice(Generic[Value]):
    """A value that depends on conditions.

    Args:
        conditions: the names it depends on, in the order of `CONDITIONS`.
        table: value by the conditions' flags; combinations that cannot happen are absent.
    """

    conditions: tuple[str, ...]
    table: Mapping[Key, Value]

    def values(self) -> set[Value]:
        """All values it can take."""
        return set(self.table.values())


def decide(rows: Sequence[tuple[Key, Value]], allowed: Sequence[str] = CONDITIONS) -> Choice[Value] | None:
    """The smallest set of conditions that decides a value.

    Args:
        rows: observed (flags of all conditions, value).
        allowed: the conditions that may be used.

    Returns:
        The choice, or None where no set decides.
    """
    for size in range(len(allowed) + 1):
        for names in combinations(allowed, size):
            places = [CONDITIONS.index(name) for name in names]
            table: dict[Key, Value] = {}
            if all(table.setdefault(tuple(key[at] for at in places), value) == value for key, value in rows):
                return Choice(names, table)
    return None


class Tokens:
    """Cuts texts so that no control token, date or tag is torn apart.

    Args:
        controls: the tokenizer's control tokens, where they are known.
    """

    def __init__(self, controls: frozenset[str]) -> None:
        known = "|".join(re.escape(token) for token in sorted(controls, key=len, reverse=True) if token)
        self._control = re.compile(known) if known else None
        tags = r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,30}\]"  # what looks like a token, where no tokenizer is known
        self._piece = re.compile("|".join(filter(None, [known, DATE.pattern, tags, r"\w+|\s|."])), re.DOTALL)

    def shared_start(self, texts: Sequence[str]) -> str:
        """The longest common beginning in whole pieces."""
        split = [[match[0] for match in self._piece.finditer(text)] for text in texts]
        common: list[str] = []
        for pieces in zip(*split, strict=False):
            if len(set(pieces)) > 1:
                break
            common.append(pieces[0])
        return "".join(common)

    def shared_end(self, texts: Sequence[str]) -> str:
        """The longest common ending in whole pieces."""
        split = [[match[0] for match in self._piece.finditer(text)][::-1] for text in texts]
        common: list[str] = []
        for pieces in zip(*split, strict=False):
            if len(set(pieces)) > 1:
                break
            common.insert(0, pieces[0])
        return "".join(common)

    def leading_controls(self, texts: Sequence[str]) -> str:
        """The control tokens all texts begin with."""
        common, end = self.shared_start(texts), 0
        while self._control is not None and (match := self._control.match(common, end)):
            end = match.end()
        return common[:end]
