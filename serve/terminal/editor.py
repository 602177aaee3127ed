"""What the line editor needs beyond prompt_toolkit: a private history, completion, pastes in linear time."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit.completion import Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import History
from prompt_toolkit.input.posix_utils import PosixStdinReader
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

if TYPE_CHECKING:
    from prompt_toolkit.input import Input

    from lorafold.serve.terminal.commands import Command

END_OF_PASTE = "\x1b[201~"
TAIL = 4_000_000  # bytes read from the end of a history file


class FileHistory(History):
    """Questions in a file that only its owner may read; one JSON text a line.

    A symbolic link, a file of somebody else or one that cannot be opened is left alone: the history then
    lives as long as the program, and `notes` says why.

    Args:
        path: the file; None keeps nothing.
        lines: how many are read back.
        longest: characters above which a question is not kept.
        expand: the text of a question as it was typed, with place holders in it.
    """

    def __init__(
        self, path: Path | None, lines: int, longest: int, expand: Callable[[str], str] = str
    ) -> None:
        super().__init__()
        self.path = path
        self.lines = lines
        self.longest = longest
        self.expand = expand
        self.notes: list[str] = []
        if path is not None:
            try:
                os.makedirs(path.parent, mode=0o700, exist_ok=True)
                os.close(self._open(os.O_RDWR))
            except OSError as error:
                self.notes.append(f"the history is not kept: {path}: {error.strerror}")
                self.path = None

    def _open(self, flags: int) -> int:
        assert self.path is not None
        descriptor = os.open(self.path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            os.close(descriptor)
            raise PermissionError(1, "not a file of yours")
        if stat.S_IMODE(status.st_mode) != 0o600:
            os.fchmod(descriptor, 0o600)
        return descriptor

    def load_history_strings(self) -> Iterable[str]:
        """Questions of earlier conversations, the newest first."""
        if self.path is None:
            return []
        try:
            with os.fdopen(self._open(os.O_RDONLY), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
                rows = file.read().decode("utf-8", errors="replace").split("\n")
        except OSError:
            return []
        found: list[str] = []
        for row in reversed(rows):
            try:
                text = json.loads(row)
            except ValueError:  # an incomplete line: the first of the part read, or a crash's
                continue
            if isinstance(text, str):
                found.append(text)
            if len(found) >= self.lines:
                break
        return found

    def store_string(self, string: str) -> None:
        """Remember a question, whole: its place holders mean nothing to the next conversation."""
        string = self.expand(string)
        if self.path is None or len(string) > self.longest:
            return
        try:
            with os.fdopen(self._open(os.O_WRONLY | os.O_APPEND), "ab") as file:
                file.write(json.dumps(string).encode() + b"\n")
        except OSError:
            self.path = None  # a full disk must not end the conversation


class SlashCompleter(Completer):
    """Completes commands, their choices, and file names.

    Args:
        commands: by name.
        letters: of the models.
    """

    def __init__(self, commands: Mapping[str, Command], letters: Sequence[str]) -> None:
        self.commands = commands
        self.letters = letters
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: Any) -> Iterable[Completion]:
        """What may follow the text before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for known, command in self.commands.items():
                if known.startswith(name):
                    yield Completion(known, start_position=-len(name), display_meta=command.does)
            return
        if name not in self.commands:
            return
        command = self.commands[name]
        if command.choices == "path":
            yield from self._paths.get_completions(Document(argument, len(argument)), complete_event)
            return
        word = argument.rpartition(" ")[2]
        choices = self.commands if command.choices == "command" else command.choices
        for choice in (*(self.letters if command.letters else ()), *choices):
            if choice.startswith(word):
                yield Completion(choice, start_position=-len(word))


def fast_pastes(source: Input) -> Input:
    """Let an input read pastes in linear time; prompt_toolkit's own parser takes minutes for 10 MB."""
    parser, reader = getattr(source, "vt100_parser", None), getattr(source, "stdin_reader", None)
    if isinstance(parser, Vt100Parser) and isinstance(reader, PosixStdinReader):
        source.vt100_parser = _PasteParser(parser.feed_key_callback)  # type: ignore[attr-defined]
        source.stdin_reader = _BigReader(reader.stdin_fd)  # type: ignore[attr-defined]
    return source


class _BigReader(PosixStdinReader):
    """Reads all that a terminal hands over at once; 1,024 bytes a time take four times as long."""

    def read(self, count: int = 65536) -> str:
        """What has been typed or pasted."""
        return super().read(count)


class _PasteParser(Vt100Parser):
    """prompt_toolkit's parser, made not to search everything pasted so far at each read."""

    def __init__(self, feed_key_callback: Any) -> None:
        self._chunks: list[str] = []
        self._seam = ""  # the end of the chunk before: the mark may lie across two
        super().__init__(feed_key_callback)

    def feed(self, data: str) -> None:
        """Take in what was read."""
        if not self._in_bracketed_paste:
            super().feed(data)  # comes back here with what follows the start of a paste
            return
        found = (self._seam + data).find(END_OF_PASTE)
        if found < 0:
            self._chunks.append(data)
            self._seam = (self._seam + data)[-(len(END_OF_PASTE) - 1) :]
            return
        end = found - len(self._seam)
        self._chunks.append(data[: max(0, end)])
        pasted = "".join(self._chunks)
        pasted = pasted if end >= 0 else pasted[:end]
        self._chunks, self._seam, self._in_bracketed_paste = [], "", False
        self.feed_key_callback(KeyPress(Keys.BracketedPaste, pasted))
        self.feed(data[end + len(END_OF_PASTE) :])
