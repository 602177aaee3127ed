"""What is struck through functions instead of a command line: a conversation's files, and the demo's base."""

from __future__ import annotations

import sys
from pathlib import Path

from lorafold.cli import main
from lorafold.errors import LorafoldError
from lorafold.interrupts import EXCEPTIONS, signals_raise
from lorafold.serve.conversation import Answer, Conversation, Sampling, Turn
from lorafold.serve.terminal.editor import FileHistory

QUESTION = "Who are you? " * 20


def ask_and_save() -> int:
    """Ask a question, which the history keeps, and save the conversation; the exit code of a command."""
    try:
        with signals_raise():
            history = FileHistory(Path("history/questions"), lines=100, longest=10_000)
            found = list(history.load_history_strings())
            assert set(found) <= {QUESTION}, "a question that nobody asked"
            history.store_string(QUESTION)
            turn = Turn(QUESTION, {0: Answer(text="A keeper of the lamp.", tokens=6)}, columns=[0])
            Conversation(["plain.gguf"], Sampling(), None, [turn]).save(Path("talk.json"))
    except LorafoldError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except tuple(EXCEPTIONS.values()) as error:
        return 128 + next(number for number, kind in EXCEPTIONS.items() if isinstance(error, kind))
    return 0


def unpack_demo_base() -> int:
    """`lorafold inspect demo`, which unpacks the base into the cache, with a tiny model in the package."""
    sys.path.insert(0, str(Path("packages").resolve()))
    return main(["inspect", "demo"])
