"""Several workers on this machine, started as a user would start them: one worker's adapter, the same.

On the CPU, or on GPUs where there are any; where there is only one, two workers share it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_base import tiny_base
from tiny_run import same_files, steady

from lorafold.errors import UsageError
from lorafold.train.saved.curve import read_metrics
from lorafold.train.workers import join

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 4) + str(i)} for i in range(24)]
STEPS = 12
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# With `--cpu` it would start one process; this way is taken on a machine without a GPU too.
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]

GPUS = torch.cuda.device_count()
WHERE = "cuda" if GPUS else "cpu"
# NCCL refuses two workers of one machine the same GPU: to it they are on two machines.
SHARED = """
import os
os.environ |= {"LOCAL_RANK": "0", "NCCL_HOSTID": os.environ.get("RANK", "0"), "NCCL_SOCKET_IFNAME": "lo"}
"""
ONE = """
import sys
from lorafold.cli import main
sys.exit(main(sys.argv[1:]))
"""
# Runs one command after the other on the same workers, which have imported everything by then.
SEVERAL = """
import json, sys
from lorafold.cli import main
for command in json.loads(sys.argv[1]):
    assert main(command) == 0, command
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    tiny_base(folder / "base")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shared = SHARED if GPUS == 1 else ""
    (folder / "several.py").write_text(shared + SEVERAL)
    (folder / "one.py").write_text(shared + ONE)
    return folder


def lorafold(place: Path) -> list[str]:
    """What a launcher is to start: the command, as a user names it where each worker has its own GPU."""
    return [str(place / "one.py")] if GPUS == 1 else ["-m", "lorafold"]


def command(place: Path, out: str, *flags: str, workers: int = 2, steps: int = STEPS) -> list[str]:
    """A run in which all workers together see 4 examples a step."""
    train = [
        "train",
        "--base",
        str(place / "base"),
        "--data",
        str(place / "d.jsonl"),
        "--out",
        str(place / out),
    ]
    train += ["--learning-rate", "5e-3", "--max-steps", str(steps), "--eval-split", "0.2"]
    train += ["--per-device-train-batch-size", "1", "--gradient-accumulation-steps", str(4 // workers)]
    return [*train, *flags]


def start(launcher: list[str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(launcher: list[str], *arguments: str) -> tuple[int, str, str]:
    process = start(launcher, *arguments)
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.terminate()  # torchrun ends its workers; without effect where it has ended
    return process.returncode, out, err


QLORA = ("--method", "qlora")


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    commands = [command(place, "alone", workers=1), command(place, "alone-qlora", *QLORA, workers=1)]
    done(*run([str(place / "several.py")], json.dumps(commands)))
    return place / "alone"


def done(code: int, out: str, err: str) -> str:
    """What a run printed that has ended well."""
    assert code == 0, err[:6000]
    assert "capture failed" not in out, out
    assert "Warning" not in err, err[:6000]
    return out


def same(one: Path, other: Path) -> None:
    """In float32 to rounding; on a GPU, which computes in bfloat16, by the losses."""
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    if not GPUS:
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-5)
    for left, right in zip(*(read_metrics(f / "metrics.jsonl") for f in (one, other)), strict=True):
        for key in {"loss", "eval_loss"} & set(left):
            assert left[key] == pytest.approx(right[key], rel=2e-3 if GPUS else 1e-4)


# name -> what two workers are told, and the run of one worker that it is to equal
WAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "packed": (("--packing", "--packing-length", "1100"), "alone"),
    "fsdp": (("--fsdp",), "alone"),
    "qlora": (QLORA, "alone-qlora"),
    "qlora-fsdp": ((*QLORA, "--fsdp"), "alone-qlora"),
}
MORE = 150 if GPUS else 40  # steps of the run that is stopped and killed on its way
DROPOUT = ("--lora-dropout", "0.1")


@pytest.fixture(scope="module")
def together(place: Path) -> str:
    """Two workers do one run after the other in each of the ways; what they say."""
    commands = [command(place, name, *flags) for name, (flags, _) in WAYS.items()]
    commands.append(command(place, "undisturbed", *DROPOUT, steps=MORE))
    return done(*run(TORCHRUN, str(place / "several.py"), json.dumps(commands)))


def test_packed_and_sharded(place: Path, alone: Path, together: str) -> None:
    assert together.count(f"computed on 2 × {WHERE}") == len(WAYS) + 1, together
    assert together.count(f"{STEPS} steps") == len(WAYS)
    for name, (_, single) in WAYS.items():
        same(place / name, place / single)
        assert not (place / f"{name}.run").exists()


def newest(folder: Path) -> int:
    """The step of the newest whole checkpoint; 0 where there is none."""
    return max((int(p.parent.name[11:]) for p in folder.glob("checkpoint-*/lorafold.json")), default=0)


def test_stopped_killed_and_resumed(place: Path, together: str) -> None:
    """SIGTERM to the launcher saves; SIGKILL to all loses a step; the end is bitwise the undisturbed one's.

    With dropout, of which every worker draws its own.
    """
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not list a process's children")
    train = command(place, "resumed", *DROPOUT, steps=MORE)
    folder = place / "resumed.run"
    process = start(TORCHRUN, *lorafold(place), *train, "--save-steps", "0")
    while process.poll() is None and not read_metrics(folder / "metrics.jsonl"):
        time.sleep(0.01)
    process.terminate()
    out, err = process.communicate(timeout=60)
    stopped = newest(folder)
    assert process.returncode != 0 and 0 < stopped < MORE, err[-2000:]
    assert out.count("by SIGTERM, saved in") == 1 and "Traceback" not in out, out

    process = start(TORCHRUN, *lorafold(place), *train, "--resume", "--save-steps", "1")
    while process.poll() is None and newest(folder) < stopped + 2:
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, workers)):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (place / "resumed").exists()

    out = done(*run(TORCHRUN, *lorafold(place), *train, "--resume"))
    assert out.count("resumed at step") == 1 and out.count(f"{MORE} steps") == 1
    assert "not bitwise" not in out, out
    resumed, undisturbed = steady(place / "resumed"), steady(place / "undisturbed")
    if GPUS:  # a size is launched again before it is a graph again, which rounds otherwise
        assert [row["step"] for row in resumed] == [row["step"] for row in undisturbed]
        apart = [abs(a["loss"] - b["loss"]) for a, b in zip(resumed, undisturbed, strict=True) if "loss" in a]
        assert sum(apart) / len(apart) < 0.05, apart
    else:
        assert same_files(place / "resumed", place / "undisturbed", ("adapter_model.safetensors",))
        assert resumed == undisturbed


def test_accelerate_launch(place: Path, alone: Path) -> None:
    out = done(*run(ACCELERATE, *lorafold(place), *command(place, "accelerated")))
    assert out.count(f"computed on 2 × {WHERE}") == 1
    same(place / "accelerated", alone)


# Who meets an error, and who is later than the others.
APART = """
import sys, time
from lorafold.errors import InputError
from lorafold.train import workers
workers._HEAD_START = 4.0
with workers.join() as own:
    if sys.argv[1] == "all" and own.first:
        time.sleep(2)
    if sys.argv[1] == "all" or not own.first:
        raise InputError(f"met by {own.rank}", at="here", fix="none")
    own.wait()
"""


@pytest.mark.parametrize(("who", "speaker"), [("all", 0), ("second", 1)])
def test_an_error_is_said_by_the_first_who_meets_it(place: Path, who: str, speaker: int) -> None:
    """Not swallowed where the launcher ends the first worker because another was quicker to fail."""
    (place / "apart.py").write_text((SHARED if GPUS == 1 else "") + APART)
    code, _, err = run(TORCHRUN, str(place / "apart.py"), who)
    said = [line for line in err.splitlines() if "InputError: " in line]
    assert code != 0 and len(said) == 1 and f"met by {speaker}" in said[0], err


def test_more_workers_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="worker 2 has no GPU, this machine has 2"), join():
        pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--target-modules", "no_such_module"), "peft refuses this adapter"),
        (("--eval-data", "d.pkl"), "a pickle can run any code"),
    ],
)
def test_an_error_is_said_once(place: Path, flags: tuple[str, str], message: str) -> None:
    (place / "d.pkl").write_bytes(b"")
    train = command(place, "wrong", *(str(place / flag) if flag == "d.pkl" else flag for flag in flags))
    code, _, err = run(TORCHRUN, *lorafold(place), *train)
    assert code != 0
    assert err.count(message) == 1, err[-2000:]
    assert not (place / "wrong").exists() and not (place / "wrong.run").exists()
