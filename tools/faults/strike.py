"""Strike real commands at every system call, take the power from them at every moment, and write the table.

    python tools/faults/strike.py [--every 1] [--only export] [--page docs/reliability.md] [--jobs N]

Each scenario of tests/support/faults/scenarios.py runs on tiny models in a process with a preloaded shim. At
each of its system calls every error that a system may answer, half a write, SIGKILL, SIGINT and SIGTERM
strike in turn; then its writes are replayed, and every disk is looked at that a loss of power could leave.
After each the output must be whole, what was said one line with a cure, and the next run must end as if
nothing had been. Exits 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/support/faults"))

from campaign import Campaign, Scenario
from faults import SIGNALS, Commands, shim
from in_memory import memory_folder
from page import processor_seconds, write_figure, write_part
from scenarios import SCENARIOS, inputs

FIGURE = "injected fault points, over all commands, survived"


@dataclass(slots=True)
class Figures:
    """What one scenario went through.

    Args:
        scenario: its name.
        calls: system calls of an undisturbed run.
        errors, signals, disks: how often something struck, by its kind, or a disk after a loss of power.
        lost: what was wrong, in words.
        seconds: of processor time that it took.
    """

    scenario: str
    calls: int = 0
    errors: int = 0
    signals: int = 0
    disks: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def struck(self) -> int:
        return self.errors + self.signals + self.disks

    def row(self) -> str:
        return (
            f"| {self.scenario} | {self.calls} | {self.errors:,} | {self.signals:,} | {self.disks:,} "
            f"| {self.struck - len(self.lost):,} of {self.struck:,} | {self.seconds:.0f} |"
        )


def strike(scenario: Scenario, share: int, library: Path, home: Path, every: int, core: int) -> Figures:
    """A share of a scenario's faults, on one core; the first share has the losses of power too."""
    figures = Figures(scenario.name)
    place = Path(tempfile.mkdtemp(dir=home))
    with Commands(library, place / "own", scenario.imports, core) as commands:
        campaign = Campaign(commands, scenario, home / "inputs", place / "work")
        figures.calls = len(campaign.calls)
        for fault in itertools.islice(campaign.points(every=every), share, None, scenario.shares):
            outcome, wrong = campaign.strike(fault)
            figures.signals += fault.what in SIGNALS
            figures.errors += fault.what not in SIGNALS
            figures.lost += [f"{fault}, {outcome.kind} {Path(outcome.path).name}: {each}" for each in wrong]
        for name, wrong in () if share else campaign.lose_power(every=4 * scenario.sparse):
            figures.disks += 1
            figures.lost += [f"{name}: {each}" for each in wrong]
    figures.seconds = commands.processor
    shutil.rmtree(place)
    return figures


def together(shares: Sequence[Figures]) -> Figures:
    """The figures of all shares of a scenario."""
    whole = Figures(shares[0].scenario, shares[0].calls)
    for each in shares:
        whole.errors += each.errors
        whole.signals += each.signals
        whole.disks += each.disks
        whole.lost += each.lost
        whole.seconds += each.seconds
    return whole


COLUMNS = ("command", "calls", "errors", "signals", "disks after a power loss", "survived", "processor s")


def rewrite(page: Path, done: Sequence[Figures], command: str) -> None:
    """Put one run of all commands into the page."""
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    write_part(page, "strikes", "\n".join([*head, *(each.row() for each in done)]))
    struck, lost = sum(each.struck for each in done), sum(len(each.lost) for each in done)
    write_figure(page, FIGURE, f"{struck:,}, {(struck - lost) / struck:.2%}", command, processor_seconds())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="strike every n-th call only")
    parser.add_argument("--only", default="", help="the scenario of this name, or all that hold it")
    parser.add_argument("--page", type=Path, help="rewrite the figures of this page")
    cores = len(os.sched_getaffinity(0))
    # Two on each core: a command that waits (for a child, for a look at the machine's load) costs no time.
    parser.add_argument("--jobs", type=int, default=2 * cores, help="processes at once")
    options = parser.parse_args()
    if options.page and options.only:
        parser.error("--page takes the figures of all commands, in one run")
    with memory_folder() as name:
        home = Path(name)
        library = shim(home)
        if library is None:
            print("error: no C compiler for the shim; fix: apt-get install gcc", file=sys.stderr)
            return 5
        inputs(home / "inputs")
        exactly = [scenario for scenario in SCENARIOS if options.only == scenario.name]
        chosen = exactly or [scenario for scenario in SCENARIOS if options.only in scenario.name]

        free = queue.SimpleQueue[int]()
        for job in range(options.jobs):
            free.put(job)

        def run(task: tuple[Scenario, int]) -> Figures:
            job = free.get()
            figures = strike(*task, library, home, options.every, job)
            free.put(job)
            print(figures.row(), *(f"  LOST {line}" for line in figures.lost), sep="\n", flush=True)
            return figures

        tasks = [(scenario, share) for scenario in chosen for share in range(scenario.shares)]
        with ThreadPoolExecutor(options.jobs) as pool:
            done = list(pool.map(run, sorted(tasks, key=lambda task: -task[0].shares)))
    all_figures = [together([each for each in done if each.scenario == one.name]) for one in chosen]
    struck, lost = sum(each.struck for each in all_figures), sum(len(each.lost) for each in all_figures)
    print(f"{struck:,} faults, {lost} lost something; {processor_seconds():.0f} s of processor time")
    if options.page:
        every = f" --every {options.every}" if options.every > 1 else ""
        rewrite(options.page, all_figures, f"tools/faults/strike.py{every}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
