"""`lorafold compare`: the same questions to two or more models, every answer kept, nothing asked twice.

Each finished question goes into a journal beside the output; a comparison that was interrupted, or in which
a model failed, goes on from there when it is started again with the same models, questions and settings.
Questions at which a model failed are asked again then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lorafold.artifacts import lock, system_faults, write_atomic
from lorafold.chat.dialogue import tools_of
from lorafold.chat.template import ChatTemplate
from lorafold.errors import UsageError
from lorafold.interrupts import Terminated
from lorafold.progress import Progress, silent
from lorafold.records.tools import tools_in
from lorafold.serve.answers import Request, answer_all, seeded
from lorafold.serve.comparison.journal import Journal
from lorafold.serve.comparison.questions import Prompt, read_prompts
from lorafold.serve.comparison.report import RENDERERS
from lorafold.serve.comparison.result import CompareResult, counted
from lorafold.serve.config import CompareConfig, noise_note, sampling_of
from lorafold.serve.conversation import Answer, utf8
from lorafold.serve.engines.open import opened
from lorafold.serve.lens import lens_of
from lorafold.serve.origin import with_own_system
from lorafold.serve.protocol import Cancel, Engine
from lorafold.serve.rows import AnswerRow, ModelCard, QuestionRow, card_of


def compare(config: CompareConfig, progress: Progress = silent) -> CompareResult:
    """Ask every model every question.

    Args:
        config: models, questions, sampling, files to write.
        progress: told after every question.

    Returns:
        Questions, answers, and what the models think of each other's answers.

    Raises:
        UsageError: an output has an unknown ending, or exists and `force` is not set.
        InputError: questions or models cannot be read.
        BusyError: another comparison writes the same output.
        KeyboardInterrupt: Ctrl-C; its text says where the same command goes on. So does that of `Terminated`.
    """
    for path in config.out:
        if path.suffix.lower() not in RENDERERS:
            raise UsageError(f"unknown format {path.suffix!r}", at=path, fix=f"end in {', '.join(RENDERERS)}")
        if path.resolve() == config.prompts.resolve() or path.is_dir():
            raise UsageError(
                "the output would replace an input or a folder", at=path, fix="choose another name"
            )
        # Also of the second output, which would be written hours from now.
        if not next(folder for folder in path.absolute().parents if folder.exists()).is_dir():
            raise UsageError("a part of the path is a file, not a folder", at=path, fix="choose another path")
        if path.exists() and not config.force:
            raise UsageError("the output exists", at=path, fix="pass --force to replace it")
    tools = () if config.tools is None else tools_in(config.tools)
    config, note = with_own_system(config)
    prompts = read_prompts(config.prompts, config.system, config.limit, tools)
    with contextlib.ExitStack() as stack:
        # First: what cannot be opened must leave nothing behind.
        engines = stack.enter_context(opened(config, progress))
        place = None
        if config.out:
            stack.enter_context(_folder(config.out[0].parent))
            stack.enter_context(lock(config.out[0]))
            place = config.out[0].with_name(f".{config.out[0].name}.journal")
        cards = [card_of(engine) for engine in engines]
        journal = Journal(place, _identity(config, engines, cards, prompts), len(prompts), len(engines))
        result = _ask(config, engines, cards, prompts, journal, progress)
        if note:
            result.notes.append(note)
        for path in config.out:
            write_atomic(path, utf8(RENDERERS[path.suffix.lower()](result)))
            result.saved.append(path)
        failed = sum(row.failed for row in result.rows)
        if failed and place:
            result.notes.append(f"with --force the same command asks {counted(failed)} that failed again")
        else:
            journal.remove()
    return result


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """A folder for the length of the block, and for good if something lies in it then."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with system_faults(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _ask(
    config: CompareConfig,
    engines: Sequence[Engine],
    cards: list[ModelCard],
    prompts: Sequence[Prompt],
    journal: Journal,
    progress: Progress,
) -> CompareResult:
    resumed = len(journal.rows)
    notes = [*filter(None, [noise_note(sampling_of(config))]), *_notes(engines, prompts)]
    if resumed:
        again = f"; {counted(journal.failed)} that failed asked again" if journal.failed else ""
        notes.append(f"{resumed * len(engines)} answers taken over from an earlier run{again}")
    begin = time.monotonic()
    try:
        with journal:
            for number, prompt in enumerate(prompts):
                if number in journal.rows:
                    continue
                told = prompt.question[:40].replace("\n", " ")
                progress("compare", len(journal.rows), len(prompts), told)
                journal.write(number, _row(engines, prompt, config, number))
            progress("compare", len(prompts), len(prompts))
    except (KeyboardInterrupt, Terminated) as error:
        if journal.path is not None and journal.rows:
            error.args = (_where_it_goes_on(journal.rows, len(prompts)),)
        raise
    rows = [journal.rows[number] for number in range(len(prompts))]
    settings, seconds = asdict(sampling_of(config)), time.monotonic() - begin
    return CompareResult(cards, rows, settings, config.prompts.name, seconds, resumed, saved=[], notes=notes)


def _notes(engines: Sequence[Engine], prompts: Sequence[Prompt]) -> list[str]:
    """What the engines say of themselves, and what was done to questions."""
    notes = [f"{engine.about.name}: {note}" for engine in engines for note in engine.about.notes]
    removed = [prompt.removed for prompt in prompts if prompt.removed]
    if removed:
        characters = f"{sum(removed)} control character{'s' * (sum(removed) != 1)}"
        notes.append(f"{characters} taken out of {counted(len(removed))}")
    return notes


def _where_it_goes_on(rows: Mapping[int, QuestionRow], count: int) -> str:
    following = next((number for number in range(count) if number not in rows), None)
    if following is None:
        return "all questions are asked; the same command writes the output"
    failed = sum(row.failed for row in rows.values())
    again = f" and asks {counted(failed)} that failed again" if failed else ""
    told = f"{len(rows)} of {counted(count)} asked"
    return f"{told}; the same command goes on at question {following + 1}{again}"


def _row(engines: Sequence[Engine], prompt: Prompt, config: CompareConfig, number: int) -> QuestionRow:
    """Ask all models one question; a model that fails has an error in place of its answer."""
    sampling = seeded(sampling_of(config), number)
    answers = {index: Answer(seed=sampling.seed) for index in range(len(engines))}
    requests = {index: Request(engine, prompt.messages, sampling) for index, engine in enumerate(engines)}
    for happened in answer_all(requests, Cancel()):
        if happened is not None:
            answers[happened[0]].take(happened[1])
    lenses = {
        index: lens_of(engines, index, prompt.messages, answers[index]) for index in answers if config.lens
    }
    rows = [AnswerRow.of(answers[index], lenses.get(index)) for index in sorted(answers)]
    return QuestionRow(
        prompt.question, prompt.messages, prompt.expected, rows, tools=tools_of(prompt.messages)
    )


def _identity(
    config: CompareConfig, engines: Sequence[Engine], cards: Sequence[ModelCard], prompts: Sequence[Prompt]
) -> str:
    """What must be equal for an interrupted comparison to be gone on with."""
    template = config.chat_template and ChatTemplate.chosen(config.chat_template).source
    known = [
        [asdict(card) for card in cards],
        [engine.context for engine in engines],
        template and hashlib.sha256(utf8(template)).hexdigest(),
        asdict(sampling_of(config)),
        [asdict(prompt) for prompt in prompts],
        [tools_of(prompt.messages) for prompt in prompts],
        config.lens,
    ]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
