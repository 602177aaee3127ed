"""Reasoning that a server leaves in the text of an answer: `<think>…</think>` at its beginning.

Servers without a parser for a model's reasoning send it so. Only the beginning counts: in the middle of an
answer the same letters are what the answer is about.
"""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


class Divider:
    """Tells reasoning and answer apart while the text arrives, wherever it is cut."""

    def __init__(self) -> None:
        self._where = "before"  # the text, within the reasoning, behind it, or in the answer
        self._held = ""  # what may be the beginning of a tag

    @property
    def thinks(self) -> bool:
        """The text begins with reasoning, as far as is known by now."""
        return self._where in ("within", "behind")

    def add(self, text: str) -> tuple[str, str]:
        """What is settled by now: (of the answer, of the reasoning)."""
        text, self._held = self._held + text, ""
        thought = ""
        if self._where == "before":
            text = self._begun(text)
        if self._where == "within":
            thought, text = self._closed(text)
        if self._where == "behind" and (text := text.lstrip()):
            self._where = "answer"
        return text, thought

    def _begun(self, text: str) -> str:
        """What stands behind the opening tag, or the text if it has none."""
        lead = text.lstrip()
        if lead.startswith(_OPEN):
            self._where = "within"
            return lead[len(_OPEN) :].lstrip("\n")
        if _OPEN.startswith(lead):  # nothing yet but blanks, or a part of the tag
            self._held = text
            return ""
        self._where = "answer"
        return text

    def _closed(self, text: str) -> tuple[str, str]:
        """(reasoning, what stands behind the closing tag)."""
        thought, close, rest = text.partition(_CLOSE)
        if close:
            self._where = "behind"
            return thought, rest
        kept = next((size for size in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:size])), 0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], ""

    def rest(self) -> tuple[str, str]:
        """What is left at the end."""
        left, self._held = self._held, ""
        return ("", left) if self._where == "within" else (left, "")
