"""Texts cut into pieces that belong together, and what the beginnings and ends of several share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lorafold.export.modelfile.probe import DATE


class Tokens:
    """Cuts texts so that no control token, date or tag is torn apart.

    Args:
        controls: the tokenizer's control tokens, where they are known.
    """

    def __init__(self, controls: frozenset[str]) -> None:
        known = "|".join(re.escape(token) for token in sorted(controls, key=len, reverse=True) if token)
        self._control = re.compile(known) if known else None
        tags = r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,30}\]"  # what looks like a token, where no tokenizer is known
        self._piece = re.compile("|".join(filter(None, [known, DATE.pattern, tags, r"\w+|\s|."])), re.DOTALL)

    def shared_start(self, texts: Sequence[str]) -> str:
        """The longest common beginning in whole pieces."""
        split = [[match[0] for match in self._piece.finditer(text)] for text in texts]
        common: list[str] = []
        for pieces in zip(*split, strict=False):
            if len(set(pieces)) > 1:
                break
            common.append(pieces[0])
        return "".join(common)

    def shared_end(self, texts: Sequence[str]) -> str:
        """The longest common ending in whole pieces."""
        split = [[match[0] for match in self._piece.finditer(text)][::-1] for text in texts]
        common: list[str] = []
        for pieces in zip(*split, strict=False):
            if len(set(pieces)) > 1:
                break
            common.insert(0, pieces[0])
        return "".join(common)

    def leading_controls(self, texts: Sequence[str]) -> str:
        """The control tokens all texts begin with."""
        common, end = self.shared_start(texts), 0
        while self._control is not None and (match := self._control.match(common, end)):
            end = match.end()
        return common[:end]
