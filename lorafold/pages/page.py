"""The frame and the style of a page; what stands in it is its maker's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from lorafold.console import sanitize

STYLE = Path(__file__).with_name("page.css")


def html_page(title: str, body: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: of the window, as it was given.
        body: pieces of HTML.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{as_text(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def notes_in(notes: Sequence[str]) -> Iterator[str]:
    """What the user should know, as a list under a heading; nothing if there is nothing."""
    if notes:
        yield "<h2>To know</h2><ul>" + "".join(f"<li>{as_text(note)}</li>" for note in notes) + "</ul>"


def as_text(text: str) -> str:
    """Text of a file, a model or a user, as text alone."""
    return escape(sanitize(text))
