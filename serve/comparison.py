"""`lorafold compare`: the same questions to two or more models, every answer kept, nothing asked twice.

Each finished question goes into a journal beside the output; an interrupted comparison goes on from there
when it is started again with the same models, questions and sampling.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorafold.artifacts import lock, system_faults, write_atomic
from lorafold.errors import UsageError
from lorafold.progress import Progress, silent
from lorafold.serve.answer_row import ModelCard, answer_row, card_of, lens_of
from lorafold.serve.answers import Request, answer_all, seeded
from lorafold.serve.config import CompareConfig, sampling_of
from lorafold.serve.engine import Cancel, Engine
from lorafold.serve.engines import opened
from lorafold.serve.prompts import Prompt, read_prompts
from lorafold.serve.report import RENDERERS
from lorafold.serve.session import Answer, utf8

JOURNAL = "lorafold-comparison-1"


@dataclass(frozen=True, slots=True)
class CompareResult:
    """A comparison.

    Attributes:
        models: in the order of the answers.
        rows: one per question: question, messages, expected, answers (see `answer_row`).
        settings: sampling and seed.
        prompts: name of the file with the questions.
        seconds: that asking took, without what an earlier run had done.
        resumed: questions taken over from an interrupted run.
        saved: files written.
    """

    models: list[ModelCard]
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    prompts: str
    seconds: float
    resumed: int
    saved: list[Path]

    @property
    def columns(self) -> list[str]:
        """Headings of the table: question and models."""
        return ["question", *(card.name for card in self.models)]

    @property
    def table(self) -> list[list[str]]:
        """Cells of the table, one row per question."""
        return [
            [
                row["question"],
                *(answer["text"].strip() or f"({answer['reason']})" for answer in row["answers"]),
            ]
            for row in self.rows
        ]


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
    """
    for path in config.out:
        if path.suffix.lower() not in RENDERERS:
            raise UsageError(f"unknown format {path.suffix!r}", at=path, fix=f"end in {', '.join(RENDERERS)}")
        if path.resolve() == config.prompts.resolve() or path.is_dir():
            raise UsageError(
                "the output would replace an input or a folder", at=path, fix="choose another name"
            )
        if path.exists() and not config.force:
            raise UsageError("the output exists", at=path, fix="pass --force to replace it")
    prompts = read_prompts(config.prompts, config.system, config.limit)
    with contextlib.ExitStack() as stack:
        journal = None
        if config.out:
            with system_faults(config.out[0]):
                config.out[0].parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(config.out[0]))
            journal = config.out[0].with_name(f".{config.out[0].name}.journal")
        engines = stack.enter_context(opened(config, progress))
        result = _ask(config, engines, prompts, journal, progress)
        for path in config.out:
            write_atomic(path, utf8(RENDERERS[path.suffix.lower()](result)))
            result.saved.append(path)
        if journal is not None:
            journal.unlink(missing_ok=True)
    return result


def _ask(
    config: CompareConfig,
    engines: Sequence[Engine],
    prompts: Sequence[Prompt],
    journal: Path | None,
    progress: Progress,
) -> CompareResult:
    cards = [card_of(engine) for engine in engines]
    settings = asdict(sampling_of(config))
    identity = _identity(cards, settings, prompts, config.lens)
    rows = _resumed(journal, identity)[: len(prompts)]
    resumed = len(rows)
    begin = time.monotonic()
    with _journal(journal, identity, resumed) as write:
        for number in range(resumed, len(prompts)):
            progress("compare", number, len(prompts), prompts[number].question[:40].replace("\n", " "))
            row = _row(engines, prompts[number], config, number)
            write(row)
            rows.append(row)
        progress("compare", len(prompts), len(prompts))
    return CompareResult(
        cards, rows, settings, config.prompts.name, time.monotonic() - begin, resumed, saved=[]
    )


def _row(engines: Sequence[Engine], prompt: Prompt, config: CompareConfig, number: int) -> dict[str, Any]:
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
    return {
        "question": prompt.question,
        "messages": list(prompt.messages),
        "expected": prompt.expected,
        "answers": [answer_row(answers[index], lenses.get(index)) for index in sorted(answers)],
    }


def _identity(
    cards: Sequence[ModelCard], settings: Mapping[str, Any], prompts: Sequence[Prompt], lens: bool
) -> str:
    """What must be equal for an interrupted comparison to be gone on with."""
    known = [[asdict(card) for card in cards], settings, [asdict(prompt) for prompt in prompts], lens]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _resumed(journal: Path | None, identity: str) -> list[dict[str, Any]]:
    """Rows of an interrupted run with the same identity; a last line cut short is left out."""
    if journal is None or not journal.is_file():
        return []
    lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        if json.loads(lines[0]) != {"format": JOURNAL, "identity": identity}:
            return []
        for line in lines[1:]:
            row = json.loads(line)
            if not isinstance(row["answers"], list):
                break
            rows.append(row)
    return rows


@contextlib.contextmanager
def _journal(path: Path | None, identity: str, resumed: int) -> Iterator[Any]:
    """A function that appends a row to the journal, on disk when it returns."""
    if path is None:
        yield lambda row: None
        return
    with system_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        keep: list[str] = []
        if resumed:
            keep = path.read_text(encoding="utf-8", errors="replace").split("\n")[: resumed + 1]
        else:
            keep = [json.dumps({"format": JOURNAL, "identity": identity})]
        write_atomic(path, "\n".join(keep) + "\n")
        with open(path, "ab") as file:

            def write(row: dict[str, Any]) -> None:
                file.write(utf8(json.dumps(row, ensure_ascii=False) + "\n"))
                file.flush()
                os.fsync(file.fileno())

            yield write
