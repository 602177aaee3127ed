"""Results as a notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def lines_as_text(lines: Sequence[tuple[str, str]]) -> str:
    """Labels and texts, the texts aligned."""
    width = max((len(label) for label, _ in lines), default=0)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)


def lines_as_html(lines: Sequence[tuple[str, str]]) -> str:
    """The same as a table."""
    rows = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{escape(label)}</th>"
        f"<td style='text-align:left'>{escape(text)}</td></tr>"
        for label, text in lines
    )
    return f"<table>{rows}</table>"
