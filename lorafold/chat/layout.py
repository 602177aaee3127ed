"""What a conversation's shape looks like under a template: the literal text around what is said.

A `Layout` is found by rendering unique words in place of the contents (of what was thought before them, and
of the names that are called), with and without generation prompt, whole and cut short; no Jinja is read.
Layouts are kept per template and shape (roles, other keys, calls with their arguments, tools, switches).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lorafold.chat.controls import split_controls
from lorafold.chat.dialogue import Dialogue, ToolCall, but, calls_of, name_of, tools_of
from lorafold.chat.sandbox import Message, Refusal
from lorafold.chat.template import ChatTemplate, reasoning_of
from lorafold.errors import InputError

Part = Literal["content", "reasoning", "call"]
_MARKS: dict[Part, str] = {"content": "q", "reasoning": "r", "call": "c"}
_PARTS: dict[str, Part] = {mark: part for part, mark in _MARKS.items()}
_OPENED = re.compile(r"[<\[][^<>\[\]\s]*$")  # a tag that has begun
_WORD = re.compile(r"Z([qrc])(\d{5})(?:x(\d+))?Qz")
LAYOUTS_KEPT = 4096  # shapes remembered per template


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of what a message says among the literals.

    Args:
        message: index of the message.
        part: its content, what was thought before it, or the name of a call.
        lead: characters of the literal before it that are trained (a think block the generation prompt
            lacks, the beginning of a call).
        tail: characters of the literal after it that are trained (the arguments of a call, the end of turn).
        call: which of the message's calls.
        again: the name stands here once more behind its turn, as that of a tool with its result.
    """

    message: int
    part: Part = "content"
    lead: int = 0
    tail: int = 0
    call: int = 0
    again: bool = False


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
    said = [spoken(messages[slot.message], slot.part, slot.call) for slot in layout.slots]

    def walk(index: int, position: int) -> list[tuple[int, int]] | None:
        if index == len(layout.slots):
            return [] if position == len(text) else None
        if (index, position) in failed:
            return None
        for form in forms[index]:
            if text.startswith(form + layout.literals[index + 1], position):
                rest = walk(index + 1, position + len(form) + len(layout.literals[index + 1]))
                if rest is not None:
                    return [(position, len(form)), *rest]
        failed.add((index, position))
        return None

    if len(layout.slots) > 400 or not all(isinstance(value, str) for value in said):
        return None
    results = [messages[slot.message]["role"] == "tool" for slot in layout.slots]
    forms = [
        list(dict.fromkeys((*trims(value), *quoted(value)))) if result else trims(value)
        for value, result in zip(said, results, strict=True)
    ]
    return walk(0, len(layout.literals[0]))


def quoted(content: str) -> list[str]:
    """A content as it stands within JSON, which some templates make of a tool's result."""
    return [json.dumps(content, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]


def spoken(message: Message, part: Part, call: int = 0) -> Any:
    """What a message says in one of its parts."""
    if part == "content":
        return message.get("content")
    if part == "call":
        return name_of(calls_of(message)[call])
    name = reasoning_of(message)
    return None if name is None else message[name]


def _worded(message: Message, index: int) -> Message:
    """A message with words in place of what it says."""
    changed = {"content": word(index)} if str(message.get("content") or "").strip() else {}
    if name := reasoning_of(message):
        changed[name] = word(index, "reasoning")
    if calls := calls_of(message):
        renamed = [renamed_call(call, word(index, "call", number)) for number, call in enumerate(calls)]
        return {**message, **changed, "tool_calls": renamed}
    return {**message, **changed} if changed else message


def renamed_call(call: ToolCall, name: str) -> ToolCall:
    """A call of another function."""
    inner = call.get("function")
    return (
        {**call, "function": {**inner, "name": name}} if isinstance(inner, dict) else {**call, "name": name}
    )


def _shape(message: Message) -> Message:
    """A message with whether it says something in place of what it says."""
    shape = {**message, "content": bool(str(message.get("content") or "").strip())}
    return {**shape, name: True} if (name := reasoning_of(message)) else shape


def layout_of(
    template: ChatTemplate, messages: Sequence[Message], prompt: bool, variables: Mapping[str, Any]
) -> Layout:
    """The layout of this conversation's shape, from the template's cache or by rendering words."""
    shapes = [_shape(message) for message in messages]
    key = json.dumps([shapes, tools_of(messages), prompt, variables], sort_keys=True, default=repr)
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
    heads = template.render_all([chat[:index] for index in answers], add_generation_prompt=True, **variables)
    ends = template.render_all([chat[: index + 1] for index in answers], **variables)
    nexts = template.render_all([_followed(chat[: index + 1]) for index in answers], **variables)
    # A turn that only calls may begin otherwise than the prompt ends: with a closed think block.
    plain = [[*chat[:index], {"role": "assistant", "content": word(index)}] for index in answers]
    others = template.render_all([but(chat, said) for said in plain], **variables)
    edges = {
        index: _Edges(
            _last_literal(head),
            _before(index, other) if calls_of(chat[index]) else None,
            _end_of_turn(index, end, following, template.controls),
            None if isinstance(end, Refusal) else _count(index, end),
        )
        for index, head, end, following, other in zip(answers, heads, ends, nexts, others, strict=True)
    }
    placed: list[Slot] = []
    seen: Counter[int] = Counter()
    for number, slot in enumerate(slots):
        if slot.message in edges:
            before, after = literals[number], literals[number + 1]
            edge = edges[slot.message]
            lead = edge.lead(before, slot, first=not seen[slot.message], controls=template.controls)
            tail = len(edge.ending) if after.startswith(edge.ending) else 0
            seen[slot.message] += 1
            again = slot.part == "call" and edge.count is not None and seen[slot.message] > edge.count
            slot = replace(slot, lead=lead, tail=tail, again=again)
        placed.append(slot)
    return Layout(tuple(literals), tuple(placed))


@dataclass(frozen=True, slots=True)
class _Edges:
    """What stands around an answer.

    Attributes:
        head: the end of the prompt that asks for it; None if the template refuses that.
        plain: of a turn with calls, what would stand before a text in its place.
        ending: what ends the turn.
        count: slots of the turn itself; None if the template does not end with it.
    """

    head: str | None
    plain: str | None
    ending: str
    count: int | None

    def lead(self, before: str, slot: Slot, *, first: bool, controls: frozenset[str]) -> int:
        """How much of the literal before a slot is trained."""
        if self.head is not None and before.startswith(self.head):
            return len(before) - len(self.head)
        if slot.part != "call" or not first:
            return 0
        heads = [text for text in (self.plain, self.head) if text is not None]
        return len(before) - max((_shared_literal(before, text, controls) for text in heads), default=0)


def _shared_literal(first: str, second: str, controls: frozenset[str]) -> int:
    """Length of the common beginning of two literals that cuts no control token and no tag."""
    shared = first[: shared_prefix(first, second)]
    whole = 0
    for piece, special in split_controls(first, controls):
        if whole + len(piece) > len(shared):
            return whole if special else whole + len(_OPENED.sub("", shared[whole:]))
        whole += len(piece)
    return whole


def _followed(chat: Dialogue) -> Dialogue:
    """A conversation with what comes after its last answer: the results of its calls, or a user's turn."""
    results = [
        {"role": "tool", "content": word(99999), "name": name_of(call), "tool_call_id": call.get("id")}
        for call in calls_of(chat[-1])
    ]
    return but(chat, [*chat, *(results or [{"role": "user", "content": word(99999)}])])


def check_nothing_dropped(
    template: ChatTemplate, messages: Sequence[Message], prompt: bool, variables: Mapping[str, Any]
) -> tuple[Dialogue, list[str], list[Slot]]:
    """Check that a template shows every message, by rendering words in their place.

    Args:
        template: the chat template.
        messages: the conversation.
        prompt: with the generation prompt.
        variables: the template's switches.

    Returns:
        The conversation of words, the literals around them, and their places.

    Raises:
        InputError: the template refuses the conversation, or drops a message or a call.
    """
    chat = but(messages, (_worded(message, index) for index, message in enumerate(messages)))
    whole = template.render_all([chat], add_generation_prompt=prompt, **variables)[0]
    if isinstance(whole, Refusal):
        raise template.refused(whole)
    literals, slots = _literals(whole)
    said = {(slot.message, slot.part, slot.call) for slot in slots}
    for index, message in enumerate(messages):
        dropped = ""
        if (index, "content", 0) not in said and str(message.get("content") or "").strip():
            dropped = f"what message {index + 1} says (role {message['role']!r})"
        for number, call in enumerate(calls_of(message)):
            if (index, "call", number) not in said:
                dropped = dropped or f"the call of {name_of(call)!r} in message {index + 1}"
        if dropped:
            raise InputError(
                f"the chat template drops {dropped}",
                at=template.origin,
                fix="leave such messages out, or give another --chat-template",
            )
    return chat, literals, slots


def word(index: int, part: Part = "content", call: int = 0) -> str:
    """The word that stands for what a message says."""
    return f"Z{_MARKS[part]}{index:05}{f'x{call}' if call else ''}Qz"


def _literals(rendering: str) -> tuple[list[str], list[Slot]]:
    pieces = _WORD.split(rendering)
    slots = zip(pieces[1::4], pieces[2::4], pieces[3::4], strict=True)
    return pieces[::4], [Slot(int(number), _PARTS[mark], call=int(call or 0)) for mark, number, call in slots]


def _last_literal(rendering: str | Refusal) -> str | None:
    return None if isinstance(rendering, Refusal) else _literals(rendering)[0][-1]


def _before(index: int, rendering: str | Refusal) -> str | None:
    """The literal before a message's content."""
    if isinstance(rendering, Refusal):
        return None
    literals, slots = _literals(rendering)
    return next((literals[number] for number, slot in enumerate(slots) if slot.message == index), None)


def _count(index: int, rendering: str) -> int:
    """Slots of a message."""
    return sum(slot.message == index for slot in _literals(rendering)[1])


def _after(index: int, rendering: str, count: int | None = None) -> str | None:
    """The literal after all that a message says, in its first slots if only so many are its own."""
    literals, slots = _literals(rendering)
    places = [number for number, slot in enumerate(slots) if slot.message == index]
    return literals[places[:count][-1] + 1] if places else None


def _end_of_turn(index: int, end: str | Refusal, following: str | Refusal, controls: frozenset[str]) -> str:
    """What ends an assistant's turn: the text that stands after it whether or not a user's turn follows.

    Cut after its last control token; a text without one counts whole.
    """
    own = None if isinstance(end, Refusal) else _count(index, end) or None
    texts = [_after(index, text, own) for text in (end, following) if isinstance(text, str)]
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
