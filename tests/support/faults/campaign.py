"""What a struck command must leave behind, and the runs that show it.

Whatever strikes, and whenever: the output is the complete old one or the complete new one; what is said is
one line with a cure, and no traceback; nothing of ours lies about; the same command, run again, ends as if
nothing had been.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from faults import ERRORS, SIGNALS, Commands, Fault, Outcome, calls
from power import KINDS, Disk, moments

from lorafold.artifacts import MANIFEST, read_whole

# Exit codes of what the system refuses: the environment, or an input that cannot be read.
REFUSED = (3, 5)
SIGNALLED = {"SIGKILL": (-9,), "SIGINT": (130,), "SIGTERM": (143,)}

Tree = dict[str, str]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command, and the places that it writes to.

    Args:
        name: in reports.
        argv: of the command; paths relative to the work folder.
        outputs: files and folders in the work folder that the command makes, each whole or absent.
        kept: hidden or unfinished things that may stay for a later run, as patterns of names.
        resume: added to `argv` when the command is run again and something kept is there.
        before: an older state of the outputs is there and is replaced.
        again: the command may be run over its own output, and is after every failure.
        imports: what the warm process loads.
        hidden: patterns of names inside outputs that differ between equal runs, or after an interruption; of
            a manifest among them it counts whether its folder is as it says.
        varies: what differs in the files of equal runs (times), as a regular expression.
        begun: the command goes on with what one left that was killed after this share of its calls.
        sparse: only every n-th call is struck, of a command that takes long.
        reads: of those calls that change nothing every n-th: other commands read the same files.
        shares: processes that its faults are divided among, if there are so many.
    """

    name: str
    argv: tuple[str, ...]
    imports: tuple[str, ...]
    outputs: tuple[str, ...] = ("out",)
    kept: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    before: bool = False
    again: bool = False
    hidden: tuple[str, ...] = ()
    varies: bytes = b""
    begun: float = 0.0
    sparse: int = 1
    reads: int = 1
    shares: int = 1


def _is_hidden(name: Path, scenario: Scenario) -> bool:
    return any(Path(part).match(kind) for part in name.parts for kind in scenario.hidden)


def _sha256(path: Path, varies: bytes = b"") -> str:
    content = path.read_bytes()
    return hashlib.sha256(re.sub(varies, b"", content) if varies else content).hexdigest()


def tree(work: Path, scenario: Scenario) -> Tree:
    """Every file of the outputs with the sha256 of its bytes; empty if there is none."""
    found: Tree = {}
    for output in scenario.outputs:
        place = work / output
        files = [place] if place.is_file() else sorted(place.rglob("*")) if place.is_dir() else []
        if place.is_dir():
            found[output] = "folder"
        for path in files:
            name = path.relative_to(work)
            if path.is_file() and not _is_hidden(name, scenario):
                found[name.as_posix()] = _sha256(path, scenario.varies)
            elif MANIFEST in scenario.hidden and path == place / MANIFEST:
                found[name.as_posix()] = "whole" if read_whole(place) else "damaged"
    return found


def _whole(folder: Path, varies: bytes = b"") -> Tree:
    """Every file and folder below a folder, with the sha256 of its bytes."""
    return {
        path.relative_to(folder).as_posix(): _sha256(path, varies) if path.is_file() else ""
        for path in folder.rglob("*")
    }


class Campaign:
    """One scenario in a work folder that is put back before every run.

    Args:
        commands: the warm process.
        scenario: what runs.
        inputs: a folder whose content the work folder starts with.
        work: the work folder, made here.
        warm: run the command in the warm process first, so that each fork has what it loads.

    Attributes:
        old, new: the outputs before and after an undisturbed run.
        calls: the kind of each call of an undisturbed run.
    """

    def __init__(
        self, commands: Commands, scenario: Scenario, inputs: Path, work: Path, *, warm: bool = True
    ) -> None:
        self.commands, self.scenario, self.work = commands, scenario, work
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(inputs, work)
        self.inputs = {path.name for path in work.iterdir()}
        self._older = work.with_name(f"{work.name}-older")
        shutil.rmtree(self._older, ignore_errors=True)
        self._older.mkdir()
        self._recovered = set[str]()
        if warm:
            commands.warm(list(scenario.argv), work)
            self.reset()
        if scenario.before:
            self._make_older()
        if scenario.begun:
            self._begin()
        self.old = tree(work, scenario)
        self.log = work.with_name(f"{work.name}-calls")
        self.log.unlink(missing_ok=True)
        self._run(self.log)
        self.new = tree(work, scenario)
        self.calls = [call.second for call in calls(self.log) if call.kind == "call"]
        assert self.new and self.new != self.old, scenario.name

    def _make_older(self) -> None:
        """An output of the same command, marked by one file more, stands where the new one will be."""
        self._run()
        for output in self.scenario.outputs:
            place = self.work / output
            if place.is_dir():
                (place / "older").write_text("of the run before\n")
            elif place.exists():
                place.write_text("of the run before\n")
            if place.exists():
                place.rename(self._older / output)
        self.reset()

    def _begin(self) -> None:
        """What a killed run of the same command left lies there when the command begins."""
        whole = self._run()
        self.reset()
        killed = self.commands.run(
            list(self.scenario.argv), self.work, Fault("SIGKILL", int(self.scenario.begun * whole.calls))
        )
        left = [path for kind in self.scenario.kept for path in self.work.glob(kind)]
        assert killed.code == SIGNALLED["SIGKILL"][0] and left, killed.said
        for path in left:
            path.rename(self._older / path.name)
        self.reset()

    def _run(self, log: Path | None = None) -> Outcome:
        """The command without a fault."""
        outcome = self.commands.run(list(self.scenario.argv), self.work, log=log)
        assert outcome.code == 0, outcome.said
        return outcome

    def reset(self) -> None:
        """The state before the command."""
        for path in self.work.iterdir():
            if path.name not in self.inputs:
                path.unlink() if path.is_file() or path.is_symlink() else shutil.rmtree(path)
        shutil.copytree(self._older, self.work, dirs_exist_ok=True)

    def strike(self, fault: Fault, *, recover: bool = True, memory: int = 0) -> tuple[Outcome, list[str]]:
        """Run the command once with a fault; what it did, and what is wrong with that.

        From every state of the work folder that a fault leaves, the command is run again, once.

        Args:
            fault: that strikes it.
            recover: run it again.
            memory: bytes of address space that it may take beyond what the warm process has; 0: no limit.
        """
        self.reset()
        outcome = self.commands.run(list(self.scenario.argv), self.work, fault, memory=memory)
        wrong = list(self._wrong(fault, outcome))
        unfinished = tree(self.work, self.scenario) != self.new or (self.scenario.again and outcome.code != 0)
        if recover and not wrong and unfinished and self._is_unmet():
            wrong = list(self._next_run())
        return outcome, wrong

    def starve(self, memory: int) -> tuple[Outcome, list[str]]:
        """Run the command once with so little memory, and then with enough; as `strike` answers."""
        return self.strike(Fault(), memory=memory)

    def _is_unmet(self) -> bool:
        """Whether the work folder is in a state from which no run was started yet; now one is."""
        files = {
            name: digest
            if not _is_hidden(Path(name), self.scenario)
            else str((self.work / name).stat().st_size)
            for name, digest in _whole(self.work, self.scenario.varies).items()
        }
        state = re.sub(r"\.\d+\.partial", ".partial", str(sorted(files.items())))
        met = state in self._recovered
        self._recovered.add(state)
        return not met

    def lose_power(self, *, every: int = 1) -> Iterator[tuple[str, list[str]]]:
        """Every disk that a loss of power may leave, each once; its name, and what is wrong with it.

        Args:
            every: of the disks that differ, the command is run again on every n-th.
        """
        self.reset()
        disk, met = Disk(self.work), set[str]()
        for moment in moments(disk, calls(self.log)):
            for kind in KINDS:
                shutil.rmtree(self.work)
                disk.write(self.work, kind, moment)
                left = str(sorted(_whole(self.work).items()))
                if left in met:
                    continue
                met.add(left)
                state = tree(self.work, self.scenario)
                wrong = []
                if state not in (self.old, self.new):
                    wrong = ["the output is neither the old nor the new one: " + self._differs(state)]
                elif state != self.new and len(met) % every == 0:
                    wrong = list(self._next_run())
                yield f"{kind} after entry {moment}", wrong

    def _next_run(self) -> Iterator[str]:
        """What is wrong with the same command, run once more without a fault."""
        resumed = any(any(self.work.glob(kind)) for kind in self.scenario.kept)
        more = self.scenario.resume if resumed else ()
        again = self.commands.run([*self.scenario.argv, *more], self.work)
        made = tree(self.work, self.scenario)
        if again.code != 0:
            yield f"the next run ends with {again.code}: {again.said.strip()[-300:]}"
        elif made != self.new:
            yield "the next run makes something else: " + self._differs(made)
        elif left := self._left():
            yield f"the next run leaves {', '.join(left)}"

    def _wrong(self, fault: Fault, outcome: Outcome) -> Iterator[str]:
        state = tree(self.work, self.scenario)
        if state not in (self.old, self.new):
            yield "the output is neither the old nor the new one: " + self._differs(state)
        if outcome.code is None:
            yield "it hangs"
        if "Traceback" in outcome.said:
            yield "a traceback: " + outcome.said.strip().splitlines()[-1][:200]
            return
        if outcome.code == 0:
            if state != self.new:
                yield "it says that it worked, and did not"
            return
        if fault.what in SIGNALS:
            if outcome.code not in SIGNALLED[fault.what]:
                yield f"it ends with {outcome.code} after {fault.what}: {outcome.said.strip()[-200:]}"
        elif outcome.code not in REFUSED:
            yield f"it ends with {outcome.code}: {outcome.said.strip()[-200:]}"
        elif (
            sum(line.startswith("error: ") for line in outcome.said.splitlines()) != 1
            or "; fix: " not in outcome.said
        ):
            yield "not one line with a cure: " + outcome.said.strip()[-300:]
        left = self._left()
        if fault.what in SIGNALS:  # between the making of a lock and its guard: the next run removes it
            left = [name for name in left if not name.endswith(".lock")]
        if fault.what != "SIGKILL" and outcome.kind != "unlink" and left:
            yield f"it leaves {', '.join(left)}"

    def _left(self) -> list[str]:
        """What lies in the work folder that is neither an input nor an output."""
        allowed = self.inputs | set(self.scenario.outputs)
        names = (path for path in self.work.iterdir() if path.name not in allowed)
        return sorted(path.name for path in names if not any(path.match(kind) for kind in self.scenario.kept))

    def _differs(self, state: Tree) -> str:
        names = sorted(set(state.items()) ^ set(self.new.items()))
        return ", ".join(sorted({name for name, _ in names})) or "the old one"

    def points(self, *, every: int = 1) -> Iterator[Fault]:
        """What may strike each call (or every n-th): all that a system may answer to it, and each signal.

        A call that changes nothing leaves the disk of the call before: it gets one of the signals, in turn.
        """
        every *= self.scenario.sparse
        for number, kind in enumerate(self.calls, start=1):
            quiet = kind in ("open", "read")
            if number % every == 0 and not (quiet and number // every % self.scenario.reads):
                one = number // every % len(SIGNALS)
                signals = SIGNALS[one : one + 1] if quiet else SIGNALS
                for what in (*ERRORS[kind], *signals):
                    yield Fault(what, number)
