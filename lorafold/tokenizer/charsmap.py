"""SentencePiece's table of characters, held against its own bounds, which the tokenizers library does not.

    charsmap : u32 bytes of trie | trie of u32 units | texts, each ended by a zero byte
    unit     : a leaf (bit 31) is the place of a text; else label (bits 0 to 7), whether a leaf follows
               (bit 8), and how far its children are (bits 10 to 30, times 256 if bit 9)

Source: sentencepiece's normalizer.cc, darts-clone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lorafold.errors import InputError


def check_charsmap(charsmap: bytes, at: Path) -> None:
    """See that nothing in it leads out of it.

    Raises:
        InputError: something does.
    """
    size = int.from_bytes(charsmap[:4], "little")
    if charsmap and (
        len(charsmap) < 4 or size % 4 or not 4 <= size <= len(charsmap) - 4 or _leads_out(charsmap, size)
    ):
        raise InputError("its table of characters is damaged", at=at, fix="download the tokenizer again")


def _leads_out(charsmap: bytes, size: int) -> bool:
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    texts = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    leaves = units >> 31 == 1
    places = units[leaves] & 0x7FFFFFFF
    if (places >= len(texts)).any() or (texts[places] >> 6 == 2).any():  # the middle of a character
        return True
    inner = units[~leaves]
    children = np.flatnonzero(~leaves) ^ inner >> 10 << ((inner & 1 << 9) >> 6)
    if ((children | 0xFF) >= len(units)).any():
        return True
    return not bool(leaves[children[inner >> 8 & 1 == 1]].all())
