"""Strike real commands at every system call, take the power from them at every moment, and write the table.

    python tools/faults/strike.py [--every 1] [--only export] [--page docs/reliability.md] [--jobs 2]

Each scenario of tests/support/faults/scenarios.py runs on tiny models in a process with a preloaded shim. At
each of its system calls every error that a system may answer, half a write, SIGKILL, SIGINT and SIGTERM
strike in turn; then its writes are replayed, and every disk is looked at that a loss of power could leave.
After each the output must be whole, what was said one line with a cure, and the next run must end as if
nothing had been. Exits 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/support/faults"))

from campaign import Campaign, Scenario
from faults import SIGNALS, Commands, shim
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


def strike(scenario: Scenario, library: Path, material: Path, place: Path, every: int) -> Figures:
    """All faults of one scenario."""
    figures = Figures(scenario.name)
    with Commands(library, place / "own", scenario.imports) as commands:
        campaign = Campaign(commands, scenario, material, place / "work")
        figures.calls = len(campaign.calls)
        kinds = Counter[str]()
        for fault in campaign.points(every=every):
            kinds["signal" if fault.what in SIGNALS else "error"] += 1
            recover = fault.what == "SIGKILL" or kinds.total() % 8 == 0
            outcome, wrong = campaign.strike(fault, recover=recover)
            figures.lost += [f"{fault}, {outcome.kind} {Path(outcome.path).name}: {each}" for each in wrong]
        figures.errors, figures.signals = kinds["error"], kinds["signal"]
        for name, wrong in campaign.lose_power(every=8):
            figures.disks += 1
            figures.lost += [f"{name}: {each}" for each in wrong]
        figures.seconds = commands.processor
    return figures


def table(rows: Iterable[Figures], every: int) -> str:
    """The page's part."""
    columns = ("command", "calls", "errors", "signals", "disks after a power loss", "survived", "processor s")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    each_call = "each system call" if every == 1 else f"every {every}th system call"
    return "\n".join([f"What strikes {each_call}:", "", head, *(each.row() for each in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="strike every n-th call only")
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--page", type=Path, help="rewrite the figures of this page")
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        library = shim(home)
        if library is None:
            print("error: no C compiler for the shim; fix: apt-get install gcc", file=sys.stderr)
            return 5
        material = inputs(home / "inputs")
        chosen = [scenario for scenario in SCENARIOS if options.only in scenario.name]

        def run(number: int) -> Figures:
            place = home / str(number)
            place.mkdir()
            figures = strike(chosen[number], library, material, place, options.every)
            print(figures.row(), *(f"  LOST {line}" for line in figures.lost), sep="\n", flush=True)
            return figures

        with ThreadPoolExecutor(options.jobs) as pool:
            all_figures = list(pool.map(run, range(len(chosen))))
    struck, lost = sum(each.struck for each in all_figures), sum(len(each.lost) for each in all_figures)
    print(table(all_figures, options.every), f"{struck:,} faults, {lost} lost something", sep="\n\n")
    if options.page:
        write_part(options.page, "strikes", table(all_figures, options.every))
        shown = f"{struck:,}, {(struck - lost) / struck:.2%}"
        command = "tools/faults/strike.py" + (f" --every {options.every}" if options.every > 1 else "")
        write_figure(options.page, FIGURE, shown, command, processor_seconds())
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
