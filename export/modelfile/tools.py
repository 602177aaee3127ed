"""Conversations with tools: the Jinja in a GGUF writes of them in llama.cpp what training wrote.

Definitions, calls and results, drawn at random, are rendered by the chat template as transformers does it,
and by the Jinja that the GGUF carries with what llama.cpp gives it. llama.cpp hands on OpenAI's messages: it
makes objects of the arguments for a template that reads objects, as `lorafold.chat.calls` does here. Two
things it does otherwise, seen on 31 published templates (llama-server of xllamacpp 2026.8): a number such as
3.0 is written 3, and an object or a list that a template prints without `tojson` is not printed as Python
does. A TEMPLATE has no tools: Ollama refuses them there (HTTP 400). What Ollama itself changes of tools is in
`lorafold.export.ollama.rules`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorafold.chat.calls import TOOL_PARTS, listed
from lorafold.chat.dialogue import Dialogue, Tool, ToolCall
from lorafold.chat.llama_dialect import LACKS
from lorafold.chat.sandbox import Job, Message, Refusal, render_many
from lorafold.chat.template import ChatTemplate
from lorafold.errors import LorafoldError
from lorafold.export.modelfile.native import Native, as_llama_trims, llama_dates, shown_difference
from lorafold.export.modelfile.proof import CLOCKS
from lorafold.export.ollama.rules import (
    Refused,
    jinja_abilities,
    llama_change,
    llama_thinking,
    think_of,
)

_WORDS = ("Köln", "rain", 'say "hi"', "it's", "a\nb", "{x}", "<b>", "天气", "🙂", "back\\slash", "100%", "")
_NAMES = ("get_weather", "find", "sum2", "read-file")
# Python's own spelling of the objects and lists that the arguments below hold.
_PYTHONS = re.compile(r"\{'k': |\['[^\n]*, 1\]")
_NOT_JSON = "it prints objects and lists among the arguments as Python does, which llama.cpp does not"
_KEYS = ("city", "days", "unit_2", "when")


@dataclass(frozen=True, slots=True)
class ToolProof:
    """What was found about tools.

    Attributes:
        lost: what the chat template itself does not write.
        conversations: how many were compared.
        refused: how many the chat template refuses, such as several calls in one turn.
        difference: where the GGUF's Jinja writes another prompt, or None.
        as_text: the template prints the arguments of calls as they come.
    """

    lost: tuple[str, ...]
    conversations: int
    refused: int = 0
    difference: str | None = None
    as_text: bool = False

    @property
    def proven(self) -> bool:
        """Whether all of it is written as in training."""
        return not self.lost and self.difference is None

    @property
    def unreadable(self) -> bool:
        """Whether llama.cpp lacks what the template needs for tools: then it does not load the model."""
        return self.difference is not None and LACKS in self.difference

    @property
    def says(self) -> str:
        """It in one sentence."""
        if self.lost:
            return f"the chat template does not write {listed(self.lost)}"
        if self.difference is not None:
            return f"the GGUF's Jinja writes another prompt: {self.difference}"
        refused = f" ({self.refused} more are refused by the template)" if self.refused else ""
        return (
            f"{self.conversations - self.refused} conversations with definitions, calls and results{refused} "
            "are written by the GGUF's Jinja as in training; llama.cpp writes 3.0 as 3, and Ollama orders "
            "the keys of a definition anew and leaves out those that it does not know, such as default"
            + (", and hands on the arguments of calls without blanks" if self.as_text else "")
        )


def random_tool_chats(count: int, seed: int = 0) -> Iterator[Dialogue]:
    """Conversations with tools that end with a question, a result or several, as OpenAI writes them."""
    source = random.Random(seed)

    def text() -> str:
        return " ".join(source.choice(_WORDS) for _ in range(source.randint(1, 3))).strip() or "so"

    def value(depth: int = 0) -> Any:
        kinds = [text(), source.randint(-9, 99), source.random() < 0.5, source.randint(1, 9) + 0.5]
        if depth < 1:
            kinds += [[text(), 1], {"k": text()}]
        return source.choice(kinds)

    def call(number: int) -> ToolCall:
        arguments = {key: value() for key in source.sample(_KEYS, source.randint(0, 3))}
        told = json.dumps(arguments, ensure_ascii=False)
        function = {"name": source.choice(_NAMES), "arguments": told}
        return {"id": f"call{number:05}", "type": "function", "function": function}

    for number in range(count):
        messages: list[Message] = [{"role": "system", "content": text()}] * (number % 2)
        messages.append({"role": "user", "content": text()})
        for turn in range(number // 2 % 3):
            calls = [call(2 * turn + at) for at in range(1 + (number % 5 == 4))]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
            messages += (
                {
                    "role": "tool",
                    "content": source.choice((text(), json.dumps({"is": value()}))),
                    "name": row["function"]["name"],
                    "tool_call_id": row["id"],
                }
                for row in calls
            )
            if turn or number % 4 == 3:
                messages += ({"role": "assistant", "content": text()}, {"role": "user", "content": text()})
        yield Dialogue(messages, [_tool(name, text, source) for name in _NAMES[: 1 + number % 3]])


def _tool(name: str, text: Any, source: random.Random) -> Tool:
    """A definition, with what schemas have: nesting, choices, defaults."""
    properties: dict[str, Any] = {
        "city": {"type": "string", "description": text()},
        "days": {"type": "integer", "description": text()},
    }
    if source.random() < 0.5:
        properties["unit_2"] = {"type": "string", "enum": ["C", "F"], "description": text()}
    if source.random() < 0.3:
        nested = {"k": {"type": "string", "description": text()}}
        properties["when"] = {"type": "object", "properties": nested, "description": text()}
    schema = {"type": "object", "properties": properties, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": text(), "parameters": schema}}


def prove_tools(template: ChatTemplate, native: Native | None, conversations: int = 48) -> ToolProof:
    """Compare what a chat template writes of tools with what the Jinja in the GGUF does in llama.cpp.

    Args:
        template: the chat template, with the model's special tokens.
        native: the Jinja for the GGUF; None if it is the template itself.
        conversations: how many to compare.
    """
    try:
        form = template.call_form()
    except LorafoldError as error:
        return ToolProof(TOOL_PARTS, 0, difference=error.problem)
    written = zip(TOOL_PARTS, (form.definitions, form.calls, form.results), strict=True)
    carried = template.source if native is None else native.source
    if lost := tuple(name for name, kept in written if not kept):
        return ToolProof(lost, 0, difference=_missing(template, carried))
    arrives = think_of("thinking" in jinja_abilities(carried), None)
    assert not isinstance(arrives, Refused)
    chats = list(random_tool_chats(conversations))
    refused = 0
    for clock, thinking in zip(CLOCKS, llama_thinking(arrives), strict=False):
        wanted = replace(template, clock=clock, _layouts={}).render_all(chats, add_generation_prompt=True)
        refused = sum(isinstance(text, Refusal) for text in wanted)
        if any(isinstance(text, str) and _PYTHONS.search(text) for text in wanted):
            return ToolProof((), conversations, refused, _NOT_JSON)
        found = _engine(template, carried, clock).render_all(
            [_as_llama_changes(chat, carried) for chat in chats],
            add_generation_prompt=True,
            enable_thinking=thinking,
            **llama_dates(clock),
        )
        if why := _first_difference(wanted, found):
            return ToolProof((), conversations, refused, why)
    return ToolProof((), conversations, refused, as_text=form.text)


def _missing(template: ChatTemplate, carried: str) -> str | None:
    """What llama.cpp lacks, for a template that does not write all of tools."""
    asked = Dialogue([{"role": "user", "content": "Hello"}], next(random_tool_chats(1)).tools)
    variables = {**template.tokens, "tools": list(asked.tools), "add_generation_prompt": True}
    (text,) = render_many(carried, [Job(list(asked), variables)], template.origin, "llama")
    return text.problem if isinstance(text, Refusal) and LACKS in text.problem else None


def _as_llama_changes(chat: Dialogue, carried: str) -> Dialogue:
    change = llama_change(carried)
    return chat if change is None else Dialogue(map(change.change, chat), chat.tools)


def _engine(template: ChatTemplate, carried: str, clock: str) -> ChatTemplate:
    """The Jinja as llama.cpp renders it."""
    tokens = {name: template.tokens.get(name, "") for name in ("bos_token", "eos_token")}
    return ChatTemplate(
        as_llama_trims(carried),
        tokens,
        template.controls,
        template.origin,
        clock,
        as_llama_trims(template.tool_use) if template.tool_use else "",
        "llama",
    )


def _first_difference(wanted: Sequence[str | Refusal], found: Sequence[str | Refusal]) -> str | None:
    for right, here in sorted(zip(wanted, found, strict=True), key=lambda row: len(str(row[0]))):
        if isinstance(right, Refusal) or right == here:
            continue
        if isinstance(here, Refusal):
            return f"it fails there: {here.problem}"
        return shown_difference(right, here)
    return None
