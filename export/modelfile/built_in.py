"""The renderer of Ollama's that writes a model's prompt, for architectures that always get one.

Each of `BUILT_IN` is rendered with what Ollama gives it, under each PARSER and each setting of `think`, and
compared with what transformers writes of the chat template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lorafold.chat.sandbox import Job, Refusal, render_many
from lorafold.chat.template import ChatTemplate
from lorafold.errors import InputError
from lorafold.export.modelfile.native import (
    STATES,
    Reasons,
    equal_states,
    find_thinking,
    first_difference,
    told_difference,
)
from lorafold.export.modelfile.probe import Chat, find_reference
from lorafold.export.modelfile.proof import CLOCKS, random_chats
from lorafold.export.ollama.renderers import BUILT_IN, AnswerParser, Renderer
from lorafold.export.ollama.rules import Refused, think_of

BLANK_SYSTEM = " "
"""A system text that a renderer leaves out, and that keeps its own out."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A RENDERER with a PARSER, and what was found about them.

    Attributes:
        renderer: what writes the prompt.
        reader: what reads the answer, which decides what a request may ask for.
        system: SYSTEM where the user gives none, or None.
        answers: see `Reasons`.
        refused: the settings that Ollama refuses with HTTP 400.
        conversations: how many were compared.
    """

    renderer: Renderer
    reader: AnswerParser
    system: str | None
    answers: Reasons
    refused: tuple[bool | None, ...]
    conversations: int

    @property
    def equal(self) -> tuple[bool | None, ...]:
        """The settings under which the prompt is the training's."""
        return equal_states(self.answers)

    @property
    def difference(self) -> str | None:
        """Where a prompt differs, or None."""
        return told_difference(self.answers)


def find_built_in(template: ChatTemplate, taken: str, conversations: int) -> list[BuiltIn]:
    """All ways in which Ollama's renderers could write a model's prompt, the best first.

    Args:
        template: the chat template, with the model's special tokens.
        taken: the renderer that Ollama takes where none is named; a key of `BUILT_IN`.
        conversations: how many to compare.

    Raises:
        InputError: the template renders no ordinary chat.
    """
    reference = find_reference(template, {})
    switches = find_thinking(reference).switches
    chats = list(random_chats(conversations, seed=1))
    wanted = {
        state: reference.render(
            chats, {} if state is None else dict.fromkeys(switches, state), clock=CLOCKS[0]
        )
        for state in STATES
        if switches or state is not True
    }
    found = [
        _compare(chats, wanted, renderer, BLANK_SYSTEM if renderer.own_system else None)
        for renderer in BUILT_IN[taken]
    ]
    return sorted((way for ways in found for way in ways), key=_rank, reverse=True)


def _rank(way: BuiltIn) -> tuple[bool, int, bool]:
    """No wrong prompt first, then the most right ones, then tools; else the order of `BUILT_IN` decides."""
    return way.difference is None, len(way.equal), way.reader.tools


def _compare(
    chats: list[Chat],
    wanted: Mapping[bool | None, list[str | Refusal]],
    renderer: Renderer,
    system: str | None,
) -> Iterator[BuiltIn]:
    """The renderer with each of its PARSERs."""
    told = [replace(chat, system=chat.system if chat.system is not None else system) for chat in chats]
    written: dict[bool | None, list[str | Refusal]] = {}
    for thinking in STATES:
        variables = {} if thinking is None else {"thinking": thinking}
        jobs = [Job(chat.messages(), variables, CLOCKS[0]) for chat in told]
        written[thinking] = render_many(renderer.jinja, jobs, renderer.name)
    for reader in renderer.readers:
        answers: dict[bool | None, str | None] = {}
        refused = []
        for state, right in wanted.items():
            arrives = think_of(reader.thinking, state)
            if isinstance(arrives, Refused):
                refused.append(state)
            else:
                answers[state] = first_difference(chats, right, written[arrives])
        yield BuiltIn(renderer, reader, system, answers, tuple(refused), len(chats))


def best_built_in(template: ChatTemplate, taken: str, conversations: int) -> BuiltIn | None:
    """The best of them; None if the template renders no ordinary chat."""
    try:
        return find_built_in(template, taken, conversations)[0]
    except InputError:
        return None
