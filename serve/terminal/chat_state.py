"""What commands work on: the conversation, the screen, and the models and files that arguments name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafold.console import Row
from lorafold.errors import UsageError
from lorafold.files.home import expanded
from lorafold.serve.conversation import Turn, model_with
from lorafold.serve.terminal.panes import wrapped
from lorafold.serve.terminal.talk import Talk


@dataclass(slots=True)
class ChatState:
    """A chat under way at a terminal, as its commands see and change it.

    Attributes:
        talk: the conversation.
        say: shows rows.
        width: columns of the screen.
        draft: what the next prompt starts with, for /edit.
        editing: the next message replaces the last question.
        leaving: the conversation is over.
    """

    talk: Talk
    say: Callable[[Sequence[Row]], None]
    width: Callable[[], int]
    draft: str = ""
    editing: bool = False
    leaving: bool = False

    def tell(self, text: str, style: str = "") -> None:
        """Show a text, wrapped to the screen."""
        self.say(wrapped(text, self.width(), style))


def last_turn(state: ChatState) -> Turn:
    """The last question and its answers.

    Raises:
        UsageError: there is none.
    """
    if not state.talk.conversation.turns:
        raise UsageError("nothing was said yet", fix="ask something first")
    return state.talk.conversation.turns[-1]


def model_at(state: ChatState, letter: str) -> int:
    """The model at a place in the columns.

    Raises:
        UsageError: no model stands there.
    """
    found = model_with(state.talk.columns, letter)
    if found is None:
        known = ", ".join(map(state.talk.letter, state.talk.columns))
        raise UsageError(f"there is no model {letter!r}", fix=f"choose {known}")
    return found


def stood_at(turn: Turn, letter: str) -> int:
    """The model that had a letter when a question was asked, whether it answered or not.

    Raises:
        UsageError: none had it.
    """
    found = model_with(turn.columns, letter)
    if found is None:
        raise UsageError(
            f"there was no model {letter!r}", fix=f"choose {', '.join(map(turn.letter, turn.columns))}"
        )
    return found


def answer_at(turn: Turn, letter: str) -> int:
    """The model behind a letter as it stood above a turn's answer.

    Raises:
        UsageError: no answer stood there.
    """
    found = model_with(turn.columns, letter)
    if found is None or found not in turn.standing():
        known = ", ".join(map(turn.letter, turn.standing()))
        raise UsageError(f"no answer stands under {letter!r}", fix=f"choose {known}")
    return found


def tell_kept(state: ChatState, turn: Turn) -> None:
    """Say which answers to a question asked again are the old ones."""
    kept = state.talk.last.kept if state.talk.last else []
    for model in turn.asked:
        if model in kept:
            name = "" if turn.hidden else f"  {state.talk.engines[model].about.name}"
            state.tell(f"{turn.letter(model)}{name}: the old answer stands", "yellow")


def named_file(argument: str, command: str) -> Path:
    """The file behind a command's name.

    Raises:
        UsageError: none was given.
    """
    if not argument:
        raise UsageError("no file given", fix=f"/{command} FILE")
    return expanded(argument)
