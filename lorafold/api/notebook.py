"""Results as a notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def lines_as_text(lines: Sequence[tuple[str, str]]) -> str:
    """Labels and texts, the texts aligned; what a model wrote among them controls no terminal."""
    from lorafold.console import sanitize

    shown = [(sanitize(label), sanitize(text)) for label, text in lines]
    width = max((len(label) for label, _ in shown), default=0)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in shown)


def lines_as_html(lines: Sequence[tuple[str, str]]) -> str:
    """The same as a table."""
    rows = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{escape(label)}</th>"
        f"<td style='text-align:left'>{escape(text)}</td></tr>"
        for label, text in lines
    )
    return f"<table>{rows}</table>"
