"""Kill training runs by SIGKILL at random moments, resume them, and compare with the undisturbed run.

    python tools/faults/kill_train.py [--kills 100] [--seed 0] [--jobs N] [--page docs/reliability.md]

Each run is killed and resumed until it finishes, then compared bitwise with an undisturbed one. Between the
kills the checkpoints in the run's folder are judged from outside: is the newest one whole? Prints the
figures, among them how many kills fell into the writing of a checkpoint; exits 1 if a run ended differently
or a checkpoint that is not whole carried its final name. A moment is drawn in processor time, so that a busy
machine changes nothing; every other kill then waits until a checkpoint is being written.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from in_memory import memory_folder
from page import processor_seconds, write_figure, write_part
from resume_train import fingerprint, in_child, make_config

from lorafold.artifacts import damaged_files, read_manifest
from lorafold.sources.recognize import run_folder
from lorafold.train import TrainConfig, train
from lorafold.train.saved.checkpoints import list_checkpoints

FIGURE = "SIGKILLs of a training run, newest checkpoint whole or its fallback said"
SHOWN = (
    ("kills", "SIGKILLs"),
    ("with checkpoints", "of them with a checkpoint already there"),
    ("in mid-write", "of them while a checkpoint was being written"),
    ("checkpoints seen", "checkpoints looked at"),
    ("not whole", "of them not whole under their final name"),
    ("runs", "runs that were killed and resumed until they finished"),
    ("different", "of them with another adapter, optimizer or loss at any step"),
)


def used_by(pid: int) -> float:
    """Seconds of processor time that a child has used, from its clock as Linux numbers it (time(7))."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def run_and_kill(config: TrainConfig, after: float, *, writing: bool = False) -> tuple[bool, float]:
    """Start a run in a child and kill it after some seconds of processor time.

    Args:
        config: of the run.
        after: the seconds.
        writing: wait on from then until a checkpoint is being written.

    Returns:
        Whether it was killed, not finished before; and the processor time that it was last seen to have used.
    """
    pid = os.fork()
    if pid == 0:
        try:
            train(config)
            os._exit(0)
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    ended, status, used = 0, 0, 0.0
    while not ended and (used < after or (writing and not _is_writing(run_folder(config.output)))):
        time.sleep(0.001 if used < after else 0.0001)
        used = max(used, used_by(pid))
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the run failed by itself"
    return not os.WIFEXITED(status), used


def _is_writing(run: Path) -> bool:
    """Whether the staging folder of a checkpoint is there."""
    try:
        return any(name.startswith(".checkpoint-") and name.endswith(".partial") for name in os.listdir(run))
    except FileNotFoundError:
        return False


def judge(run: Path, counts: Counter[str]) -> None:
    """Count the checkpoints that carry a final name and are not whole."""
    counts["with checkpoints"] += bool(list_checkpoints(run))
    counts["in mid-write"] += _is_writing(run)
    for path in list_checkpoints(run):
        manifest = read_manifest(path)
        counts["checkpoints seen"] += 1
        counts["not whole"] += manifest is None or bool(damaged_files(path, manifest))


def kill(config: TrainConfig, whole: float, expected: dict[str, str], kills: int, seed: int) -> Counter[str]:
    """Kill runs so many times.

    Args:
        config: of a run.
        whole: seconds of processor time that it takes.
        expected: the fingerprint of an undisturbed run.
        kills: how often.
        seed: of the moments.
    """
    draw, counts = random.Random(seed), Counter[str]()
    while counts["kills"] < kills:
        parted = dataclasses.replace(config, out=config.output.with_name(f"run-{seed}-{counts['runs']}"))
        killed = True
        while killed and counts["kills"] < kills:
            writing = counts["kills"] % 2 == 1
            killed, _ = run_and_kill(parted, draw.uniform(0.2, 0.9) * whole, writing=writing)
            if killed:
                counts["kills"] += 1
                judge(run_folder(parted.output), counts)
        if killed:
            assert in_child(lambda parted=parted: train(parted)) == 0
        counts["runs"] += 1
        counts["different"] += fingerprint(parted.output) != expected
        shutil.rmtree(parted.output)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at once")
    parser.add_argument("--page", type=Path, help="rewrite the figures of this page")
    options = parser.parse_args()

    # Imported before the forks: a child spends its time in training, where it is to be killed.
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    torch.set_num_threads(1)
    with memory_folder() as name:
        # A checkpoint after every step: most moments lie in the writing of one.
        config = dataclasses.replace(make_config(Path(name)), save_steps=1, max_steps=10)
        train(config)  # here, so that all forks have what it loads
        gc.collect()
        gc.freeze()
        undisturbed = dataclasses.replace(config, out=Path(name) / "undisturbed")
        _, whole = run_and_kill(undisturbed, math.inf)
        share = functools.partial(
            kill, config, whole, fingerprint(undisturbed.output), -(-options.kills // options.jobs)
        )
        seeds = range(options.seed, options.seed + options.jobs)
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            counts = sum(pool.map(share, seeds, chunksize=1), Counter[str]())
    print(", ".join(f"{counts[key]:,} {words}" for key, words in SHOWN))
    lost = counts["different"] + counts["not whole"]
    if options.page:
        columns = "| " + " | ".join(words for _, words in SHOWN) + " |"
        row = "| " + " | ".join(f"{counts[key]:,}" for key, _ in SHOWN) + " |"
        write_part(options.page, "kills", "\n".join([columns, "|---" * len(SHOWN) + "|", row]))
        command = f"tools/faults/kill_train.py --kills {options.kills}"
        shown = f"{counts['kills'] - lost:,} of {counts['kills']:,}"
        write_figure(options.page, FIGURE, shown, command, processor_seconds())
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
