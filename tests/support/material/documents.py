"""The repository's own documents, and the code in them."""

from __future__ import annotations

import re

from oracles import REPOSITORY


def text_of(name: str) -> str:
    """A document by its path in the repository."""
    return (REPOSITORY / name).read_text(encoding="utf-8")


def code_in(text: str, language: str) -> list[str]:
    """The blocks of a document in one language, which may be a pattern."""
    return re.findall(rf"^```(?:{language})\n(.*?)^```", text, re.M | re.S)
