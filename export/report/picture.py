"""Pictures for the page, as inline SVG: a table of coloured cells, bars, and a curve."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lorafold.export.survival.share import distance

_CELL, _HIGH, _LABEL = 17, 20, 150
_NUMBERED = re.compile(r"(?:^|\.)(?:blk|layers|h|block|blocks)\.(\d+)\.(.*)")


def place_of(tensor: str) -> tuple[str, int]:
    """The kind of a tensor and its layer; -1 for one that stands outside of the layers."""
    found = _NUMBERED.search(tensor)
    kind = (found[2] if found else tensor).removesuffix(".weight")
    return re.sub(r"\.\d+\.", ".*.", kind), int(found[1]) if found else -1


def survival_map(tensors: Sequence[Mapping[str, Any]]) -> str:
    """A cell for each layer and kind of tensor, from all of the change lost to all of it there.

    Args:
        tensors: `tensor`, `type`, `share` and `error` of each; of several in one cell the worst counts.
    """
    cells: dict[tuple[str, int], Mapping[str, Any]] = {}
    for tensor in tensors:
        place = place_of(tensor["tensor"])
        if place not in cells or distance(tensor["share"]) > distance(cells[place]["share"]):
            cells[place] = tensor
    kinds = sorted({kind for kind, _ in cells})
    layers = sorted({layer for _, layer in cells})
    width, height = _LABEL + _CELL * len(layers), _HIGH * len(kinds) + 22
    parts = [f'<svg viewBox="0 0 {width} {height}" style="max-width:{width * 1.3:.0f}px" role="img">']
    for row, kind in enumerate(kinds):
        middle = row * _HIGH + 14
        parts.append(f'<text x="{_LABEL - 8}" y="{middle}" text-anchor="end">{escape(kind)}</text>')
        for column, layer in enumerate(layers):
            one = cells.get((kind, layer))
            if one is not None:
                parts.append(_cell(one, _LABEL + column * _CELL, row * _HIGH))
    for column, layer in enumerate(layers):
        if layer >= 0 and (layer % 5 == 0 or layer == layers[-1]):
            x = _LABEL + column * _CELL + _CELL / 2
            parts.append(f'<text x="{x}" y="{height - 6}" text-anchor="middle">{layer}</text>')
    return "".join([*parts, "</svg>"])


def _cell(tensor: Mapping[str, Any], x: int, y: int) -> str:
    share = float(tensor["share"])
    good = max(0.0, min(1.0, 1 - abs(1 - share)))
    told = f"{tensor['tensor']}, {tensor['type']}: {share:.1%} survives, error {tensor['error']:.2g} × change"
    colour = f"color-mix(in oklab, var(--good) {good:.0%}, var(--bad))"
    return (
        f'<rect x="{x}" y="{y + 1}" width="{_CELL - 2}" height="{_HIGH - 2}" rx="3" style="fill:{colour}">'
        f"<title>{escape(told)}</title></rect>"
    )


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """A bar for each label and value, the label above it, with what is written at its end."""
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    height = 46 * len(rows)
    parts = [f'<svg class="slim" viewBox="0 0 360 {height}" role="img">']
    for number, (label, value, text) in enumerate(rows):
        y, length = number * 46, 270 * value / most
        parts.append(f'<text x="0" y="{y + 14}">{escape(label)}</text>')
        parts.append(
            f'<rect class="bar" x="0" y="{y + 20}" width="{max(length, 2):.1f}" height="18" rx="4"/>'
        )
        parts.append(f'<text x="{8 + max(length, 2):.1f}" y="{y + 33}">{escape(text)}</text>')
    return "".join([*parts, "</svg>"])


def curve(values: Sequence[float], across: str, up: str) -> str:
    """Values one after the other, from 0 up, with the largest written beside the axis.

    Args:
        values: the heights.
        across: what they stand for.
        up: what they are, with their unit.
    """
    most = max(values, default=0.0) or 1.0
    step = 560 / max(len(values) - 1, 1)
    points = " ".join(
        f"{60 + at * step:.1f},{110 - 90 * value / most:.1f}" for at, value in enumerate(values)
    )
    return (
        '<svg viewBox="0 0 640 140" role="img"><path class="axis" d="M60 15V110H625"/>'
        f'<text x="52" y="24" text-anchor="end">{most:.2g}</text>'
        '<text x="52" y="114" text-anchor="end">0</text>'
        f'<polyline class="line" points="{points}"/>'
        f'<text x="60" y="132">1</text><text x="620" y="132" text-anchor="end">{len(values)}</text>'
        f'<text x="66" y="14">{escape(up)}</text>'
        f'<text x="340" y="132" text-anchor="middle">{escape(across)}</text></svg>'
    )


def points(tried: Sequence[tuple[str, float, float]], across: str, up: str) -> str:
    """Named points, from 0 up and from the least to the largest across, or a tenth of it around one place.

    Args:
        tried: name, place across, and height of each.
        across: what the places are, with their unit.
        up: what the heights are, with their unit.
    """
    places, heights = [each[1] for each in tried], [each[2] for each in tried]
    wide = max(max(places) - min(places), max(places) / 10) or 1.0
    left = (min(places) + max(places) - wide) / 2
    high = max(heights) or 1.0
    parts = [
        '<svg viewBox="0 0 640 260" role="img"><path class="axis" d="M60 15V220H625"/>',
        f'<text x="52" y="34" text-anchor="end">{high:.2g}</text>',
        '<text x="52" y="224" text-anchor="end">0</text>',
        f'<text x="60" y="240">{left:.4g}</text>',
        f'<text x="620" y="240" text-anchor="end">{left + wide:.4g}</text>',
        f'<text x="340" y="256" text-anchor="middle">{escape(across)}</text>',
        f'<text x="66" y="14">{escape(up)}</text>',
    ]
    for name, place, height in tried:
        x, y = 90 + 440 * (place - left) / wide, 220 - 190 * height / high
        parts.append(
            f'<rect class="bar" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" rx="5">'
            f"<title>{escape(f'{name}: {place:.4g}, {height:.4f}')}</title></rect>"
        )
        parts.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])
