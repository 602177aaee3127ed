"""How an embedding model makes one vector of many, as sentence-transformers writes it down.

`modules.json` lists the steps, and the folder of the step called Pooling says which it is. llama.cpp reads
the answer from ARCH.pooling_type (enum llama_pooling_type).
"""

from __future__ import annotations

import json
from pathlib import Path

from gguf import GGUFValueType

from lorafold.errors import InputError
from lorafold.export.gguf.parts import KeyValue
from lorafold.files.jsonfile import read_if_there

# What each is called: on or off in older files, by one name in newer ones; and llama.cpp's number.
_WAYS = (
    ("pooling_mode_mean_tokens", "mean", 1),
    ("pooling_mode_cls_token", "cls", 2),
    ("pooling_mode_lasttoken", "lasttoken", 3),
)
_MOST = 1 << 16  # bytes of the list that are read


def pooling_entries(folder: Path, arch: str) -> list[KeyValue]:
    """The header's entry; none if the folder is no embedding model.

    Args:
        folder: the base; without the step's own file nothing is said either.
        arch: llama.cpp's name of the architecture.

    Raises:
        InputError: the files cannot be read, or vectors are pooled as llama.cpp cannot.
    """
    listed = folder / "modules.json"
    if not listed.is_file():
        return []
    try:
        with open(listed, "rb") as file:
            steps = json.loads(file.read(_MOST))
        inner = next(str(step["path"]) for step in steps if str(step["type"]).endswith("Pooling"))
    except StopIteration:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError("is no list of modules", at=listed, fix="download the file again") from error
    path = folder / inner / "config.json"
    given = read_if_there(path)
    if given is None:
        return []
    mode = given.get("pooling_mode")
    for switch, name, number in _WAYS:
        if given.get(switch) is True or mode == name:
            return [KeyValue(f"{arch}.pooling_type", number, GGUFValueType.UINT32)]
    raise InputError(
        "pools in none of the ways that llama.cpp has: mean, cls, lasttoken",
        at=path,
        fix="choose --format folder",
    )
