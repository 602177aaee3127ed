"""A rendered conversation cut into control tokens, text, and what the model is trained on.

In: a `ChatTemplate` and messages. Out: `Fragment`s whose texts joined are the rendering.

What belongs to the template and what to the people talking is found by rendering, not by reading Jinja:

1. *Control tokens.* If no content holds the text of a control token, every control token in the rendering is
   the template's. If one does, that text is replaced by a random word before rendering and put back
   afterwards, in text fragments only. So the split is right for any template, however it treats its contents.
2. *Trained spans.* Once per conversation shape (roles, other keys, switches) the contents are replaced by
   unique words; the renderings of the whole and of its beginnings, with and without generation prompt, show
   the literal text around every answer. The real rendering is aligned with these literals, allowing each
   content its usual whitespace trims. Trained is what follows the generation prompt, up to the last control
   token that ends every answer. Where the alignment fails (a template that rewrites contents), the span of an
   answer is where the rendering differs when that answer alone is replaced.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lorafold.chat_template import ChatTemplate
from lorafold.errors import InputError
from lorafold.jinja_sandbox import Message, Refusal

_WORD = re.compile(r"Zq(\d{5})Qz")
LAYOUTS_KEPT = 4096  # shapes remembered per template


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of a rendered conversation.

    Args:
        text: its characters.
        special: it is one control token written by the template, to be parsed as such; otherwise it is text
            in which no control token is to be recognised.
        trained: the model is to learn it: an assistant's text or the token that ends its turn.
        joined: it continues the previous fragment's text and is to be encoded together with it.
    """

    text: str
    special: bool
    trained: bool
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """A content's place among the literals.

    Args:
        message: index of the message.
        lead: characters of the literal before it that are trained (a think block the generation prompt
            lacks).
        tail: characters of the literal after it that are trained (the end of turn).
    """

    message: int
    lead: int = 0
    tail: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """What a conversation shape looks like: `literals[k]` stands before `slots[k]`, the last one at the
    end."""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]


def split_controls(text: str, controls: frozenset[str]) -> list[tuple[str, bool]]:
    """Cut a text at control tokens, the longest first; (piece, is a control token)."""
    pattern = _pattern(controls)
    if pattern is None:
        return [(text, False)] if text else []
    return [(piece, index % 2 == 1) for index, piece in enumerate(pattern.split(text)) if piece]


_patterns: dict[frozenset[str], re.Pattern[str] | None] = {}


def _pattern(controls: frozenset[str]) -> re.Pattern[str] | None:
    if controls not in _patterns:
        longest_first = sorted((token for token in controls if token), key=lambda token: (-len(token), token))
        joined = "|".join(map(re.escape, longest_first))
        _patterns[controls] = re.compile(f"({joined})") if joined else None
    return _patterns[controls]


def fragments(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> list[Fragment]:
    """Cut a conversation's rendering into fragments.

    Args:
        template: the chat template, with the tokenizer's control tokens.
        messages: dicts with "role" and "content" (str).
        add_generation_prompt: end with the head of an assistant's turn.
        variables: the template's switches.

    Returns:
        Fragments; their texts joined are `template.render(...)` wherever no content holds control-token text,
        and otherwise what it would be if such text were ordinary words.

    Raises:
        InputError: the template refuses the conversation or drops one of its messages.
        UnsafeInputError: the template left its sandbox or its limits.
    """
    safe, words = _neutralised(messages, template.controls)
    text = template.render(safe, add_generation_prompt=add_generation_prompt, **variables)
    trained = _trained_spans(template, safe, text, add_generation_prompt, variables)
    return list(_cut(text, trained, template.controls, words))


def _neutralised(
    messages: Sequence[Message], controls: frozenset[str]
) -> tuple[list[Message], dict[str, str]]:
    """The messages with control-token text replaced by random words, and the words' meanings."""
    pattern, words = _pattern(controls), dict[str, str]()
    if pattern is None:
        return list(messages), words

    def word(match: re.Match[str]) -> str:
        name = f"Zw{secrets.token_hex(8)}wZ"
        words[name] = match[0]
        return name

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(word, value)
        if isinstance(value, dict):
            return {key: item if key == "role" else clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return [clean(message) for message in messages], words


def control_text(messages: Sequence[Message], controls: frozenset[str]) -> list[str]:
    """Control tokens that people typed: what an engine that takes the prompt as one text would obey.

    Args:
        messages: the conversation.
        controls: the tokenizer's control tokens.

    Returns:
        Those in the contents, each once, in order.
    """
    return list(dict.fromkeys(_neutralised(messages, controls)[1].values()))


def _cut(
    text: str, trained: Sequence[tuple[int, int]], controls: frozenset[str], words: Mapping[str, str]
) -> Iterator[Fragment]:
    """Fragments of a rendering from its trained spans."""
    restore = re.compile("|".join(words)) if words else None
    bounds = sorted({edge for span in trained for edge in span})
    position = 0
    for piece, special in split_controls(text, controls):
        end = position + len(piece)
        edges = [position, *(edge for edge in bounds if position < edge < end), end]
        if special:
            edges = [position, end]
        for number, (start, stop) in enumerate(pairwise(edges)):
            part = text[start:stop]
            if restore is not None and not special:
                part = restore.sub(lambda match: words[match[0]], part)
            yield Fragment(part, special, any(a <= start and stop <= b for a, b in trained), number > 0)
        position = end


def _trained_spans(
    template: ChatTemplate, messages: Sequence[Message], text: str, prompt: bool, variables: Mapping[str, Any]
) -> list[tuple[int, int]]:
    """Where the assistant's turns stand in the rendering, as (start, stop) characters."""
    layout = _layout(template, messages, prompt, variables)
    contents = [message.get("content") for message in messages]
    starts = align(layout, contents, text)
    if starts is None:
        return _differing_spans(template, messages, text, layout, prompt, variables)
    return [
        (start - slot.lead, start + length + slot.tail)
        for slot, (start, length) in zip(layout.slots, starts, strict=True)
        if messages[slot.message]["role"] == "assistant"
    ]


def trims(content: str) -> list[str]:
    """A content and what templates' usual trims make of it, the untouched one first."""
    kinds = (content, content.strip(), content.lstrip(), content.rstrip())
    return list(dict.fromkeys((*kinds, content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))))


def align(layout: Layout, contents: Sequence[Any], text: str) -> list[tuple[int, int]] | None:
    """Find each slot's content in a rendering.

    Returns:
        (start, length) per slot, or None where the literals and trimmed contents do not make up the text.
    """
    if not text.startswith(layout.literals[0]):
        return None
    failed: set[tuple[int, int]] = set()

    def walk(index: int, position: int) -> list[tuple[int, int]] | None:
        if index == len(layout.slots):
            return [] if position == len(text) else None
        if (index, position) in failed:
            return None
        for form in trims(contents[layout.slots[index].message]):
            if text.startswith(form + layout.literals[index + 1], position):
                rest = walk(index + 1, position + len(form) + len(layout.literals[index + 1]))
                if rest is not None:
                    return [(position, len(form)), *rest]
        failed.add((index, position))
        return None

    if len(layout.slots) > 400 or not all(isinstance(contents[slot.message], str) for slot in layout.slots):
        return None
    return walk(0, len(layout.literals[0]))


def _layout(
    template: ChatTemplate, messages: Sequence[Message], prompt: bool, variables: Mapping[str, Any]
) -> Layout:
    """The layout of this conversation's shape, from the template's cache or by rendering words."""
    others = [{**message, "content": bool(str(message.get("content") or "").strip())} for message in messages]
    key = json.dumps([others, prompt, variables], sort_keys=True, default=repr)
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
    chat = [
        {**message, "content": f"Zq{index:05}Qz"} if str(message.get("content") or "").strip() else message
        for index, message in enumerate(messages)
    ]
    whole = template.render_all([chat], add_generation_prompt=prompt, **variables)[0]
    if isinstance(whole, Refusal):
        raise template.refused(whole)
    literals, slots = _literals(whole)
    said = {slot.message for slot in slots}
    for index, message in enumerate(chat):
        if index not in said and message is not messages[index]:
            raise InputError(
                f"the chat template drops what message {index + 1} says (role {message['role']!r})",
                at=template.origin,
                fix="leave such messages out, or give another --chat-template",
            )
    answers = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
    more = {"role": "user", "content": "Zq99999Qz"}
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
            slot = Slot(slot.message, lead, len(ending) if after.startswith(ending) else 0)
        placed.append(slot)
    return Layout(tuple(literals), tuple(placed))


def _literals(rendering: str) -> tuple[list[str], list[Slot]]:
    pieces = _WORD.split(rendering)
    return pieces[::2], [Slot(int(number)) for number in pieces[1::2]]


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


def _differing_spans(
    template: ChatTemplate,
    messages: Sequence[Message],
    text: str,
    layout: Layout,
    prompt: bool,
    variables: Mapping[str, Any],
) -> list[tuple[int, int]]:
    """Trained spans where contents are rewritten: replace one answer at a time and see what changes."""
    tails = {slot.message: slot.tail for slot in layout.slots}
    spans = []
    for index in [index for index, message in enumerate(messages) if message["role"] == "assistant"]:
        if index not in tails:
            continue
        word = f"Zq{index:05}Qz"
        other = [*messages[:index], {**messages[index], "content": word}, *messages[index + 1 :]]
        changed = template.render(other, add_generation_prompt=prompt, **variables)
        start = shared_prefix(text, changed)
        same = shared_prefix(text[start:][::-1], changed[start:][::-1])
        stop = max(start, len(text) - same)
        head = template.render_all([messages[:index]], add_generation_prompt=True, **variables)[0]
        if isinstance(head, str) and len(head) <= start and text.startswith(head):
            start = len(head)
        spans.append((start, min(len(text), stop + tails[index])))
    return spans


def shared_prefix(first: str, second: str) -> int:
    """Length of the common beginning of two texts."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def end_of_turn(template: ChatTemplate, **variables: Any) -> str:
    """The text that ends an assistant's turn, up to its last control token; "" where the template ends none.

    Args:
        template: the template.
        variables: its switches.

    Raises:
        InputError: the template refuses a plain exchange of user and assistant.
    """
    chat = [{"role": "user", "content": "Zq00000Qz"}, {"role": "assistant", "content": "Zq00001Qz"}]
    more = {"role": "user", "content": "Zq00002Qz"}
    end = template.render_all([chat], **variables)[0]
    following = template.render_all([[*chat, more]], **variables)[0]
    if isinstance(end, Refusal) and isinstance(following, Refusal):
        raise template.refused(end)
    return _end_of_turn(1, end, following, template.controls)
