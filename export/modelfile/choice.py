"""Values that depend on conditions: which ones decide a piece of a chat format.

In: what was observed under each combination of the conditions. Out: the smallest set that decides it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

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
