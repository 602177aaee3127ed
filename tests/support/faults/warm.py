"""The warm process that commands are forked from: everything is imported once, each fork runs one command.

    python warm.py MODULE,MODULE CORE

Reads one JSON object a line: `argv` of a command (or `MODULE:FUNCTION`, which returns an exit code), `folder`
to run it in, `said` (a file for what it prints), `seconds` it may take, `memory` (bytes of address space that
it may take beyond what it has; 0: no limit). With `here` it runs in the warm process itself: what it loads
and compiles is there for all forks. Answers with one: `code` (exit code, or minus the signal that ended it;
None if it had to be killed) and `seconds` of processor time.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from typing import NoReturn


def limit(more: int) -> None:
    """Let this process take so many bytes of address space more than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(argv: list[str], folder: str, said: str, memory: int = 0) -> int:
    """Be the command; its exit code."""
    printed = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(printed, stream)
    os.close(printed)
    os.chdir(folder)
    if memory:
        limit(memory)
    if ":" in argv[0]:
        module, _, function = argv[0].partition(":")
        return int(getattr(importlib.import_module(module), function)())
    from lorafold.cli import main

    return main(argv)


def leave(code: int) -> NoReturn:
    """End a fork with an exit code.

    Without the interpreter's own end, which frees all that is loaded and so copies every page of it: three
    quarters of the time of an export. Of what is done at exit, ours is.
    """
    sandbox = sys.modules.get("lorafold.chat.sandbox")
    if sandbox is not None:
        sandbox._kept.drop()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """How a child ended: its exit code, minus its signal, or None after killing one that hangs."""
    end, hangs = time.monotonic() + seconds, False
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return None if hangs else os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            hangs = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def main() -> None:
    # On one core nothing starts OpenMP's threads, for which a fork of their process would wait for ever.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(sys.argv[2]) % len(cores)]})
    for name in sys.argv[1].split(","):
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        task = json.loads(line)
        code: int | None
        if task["here"]:
            code = run(task["argv"], task["folder"], task["said"])
            gc.collect()
            gc.freeze()  # a fork's collector would copy every page of what is loaded
        elif pid := os.fork():
            code = wait(pid, task["seconds"])
        else:
            leave(run(task["argv"], task["folder"], task["said"], task["memory"]))
        answers.write(json.dumps({"code": code}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
