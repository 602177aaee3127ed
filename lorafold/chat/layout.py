"""What a conversation's shape looks like under a template: the literal text around what is said.

A `Layout` is found by rendering unique words in place of the contents (and of what was thought before them),
with and without generation prompt, whole and cut short; no Jinja is read. Layouts are remembered per template
and shape (roles, other keys, switches).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorafold.chat.controls import split_controls
from lorafold.chat.sandbox import Message, Refusal
from lorafold.chat.template import ChatTemplate, reasoning_of
from lorafold.errors import InputError

Part = Literal["content", "reasoning"]
_MARKS: dict[Part, str] = {"content": "q", "reasoning": "r"}
_PARTS: dict[str, Part] = {mark: part for part, mark in _MARKS.items()}
_WORD = re.compile(r"Z([qr])(\d{5})Qz")
LAYOUTS_KEPT = 4096  # shapes remembered per template


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of what a message says among the literals.

    Args:
        message: index of the message.
        part: its content, or what was thought before it.
        lead: characters of the literal before it that are trained (a think block the generation prompt
            lacks).
        tail: characters of the literal after it that are trained (the end of turn).
    """

    message: int
    part: Part = "content"
    lead: int = 0
    tail: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """What a conversation shape looks like: `literals[k]` stands before `slots[k]`, the last one at the
    end."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]


def trims(content: str) -> list[str]:
    """A content and what templates' usual trims make of it, the untouched one first."""
    kinds = (content, content.strip(), content.lstrip(), content.rstrip())
    return list(dict.fromkeys((*kinds, content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))))


def align(layout: Layout, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
    """Find what each slot says in a rendering.

    Returns:
        (start, length) per slot, or None if the literals and trimmed contents do not make up the text.
    """
    if not text.startswith(layout.literals[0]):
        return None
    failed: set[tuple[int, int]] = set()
    said = [spoken(messages[slot.message], slot.part) for slot in layout.slots]

    def walk(index: int, position: int) -> list[tuple[int, int]] | None:
        if index == len(layout.slots):
            return [] if position == len(text) else None
        if (index, position) in failed:
            return None
        for form in trims(said[index]):
            if text.startswith(form + layout.literals[index + 1], position):
                rest = walk(index + 1, position + len(form) + len(layout.literals[index + 1]))
                if rest is not None:
                    return [(position, len(form)), *rest]
        failed.add((index, position))
        return None

    if len(layout.slots) > 400 or not all(isinstance(value, str) for value in said):
        return None
    return walk(0, len(layout.literals[0]))


def spoken(message: Message, part: Part) -> Any:
    """What a message says in one of its parts."""
    if part == "content":
        return message.get("content")
    name = reasoning_of(message)
    return None if name is None else message[name]


def _worded(message: Message, index: int) -> Message:
    """A message with words in place of what it says."""
    changed = {"content": word(index)} if str(message.get("content") or "").strip() else {}
    if name := reasoning_of(message):
        changed[name] = word(index, "reasoning")
    return {**message, **changed} if changed else message


def _shape(message: Message) -> Message:
    """A message with whether it says something in place of what it says."""
    shape = {**message, "content": bool(str(message.get("content") or "").strip())}
    return {**shape, name: True} if (name := reasoning_of(message)) else shape


def layout_of(
    template: ChatTemplate, messages: Sequence[Message], prompt: bool, variables: Mapping[str, Any]
) -> Layout:
    """The layout of this conversation's shape, from the template's cache or by rendering words."""
    shapes = [_shape(message) for message in messages]
    key = json.dumps([shapes, prompt, variables], sort_keys=True, default=repr)
    if key not in template._layouts:
        if len(template._layouts) >= LAYOUTS_KEPT:
            template._layouts.clear()
        template._layouts[key] = _probe(template, messages, prompt, variables)
    layout: Layout = template._layouts[key]
    return layout


def _probe(
    template: ChatTemplate, messages: Sequence[Message], prompt: bool, variables: Mapping[str, Any]
) -> Layout:
    """Render words in place of contents and read off the literals, leads and tails."""
    chat, literals, slots = check_nothing_dropped(template, messages, prompt, variables)
    answers = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
    more = {"role": "user", "content": word(99999)}
    heads = template.render_all([chat[:index] for index in answers], add_generation_prompt=True, **variables)
    ends = template.render_all([chat[: index + 1] for index in answers], **variables)
    nexts = template.render_all([[*chat[: index + 1], more] for index in answers], **variables)
    edges = {
        index: (_last_literal(head), _end_of_turn(index, end, following, template.controls))
        for index, head, end, following in zip(answers, heads, ends, nexts, strict=True)
    }
    placed = []
    for number, slot in enumerate(slots):
        if slot.message in edges:
            head_literal, ending = edges[slot.message]
            before, after = literals[number], literals[number + 1]
            lead = (
                len(before) - len(head_literal)
                if head_literal is not None and before.startswith(head_literal)
                else 0
            )
            tail = len(ending) if after.startswith(ending) else 0
            slot = Slot(slot.message, slot.part, lead, tail)
        placed.append(slot)
    return Layout(tuple(literals), tuple(placed))


def check_nothing_dropped(
    template: ChatTemplate, messages: Sequence[Message], prompt: bool, variables: Mapping[str, Any]
) -> tuple[list[Message], list[str], list[Slot]]:
    """Check that a template shows every message, by rendering words in their place.

    Args:
        template: the chat template.
        messages: the conversation.
        prompt: with the generation prompt.
        variables: the template's switches.

    Returns:
        The conversation of words, the literals around them, and their places.

    Raises:
        InputError: the template refuses the conversation, or drops a message.
    """
    chat = [_worded(message, index) for index, message in enumerate(messages)]
    whole = template.render_all([chat], add_generation_prompt=prompt, **variables)[0]
    if isinstance(whole, Refusal):
        raise template.refused(whole)
    literals, slots = _literals(whole)
    said = {slot.message for slot in slots if slot.part == "content"}
    for index, message in enumerate(messages):
        if index not in said and str(message.get("content") or "").strip():
            raise InputError(
                f"the chat template drops what message {index + 1} says (role {message['role']!r})",
                at=template.origin,
                fix="leave such messages out, or give another --chat-template",
            )
    return chat, literals, slots


def word(index: int, part: Part = "content") -> str:
    """The word that stands for what a message says."""
    return f"Z{_MARKS[part]}{index:05}Qz"


def _literals(rendering: str) -> tuple[list[str], list[Slot]]:
    pieces = _WORD.split(rendering)
    slots = zip(pieces[1::3], pieces[2::3], strict=True)
    return pieces[::3], [Slot(int(number), _PARTS[mark]) for mark, number in slots]


def _last_literal(rendering: str | Refusal) -> str | None:
    return None if isinstance(rendering, Refusal) else _literals(rendering)[0][-1]


def _after(index: int, rendering: str) -> str | None:
    """The literal after a message's content."""
    literals, slots = _literals(rendering)
    places = [number for number, slot in enumerate(slots) if slot.message == index]
    return literals[places[-1] + 1] if places else None


def _end_of_turn(index: int, end: str | Refusal, following: str | Refusal, controls: frozenset[str]) -> str:
    """What ends an assistant's turn: the text that stands after it whether or not a user's turn follows.

    Cut after its last control token; a text without one counts whole.
    """
    texts = [_after(index, text) for text in (end, following) if isinstance(text, str)]
    known = [split_controls(text, controls) for text in texts if text is not None]
    if not known:
        return ""
    if (
        len(known) == 1
    ):  # the other was refused, so only the first control token is sure to belong to this turn
        first = next((number for number, (_, special) in enumerate(known[0]) if special), None)
        return "".join(text for text, _ in known[0][: None if first is None else first + 1])
    common: list[tuple[str, bool]] = []
    for pieces in zip(*known, strict=False):
        if any(piece != pieces[0] for piece in pieces):
            if not any(special for _, special in pieces):
                shared = pieces[0][0][: shared_prefix(pieces[0][0], pieces[-1][0])]
                common += [(shared, False)] if shared else []
            break
        common.append(pieces[0])
    last = max((number for number, (_, special) in enumerate(common) if special), default=len(common) - 1)
    return "".join(text for text, _ in common[: last + 1])


def end_of_turn(template: ChatTemplate, **variables: Any) -> str:
    """The text that ends an assistant's turn, up to its last control token; "" if the template ends none.

    Args:
        template: the template.
        variables: its switches.

    Raises:
        InputError: the template refuses a plain exchange of user and assistant.
    """
    chat = [{"role": "user", "content": word(0)}, {"role": "assistant", "content": word(1)}]
    more = {"role": "user", "content": word(2)}
    end = template.render_all([chat], **variables)[0]
    following = template.render_all([[*chat, more]], **variables)[0]
    if isinstance(end, Refusal) and isinstance(following, Refusal):
        raise template.refused(end)
    return _end_of_turn(1, end, following, template.controls)


def shared_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """Length of the common beginning of two texts, or of two lists of tokens."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
