"""The proof that an Ollama TEMPLATE and a Jinja chat template write the same prompts.

Hundreds of random conversations of one to eight user turns, with awkward whitespace, quotes, braces, blank
lines, CJK and emoji, with and without system text, under every thinking setting and several dates, are
rendered by Jinja (as transformers does) and by the evaluator in `go/`, and compared character by character.
If two differ, the smallest conversation on which they do is found.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from lorafold.chat.sandbox import Refusal
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.export.modelfile.chat_format import ChatFormat
from lorafold.export.modelfile.go.evaluate import Program
from lorafold.export.modelfile.go.nodes import GoTemplateError
from lorafold.export.modelfile.probe import Chat, Reference, Variant

# One day in every month, with first and last days, a leap day and a year's end among them.
CLOCKS = tuple(
    f"{day}T12:34:56"
    for day in (
        *("2026-11-23", "2024-02-29", "2025-01-01", "2031-12-31", "2026-03-09", "2026-04-30", "2027-05-05"),
        *("2026-06-17", "2026-07-04", "2026-08-31", "2028-09-10", "2029-10-28"),
    )
)
MAX_USERS = 8

_EDGES = ("", "", "", " ", "\n", "\n\n", "  ", "\t", " \n", "\n ", "\r\n", "\u3000", "\u00a0\n")
_WORDS = (
    *("Hello", "what is", "1 + 1", "the answer", "你好，世界", "naïve", "Привет", "مرحبا"),
    *(
        "👩\u200d💻",
        "e\u0301",
        "{{ .System }}",
        "{% if x %}",
        "{",
        "}}",
        "'",
        "`code`",
        '"' * 3,
        "<b>&amp;</b>",
    ),
    *("\\n", "%s", "$HOME", "#", "|", "line\nline", "para\n\npara", "a  b", "- item\n- item", "x\ty"),
    *("[INST]", "None", "0", "system", "User:"),
)


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A conversation on which the two differ.

    Args:
        chat: the conversation.
        variant: the thinking setting.
        clock: the moment.
        jinja: what the chat template writes.
        go: what the TEMPLATE writes, or the error it ends with.
    """

    chat: Chat
    variant: Variant
    clock: str
    jinja: str
    go: str

    def __str__(self) -> str:
        at = next((i for i, (a, b) in enumerate(zip(self.jinja, self.go, strict=False)) if a != b), None)
        at = min(len(self.jinja), len(self.go)) if at is None else at
        parts = [repr(self.jinja[max(0, at - 20) : at + 30]), repr(self.go[max(0, at - 20) : at + 30])]
        return f"on {self.chat.messages()} the chat template writes …{parts[0]}…, the TEMPLATE …{parts[1]}…"


@dataclass(frozen=True, slots=True)
class PromptProof:
    """What was compared.

    Args:
        conversations: how many were compared.
        refused: how many of them the chat template itself refused; nothing to be met there.
        clocks: moments they were spread over.
        counterexample: the smallest conversation found on which the two differ, or None.
    """

    conversations: int
    refused: int
    clocks: int
    counterexample: Counterexample | None

    @property
    def passed(self) -> bool:
        """Whether enough was compared and nothing differed."""
        return self.counterexample is None and self.refused * 10 <= self.conversations


def random_chats(count: int, seed: int = 0) -> Iterator[Chat]:
    """Conversations by the contract that end with a user's turn."""
    source = random.Random(seed)

    def text() -> str:
        words = " ".join(source.choice(_WORDS) for _ in range(source.randint(1, 4)))
        return source.choice(_EDGES) + words + source.choice(_EDGES)

    for number in range(count):
        users = number % MAX_USERS + 1
        yield Chat(text() if source.random() < 0.5 else None, tuple(text() for _ in range(2 * users - 1)))


def ollama_data(chat: Chat, variant: Variant) -> dict[str, Any]:
    """What Ollama gives to a TEMPLATE for a chat; its messages hold the system message too."""
    return {
        "System": chat.system or "",
        "Messages": [
            {"Role": message["role"], "Content": message["content"], "Thinking": ""}
            for message in chat.messages()
        ],
        "Response": "",
        "IsThinkSet": variant.think_set,
        "Think": variant.think,
    }


def prove(
    template: ChatTemplate,
    go_source: str,
    form: ChatFormat,
    *,
    conversations: int = 300,
    clocks: Sequence[str] = CLOCKS,
    default_system: str | None = None,
    seed: int = 0,
) -> PromptProof:
    """Compare a TEMPLATE with its chat template.

    Args:
        template: the chat template.
        go_source: the TEMPLATE's source.
        form: what was derived: the mode of system messages, the BOS taken off, the thinking settings.
        conversations: how many to compare.
        clocks: moments for templates that write dates; others see two of them.
        default_system: the system text that the TEMPLATE gives to chats without one.
        seed: of the random conversations.

    Returns:
        The proof. A TEMPLATE that Go would not accept has a counterexample whose `go` is the error.

    Raises:
        UnsafeInputError: the chat template left its sandbox or its limits.
    """
    compare = _Comparison(template, go_source, form, default_system)
    clocks = clocks if "strftime_now" in template.source else clocks[:2]
    groups: dict[tuple[int, str], list[Chat]] = {}
    settings = cycle((at, clock) for clock in clocks for at in range(len(form.variants)))
    for chat, setting in zip(random_chats(conversations, seed), settings, strict=False):
        groups.setdefault(setting, []).append(chat)
    refused = 0
    for (at, clock), chats in groups.items():
        found, missing = compare.first_difference(chats, form.variants[at], clock)
        refused += missing
        if found is not None:
            return PromptProof(conversations, refused, len(clocks), compare.smallest(found))
    return PromptProof(conversations, refused, len(clocks), None)


class _Comparison:
    def __init__(
        self, template: ChatTemplate, source: str, form: ChatFormat, default_system: str | None
    ) -> None:
        self.reference = Reference(template, form.system)
        self.bos = form.bos or ""
        self.default_system = default_system
        try:
            self.program: Program | str = Program(source)
        except GoTemplateError as error:
            self.program = f"error: {error}"

    def first_difference(
        self, chats: Sequence[Chat], variant: Variant, clock: str
    ) -> tuple[Counterexample | None, int]:
        """The first chat that differs, and how many the chat template refused until there."""
        told = [
            chat
            if chat.system is not None or self.default_system is None
            else Chat(self.default_system, chat.turns)
            for chat in chats
        ]
        refused = 0
        for chat, jinja in zip(
            chats, self.reference.render(told, variant.variables, clock=clock), strict=True
        ):
            if isinstance(jinja, Refusal):
                refused += 1
                continue
            go = self.written(chat, variant, clock)
            if go != jinja:
                return Counterexample(chat, variant, clock, jinja, go), refused
        return None, refused

    def written(self, chat: Chat, variant: Variant, clock: str) -> str:
        """BOS, which the engine adds, and what the TEMPLATE writes."""
        if isinstance(self.program, str):
            return self.program
        try:
            return self.bos + self.program.run(ollama_data(chat, variant), clock[:10])
        except GoTemplateError as error:
            return f"error: {error}"

    def smallest(self, found: Counterexample) -> Counterexample:
        """Make a counterexample smaller as long as something smaller still differs."""
        while True:
            for chat in _smaller(found.chat):
                other, _ = self.first_difference([chat], found.variant, found.clock)
                if other is not None:
                    found = other
                    break
            else:
                return found


def _smaller(chat: Chat) -> Iterator[Chat]:
    """Chats with less in them: fewer turns, no system, simpler texts."""
    if len(chat.turns) > 1:
        for start in range(0, len(chat.turns) - 1, 2):
            yield Chat(chat.system, chat.turns[:start] + chat.turns[start + 2 :])
    if chat.system is not None:
        yield Chat(None, chat.turns)
        if chat.system != "s":
            yield Chat("s", chat.turns)
    for index, text in enumerate(chat.turns):
        for simpler in ("x", text.strip(), text.lstrip(), text.rstrip()):
            if len(simpler) < len(text):
                yield Chat(chat.system, (*chat.turns[:index], simpler, *chat.turns[index + 1 :]))
