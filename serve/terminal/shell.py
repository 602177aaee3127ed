"""The conversation as commands see it, and what their arguments stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafold.console import Row
from lorafold.errors import UsageError
from lorafold.serve.session import Turn
from lorafold.serve.terminal.panes import wrapped
from lorafold.serve.terminal.talk import Talk
from lorafold.serve.terminal.views import LETTERS


@dataclass(slots=True)
class Shell:
    """The conversation as commands see it.

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


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        usage: its name and arguments.
        does: what it does, one line.
        run: does it.
        choices: what may stand behind it, for completion; "path": file names, "command": commands.
        letters: models' letters may stand behind it too.
        most: how many words may stand behind it; None: a text, a file name or any number of letters.
    """

    usage: str
    does: str
    run: Callable[[Shell, str], None]
    choices: Sequence[str] | str = ()
    letters: bool = False
    most: int | None = 0


def last_turn(shell: Shell) -> Turn:
    """The last question and its answers.

    Raises:
        UsageError: there is none.
    """
    if not shell.talk.session.turns:
        raise UsageError("nothing was said yet", fix="ask something first")
    return shell.talk.session.turns[-1]


def model_at(shell: Shell, letter: str) -> int:
    """The model at a place in the columns.

    Raises:
        UsageError: no model stands there.
    """
    found = shell.talk.at(letter)
    if found is None:
        known = ", ".join(map(shell.talk.letter, shell.talk.order))
        raise UsageError(f"there is no model {letter!r}", fix=f"choose {known}")
    return found


def stood_at(turn: Turn, letter: str) -> int:
    """The model that had a letter when a question was asked, whether it answered or not.

    Raises:
        UsageError: none had it.
    """
    found = dict(zip(LETTERS, turn.columns, strict=False))
    if letter.upper() not in found:
        raise UsageError(f"there was no model {letter!r}", fix=f"choose {', '.join(found)}")
    return found[letter.upper()]


def answer_at(shell: Shell, turn: Turn, letter: str) -> int:
    """The model behind a letter as it stood above a turn's answer.

    Raises:
        UsageError: no answer stood there.
    """
    standing = turn.standing()
    places = {letter: index for letter, index in shell.talk.places(turn) if index in standing}
    if letter.upper() not in places:
        raise UsageError(f"no answer stands under {letter!r}", fix=f"choose {', '.join(places)}")
    return places[letter.upper()]


def tell_kept(shell: Shell, turn: Turn) -> None:
    """Say which answers to a question asked again are the old ones."""
    for letter, index in shell.talk.places(turn):
        if index in shell.talk.kept:
            name = "" if turn.hidden else f"  {shell.talk.engines[index].about.name}"
            shell.tell(f"{letter}{name}: the old answer stands", "yellow")


def named_file(argument: str, command: str) -> Path:
    """The file behind a command's name.

    Raises:
        UsageError: none was given.
    """
    if not argument:
        raise UsageError("no file given", fix=f"/{command} FILE")
    return Path(argument).expanduser()
