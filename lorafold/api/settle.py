"""What a user may write for a config value, in Python or on the command line: text for a path or a list."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

# Names joined by commas, as other programs take them. A path or a regular expression is never taken apart.
_JOINED = re.compile(r"[\w.-]+(?:,[\w.-]+)+,?")


def settle(config: Any, lists: Collection[str] = ()) -> None:
    """Bring a config's values to the types of its fields: text to paths and tuples, lists to tuples.

    Called by a frozen config's `__post_init__`, before it checks anything.

    Args:
        config: the dataclass instance, changed in place.
        lists: fields that hold names, which may be joined by commas ("Q4_K_M,Q8_0").
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        settled = _settled(value, str(field.type))
        if field.name in lists and isinstance(settled, tuple):
            settled = tuple(name for item in settled for name in _names(item))
        if settled is not value:
            object.__setattr__(config, field.name, settled)


def _settled(value: Any, type: str) -> Any:
    """The value as the field's annotation has it; annotations are texts (PEP 563)."""
    if type.startswith("tuple["):
        if isinstance(value, str | Path):
            value = (value,)
        elif isinstance(value, list | set):
            value = tuple(value)
        if "Path" in type and any(isinstance(item, str) for item in value):
            value = tuple(Path(item) for item in value)
        if "str" in type and any(isinstance(item, Path) for item in value):
            value = tuple(map(str, value))
        return value
    if "Path" in type and isinstance(value, str):
        return Path(value)
    if type.startswith("str") and isinstance(value, Path):
        return str(value)
    return value


def _names(item: Any) -> typing.Iterator[Any]:
    if isinstance(item, str) and _JOINED.fullmatch(item):
        yield from (name for name in item.split(",") if name)
    else:
        yield item
