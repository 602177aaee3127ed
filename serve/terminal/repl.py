"""The conversation at a terminal: a line editor, commands, answers in columns.

Whatever is typed or pasted is text: control characters are taken out, a paste of megabytes is kept beside the
line, and an Enter that arrives within a paste (or right behind a forged end of one) sends nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.console import Row, print_rows
from lorafold.errors import LorafoldError
from lorafold.files.home import expanded
from lorafold.serve.config import ChatConfig, noise_note
from lorafold.serve.conversation import LETTERS, cleaned
from lorafold.serve.terminal.chat_state import ChatState, tell_kept
from lorafold.serve.terminal.commands import COMMANDS, list_models, run_command
from lorafold.serve.terminal.pastes import Pastes
from lorafold.serve.terminal.talk import Talk, control_notes
from lorafold.serve.terminal.tty import colored, typed_ahead

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PASTE_GRACE = 0.15  # seconds after a paste in which Enter is taken as part of it
HISTORY_LINES = 2_000  # questions read back from the history
HISTORY_LONGEST = 20_000  # characters of a question that the history keeps


def converse(talk: Talk, config: ChatConfig) -> int:
    """Talk until the user leaves.

    Returns:
        0.
    """
    color = colored() and not config.plain

    def say(rows: Sequence[Row]) -> None:
        print_rows(rows, color=color)

    state = ChatState(talk, say, _width)
    line = LineEditor([letter.lower() for letter in LETTERS[: len(talk.engines)]])
    with typed_ahead():
        _greet(state, line.notes)
        while not state.leaving:
            try:
                text = line.read(state.draft)
            except KeyboardInterrupt:
                state.draft, state.editing = "", False
                continue
            except EOFError:
                break
            state.draft = ""
            try:
                _take(state, text)
            except LorafoldError as error:
                state.tell(str(error), "red")
            except KeyboardInterrupt:
                state.tell("interrupted", "yellow")
    return 0


def _width() -> int:
    try:
        return max(20, os.get_terminal_size(sys.stdout.fileno()).columns)
    except OSError:
        return 80


def _greet(state: ChatState, notes: Iterable[str]) -> None:
    list_models(state, wait=0.05)  # digests noted before; others come with the first answer
    for note in (*notes, *state.talk.notes, noise_note(state.talk.conversation.sampling)):
        if note:
            state.tell(note, "yellow")
    if state.talk.blind:
        state.tell("names are hidden from the first answer on; /vote a, b or tie", "dim")
    state.tell("/help lists the commands", "dim")


def _take(state: ChatState, typed: str) -> None:
    """Run a command or ask a question."""
    text, removed = cleaned(typed)
    if not text.strip():
        state.editing = False
        return
    if text.startswith("/") and not text.startswith("//"):
        state.editing = False
        run_command(state, text.rstrip())
        return
    if removed:
        state.tell(f"{removed} control character{'s' * (removed != 1)} taken out of the message", "yellow")
    text = text[1:] if text.startswith("//") else text
    for note in control_notes([state.talk.engines[index] for index in state.talk.asked()], text):
        state.tell(note, "yellow")
    editing, state.editing = state.editing, False
    turn = state.talk.again(text) if editing else state.talk.ask(text)
    if turn is None:
        state.tell(
            "no answer; the question was not kept" if not editing else "no answer; nothing was changed"
        )
    else:
        tell_kept(state, turn)


class LineEditor:
    """prompt_toolkit set up for conversations: history, pastes, completion.

    Args:
        letters: of the models, to be completed.

    Attributes:
        notes: what the user should know (a history that cannot be kept).
    """

    def __init__(self, letters: Sequence[str]) -> None:
        self.notes: list[str] = []
        self._letters = letters
        self._pastes = Pastes()
        self._pasted_at = 0.0
        self._session: PromptSession[str] = self._build()

    def read(self, draft: str = "") -> str:
        """Read a message; several lines if the user pasted or typed them.

        Raises:
            EOFError: Ctrl-D on an empty line, or the terminal is gone.
            KeyboardInterrupt: Ctrl-C.
        """
        return self._pastes.expand(self._session.prompt("› ", default=self._pastes.fold(draft)))

    def _build(self) -> PromptSession[str]:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.input import create_input
        from prompt_toolkit.output import ColorDepth
        from prompt_toolkit.output.vt100 import Vt100_Output

        from lorafold.serve.terminal.editor import FileHistory, SlashCompleter, fast_pastes

        output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
        # Asking the terminal for the cursor's place stalls if nobody answers, as over some ssh.
        output.enable_cpr = False
        history = FileHistory(history_file(), HISTORY_LINES, HISTORY_LONGEST, self._pastes.expand)
        self.notes.extend(history.notes)
        session: PromptSession[str] = PromptSession(
            history=history,
            completer=SlashCompleter(COMMANDS, self._letters),
            complete_while_typing=False,
            key_bindings=self._bindings(),
            multiline=True,
            prompt_continuation="  ",
            input=fast_pastes(create_input()),
            output=output,
            color_depth=None if colored() else ColorDepth.DEPTH_1_BIT,
        )
        session.default_buffer.on_cursor_position_changed += self._pastes.step
        return session

    def _bindings(self) -> Any:
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        bindings = KeyBindings()

        @bindings.add("enter")
        def _(event: Any) -> None:
            if time.monotonic() - self._pasted_at < PASTE_GRACE:
                self._pasted_at = time.monotonic()
                event.current_buffer.insert_text("\n")
            else:
                event.current_buffer.validate_and_handle()

        @bindings.add("escape", "enter")
        def _(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        @bindings.add(Keys.BracketedPaste)
        def _(event: Any) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            event.current_buffer.insert_text(self._pastes.fold(text))  # shown as ^X if it is no text
            self._pasted_at = time.monotonic()

        self._pastes.bind(bindings)
        return bindings


def history_file() -> Path | None:
    """Where questions are remembered: `$LORAFOLD_HISTORY` (nowhere if empty), or below `$XDG_STATE_HOME`."""
    given = os.environ.get("LORAFOLD_HISTORY")
    if given is not None:
        return expanded(given) if given else None
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "lorafold" / "chat-history"
