"""Give the command line everything that a stranger may have made, and see that each ends as it must.

    python tools/faults/hostile_words.py [--only GGUF] [--page docs/reliability.md]

The files are those of tests/support/hostile/wrong_files.py. Exits 1 if a command ended otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/support/material")]

from hostile.words import judged  # noqa: E402
from page import processor_seconds, write_figure, write_part  # noqa: E402

FIGURE = "hostile inputs with the right exit code and one line"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--page", type=Path, help="rewrite the figures of this page")
    options = parser.parse_args()
    right, wrong = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"HF_HUB_OFFLINE": "1", "LORAFOLD_CACHE": str(Path(name) / "cache")}
        for words, problem in judged(Path(name), lambda _, words: options.only in words.name):
            (wrong if problem else right)[words.kind] += 1
            if problem:
                print(f"{words.name}: {problem}", flush=True)
    print(f"{right.total():,} of {right.total() + wrong.total():,} ended as they must")
    if options.page:
        rows = [f"| {kind} | {right[kind]:,} of {right[kind] + wrong[kind]:,} |" for kind in right | wrong]
        write_part(options.page, "words", "\n".join(["| about | right |\n|---|---|", *rows]))
        measured = f"{right.total():,} of {right.total() + wrong.total():,}"
        write_figure(options.page, FIGURE, measured, "tools/faults/hostile_words.py", processor_seconds())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
