"""Kill training runs by SIGKILL at random moments, resume them, and compare with the undisturbed run.

    python tools/faults/kill_train.py [--kills 100] [--seed 0]

Each run is killed and resumed until it finishes, then compared bitwise with an undisturbed one. Between the
kills every checkpoint in the run's folder is judged from outside: is it whole? Prints the figures, among
them how many kills fell into the writing of a checkpoint; exits 1 if a run ended differently or a checkpoint
that is not whole carried its final name.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from resume_train import fingerprint, in_child, make_config

from lorafold.artifacts import damaged_files, read_manifest
from lorafold.train import TrainConfig, train
from lorafold.train.saved.checkpoints import list_checkpoints
from lorafold.train.saved.unfinished import run_folder


def run_and_kill(config: TrainConfig, after: float) -> float | None:
    """Start a run in a child and kill it after some seconds; the seconds it took if it finished before."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            train(config)
            os._exit(0)
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    ended, status = 0, 0
    while not ended and time.monotonic() - began < after:
        time.sleep(0.005)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the run failed by itself"
    return time.monotonic() - began if os.WIFEXITED(status) else None


def judge(run: Path, counts: Counter[str]) -> None:
    """Count the checkpoints that carry a final name and are not whole."""
    counts["with checkpoints"] += bool(list_checkpoints(run))
    counts["in mid-write"] += any(run.glob(".checkpoint-*.partial"))
    for path in list_checkpoints(run):
        manifest = read_manifest(path)
        counts["checkpoints seen"] += 1
        counts["not whole"] += manifest is None or bool(damaged_files(path, manifest))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    # Imported before the forks: a child spends its time in training, where it is to be killed.
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    torch.set_num_threads(1)
    draw, counts = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        # A checkpoint after every step: most moments lie in the writing of one.
        config = dataclasses.replace(make_config(Path(name)), save_steps=1)
        began = time.monotonic()
        assert in_child(lambda: train(config)) == 0
        whole = time.monotonic() - began
        expected = fingerprint(config.output)
        while counts["kills"] < options.kills:
            parted = dataclasses.replace(config, out=Path(name) / f"run-{counts['runs']}")
            took, before = None, counts["kills"]
            while took is None and counts["kills"] < options.kills:
                took = run_and_kill(parted, draw.uniform(0.1, 0.9) * whole)
                if took is None:
                    counts["kills"] += 1
                    judge(run_folder(parted.output), counts)
                elif counts["kills"] == before:
                    whole = took  # of a whole run: the machine had other work when the first one was timed
            if took is None:
                assert in_child(lambda parted=parted: train(parted)) == 0
            counts["runs"] += 1
            counts["different"] += fingerprint(parted.output) != expected
    shown = (
        "kills",
        "with checkpoints",
        "in mid-write",
        "checkpoints seen",
        "not whole",
        "runs",
        "different",
    )
    print(", ".join(f"{key} {counts[key]}" for key in shown))
    return 1 if counts["different"] or counts["not whole"] else 0


if __name__ == "__main__":
    sys.exit(main())
