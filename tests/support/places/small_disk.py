"""Runs lorafold's command line on disks that are too small: `unshare -Urm python small_disk.py FOLDER`.

A line of JSON on standard input is a list of steps; it is answered by a line on standard output, with one
answer for each step. The disk is a tmpfs on FOLDER/disk in this process's own mount namespace, so no step
needs more than an ordinary user's rights and nothing is left behind.

    {"mount": "size=64m,nr_inodes=30"}     a fresh empty disk
    {"remount": "nr_inodes=1000"}          another size for the disk that is there
    {"run": ["train", ...], "limit": N}    the command line in a forked process with FOLDER as working
                                           directory and no file longer than N bytes
                                           → {"code": 5, "out": "...", "err": "..."}
    {"files": "disk/out"}                  → {name: sha256}, null where there is no such folder
    {"count": "disk"}                      → files and folders on the disk
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
DISK = FOLDER / "disk"


def mount(options: str) -> None:
    DISK.mkdir(exist_ok=True)
    subprocess.run(["umount", str(DISK)], capture_output=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(DISK)], check=True)


def remount(options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(DISK)], check=True)


def run(arguments: list[str], limit: int | None) -> dict[str, Any]:
    """Run a command in a forked process, which has torch and the rest imported already."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(FOLDER)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(FOLDER / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            from lorafold.cli import main

            code = main(arguments)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    status = os.waitpid(pid, 0)[1]
    texts = {key: (FOLDER / name).read_text() for key, name in (("out", "stdout"), ("err", "stderr"))}
    return {"code": os.waitstatus_to_exitcode(status), **texts}


def files(folder: Path) -> dict[str, str] | None:
    if not folder.is_dir():
        return None
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def answer(step: dict[str, Any]) -> Any:
    if "mount" in step:
        return mount(step["mount"])
    if "remount" in step:
        return remount(step["remount"])
    if "run" in step:
        return run(step["run"], step.get("limit"))
    if "files" in step:
        return files(FOLDER / step["files"])
    return sum(1 for _ in (FOLDER / step["count"]).rglob("*"))


def main() -> None:
    # Imported once for all runs; one thread, because OpenMP's threads do not survive a fork.
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL: the disk goes with the test that asked for it
    for line in sys.stdin:
        json.dump([answer(step) for step in json.loads(line)], sys.stdout)
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
