"""The child process that tries patterns; `patterns.py` starts it by its path and never imports it.

It reads one JSON object from standard input, `{"seconds": int, "patterns": [[str, bool]], "names": [str]}`;
the bool says whether a pattern must match all of a name. Before each pattern it writes the pattern's number.
It ends with 0 if every pattern came to an end on every name, with 3 at one that Python does not take, and by
a signal if it took more processor time than that. Any other status is Python's own failure.
"""

from __future__ import annotations

import json
import re
import resource
import sys


def main() -> int:
    task = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (task["seconds"], task["seconds"] + 1))
    for number, (pattern, whole) in enumerate(task["patterns"]):
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            return 3
        match = compiled.fullmatch if whole else compiled.match
        for name in task["names"]:
            match(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
