"""`lorafold chat`: one model or several side by side, at a terminal, from a pipe or for one question."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from importlib import import_module

from lorafold.console import live_progress, sanitize
from lorafold.errors import InputError, UsageError
from lorafold.progress import silent
from lorafold.records.tools import tools_in
from lorafold.serve.config import NOBODY_VOTES, ChatConfig, noise_note, sampling_of
from lorafold.serve.conversation import Conversation, cleaned
from lorafold.serve.engines.digests import Digests
from lorafold.serve.engines.open import opened
from lorafold.serve.origin import with_own_system
from lorafold.serve.protocol import Engine
from lorafold.serve.terminal.talk import Talk, control_notes
from lorafold.serve.terminal.tty import colored, interactive
from lorafold.serve.terminal.views import ColumnView, JsonView, PlainView, View, ending_of

_LONGEST_LINE = 16_000_000  # bytes read from a pipe as one question


def chat(config: ChatConfig) -> int:
    """Talk to the models of a config until the user leaves or the input ends.

    Args:
        config: models, sampling, and where questions come from.

    Returns:
        0; 3 if a model failed to answer a scripted question.

    Raises:
        UsageError: a blind vote without a terminal.
        LorafoldError: a model cannot be opened, or the saved session cannot be read.
    """
    by_hand = interactive() and not config.prompt and not config.json
    if config.blind and not by_hand:
        raise UsageError(NOBODY_VOTES, at="--blind", fix="type the questions")
    if by_hand:  # the line editor's import takes as long as a small model's loading
        threading.Thread(target=import_module, args=("lorafold.serve.terminal.editor",), daemon=True).start()
    bar = live_progress() if by_hand else contextlib.nullcontext(silent)
    # A session goes on under the message that it was saved with.
    config, note = with_own_system(config) if config.session is None else (config, "")
    with contextlib.ExitStack() as stack:
        with bar as progress:
            engines = stack.enter_context(opened(config, progress))
        talk = _talk(config, engines, by_hand)
        if note:
            talk.notes.append(note)
        if by_hand:
            from lorafold.serve.terminal.repl import converse

            return converse(talk, config)
        return _scripted(talk, config)


def _talk(config: ChatConfig, engines: list[Engine], by_hand: bool) -> Talk:
    names = [engine.about.name for engine in engines]
    if config.session is not None:
        conversation = Conversation.load(config.session, names)
        conversation.system = conversation.system if config.system is None else config.system or None
        conversation.sampling = sampling_of(config, conversation.sampling)
    else:
        conversation = Conversation(names, sampling_of(config), config.system)
    if config.tools is not None:
        conversation.tools = tools_in(config.tools)
    abouts = [engine.about for engine in engines]
    digests = Digests(abouts)
    view: View
    if config.json:
        view = JsonView(abouts, digests)
    elif by_hand and not config.plain:
        view = ColumnView(color=colored())
    else:
        view = PlainView(figures=by_hand)
    talk = Talk(engines, conversation, view, digests)
    talk.blind = config.blind
    return talk


def _scripted(talk: Talk, config: ChatConfig) -> int:
    """Ask what `--prompt` or the piped input says, one question after the other."""
    for engine in talk.engines:
        for note in engine.about.notes:
            sys.stderr.write(f"note: {sanitize(f'{engine.about.name}: {note}')}\n")
    for note in filter(None, (*talk.notes, noise_note(talk.conversation.sampling))):
        sys.stderr.write(f"note: {sanitize(note)}\n")
    talk.digests.wait(1.0)  # headings and JSON name the weights; a large file's digest may come later
    failed = False
    for question in config.prompt or _piped():
        text, removed = cleaned(question)
        if not text.strip():
            continue
        if removed:
            sys.stderr.write(f"note: {removed} control characters were taken out of the question\n")
        for note in control_notes(talk.engines, text):
            sys.stderr.write(f"note: {sanitize(note)}\n")
        talk.ask(text)
        assert talk.last is not None
        if talk.last.cancelled:
            raise KeyboardInterrupt
        for index, answer in talk.last.turn.answers.items():
            failed = failed or bool(answer.error)
            if not (answer.text or answer.calls or answer.error):
                only = f" after {len(answer.reasoning):,} characters of reasoning" if answer.reasoning else ""
                ending = f" ({ending_of(answer.reason)})" if ending_of(answer.reason) else ""
                name = talk.engines[index].about.name
                sys.stderr.write(f"note: {sanitize(f'{name}: the answer is empty{only}{ending}')}\n")
    return InputError.exit_code if failed else 0


def _piped() -> Iterator[str]:
    """Lines of standard input, each a question; wrong UTF-8 is replaced, a byte order mark is no text."""
    stream = sys.stdin.buffer
    encoding = "utf-8-sig"
    while line := stream.readline(_LONGEST_LINE):
        yield line.decode(encoding, errors="replace").rstrip("\r\n")
        encoding = "utf-8"
