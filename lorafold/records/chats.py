"""Files of questions and chats, for whoever asks instead of trains: `compare` and the proof of an export.

What `train` reads is read the same way. Beyond it, a record need not have an answer, a JSON text alone is a
question, and a plain text holds a question a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lorafold.records.files import Reading, read_parts
from lorafold.records.layouts import Example, build_example, recognise
from lorafold.records.tables import TextUnit

HELD_OUT = "heldout.jsonl"  # in an adapter's folder: what `train` held out, for the proof of an export to ask


def read_chats(
    path: Path,
    *,
    system: str | None = None,
    text: TextUnit = "line",
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Example]:
    """Read questions or chats.

    Args:
        path: a file, archive or folder.
        system: put before conversations that bring no system message.
        text: what of a plain text is one record.
        note: told which members of an archive were read or left out.

    Yields:
        Conversations that end with a question or its answer, and plain texts, in the order of the file.

    Raises:
        InputError: the file is missing or malformed, or a record holds no question.
        UnsafeInputError: it would run code.
    """
    reading = Reading(text=text, unknown_is_text=True, hub=False)
    for part in read_parts(str(path), reading, note):
        for place, record in part.records:
            if isinstance(record, str):
                record = {"prompt": record}
            layout = recognise(record, place, answered=False)
            yield build_example(record, place, layout, system, answered=False)
