"""Draw what `bench_fidelity.py --results FILE` measured: mean KL of each recipe, plain, protected and fitted.

    python tools/draw_fidelity.py results.jsonl docs/fidelity.png

One group of bars for each recipe on each base and data; the ratio to the plain recipe stands on the bar.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COLOURS = {"": "#8a8f98", "--keep-delta": "#3b76c4", "--fit": "#d08a2c"}
WORDS = {"": "as the recipe has it", "--keep-delta": "--keep-delta 0.9", "--fit": "--fit, in its size"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
    draw([row for row in rows if row["kl"] is not None and "imatrix" not in row["way"]], options.out)


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """A picture of rows: base, recipe, way, mean KL."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    bases = list(dict.fromkeys(row["base"] for row in rows))
    figure, areas = pyplot.subplots(
        1, len(bases), figsize=(3.6 * len(bases), 3.4), sharey=True, squeeze=False
    )
    for area, base in zip(areas[0], bases, strict=True):
        recipes = list(dict.fromkeys(row["recipe"] for row in rows if row["base"] == base))
        for at, recipe in enumerate(recipes):
            found = {
                kind_of(row["way"]): row["kl"]
                for row in rows
                if (row["base"], row["recipe"]) == (base, recipe)
            }
            for number, (way, colour) in enumerate(COLOURS.items()):
                if way in found:
                    place = at + 0.28 * (number - 1)
                    area.bar(place, found[way], 0.26, color=colour, label=WORDS[way] if not at else None)
                    told = f"{found[way] / found['']:.2f}" if way else ""
                    area.text(place, found[way], told, ha="center", va="bottom", fontsize=8)
        area.set_xticks(range(len(recipes)), recipes)
        area.set_title(base, fontsize=9)
        area.spines[["top", "right"]].set_visible(False)
    areas[0][0].set_ylabel("mean KL from base + adapter, nats")
    areas[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(out, dpi=130)


def kind_of(way: str) -> str:
    """The option that a way is called after."""
    return way.split(",")[0].split(" ")[0]


if __name__ == "__main__":
    main()
