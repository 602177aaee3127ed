"""Jinja chat templates rendered in a child process that bounds their time and memory.

The text is the one that transformers would render. A chat template is a program that came with a download.
Jinja's sandbox keeps it from Python's internals but bounds neither time nor memory, and no check inside this
process could: one `'a' * 10**10` or `ljust` is a single C call. So templates run in `sandbox_worker.py`, one
child per process, with limits that the kernel enforces: 2 s of processor time per rendering (ITIMER_PROF),
256 MB more address space than it starts with (RLIMIT_AS), and none of our environment variables. One
rendering costs a tenth of a millisecond above Jinja's own time.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafold.child import Child, KeptChild
from lorafold.errors import InputError, SystemFault, UnsafeInputError

SECONDS = 2.0  # processor time of one rendering
MEMORY = 256 * 2**20  # bytes the worker may grow by
WALL_SECONDS = 20.0  # for a machine too busy to give the worker its 2 s
_BATCH = 64  # jobs in one request, so that neither pipe fills up while the other side writes

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One rendering to do.

    Args:
        messages: the conversation, plain JSON data.
        variables: whatever else the template sees (special tokens, add_generation_prompt, switches).
        clock: None for now, an ISO 8601 moment, or "sentinel": `strftime_now` then returns its format in
            marks.
    """

    messages: Sequence[Message]
    variables: Mapping[str, Any] = field(default_factory=dict)
    clock: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a template answered instead of a text.

    Args:
        raised: True if the template called `raise_exception`, False if its code failed.
        problem: the message.
        line: line of the template, or None.
        lost: nothing was raised, but the template would leave out so much of what tools need.
    """

    raised: bool
    problem: str
    line: int | None
    lost: tuple[str, ...] = ()


class _Worker(Child):
    """The child that renders."""

    def __init__(self) -> None:
        keep = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "PYTHONHOME", "VIRTUAL_ENV")
        variables = {name: os.environ[name] for name in keep if name in os.environ}
        variables |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
        script = str(Path(__file__).with_name("sandbox_worker.py"))
        super().__init__([sys.executable, script, str(SECONDS), str(MEMORY)], variables)
        self.ready = False

    def await_ready(self) -> None:
        """Wait until it has imported Jinja.

        Raises:
            SystemFault: it does not start.
        """
        if not self.ready and self.receive(60.0) is None:
            raise SystemFault(
                "the process that renders chat templates does not start",
                fix=f"check that `{sys.executable} -c 'import jinja2'` works and that memory is free",
            )
        self.ready = True

    def was_killed(self) -> bool:
        """Whether something else than its own limits ended it: the kernel does, if memory ends."""
        return self.ended() == -signal.SIGKILL


_kept = KeptChild(_Worker)


def start_worker() -> None:
    """Start the worker that `render_many` will need, without waiting for it; a failure is said there."""
    _kept.begin()


def render_many(
    source: str, jobs: Sequence[Job], at: str = "chat template", dialect: str = ""
) -> list[str | Refusal]:
    """Render conversations with one template.

    Args:
        source: the Jinja template.
        jobs: what to render.
        at: where the template came from, for messages.
        dialect: "llama": as llama.cpp renders it; "": as transformers does.

    Returns:
        A text per job, or the template's own refusal of that conversation.

    Raises:
        InputError: the template has a syntax error; its line is in the place.
        UnsafeInputError: the template reached for a forbidden attribute, or passed 2 s or 256 MB.
        SystemFault: the worker does not start, or the system ended it.
    """
    answers: list[str | Refusal] = []
    # A syntax error ends a request, and the worker waits for the next one.
    with _kept.lent(InputError) as worker:
        for start in range(0, len(jobs), _BATCH):
            worker.await_ready()
            part = jobs[start : start + _BATCH]
            worker.send({"source": source, "dialect": dialect, "jobs": [_plain(job) for job in part]})
            for _ in part:
                row = worker.receive(WALL_SECONDS)
                if row is None and worker.was_killed():
                    raise _killed(at)
                answers.append(_answer(row, at))
    return answers


def _plain(job: Job) -> dict[str, Any]:
    return {"messages": list(job.messages), "variables": dict(job.variables), "clock": job.clock}


def _killed(at: str) -> SystemFault:
    return SystemFault(
        "the process that renders the chat template was killed: memory has ended here",
        at=at,
        fix="close other programs, or give the container more memory",
    )


def _answer(row: dict[str, Any] | None, at: str) -> str | Refusal:
    if row is None:
        raise UnsafeInputError(
            f"the chat template was stopped: it took more than {SECONDS:g} s or {MEMORY >> 20} MB to render",
            at=at,
            fix="do not use this template; give another one with --chat-template",
        )
    if "text" in row:
        text: str = row["text"]
        return text
    kind, problem, line = row["kind"], row["problem"], row["line"]
    place = at if line is None else f"{at}:{line}"
    if kind == "syntax":
        raise InputError(
            f"the chat template has a syntax error: {problem}", at=place, fix="correct that line"
        )
    if kind == "security":
        raise UnsafeInputError(
            f"the chat template tries to leave its sandbox: {problem}",
            at=place,
            fix="do not use this template",
        )
    if kind == "limit":
        raise UnsafeInputError(
            f"the chat template was stopped: {problem} (limits: {SECONDS:g} s, {MEMORY >> 20} MB)",
            at=place,
            fix="do not use this template; give another one with --chat-template",
        )
    return Refusal(kind == "raised", problem, line)
