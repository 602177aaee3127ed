"""Draws speed against memory from the table of cards in docs/benchmarks.md: docs/tokens_by_card.png.

python tools/training/cards.py
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| (\d+) \| (\d+) \|.*\| ([\d,]+) \| ([\d.]+) \|$", re.MULTILINE)


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [
        (int(card), int(examples), int(speed.replace(",", "")), float(held))
        for card, examples, speed, held in ROW.findall((DOCS / "benchmarks.md").read_text(encoding="utf-8"))
    ]
    figure, axes = plt.subplots(figsize=(7, 4))
    for examples in sorted({row[1] for row in rows}):
        points = [(card, speed) for card, count, speed, _ in rows if count == examples]
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{examples} examples a step")
    cards = sorted({row[0] for row in rows})
    axes.set(xlabel="GiB of the card", ylabel="tokens per second", ylim=(0, None), xscale="log")
    axes.set_xticks(cards, [str(card) for card in cards])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(DOCS / "tokens_by_card.png", dpi=110)


if __name__ == "__main__":
    main()
