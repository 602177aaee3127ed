"""A rendered conversation cut into control tokens, text, and what the model is trained on.

The texts of the `Fragment`s joined are the rendering. What belongs to the template and what to the people
talking is found by rendering, not by reading Jinja:

1. *Control tokens.* If no content holds the text of a control token, every control token in the rendering is
   the template's. If one does, that text is replaced by a random word before rendering and put back
   afterwards, in text fragments only. So the split is right for any template, however it treats its contents.
2. *Trained spans.* Once per conversation shape (roles, other keys, switches) the contents are replaced by
   unique words; the renderings of the whole and of its beginnings, with and without generation prompt, show
   the literal text around every answer. The real rendering is aligned with these literals, allowing each
   content its usual whitespace trims. Trained is what follows the generation prompt, up to the last control
   token that ends every answer; calls of tools stand between the two and are trained like text, definitions
   and results are not. If the alignment fails (a template that rewrites contents), the span of an
   answer is where the rendering differs when that answer alone is replaced.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from lorafold.chat.controls import neutralised, split_controls
from lorafold.chat.dialogue import Dialogue, but, calls_of, tools_of
from lorafold.chat.layout import Layout, Slot, align, check_nothing_dropped, layout_of, shared_prefix, word
from lorafold.chat.left_out import left_out
from lorafold.chat.sandbox import Message, Refusal
from lorafold.chat.template import ChatTemplate
from lorafold.errors import InputError


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
class Cut:
    """A conversation cut into fragments.

    Attributes:
        fragments: their texts joined are the rendering.
        left_out: parts of what was said that the template does not write.
    """

    fragments: list[Fragment]
    left_out: list[str]


def cut_conversation(
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    trained: Sequence[bool] | None = None,
    parse_contents: bool = False,
    **variables: Any,
) -> Cut:
    """Cut a conversation's rendering into fragments, and see what of it the template leaves out.

    Args:
        template: the chat template, with the tokenizer's control tokens.
        messages: dicts with "role" and "content" (str).
        add_generation_prompt: end with the head of an assistant's turn.
        trained: for each message whether it is trained; None for every assistant's turn.
        parse_contents: control tokens that contents write out count as such. Only for trusted data.
        variables: the template's switches.

    Raises:
        InputError: the template refuses the conversation or drops one of its messages.
        UnsafeInputError: the template left its sandbox or its limits.
    """
    plain = Dialogue(messages, tools_of(messages))
    safe, words = (plain, {}) if parse_contents else neutralised(messages, template.controls)
    text = template.render(safe, add_generation_prompt=add_generation_prompt, **variables)
    layout = layout_of(template, safe, add_generation_prompt, variables)
    starts = align(layout, safe, text)
    marks = [message["role"] == "assistant" for message in safe] if trained is None else trained
    if starts is None:
        spans = _differing_spans(template, safe, text, layout, marks, add_generation_prompt, variables)
    else:
        spans = _aligned_spans(layout, starts, marks)
    lost = left_out(safe, layout, text, aligned=starts is not None)
    return Cut(list(_cut(text, spans, template.controls, words)), [_restored(part, words) for part in lost])


def fragments(template: ChatTemplate, messages: Sequence[Message], **options: Any) -> list[Fragment]:
    """The fragments of `cut_conversation`, which has the same options.

    Returns:
        Fragments; their texts joined are `template.render(...)` if no content holds control-token text, and
        otherwise what it would be if such text were ordinary words.
    """
    return cut_conversation(template, messages, **options).fragments


def prompt_fragments(template: ChatTemplate, messages: Sequence[Message], **variables: Any) -> list[Fragment]:
    """Cut a prompt's rendering into fragments, none of them marked as trained.

    What is trained takes renderings of every beginning of the conversation, which a chat would pay again and
    more of in each turn; a prompt needs one rendering.

    Args:
        template: the chat template, with the tokenizer's control tokens.
        messages: the conversation; the generation prompt follows it.
        variables: the template's switches.

    Returns:
        The fragments of `fragments(..., add_generation_prompt=True)`, as far as `text` and `special` go.

    Raises:
        InputError: the template refuses the conversation or drops one of its messages.
        UnsafeInputError: the template left its sandbox or its limits.
    """
    safe, words = neutralised(messages, template.controls)
    text = template.render(safe, add_generation_prompt=True, **variables)
    if not _in_order([str(message.get("content") or "").strip() for message in safe], text):
        check_nothing_dropped(template, safe, True, variables)  # rewritten contents are not dropped ones
    return list(_cut(text, (), template.controls, words))


def _in_order(parts: Sequence[str], text: str) -> bool:
    """Whether a text holds all parts, one behind the other."""
    position = 0
    for part in parts:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return True


def _restored(text: str, words: Mapping[str, str]) -> str:
    """A text with the random words that stand for control tokens put back."""
    return re.sub("|".join(words), lambda match: words[match[0]], text) if words else text


def _cut(
    text: str, trained: Sequence[tuple[int, int]], controls: frozenset[str], words: Mapping[str, str]
) -> Iterator[Fragment]:
    """Fragments of a rendering from its trained spans."""
    spans = sorted(trained)
    begins = [begin for begin, _ in spans]
    reach = [0, *accumulate((end for _, end in spans), max)]  # reach[n]: how far the first n spans go
    bounds = sorted({edge for span in spans for edge in span})
    position = 0
    for piece, special in split_controls(text, controls):
        end = position + len(piece)
        inside = [] if special else bounds[bisect_right(bounds, position) : bisect_left(bounds, end)]
        for number, (start, stop) in enumerate(pairwise((position, *inside, end))):
            part = text[start:stop]
            if not special:
                part = _restored(part, words)
            yield Fragment(part, special, stop <= reach[bisect_right(begins, start)], number > 0)
        position = end


def _aligned_spans(
    layout: Layout, starts: Sequence[tuple[int, int]], marks: Sequence[bool]
) -> list[tuple[int, int]]:
    """Where the trained turns stand in the rendering, as (start, stop) characters.

    What was thought, the answer that follows it and its calls are one span, with the literals between them.
    """
    spans: list[tuple[int, int]] = []
    before: Slot | None = None
    for slot, (start, length) in zip(layout.slots, starts, strict=True):
        if not marks[slot.message] or slot.again:
            before = None
            continue
        begin, end = start - slot.lead, start + length + slot.tail
        joins = before is not None and (before.part == "reasoning" or slot.part == "call")
        if joins and before is not None and before.message == slot.message:
            begin = spans.pop()[0]
        spans.append((begin, end))
        before = slot
    return spans


def _differing_spans(
    template: ChatTemplate,
    messages: Dialogue,
    text: str,
    layout: Layout,
    marks: Sequence[bool],
    prompt: bool,
    variables: Mapping[str, Any],
) -> list[tuple[int, int]]:
    """Trained spans if contents are rewritten: replace one answer at a time and see what changes."""
    tails = {slot.message: slot.tail for slot in layout.slots}
    spans = []
    for index in [index for index, trained in enumerate(marks) if trained]:
        if index not in tails:
            continue
        head = template.render_all([messages[:index]], add_generation_prompt=True, **variables)[0]
        if calls_of(messages[index]):
            spans += _between(template, messages, index, text, head, variables)
            continue
        said = {**messages[index], "content": word(index)}
        other = but(messages, [*messages[:index], said, *messages[index + 1 :]])
        changed = template.render(other, add_generation_prompt=prompt, **variables)
        start = shared_prefix(text, changed)
        same = shared_prefix(text[start:][::-1], changed[start:][::-1])
        stop = max(start, len(text) - same)
        if isinstance(head, str) and len(head) <= start and text.startswith(head):
            start = len(head)
        spans.append((start, min(len(text), stop + tails[index])))
    return spans


def _between(
    template: ChatTemplate,
    messages: Dialogue,
    index: int,
    text: str,
    head: str | Refusal,
    variables: Mapping[str, Any],
) -> list[tuple[int, int]]:
    """The span of a turn with calls: from the end of its prompt to the end of what ends with it.

    Raises:
        InputError: neither is a beginning of the rendering, so nobody knows which text is the answer.
    """
    end = template.render_all([messages[: index + 1]], **variables)[0]
    if isinstance(head, str) and isinstance(end, str) and text.startswith(head):
        shared = shared_prefix(text, end)
        if shared > len(head) and not end[shared:].strip():
            return [(len(head), shared)]
    raise InputError(
        f"the chat template rewrites the call in message {index + 1}, so its text cannot be told apart",
        at=template.origin,
        fix="give another --chat-template",
    )
