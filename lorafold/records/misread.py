"""Notices text that was decoded wrongly: UTF-8 that some program read as Latin-1 or Windows-1252.

"娘" is three bytes in UTF-8, e5 a8 98. Read one byte a character they are "å¨˜" in Windows-1252.
Such a file is valid UTF-8 again, so nothing complains, and the model learns the damaged letters. What was
meant can be had back exactly: the characters' bytes, decoded once more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Byte by character: Latin-1 as it is, and Windows-1252's own characters for 0x80 to 0x9f.
_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)}
_BYTES |= {
    char: byte for byte in range(0x80, 0xA0) if (char := bytes([byte]).decode("cp1252", errors="ignore"))
}
_RUN = re.compile(f"[{''.join(map(re.escape, _BYTES))}]{{2,}}")
_FEW = 2  # characters that were meant, below which a text may mean what it says
_SHARE = 0.9  # of a text's characters beyond ASCII that lie in damaged places, if it is damaged


def reread(text: str) -> tuple[str, str] | None:
    """A damaged place of a text and what was meant by it, or None.

    A run of such characters in real text is hardly ever valid UTF-8, since the first byte says how many of
    0x80 to 0xbf follow. The end of „Spaß“ is, by chance; but there the other letters beyond ASCII are not.
    """
    found = [(run, meant) for run in _RUN.findall(text) if (meant := _meant(run))]
    if sum(len(meant) for _, meant in found) < _FEW:
        return None
    damaged, beyond = sum(len(run) for run, _ in found), sum(not char.isascii() for char in text)
    return found[0] if damaged >= _SHARE * beyond else None


def _meant(run: str) -> str:
    try:
        return bytes(_BYTES[char] for char in run).decode("utf-8")
    except UnicodeDecodeError:
        return ""


def misread_note(texts: Iterable[tuple[str, str]]) -> str | None:
    """What the user should know of damaged texts, or None.

    Args:
        texts: (place, text) of every text.
    """
    count, first = 0, None
    for place, text in texts:
        if not text.isascii() and (found := reread(text)) is not None:
            count += 1
            first = first or (place, *found)
    if first is None:
        return None
    place, seen, meant = first
    return (
        f"{count} {'text looks' if count == 1 else 'texts look'} like UTF-8 read as Latin-1, the first at "
        f"{place} ({seen[:12]} → {meant[:4]}): write the file again as UTF-8, from its source"
    )
