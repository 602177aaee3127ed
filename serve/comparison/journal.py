"""The journal of a comparison: every answered question is on disk before the next one is asked.

JSON lines. The first one is {"format", "identity"}: what must be equal for the others to count. Each further
one is {"number", "row"}: a question's place in the file, and its answers as `QuestionRow` writes them. Every
line carries its sha256 (`lorafold/files/seals.py`); one that is not as it was written does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from lorafold.artifacts import system_faults, write_atomic
from lorafold.errors import InputError
from lorafold.files.seals import is_intact, sealed
from lorafold.serve.rows import QuestionRow

_FORMAT = "lorafold-comparison-3"


class Journal:
    """Open for the length of a `with` block.

    Args:
        path: of the file, or None to keep nothing.
        identity: of models, questions and settings.
        questions: how many there are.
        models: how many answer each.

    Attributes:
        rows: number of a question -> its row, as an earlier run with the same identity left it. Rows with
            a failure are not among them: what failed then, such as a server, may work now.
        failed: how many rows those are.
    """

    def __init__(self, path: Path | None, identity: str, questions: int, models: int) -> None:
        self.path = path
        self.failed = 0
        self._head = {"format": _FORMAT, "identity": identity}
        self._file: BinaryIO | None = None
        self.rows = self._read(questions, models)

    def _read(self, questions: int, models: int) -> dict[int, QuestionRow]:
        if self.path is None or not self.path.is_file():
            return {}
        rows: dict[int, QuestionRow] = {}
        failed: set[int] = set()
        head, *lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        if f"{head}\n" != sealed(self._head):
            return {}
        # A power loss may cut the last line short, and a disk may change what it keeps.
        for line in lines:
            with contextlib.suppress(
                InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError
            ):
                if not is_intact(f"{line}\n"):
                    continue
                entry = json.loads(line)
                number, row = entry["number"], QuestionRow.from_json(entry["row"])
                if len(row.answers) != models:
                    continue
                if row.failed:
                    failed.add(number)
                elif number in range(questions):
                    rows[number] = row
        self.failed = len(failed)
        return rows

    def __enter__(self) -> Journal:
        if self.path is not None:
            with system_faults(self.path):
                entries = [_line(number, row) for number, row in self.rows.items()]
                write_atomic(self.path, "".join([sealed(self._head), *entries]))
                self._file = open(self.path, "ab")
        return self

    def write(self, number: int, row: QuestionRow) -> None:
        """Keep a row; it is on disk when this returns."""
        if self._file is not None and self.path is not None:
            with system_faults(self.path):
                self._file.write(_line(number, row).encode())
                self._file.flush()
                os.fsync(self._file.fileno())
        self.rows[number] = row

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, which `write` has told already
                self._file.close()
        if not self.rows:
            self.remove()

    def remove(self) -> None:
        """Forget all, once every answer is in the outputs or if there is nothing to go on with."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _line(number: int, row: QuestionRow) -> str:
    return sealed({"number": number, "row": row.as_json()})
