"""What a comparison gave: where its report lies, and which questions failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from lorafold.api.notebook import lines_as_html, lines_as_text
from lorafold.progress import in_one_line
from lorafold.serve.rows import ModelCard, QuestionRow
from lorafold.version import __version__

_SHOWN = 300  # characters of a question or an answer where a result is printed


def counted(count: int) -> str:
    """So many questions, in words."""
    return f"{count} question{'s' * (count != 1)}"


@dataclass(frozen=True, slots=True)
class CompareResult:
    """A comparison.

    Attributes:
        models: in the order of the answers.
        rows: one per question.
        settings: sampling and seed.
        prompts: name of the file with the questions.
        seconds: that asking took, without what an earlier run had done.
        resumed: questions taken over from an earlier run.
        saved: files written.
        notes: what the user should know before relying on answers.
        day: on which the report was made, as 2026-01-31.
        version: of lorafold.
    """

    models: list[ModelCard]
    rows: list[QuestionRow]
    settings: dict[str, Any]
    prompts: str
    seconds: float
    resumed: int
    saved: list[Path]
    notes: list[str] = field(default_factory=list)
    day: str = field(default_factory=lambda: date.today().isoformat())
    version: str = __version__

    def __str__(self) -> str:
        return lines_as_text(self._lines())

    def _repr_html_(self) -> str:
        return lines_as_html(self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        """Labels and texts: each question with its answers, each cut to a line's length."""
        lines = [("compared", f"{counted(len(self.rows))} in {self.seconds:.1f} s")]
        for cells in self.table:
            lines += zip(self.columns, (in_one_line(cell, _SHOWN) for cell in cells), strict=True)
        lines += [("saved", str(path)) for path in self.saved]
        return lines + [("note", note) for note in self.notes]

    @property
    def columns(self) -> list[str]:
        """Headings of the table: question and models."""
        return ["question", *(card.name for card in self.models)]

    @property
    def table(self) -> list[list[str]]:
        """Cells of the table, one row per question."""
        return [[row.question, *(answer.cell for answer in row.answers)] for row in self.rows]

    @property
    def failures(self) -> list[Failure]:
        """The models that failed at questions."""
        found = []
        for index, card in enumerate(self.models):
            errors = [row.answers[index].error for row in self.rows]
            reasons = [error for error in errors if error]
            if reasons:
                found.append(Failure(card.source, len(reasons), len(errors), reasons[0]))
        return found


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that failed.

    Attributes:
        model: as the user spelled it.
        count: questions at which it failed.
        asked: questions in all.
        reason: of the first failure.
    """

    model: str
    count: int
    asked: int
    reason: str

    @property
    def whole(self) -> bool:
        """Whether it answered nothing at all."""
        return self.count == self.asked

    def __str__(self) -> str:
        return f"{self.model}: {self.count} of {self.asked} answers failed: {self.reason}"
