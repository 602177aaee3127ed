"""Long pastes in the line editor: a place holder stands for each, moved over and removed as one.

A terminal takes minutes to show megabytes. What is sent, and what the history file keeps, is the text itself;
the place holder also stands if a question is recalled, as long as the program runs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.key_binding import KeyBindings

LONG = 10_000  # characters above which a text is shown as a place holder


class Pastes:
    """Texts that are shown as place holders."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._pattern = re.compile("(?!)")  # matches the place holders; none yet
        self._cursor = 0

    def fold(self, text: str) -> str:
        """What is shown of a text: itself, or a place holder if it is long."""
        if len(text) <= LONG:
            return text
        placeholder = f"[paste {len(self._texts) + 1}: {len(text):,} characters]"
        self._texts[placeholder] = text
        self._pattern = re.compile("|".join(map(re.escape, self._texts)))
        return placeholder

    def expand(self, shown: str) -> str:
        """The text behind what is shown."""
        return self._pattern.sub(lambda found: self._texts[found[0]], shown)

    def _spans(self, shown: str) -> list[tuple[int, int]]:
        """Where place holders begin and end."""
        return [found.span() for found in self._pattern.finditer(shown)]

    def step(self, buffer: Buffer) -> None:
        """Keep the cursor out of place holders: it leaves one on the side that it did not come from."""
        at = buffer.cursor_position
        for begin, end in self._spans(buffer.text):
            if begin < at < end:
                buffer.cursor_position = begin if self._cursor >= end else end
        self._cursor = buffer.cursor_position

    def bind(self, bindings: KeyBindings) -> None:
        """Let the keys that remove a character or a word remove a place holder whole."""
        from prompt_toolkit.application import get_app
        from prompt_toolkit.filters import Condition

        def before() -> int:
            """Characters of the place holder that ends at the cursor."""
            buffer = get_app().current_buffer
            spans = self._spans(buffer.text)
            return next((end - begin for begin, end in spans if end == buffer.cursor_position), 0)

        def behind() -> int:
            """Characters of the place holder that begins at the cursor."""
            buffer = get_app().current_buffer
            spans = self._spans(buffer.text)
            return next((end - begin for begin, end in spans if begin == buffer.cursor_position), 0)

        for keys in (("backspace",), ("c-w",), ("escape", "backspace")):
            bindings.add(*keys, filter=Condition(lambda: before() > 0))(
                lambda event: event.current_buffer.delete_before_cursor(before())
            )
        for keys in (("delete",), ("c-d",), ("escape", "d")):
            bindings.add(*keys, filter=Condition(lambda: behind() > 0))(
                lambda event: event.current_buffer.delete(behind())
            )
