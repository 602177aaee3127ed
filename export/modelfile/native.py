"""The Jinja that a GGUF carries: with it llama.cpp, and so Ollama, writes the training's prompt.

llama.cpp renders a GGUF's chat template with variables that transformers does not give (`enable_thinking`,
today as `date_string`); Ollama turns thinking on where it believes that a template can think. So the template
is changed where that matters: variables are pinned in lines before it, and letters that set off a special
treatment are taken apart. Whatever was changed, the result is rendered with what llama.cpp gives it, and
compared with what transformers writes for the original. llama.cpp's `trim` takes off ASCII whitespace only,
and byte by byte, so that nothing else can be named to it: that difference stays, and is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from lorafold.chat.llama_dialect import readable, unreadable
from lorafold.chat.sandbox import Job, Refusal, render_many
from lorafold.chat.template import ChatTemplate, prepared
from lorafold.export.modelfile.probe import Chat, Reference, find_reference, find_switches, folded
from lorafold.export.modelfile.proof import CLOCKS, random_chats
from lorafold.export.ollama.rules import (
    GUESS_DISTANCE,
    LLAMA_CHANGES,
    LLAMA_DATES,
    Refused,
    jinja_abilities,
    llama_change,
    llama_thinking,
    think_of,
)

STATES: tuple[bool | None, ...] = (None, True, False)
"""What a request may say about thinking: nothing, on, off."""

_UNSET = "lorafold_unset"  # a variable that nobody sets: a pinned one is as undefined as in training
_LLAMA_BLANKS = r" \t\n\v\f\r"  # what llama.cpp's trim takes off, as Jinja writes it
_TRIMS = {("|", "trim"), (".", "strip"), (".", "lstrip"), (".", "rstrip")}
_CLOSING = "</think>"
EDGE_BLANKS = "a blank outside ASCII, such as U+3000, at the edge of a text stays there"
"""The one difference in how llama.cpp trims."""
# llama.cpp puts a system text that a template does not read before the first user's; reading is enough.
_READS_SYSTEM = "{% set lorafold_system = messages[0]['content'] %}"
_SAMPLE = 24  # chats by which the settings of a thinking switch are compared


def state_name(state: bool | None) -> str:
    """A setting in a sentence."""
    return "unset" if state is None else str(state).lower()


Reasons = Mapping[bool | None, str | None]
"""For each setting of `think` that Ollama does not refuse: why its prompt differs, or None."""


def equal_states(answers: Reasons) -> tuple[bool | None, ...]:
    """The settings under which the prompt is the training's."""
    return tuple(state for state, why in answers.items() if why is None)


def told_difference(answers: Reasons) -> str | None:
    """The first setting whose prompt differs, and why; None if all are equal."""
    differing = ((state, why) for state, why in answers.items() if why is not None)
    return next((f"think {state_name(state)}: {why}" for state, why in differing), None)


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a template's thinking switch does.

    Attributes:
        switches: the names it has.
        unset_is_on: without the switch it writes what it writes with it on.
        unset_is_off: without the switch it writes what it writes with it off.
    """

    switches: tuple[str, ...]
    unset_is_on: bool
    unset_is_off: bool


def find_thinking(reference: Reference) -> Thinking:
    """Compare a template's prompts with its switch unset, on and off."""
    switches = tuple(find_switches(reference.template.source))
    chats = list(random_chats(_SAMPLE, seed=3))
    written = [
        reference.render(chats, {} if state is None else dict.fromkeys(switches, state), clock=CLOCKS[0])
        for state in (STATES if switches else STATES[:1])
    ]
    return Thinking(switches, written[0] == written[1 % len(written)], written[0] == written[-1])


@dataclass(frozen=True, slots=True)
class Native:
    """A Jinja for a GGUF, and what was found about it.

    Attributes:
        source: the Jinja.
        answers: see `Reasons`.
        refused: the settings that Ollama refuses with HTTP 400.
        conversations: how many were compared.
    """

    source: str
    answers: Reasons
    refused: tuple[bool | None, ...]
    conversations: int

    def without(self, reason: str) -> Native:
        """It with a reason why no prompt comes about at all."""
        return replace(self, answers=dict.fromkeys(self.answers, reason))

    @property
    def equal(self) -> tuple[bool | None, ...]:
        """The settings under which the prompt is the training's."""
        return equal_states(self.answers)

    @property
    def difference(self) -> str | None:
        """Why a prompt differs, or None where all are equal."""
        return told_difference(self.answers)


_TOOL = {
    "type": "function",
    "function": {
        "name": "zq_tool",
        "description": "A tool.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "Where."}},
            "required": ["place"],
        },
    },
}


def writes_tools(template: ChatTemplate) -> bool:
    """Whether a template puts the definition of a tool into the prompt, in a form that engines agree on.

    `{{ tools }}` alone prints Python's way, which llama.cpp does not know: its prompt would differ, and it
    may not even load such a template.
    """
    default = replace(template, tool_use="")  # by whose letters Ollama decides
    (text,) = default.render_all(
        [[{"role": "user", "content": "Hello"}]], add_generation_prompt=True, tools=[_TOOL]
    )
    return isinstance(text, str) and "zq_tool" in text and "'zq_tool'" not in text


def write_native(template: ChatTemplate, conversations: int = 100) -> Native:
    """The Jinja for a GGUF that writes what the template writes in transformers.

    Args:
        template: the chat template, with the model's special tokens.
        conversations: how many to compare it on.

    Returns:
        The Jinja, unchanged where that is right already, with its proof.
    """
    reference = find_reference(template, {})
    thinking = find_thinking(reference)
    source = readable(template.source)
    found = prove_native(template, source, reference, thinking, conversations)
    written = pinned(source, thinking, ignores_system=reference.system == "ignored")
    return prove_native(template, written, reference, thinking, conversations) if found.difference else found


def pinned(source: str, thinking: Thinking, *, ignores_system: bool = False) -> str:
    """The template with everything pinned that llama.cpp and Ollama would set otherwise."""
    lines = [_READS_SYSTEM] * ignores_system
    lines += [f"{{% set {name} = {_UNSET} %}}" for name in LLAMA_DATES if name in source]
    for change in LLAMA_CHANGES:
        if change.holds(source):
            source = _apart(source, change.present[-1])
    if thinking.switches and thinking.unset_is_on:
        lines += [
            f"{{% set {name} = enable_thinking if enable_thinking is defined else {name} %}}"
            for name in thinking.switches
            if name != "enable_thinking"
        ]
        if "thinking" not in jinja_abilities(source):  # so that Ollama lets requests turn it on and off
            lines.append("{# <think></think> #}{% set lorafold_thinks = true %}")
    elif thinking.switches:
        lines += [f"{{% set {name} = {_UNSET} %}}" for name in thinking.switches]
        source = _apart(source, _CLOSING)  # so that Ollama does not turn it on by itself
    return "".join(f"{line}\n" for line in lines) + source


def guarded(source: str) -> str:
    """A Jinja that `ollama create` takes for none of those that it has a TEMPLATE of its own for."""
    words = "Written by lorafold. So many letters keep Ollama from taking this for a template that it knows."
    filling = "." * (GUESS_DISTANCE + 10 - len(words))
    return f"{{# {words}{filling} #}}{{% set lorafold_guard = true %}}\n{source}"


def _tokens(source: str) -> Iterator[tuple[str, str]]:
    """The template's tokens; put together they are the source, with what the lexer leaves out beside `-`."""
    from jinja2 import Environment

    at = 0
    for _, kind, text in Environment(keep_trailing_newline=True).lex(source):
        begin = source.index(text, at)
        if begin > at:
            yield "whitespace", source[at:begin]
        yield kind, text
        at = begin + len(text)
    yield "whitespace", source[at:]


def as_llama_trims(source: str) -> str:
    """The template with llama.cpp's blanks named wherever it trims without naming any."""
    tokens = list(_tokens(source))
    code = [at for at, (kind, _) in enumerate(tokens) if kind != "whitespace"]
    text = [value for _, value in tokens]
    for place, at in enumerate(code):
        before, name = text[code[place - 1]] if place else "", tokens[at]
        following = [tokens[here][1] for here in code[place + 1 : place + 3]]
        if name[0] != "name":
            continue
        if before == "|" and name[1] == "trim" and following[:1] != ["("]:
            text[at] += f"('{_LLAMA_BLANKS}')"
        elif following == ["(", ")"] and (before, name[1]) in _TRIMS:
            text[code[place + 1]] += f"'{_LLAMA_BLANKS}'"
    return "".join(text)


def _apart(source: str, letters: str) -> str:
    """The template without these letters in a row; what it writes stays."""
    if letters not in source:
        return source
    middle = len(letters) // 2
    out = []
    for kind, text in _tokens(source):
        if letters in text:
            if kind == "string":
                quote = text[0]
                text = (
                    "("
                    + text.replace(letters, f"{letters[:middle]}{quote} ~ {quote}{letters[middle:]}")
                    + ")"
                )
            elif kind == "data":
                text = text.replace(letters, f"{{{{ '{letters[:middle]}' ~ '{letters[middle:]}' }}}}")
            elif kind == "comment":
                text = text.replace(letters, f"{letters[:middle]} {letters[middle:]}")
        out.append(text)
    return "".join(out)


def prove_native(
    template: ChatTemplate, carried: str, reference: Reference, thinking: Thinking, conversations: int
) -> Native:
    """Compare a GGUF's Jinja, with what llama.cpp and Ollama give it, with the template in transformers."""
    thinks = "thinking" in jinja_abilities(carried)
    change, missing = llama_change(carried), unreadable(carried)
    answers: dict[bool | None, str | None] = {}
    refused: list[bool | None] = []
    chats = list(random_chats(conversations, seed=1))
    engine, alike = _Engine(template, as_llama_trims(carried)), _Engine(template, carried)
    for state in STATES:
        arrives = think_of(thinks, state)
        if isinstance(arrives, Refused):
            refused.append(state)
            continue
        if state is True and not thinking.switches:
            continue  # a template without a switch has nothing to answer
        variables = {} if state is None else dict.fromkeys(thinking.switches, state)
        answers[state] = None if missing is None else f"llama.cpp cannot read the Jinja: {missing}"
        for number, seen in enumerate(llama_thinking(arrives)):
            clock = CLOCKS[number]
            wanted = reference.render(chats, variables, clock=clock)
            found = first_difference(chats, wanted, engine.render(reference, chats, seen, clock))
            if found and not first_difference(chats, wanted, alike.render(reference, chats, seen, clock)):
                found = EDGE_BLANKS
            if found and change is not None:
                found = f"llama.cpp changes the contents: {change.says}"
            answers[state] = answers[state] or found
    return Native(carried, answers, tuple(refused), conversations)


def first_difference(
    chats: Sequence[Chat], wanted: Sequence[str | Refusal], found: Sequence[str | Refusal]
) -> str | None:
    """Where the shortest chat is written otherwise, or None; what the template refuses is not compared."""
    for chat, right, here in sorted(
        zip(chats, wanted, found, strict=True), key=lambda row: len(str(row[0].messages()))
    ):
        if isinstance(right, Refusal) or right == here:
            continue
        if isinstance(here, Refusal):
            return f"the Jinja fails there on {chat.messages()}: {here.problem}"
        return shown_difference(right, here)
    return None


def shown_difference(right: str, here: str) -> str:
    """Two prompts around the first place where they differ."""
    pairs = enumerate(zip(right, here, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(right), len(here)))
    return f"{here[max(0, at - 12) : at + 24]!r} instead of {right[max(0, at - 12) : at + 24]!r}"


def llama_dates(clock: str) -> dict[str, str]:
    """The dates that llama.cpp gives a template at a time in ISO format."""
    today = datetime.fromisoformat(clock)
    return {name: today.strftime(form) for name, form in LLAMA_DATES.items()}


class _Engine:
    """A Jinja with llama.cpp's variables and forms of content."""

    def __init__(self, template: ChatTemplate, source: str) -> None:
        unset = "".join(f"{{% set {name} = {_UNSET} %}}" for name in ("tools", "documents"))
        self.source = f"{unset}\n{source}"  # llama.cpp does not hand over what there is none of
        self.tokens = {name: template.tokens.get(name, "") for name in ("bos_token", "eos_token")}
        self.origin = template.origin
        self.parts = False
        self.change = llama_change(source)
        said = "Zq1aQz"
        (answer,) = self._render([Chat(None, (said,))], {}, CLOCKS[0])
        self.parts = not (isinstance(answer, str) and said in answer)

    def render(
        self, reference: Reference, chats: Sequence[Chat], thinking: bool, clock: str
    ) -> list[str | Refusal]:
        """Render chats with llama.cpp's variables."""
        given = [reference.shaped(chat) for chat in chats]
        if reference.system == "ignored" and _READS_SYSTEM not in self.source:
            given = [folded(chat) for chat in given]
        return self._render(given, {"enable_thinking": thinking}, clock)

    def _render(self, chats: Sequence[Chat], variables: Mapping[str, Any], clock: str) -> list[str | Refusal]:
        seen = {**self.tokens, **llama_dates(clock), **variables, "add_generation_prompt": True}
        said = [prepared(chat.messages(), self.parts) for chat in chats]
        if self.change is not None:
            said = [[self.change.change(message) for message in messages] for messages in said]
        jobs = [Job(messages, seen, clock) for messages in said]
        return render_many(self.source, jobs, self.origin, "llama")
