"""What a chat template leaves out of what was said: usually an assistant's reasoning.

Many templates of reasoning models write it for the last answer only, or never. They find it in its own field
of a message, or within the content (`<think>...</think>`) and cut it off there. So each content is looked for
in the rendering itself: a word in its place would be written whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorafold.chat.layout import Layout, Part, spoken
from lorafold.chat.sandbox import Message

# A shorter beginning of a content is found anywhere ("<" of a marker), so it proves nothing.
SHORTEST_HEAD = 8
_ORDER: tuple[Part, ...] = ("reasoning", "content")


def left_out(messages: Sequence[Message], layout: Layout, text: str, *, aligned: bool) -> list[str]:
    """The parts of what was said that a rendering lacks.

    Args:
        messages: the conversation.
        layout: of its shape.
        text: its rendering.
        aligned: the rendering is the layout's literals with all that the slots say, so only what has no slot
            can be missing.

    Returns:
        Texts, in order.
    """
    shown = {(slot.message, slot.part) for slot in layout.slots}
    lost: list[str] = []
    position = 0
    for index, message in enumerate(messages):
        for part in _ORDER:
            said = spoken(message, part)
            if not isinstance(said, str) or not said.strip():
                continue
            if (index, part) not in shown:
                lost.append(said)
            elif not aligned:
                missing, position = _missing(said.strip(), text, position)
                lost += [missing] if missing.strip() else []
    return lost


def _missing(said: str, text: str, position: int) -> tuple[str, int]:
    """What is missing of a text between its beginning and its end, and where the found part ends.

    The end is found first: what templates cut off stands before an answer.
    """
    found = text.find(said, position)
    if found >= 0:
        return "", found + len(said)
    kept = _longest(len(said), lambda size: text.find(said[len(said) - size :], position) >= 0)
    rest = said[: len(said) - kept]
    start = text.find(said[len(said) - kept :], position) if kept else len(text)
    head = _longest(len(rest), lambda size: text.find(rest[:size], position, start) >= 0)
    if head < min(SHORTEST_HEAD, len(rest)):
        head = 0
    return rest[head:], start + kept if kept else position


def _longest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest size from 0 to `most` that fits, given that every smaller one then fits too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
