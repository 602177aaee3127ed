"""A chat template asked questions: what it writes around each turn, and what it does to the texts in between.

The questions are conversations of unique words with a clock that shows its format instead of a date, so that
nothing has to be read out of Jinja source. Method: docs/modelfile.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorafold.chat.sandbox import Message, Refusal
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError

SYSTEM = "\ue0f8"  # stands for the system text in a segment
DATE = re.compile("\ue0d0([^\ue0d1]*)\ue0d1")  # how the worker's sentinel clock shows a strftime format
TURNS = 5  # user turns in the longest question: first, second, one that is nothing special, late, last
SWITCHES = (
    "enable_thinking",
    "thinking",
)  # variables that turn thinking on and off, in use in published templates

_NAME = re.compile(r"Zq([su]|a)(\d)Qz")


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation by the contract: a system text or none, then user and assistant in turns.

    Args:
        system: the system text, or None.
        turns: texts, user first; an odd number of them ends with the user.
    """

    system: str | None
    turns: tuple[str, ...]

    def messages(self) -> list[Message]:
        """As messages with role and content."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return first + [
            {"role": "assistant" if index % 2 else "user", "content": text}
            for index, text in enumerate(self.turns)
        ]

    def saying(self, place: int, text: str) -> Chat:
        """The same with another text for one turn, or, at the place after the last turn, for the system."""
        if place == len(self.turns):
            return Chat(text, self.turns)
        return Chat(self.system, (*self.turns[:place], text, *self.turns[place + 1 :]))


@dataclass(frozen=True, slots=True)
class Variant:
    """A setting of the template's thinking switches.

    Args:
        think_set: whether the caller said anything about thinking.
        think: what was said.
        variables: what the template gets.
    """

    think_set: bool
    think: bool
    variables: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reference:
    """The template as the truth to be met: chats to text.

    Args:
        template: the template.
        system: "honoured", "ignored", or "folded" where it refuses system messages: then the system text and
            a newline are put before the first user's text, as llama.cpp does.
    """

    template: ChatTemplate
    system: str = "honoured"

    def render(
        self,
        chats: Sequence[Chat],
        variables: Mapping[str, Any],
        *,
        prompt: bool = True,
        clock: str = "sentinel",
    ) -> list[str | Refusal]:
        """Render chats with the clock standing still."""
        still = replace(self.template, clock=clock)
        shaped = [self.shaped(chat).messages() for chat in chats]
        return still.render_all(shaped, add_generation_prompt=prompt, **variables)

    def shaped(self, chat: Chat) -> Chat:
        """The chat as the template is given it."""
        return folded(chat) if self.system == "folded" else chat


def folded(chat: Chat) -> Chat:
    """The chat with its system text before the first user's text, as llama.cpp puts it."""
    if chat.system is None or not chat.turns:
        return chat
    return Chat(None, (f"{chat.system}\n{chat.turns[0]}", *chat.turns[1:]))


def find_switches(source: str) -> list[str]:
    """The thinking switches that a template knows."""
    return [name for name in SWITCHES if re.search(rf"\b{name}\b", source)]


def refuse(reason: str, template: ChatTemplate) -> InputError:
    """The error for a template that cannot be expressed."""
    return InputError(
        f"this chat template cannot be written as an Ollama TEMPLATE: {reason}",
        at=template.origin,
        fix="use --allow-embedded-jinja (Ollama 0.30 and later render Jinja), or another --chat-template",
    )


def question(system: bool, users: int) -> Chat:
    """A chat of unique words with this many user turns, the last one unanswered."""
    words = [f"Zq{'a' if index % 2 else 'u'}{index // 2}Qz" for index in range(2 * users - 1)]
    return Chat("Zqs0Qz" if system else None, tuple(words))


def find_reference(template: ChatTemplate, variables: Mapping[str, Any]) -> Reference:
    """Find out what becomes of system messages.

    Raises:
        InputError: the template renders no chat at all.
    """
    plain = Reference(template)
    alone, told = plain.render([question(False, 1), question(True, 1)], variables)
    if isinstance(alone, Refusal):
        raise refuse(f"it does not render a single user message: {alone.problem}", template)
    if isinstance(told, Refusal):
        return Reference(template, "folded")
    return plain if "Zqs0Qz" in told else Reference(template, "ignored")


@dataclass(frozen=True, slots=True)
class Segments:
    """One rendering cut at its turns: `before[k]` and `after[k]` stand around user text k.

    The system text is the character `SYSTEM`, dates are formats in the worker's marks.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]


def cut(chat: Chat, text: str, reference: Reference) -> Segments:
    """Cut a rendered question at its words.

    Args:
        chat: the question.
        text: its rendering.
        reference: for the system's mode and the messages.

    Returns:
        The segments.

    Raises:
        InputError: a word is missing, repeated, changed or out of order; the reason says which.
    """
    template = reference.template
    for index, word in enumerate(chat.turns):
        who = f"{'assistant' if index % 2 else 'user'} turn {index // 2 + 1} of {len(chat.turns) // 2 + 1}"
        count = text.count(word)
        if count > 1:
            raise refuse(f"it repeats the text of {who}", template)
        if count == 0:
            changed = word.lower() in text.lower() or word[::-1] in text
            raise refuse(f"it {'changes' if changed else 'drops'} the text of {who}", template)
    if chat.system is not None and reference.system != "ignored":
        count = text.count(chat.system)
        if count != 1:
            changed = chat.system.lower() in text.lower()
            what = "repeats" if count else "changes" if changed else "drops"
            raise refuse(f"it {what} the system text", template)
        text = text.replace(chat.system, SYSTEM)
    pieces = re.split("|".join(map(re.escape, chat.turns)), text)
    if [match[0] for match in _NAME.finditer(text)] != list(chat.turns):
        raise refuse("it changes the order of the turns", template)
    return Segments(tuple(pieces[0::2]), tuple(pieces[1::2]))


# A trim is a pair (left, right) of what is taken off: nothing, any whitespace, or newlines only.
Trim = tuple[str, str]
_CHARS: Mapping[str, str | None] = {"none": "", "space": None, "newline": "\n"}
PADDINGS = (("\n \t\u3000 \n", "\n \t\u00a0 \n"), (" \n\u2003", "\u2028\n "))
# What a template may do things to, between two words so that trims do not matter.
STRESS = (
    "a {{ .System }} {% raw %} \"q\" 's' `b` <b>&amp;&</b> \\n %s # x | y {} ${y} {{"
    "\none\n\ntwo\n\n\n\nthree  four\t five\n- [x] list\n"
    "👩\u200d👩\u200d👧 e\u0301 \u200fعربى 漢字\u3000仮名 \x00\x1b[0m"
)


def trimmed(text: str, trim: Trim) -> str:
    """A text after a trim, as Python's strip does it."""
    left, right = (_CHARS[side] for side in trim)
    return text.lstrip(left).rstrip(right) if left != "" and right != "" else _one_side(text, left, right)


def _one_side(text: str, left: str | None, right: str | None) -> str:
    text = text if left == "" else text.lstrip(left)
    return text if right == "" else text.rstrip(right)


def trims() -> Iterable[Trim]:
    """All trims, the commonest first."""
    yield ("none", "none")
    yield ("space", "space")
    yield from ((left, right) for left in _CHARS for right in _CHARS if (left, right) != ("none", "none"))


def find_trim(plain: str, word: str, padded: Sequence[str], reference: ChatTemplate, who: str) -> Trim:
    """Which trim turns the plain rendering into the padded ones.

    Args:
        plain: rendering with the word.
        word: the content to be padded; it occurs once in it.
        padded: renderings with each of `PADDINGS` around the word.
        reference: for messages.
        who: whose text it is, for messages.

    Raises:
        InputError: none does.
    """
    for trim in trims():
        wanted = [plain.replace(word, trimmed(left + word + right, trim)) for left, right in PADDINGS]
        if wanted == list(padded):
            return trim
    raise refuse(f"it changes whitespace around the text of {who} in its own way", reference)
