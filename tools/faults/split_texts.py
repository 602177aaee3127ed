"""A million texts that a terminal would obey, split anywhere, through the sanitiser and the panes.

    python tools/faults/split_texts.py [--texts 1000000] [--seed 0] [--page docs/reliability.md]

A text is made of escape sequences (CSI, OSC 8, OSC 52, titles, DCS, bracketed paste), controls of C0 and C1,
bidirectional controls, half characters, and ordinary words. It comes in pieces that are cut at random, inside
sequences too, as a model's tokens are. No piece may leave a character that a terminal obeys. Every 50th text
also goes through a pane and the plain view. Exits 1 if one was left.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from page import processor_seconds, write_figure

from lorafold.console import sanitize
from lorafold.serve.terminal.panes import Wrapper
from lorafold.serve.terminal.views import write_plain

FIGURE = "raw escape bytes in 1,000,000 sanitised texts at random splits"
# What a terminal acts upon: C0 but newline and tab, DEL, C1, and bidirectional controls.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_PIECES = (
    "\x1b[2J",
    "\x1b[1;31m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\",
    "\x1b]52;c;eA==\x07",
    "\x1bP1$r\x1b\\",
    "\x1b[200~",
    "\x1b[201~",
    "\x1bc",
    "\x9b2J",
    "\x9d0;x\x9c",
    "\x90",
    "\r",
    "\b\b\b",
    "\x07",
    "\x00",
    "\x7f",
    "\x85",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u2028",
    "\udc80",
    "\ud83d",
    "\n",
    "\t",
    "word",
    "é",
    "🐚",
    "语",
    " ",
)


def texts(count: int, seed: int) -> tuple[int, int]:
    """Draw texts and count them, and what was left in them."""
    dice, left = random.Random(seed), 0
    for number in range(count):
        parts = dice.choices(_PIECES, k=dice.randrange(1, 9))
        if dice.random() < 0.3:
            parts.append(chr(dice.randrange(0x110000)))
        text = "".join(parts)
        cuts = sorted(dice.randrange(len(text) + 1) for _ in range(dice.randrange(4)))
        pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        left += len(OBEYED.findall("".join(map(sanitize, pieces))))
        if number % 50 == 0:
            left += len(OBEYED.findall(_shown(pieces, dice.randrange(2, 40))))
    return count, left


def _shown(pieces: list[str], width: int) -> str:
    """What a pane and the plain view make of the pieces."""
    pane, plain = Wrapper(width), io.StringIO()
    with contextlib.redirect_stdout(plain):
        for piece in pieces:
            pane.feed(piece)
            write_plain(piece)
    return plain.getvalue() + "\n".join("".join(text for text, _ in row) for row in pane.all_lines())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="rewrite the figures of this page")
    options = parser.parse_args()
    count, left = texts(options.texts, options.seed)
    print(f"{left:,} characters that a terminal obeys, in {count:,} texts")
    if options.page:
        measured = f"{left:,} in {count:,}"
        write_figure(options.page, FIGURE, measured, "tools/faults/split_texts.py", processor_seconds())
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
