"""Give every parser changed files, by the million, and look for a traceback, a crash, a hang, or much memory.

    python tools/faults/fuzz.py [--only gguf,index] [--seconds 60] [--jobs 2] [--keep FOLDER]
    python tools/faults/fuzz.py --minutes 600 --until 1000000 --jobs 2   # what `make fuzz` runs

The parsers and the files that they read without complaint are tests/support/hostile/. With the package
`atheris` (a tool for development, `pip install atheris`) a share of the time goes to inputs that reach new
code; they are kept in --corpus, and all inputs are changed copies of what is there. Each parser runs in a
child (fuzz_child.py): one that dies of a signal, works on one input for more than 5 seconds of processor
time, or takes more than 1 GB beyond what it began with is found by it. What is found is kept in --keep;
tests/support/hostile/corpus has what once broke. Counts add up over runs (fuzzed.py), for as long as the
parser's code is the same. Exits 1 if anything was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import fuzzed
from fuzz_child import Board
from fuzzed import LEDGER, Standing
from in_memory import memory_folder
from page import processor_seconds, write_figure, write_part

CHILD = Path(__file__).with_name("fuzz_child.py")
HANG, SILENCE = 5.0, 60.0  # seconds of one input: of processor time, by the clock
AIM = 1_000_000
FIGURE = "fuzz inputs a parser without traceback, crash, hang over 5 s or growth past 1 GB"


@dataclass(slots=True)
class Figures:
    """What one parser went through in one run.

    Attributes:
        inputs: how many it was given.
        guided: how many of them by coverage.
        seconds: of processor time that this took.
        modules: of the product that it ran.
        finds: where it broke → (what it said, the input).
    """

    name: str
    inputs: int = 0
    guided: int = 0
    seconds: float = 0.0
    modules: set[str] = field(default_factory=set)
    finds: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def standing(self) -> Standing:
        """As the ledger keeps it."""
        code = fuzzed.digest(self.modules)
        seconds, finds = round(self.seconds, 1), len(self.finds)
        return Standing(sorted(self.modules), code, self.inputs, self.guided, 1, seconds, finds)


def fuzz(name: str, inputs: int, seconds: float, guided: float, corpus: Path) -> Figures:
    """Fuzz one parser, in as many children as die of it.

    Args:
        name: of the parser.
        inputs: after which it is enough.
        seconds: after which it is enough.
        guided: share of the time that is guided by coverage.
        corpus: folder of the inputs that reached new code.
    """
    figures, began = Figures(name), time.monotonic()
    corpus.mkdir(parents=True, exist_ok=True)
    with memory_folder() as folder:
        for number in range(200):
            spent = time.monotonic() - began
            if spent >= seconds or figures.inputs >= inputs:
                break
            by_coverage = spent < guided * seconds
            left = guided * seconds - spent if by_coverage else seconds - spent
            place = Path(folder) / str(number)
            (place / "files").mkdir(parents=True)
            _child(figures, place, corpus, inputs - figures.inputs, left, by_coverage)
            if not figures.inputs and not by_coverage:  # a last one, with too little time, may be without any
                raise SystemExit(f"error: the child of {name} did not begin within {left:.0f} s")
    return figures


def _child(
    figures: Figures, place: Path, corpus: Path, inputs: int, seconds: float, by_coverage: bool
) -> None:
    board = Board(place / "board")
    seed = int.from_bytes(os.urandom(4), "little")
    words = [sys.executable, str(CHILD), figures.name, str(place / "files"), str(corpus)]
    words += [str(inputs), str(seconds), str(seed), *["--guided"] * by_coverage]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(place)}
    with (place / "said").open("wb") as said, (place / "errors").open("wb") as errors:
        child = subprocess.Popen(words, stdout=said, stderr=errors, env=quiet, start_new_session=True)
        why, status, used = _watch(child.pid, board)
        child.returncode = status
    figures.seconds += used
    count, data = board.read()
    figures.inputs += count
    figures.guided += count if by_coverage else 0
    for line in (place / "said").read_text().splitlines():
        if line.startswith('{"modules"'):
            figures.modules |= set(json.loads(line)["modules"])
        elif line.startswith('{"where"'):
            found = json.loads(line)
            figures.finds.setdefault(found["where"], (found["said"], bytes.fromhex(found["input"])))
    if not why and status:
        why = f"ended with {status}"
    if why and count:
        last = (place / "errors").read_text(errors="replace").strip().splitlines()[-1:]
        figures.finds.setdefault(f"{why} ({''.join(last)[:60]})", (" ".join(last)[:200], data))
    elif why:
        raise SystemExit((place / "errors").read_text(errors="replace"))


def _watch(pid: int, board: Board) -> tuple[str, int, float]:
    """Wait for a child; why it had to be ended, its exit code, and the processor seconds that it took."""
    seen, since, used = -1, time.monotonic(), 0.0
    why = ""
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return why, os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        count, _ = board.read()
        if count != seen:
            seen, since, used = count, time.monotonic(), _used(pid)
        elif count and (_used(pid) - used > HANG or time.monotonic() - since > SILENCE):
            why = f"hang of over {HANG:g} s"
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.05)


def _used(pid: int) -> float:
    """Processor seconds of a running process, where the system tells; else those of the clock."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafold-fuzz"
    parser.add_argument("--only", default="", help="parsers whose name holds one of these, with commas")
    parser.add_argument("--seconds", type=float, default=60, help="of one turn of a parser")
    parser.add_argument("--minutes", type=float, default=0, help="go on in turns; 0: one turn for each")
    parser.add_argument(
        "--until", type=int, default=AIM, help="inputs after which a parser has no more turns"
    )
    parser.add_argument("--guided", type=float, default=0.2, help="share of a turn guided by coverage")
    parser.add_argument("--jobs", type=int, default=1, help="parsers at once")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that broke something")
    parser.add_argument("--corpus", type=Path, default=cache, help="folder for what reached new code")
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="file of the counts")
    parser.add_argument("--page", type=Path, help="rewrite the figures of this page")
    parser.add_argument("--count", action="store_true", help="only show the counts")
    options = parser.parse_args()
    names = [name for name in _parsers() if any(part in name for part in options.only.split(","))]
    broke = False if options.count else _turns(names, options)
    standings = fuzzed.read(options.ledger)
    if options.page:  # all of them: it tells what the code at hand has taken, whoever had a turn today
        _write_page(options.page, {name: standings.get(name) for name in _parsers()})
    if options.count:
        print("\n".join((_HEAD, *(_row(name, standings.get(name)) for name in names))))
    return 1 if broke else 0


def _parsers() -> list[str]:
    from hostile.all_targets import TARGETS

    return list(TARGETS)


def _turns(names: list[str], options: argparse.Namespace) -> bool:
    """Give parsers their turns: each one, then those that need least time to the aim; whether one broke."""
    end = time.monotonic() + 60 * options.minutes
    guided = options.guided if importlib.util.find_spec("atheris") else 0.0

    def turn(name: str) -> bool:
        row = fuzzed.read(options.ledger).get(name)
        wanted = options.until - row.inputs if options.minutes and row else options.until
        figures = fuzz(name, wanted, options.seconds, guided, options.corpus / name)
        standing = fuzzed.add(options.ledger, name, figures.standing())
        print(_row(name, standing), flush=True)
        for where, (said, data) in figures.finds.items():
            print(f"  FOUND {where}: {said}", flush=True)
            if options.keep:
                kept = options.keep / name / sha256(data).hexdigest()[:12]
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(data)
        return bool(figures.finds)

    def waiting() -> list[str]:
        standings = fuzzed.read(options.ledger)
        left = [name for name in names if name not in standings or standings[name].inputs < options.until]
        return sorted(left, key=lambda name: _left(standings.get(name), options.until))

    with ThreadPoolExecutor(options.jobs) as pool:
        if not options.minutes:
            return any(list(pool.map(turn, names)))
        broke = False
        while time.monotonic() < end and (next_ones := waiting()[: options.jobs]):
            broke |= any(list(pool.map(turn, next_ones)))
    return broke


def _left(row: Standing | None, until: int) -> float:
    """Processor seconds that a parser still needs, at the rate that it has had; none if that is not known."""
    return row.seconds * (until - row.inputs) / row.inputs if row and row.inputs else 0.0


_HEAD = """\
| parser | inputs | by coverage | runs | a second | found | code |
|---|---|---|---|---|---|---|"""


def _row(name: str, row: Standing | None) -> str:
    if row is None:
        return f"| {name} | 0 | 0 | 0 | | 0 | |"
    rate = f"{row.inputs / row.seconds:,.0f}" if row.seconds else ""
    return f"| {name} | {row.inputs:,} | {row.guided:,} | {row.runs} | {rate} | {row.finds} | {row.code} |"


def _write_page(page: Path, standings: dict[str, Standing | None]) -> None:
    write_part(page, "fuzz", "\n".join((_HEAD, *(_row(*each) for each in standings.items()))))
    inputs = [row.inputs if row else 0 for row in standings.values()]
    finds = sum(row.finds for row in standings.values() if row)
    there = sum(count >= AIM for count in inputs)
    measured = (
        f"{there} of {len(inputs)} parsers at {AIM:,}, the others from {min(inputs):,}; "
        f"{sum(inputs):,} in all; {finds} finds"
    )
    seconds = sum(row.seconds for row in standings.values() if row)
    write_figure(page, FIGURE, measured, "tools/faults/fuzz.py", max(seconds, processor_seconds()))


if __name__ == "__main__":
    sys.exit(main())
