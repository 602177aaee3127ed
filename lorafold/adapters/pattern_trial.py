"""The child process that tries patterns; `patterns.py` starts it by its path and never imports it.

It reads requests from standard input: a line with a number of bytes, then as many bytes of JSON,
`{"seconds": int, "patterns": [[str, bool]], "names": [str]}`; the bool says whether a pattern must match all
of a name. It writes one JSON object a line for each pattern that came to an end on every name:
`{"fits": bool}`, false for one that Python does not take, which ends the request. If a request takes more
processor time than it says, the process ends by a signal. Any other end is Python's own failure.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from collections.abc import Sequence


def fits(pattern: str, whole: bool, names: Sequence[str]) -> bool:
    """Try a pattern on every name; False if it is none."""
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    match = compiled.fullmatch if whole else compiled.match
    for name in names:
        match(name)
    return True


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while line := sys.stdin.buffer.readline():
        task = json.loads(sys.stdin.buffer.read(int(line)))
        # SIGPROF's default action ends the process, in the middle of a match too.
        signal.setitimer(signal.ITIMER_PROF, task["seconds"])
        for pattern, whole in task["patterns"]:
            fitting = fits(pattern, whole, task["names"])
            sys.stdout.write(json.dumps({"fits": fitting}) + "\n")
            sys.stdout.flush()
            if not fitting:
                break
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
