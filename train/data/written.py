"""Texts that already carry control tokens: what becomes of these is said before it is trained on.

A data set is often made by applying a chat template to it. Read as text, its control tokens fall into
characters, and a template is put around what has one already; the loss looks well all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from lorafold.chat.control_forms import without_ends, written_markers
from lorafold.chat.dialogue import calls_of
from lorafold.chat.template import ChatTemplate
from lorafold.records.layouts import Example

MOST_MARKERS = 6  # that a note names


def written_controls(examples: Sequence[Example], template: ChatTemplate, *, parsed: bool) -> tuple[str, ...]:
    """What the user should know of control tokens that the data write out.

    Args:
        examples: of the data set.
        template: that is put around conversations, with the tokenizer's control tokens.
        parsed: control tokens that are written out count as such.
    """
    own: list[tuple[Example, list[str]]] = []
    foreign: list[tuple[Example, list[str]]] = []
    ended: list[tuple[Example, list[str]]] = []
    for example in examples:
        found, ends = _markers(example, template, parsed=parsed)
        if ends:
            ended.append((example, ends))
        if known := [marker for marker in found if marker in template.controls]:
            own.append((example, known))
        # The template's own words around turns ("[INST]") are right in a text that has been through it.
        whole = parsed or example.text is not None
        others = [marker for marker in found if marker not in template.controls]
        if odd := [marker for marker in others if not (whole and marker in template.source)]:
            foreign.append((example, odd))
    notes = []
    if own and parsed:
        notes.append(f"control tokens are written out in {_where(own, examples)}, and parsed as such")
    elif own:
        notes.append(
            f"control tokens are written out in {_where(own, examples)}, and trained as ordinary characters; "
            "if they have been through a chat template, pass --control-tokens parse (only for data that you "
            "trust), or give the turns as messages"
        )
    if foreign:
        notes.append(
            f"turn markers that are no control tokens of this base stand in {_where(foreign, examples)}, and "
            "are trained as ordinary characters; give the turns as messages, and the template marks them"
        )
    if ended:
        notes.append(
            f"texts end with a marker in {_where(ended, examples)}, which is trained as ordinary characters "
            "before the end that is put there anyway; remove it from the data"
        )
    return tuple(notes)


def _markers(example: Example, template: ChatTemplate, *, parsed: bool) -> tuple[list[str], list[str]]:
    """Of an example: (markers that it writes out, those that do no more than end a text once too often)."""
    found: list[str] = []
    ends: list[str] = []
    for text in _texts(example):
        markers = written_markers(text, template.controls)
        bare, last = without_ends(text, markers)
        own = [marker for marker in last if marker in template.controls]
        whole = not last or bool(written_markers(bare, template.controls))
        if whole or (own and (parsed or example.text is not None)):
            found += markers
        else:
            ends += last
    return found, ends


def _texts(example: Example) -> Iterator[str]:
    if example.text is not None:
        yield example.text
    for message in example.messages:
        yield from (str(message[key]) for key in ("content", "reasoning_content") if message.get(key))
        yield from (json.dumps(call, ensure_ascii=False) for call in calls_of(message))


def _where(found: Sequence[tuple[Example, list[str]]], examples: Sequence[Example]) -> str:
    markers = list(dict.fromkeys(marker for _, some in found for marker in some))
    named = ", ".join(markers[:MOST_MARKERS]) + (" and more" if len(markers) > MOST_MARKERS else "")
    return f"{len(found)} of {len(examples)} examples ({named}; first: {found[0][0].place})"
