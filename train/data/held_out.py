"""Held-out conversations -> `heldout.jsonl` in the adapter's folder: what the proof of an export asks.

One conversation a line, as {"messages": [...]}, with "tools" if it has some. They are taken from the
evaluation set, which was not trained on: an export is judged by questions that are the user's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafold.artifacts import write_atomic
from lorafold.chat.dialogue import tools_of
from lorafold.chat.sandbox import Message
from lorafold.records.chats import HELD_OUT
from lorafold.records.layouts import Example

MOST = 64  # conversations; a proof asks a dozen


def write_held_out(folder: Path, examples: Sequence[Example]) -> int:
    """Write conversations, evenly taken from the evaluation set; plain texts ask nothing and are left out.

    Args:
        folder: of the adapter.
        examples: of the evaluation set; may be empty.

    Returns:
        The number of conversations written; with none there is no file.

    Raises:
        SystemFault: the file cannot be written.
    """
    chats = [
        example.messages for example in examples if any(turn["role"] == "user" for turn in example.messages)
    ]
    step = max(len(chats) / MOST, 1.0)
    kept = [chats[int(index * step)] for index in range(min(len(chats), MOST))]
    if kept:
        lines = [json.dumps(_record(chat), ensure_ascii=False) + "\n" for chat in kept]
        write_atomic(folder / HELD_OUT, "".join(lines))
    return len(kept)


def _record(chat: Sequence[Message]) -> dict[str, Any]:
    """A conversation as a line of data, with its tools if it has some."""
    tools = tools_of(chat)
    return {"messages": list(chat), **({"tools": list(tools)} if tools else {})}
