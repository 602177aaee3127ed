"""Real commands, struck at their system calls and by losses of power: nothing is lost, nothing is half there.

A part of what `make reliability` runs; its table is in docs/reliability.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from campaign import Campaign, Scenario
from faults import ELSEWHERE, Commands, Fault, calls, shim
from scenarios import SCENARIOS, inputs

Started = Callable[..., Campaign]
OUTPUTS = (
    "export",
    "export, replacing",
    "export, two types in parts",
    "export, merged folder",
    "export, adapter",
    "export, report, record and --keep-delta",
    "export, proof and its cache",
    "compare",
    "demo, its base unpacked",
)
NAMES = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Starts the campaign of a scenario, with a mutant of our code or without."""
    home = tmp_path_factory.mktemp("faults")
    library = shim(home)
    if library is None:
        pytest.skip("this machine has no C compiler for the shim, or no glibc")
    material = inputs(home / "inputs")
    running: dict[tuple[tuple[str, ...], bool], Commands] = {}

    def start(scenario: Scenario, mutant: str | None = None, *, warm: bool = True) -> Campaign:
        imports = (*scenario.imports, mutant) if mutant else scenario.imports
        if (imports, warm) not in running:
            running[imports, warm] = Commands(library, home / f"own-{len(running)}", imports)
        work = home / f"work-{scenario.name}-{mutant}-{warm}"
        return Campaign(running[imports, warm], scenario, material, work, warm=warm)

    yield start
    for commands in running.values():
        commands.close()


@pytest.mark.parametrize(("name", "every"), [("modelfile", 9), ("conversation, /save and history", 3)])
def test_a_file_is_there_or_not(started: Started, name: str, every: int) -> None:
    campaign = started(NAMES[name])
    wrong = [(str(fault), campaign.strike(fault)[1]) for fault in campaign.points(every=every)]
    assert len(wrong) > 8
    assert not [entry for entry in wrong if entry[1]]


def test_what_is_struck_is_what_was_asked_for(started: Started) -> None:
    """The counter counts: the struck call is the one of the undisturbed run, and it did fail."""
    campaign = started(NAMES["modelfile"])
    assert "write" in campaign.calls
    for number, kind in enumerate(campaign.calls, start=1):
        if kind == "write":
            outcome, _ = campaign.strike(Fault("ENOSPC", number))
            assert (outcome.kind, outcome.code) == ("write", 5)
            assert "the disk is full" in outcome.said


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_is_the_old_one_or_the_new_one(started: Started, name: str) -> None:
    campaign = started(NAMES[name])
    assert len(campaign.calls) > 50
    wrong = [(str(fault), campaign.strike(fault)[1]) for fault in campaign.points(every=71)]
    wrong += list(campaign.lose_power(every=80))
    assert not [entry for entry in wrong if entry[1]]


@pytest.mark.slow
def test_a_proof_that_cannot_read_says_so_and_keeps_the_export(started: Started) -> None:
    """It is neither a proof that failed nor a model that llama.cpp does not know."""
    campaign = started(NAMES["export, proof and its cache"])
    entries = [call for call in calls(campaign.log) if call.kind == "call"]
    opened = [
        (number, call.path.endswith("Modelfile"))
        for number, call in enumerate(entries, start=1)
        if call.second in ("open", "read") and call.path.endswith((".partial/Modelfile", ".gguf"))
    ]
    written = max(number for number, call in enumerate(entries, start=1) if call.path.endswith(".lock"))
    faults = [Fault("EIO", number) for number, modelfile in opened if modelfile]
    faults += [Fault("EACCES", n) for n, _ in opened if n < written and entries[n - 1].second == "open"]
    assert len(faults) > 4
    wrong = [(str(fault), campaign.strike(fault)[1]) for fault in faults]
    assert not [entry for entry in wrong if entry[1]]


@pytest.mark.parametrize(
    "name",
    [
        "conversation, /save and history",
        pytest.param("export, replacing", marks=pytest.mark.slow),
    ],
)
def test_a_file_system_that_cannot_do_a_thing_is_told_of(started: Started, name: str) -> None:
    """Network, overlay and FUSE file systems: no sync, no locks, no rename, a server that has gone."""
    campaign = started(NAMES[name])
    odd = [fault for fault in campaign.points() if fault.what in ELSEWHERE]
    assert {"EINVAL", "EOPNOTSUPP", "ESTALE", "EXDEV"} <= {fault.what for fault in odd}
    wrong = [(str(fault), campaign.strike(fault)[1]) for fault in odd]
    assert not [entry for entry in wrong if entry[1]]


@pytest.mark.slow
def test_too_little_memory_is_one_line(started: Started) -> None:
    """Without a look ahead libraries end the process: numba by a traceback, LLVM and the loader by abort."""
    campaign = started(NAMES["export"], warm=False)
    ended = {}
    for megabytes in (1, 8, 200, 260, 580, 700):
        outcome, wrong = campaign.starve(megabytes << 20)
        assert not wrong, (megabytes, wrong)
        ended[megabytes] = outcome.code
    assert ended[200] == 5 and ended[700] == 0, ended


@pytest.mark.slow
def test_a_training_run_goes_on_to_the_same_adapter(started: Started) -> None:
    campaign = started(NAMES["train"])
    wrong = [(str(fault), campaign.strike(fault)[1]) for fault in campaign.points(every=29)]
    assert len(wrong) > 5
    wrong += list(campaign.lose_power(every=90))
    assert not [entry for entry in wrong if entry[1]]


@pytest.mark.slow
def test_a_run_that_is_resumed_may_be_struck_again(started: Started) -> None:
    """Each file of the checkpoint too: torch opens its tensors by itself, and names the errno in words."""
    campaign = started(NAMES["train, resumed"])
    entries = [call for call in calls(campaign.log) if call.kind == "call"]
    tensors = [
        Fault("EIO", number)
        for number, call in enumerate(entries, start=1)
        if call.second == "open" and "/checkpoint-" in call.path and call.path.endswith(".safetensors")
    ]
    assert len(tensors) > 3
    wrong = [(str(fault), campaign.strike(fault)[1]) for fault in [*tensors, *campaign.points(every=61)]]
    assert not [entry for entry in wrong if entry[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    [None, *(f"mutants.{name}" for name in ("no_fsync", "renamed_first", "manifest_first", "swallowed"))],
)
def test_a_worse_commit_would_be_found(started: Started, mutant: str | None) -> None:
    """The judge is judged: it catches each mutant of the commit, and finds nothing in the commit as it is."""
    scenario = dataclasses.replace(NAMES["export"], kept=(".out*",))
    campaign = started(scenario, mutant)
    late = range(len(campaign.calls) - 40, len(campaign.calls) + 1)
    points = [fault for fault in campaign.points() if fault.what in ("EIO", "SIGKILL") and fault.at in late]
    found = any(campaign.strike(fault, recover=False)[1] for fault in points[::3])
    assert (found or any(wrong for _, wrong in campaign.lose_power(every=1000))) == (mutant is not None)
