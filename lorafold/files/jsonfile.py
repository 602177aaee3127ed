"""JSON objects from files that somebody else wrote: config.json, adapter_config.json, shard indexes.

The size is bounded, what is no JSON at all is called by its name (`signatures`), and a key given twice is an
error instead of a silent choice. What the program indexes has the form that `shapes` says.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from lorafold.errors import InputError
from lorafold.files.reading import read_faults
from lorafold.files.shapes import check_shape
from lorafold.files.signatures import HEAD_BYTES, another_file

# A character beyond U+FFFF is written as two escapes; one of them alone can be neither printed nor saved.
_HALF, _HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]"), re.compile("[\ud800-\udfff]")
_DEEPEST = 100
"""Lists and objects that may lie in each other; real files have about ten."""
_CONTAINERS = frozenset((dict, list))


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that refuses a key given twice.

    Raises:
        ValueError: naming the repeated key.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} is given twice")
            seen.add(key)
    return result


def read_if_there(path: Path) -> dict[str, Any] | None:
    """`read_object`, or None if there is no such file."""
    return read_object(path) if path.is_file() else None


def read_object(path: Path, *, limit: int = 64 << 20) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        path: the file.
        limit: most bytes that are read.

    Returns:
        The object.

    Raises:
        InputError: the file is missing, something else than its name says, too large, not UTF-8, not JSON, no
            object, or a part of it has another form than `shapes` says.
        SystemFault: the file cannot be read.
    """
    with read_faults(path), path.open("rb") as file:
        # CPython allocates all that read() is asked for; one byte more tells a file that is too large.
        raw = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if (wrong := another_file(path, raw[:HEAD_BYTES])) is not None:
        raise wrong
    if len(raw) > limit:
        raise InputError(f"larger than {limit:,} bytes", at=path, fix="check that this is the right file")
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start})", at=path, fix="download the file again") from None
    except RecursionError:
        raise _nested(path) from None
    except json.JSONDecodeError as error:
        what = "truncated or invalid JSON" if raw.strip() else "the file is empty"
        raise InputError(
            f"{what} (line {error.lineno}, column {error.colno}: {error.msg})",
            at=path,
            fix="download the file again, or correct that line if it was edited",
        ) from None
    except ValueError as error:
        raise InputError(str(error), at=path, fix="remove one of the two") from None
    if not isinstance(value, dict):
        raise InputError(f"got a JSON {type(value).__name__}, expected an object", at=path, fix="check it")
    if _too_deep(value):
        raise _nested(path)
    # A tokenizer's reader says which token it is.
    halves = path.name != "tokenizer.json" and _HALF.search(raw)
    if halves and _HALF_CHARACTER.search(json.dumps(value, ensure_ascii=False)):
        problem = "a text holds half a character (a surrogate without its other half)"
        raise InputError(problem, at=path, fix="download the file again")
    check_shape(value, path.name, path)
    return value


def _too_deep(value: Any) -> bool:
    """Whether containers lie in each other so deeply that no code which walks them is safe."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for node in level
            for part in (node.values() if isinstance(node, dict) else node)
            if type(part) in _CONTAINERS
        ]
        if not level:
            return False
    return True


def _nested(path: Path) -> InputError:
    return InputError("JSON nested too deeply", at=path, fix="check that this is the right file")
