"""Runs of real commands in which the n-th system call on a folder fails, or the process gets a signal there.

`Commands` starts one warm process with `inject.c` preloaded and forks every run from it; `run` takes an
`Order`. What is counted: see `inject.c`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]

# The imports of the commands that are struck: loaded before the first fork.
EXPORT = ("lorafold.cli", "lorafold.export", "lorafold.export.stage", "llama_cpp", "gguf")
SERVE = ("lorafold.cli", "lorafold.serve", "lorafold.serve.comparison.compare", "llama_cpp")
PROOF = (*EXPORT, "torch", "transformers.models.llama.modeling_llama")
TRAIN = ("lorafold.cli", "lorafold.train", "torch", "peft", "transformers.models.llama.modeling_llama")

SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM")
_FULL = ("ENOSPC", "EDQUOT")
_REFUSED = ("EIO", "EACCES", "EROFS")
# What network, overlay and FUSE file systems answer where they cannot do a thing, or have lost their server.
ELSEWHERE = ("EINVAL", "EOPNOTSUPP", "ESTALE", "EXDEV", "ENOLCK")
_ELSEWHERE = ELSEWHERE[:3]

# What a system may answer to each kind of call (its manual page), and "short" for a write of half the bytes.
ERRORS: dict[str, tuple[str, ...]] = {
    "open": ("EIO", "EACCES", "ENOMEM"),
    "read": ("EIO",),
    "create": (*_FULL, *_REFUSED, "ENOMEM"),
    "write": (*_FULL, "EIO", "short"),
    "fsync": (*_FULL, "EIO", *_ELSEWHERE),
    "lock": (*_ELSEWHERE, "ENOLCK"),
    "allocate": (*_FULL, "EIO", *_ELSEWHERE),
    "truncate": ("EIO", "EROFS"),
    "rename": (*_FULL, *_REFUSED, *ELSEWHERE[:4]),
    "unlink": _REFUSED,
    "mkdir": (*_FULL, *_REFUSED, "ENOMEM"),
}


class _Order(ctypes.Structure):
    """`struct order` of inject.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("armed", "at", "error", "signal")),
        *((name, ctypes.c_int32) for name in ("shortened", "sticky", "count")),
        ("kind", ctypes.c_char * 16),
        *((name, ctypes.c_char * 512) for name in ("path", "root", "log")),
    )


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at a call.

    Args:
        what: an errno (ENOSPC …), a signal (SIGKILL …), "short" for half a write, or "" for nothing.
        at: the call, counted from 1.
    """

    what: str = ""
    at: int = 0

    def __str__(self) -> str:
        return f"{self.what} at call {self.at}" if self.what else "no fault"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Args:
        code: exit code, minus the signal that ended it, or None if it did not end in time.
        said: what it printed.
        calls: system calls that were counted.
        kind: of the call that was struck ("write", "rename" …), or "".
        path: that it touched.
    """

    code: int | None
    said: str
    calls: int
    kind: str
    path: str


_NOTHING = Fault()


def shim(folder: Path) -> Path | None:
    """`inject.c`, compiled into a folder; None if this machine has no C compiler or no glibc."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "inject.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(HERE / "inject.c"), "-ldl"]
    return library if subprocess.run(command, capture_output=True).returncode == 0 else None


class Commands:
    """A warm process whose forks run lorafold's commands under orders.

    Args:
        library: the compiled shim.
        folder: for its own files; must not lie below a root that is struck.
        imports: modules that the process loads before it forks.
        core: number of the core that it keeps to, of those that are allowed.

    Attributes:
        processor: seconds of processor time that the process and its commands took; 0 until it is closed.
    """

    def __init__(self, library: Path, folder: Path, imports: tuple[str, ...], core: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.processor = folder, 0.0
        name = folder / "order"
        name.write_bytes(bytes(ctypes.sizeof(_Order)))
        with open(name, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(_Order))
        self._order = _Order.from_buffer(self._memory)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAULT_ORDER": str(name),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)]),
            "LORAFOLD_CACHE": "cache",  # in the folder that a command runs in
            "PYTHONDONTWRITEBYTECODE": "1",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "warm.py"), ",".join(imports), str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(
        self,
        argv: list[str],
        folder: Path,
        fault: Fault = _NOTHING,
        *,
        log: Path | None = None,
        seconds: float = 120,
        memory: int = 0,
    ) -> Outcome:
        """One command.

        Args:
            argv: of the command line, without the program's name.
            folder: that it runs in; calls on what lies in it count.
            fault: that strikes it.
            log: a file that every call is written to, with what it wrote.
            seconds: after which it counts as hanging.
            memory: bytes of address space that it may take beyond what the warm process has; 0: no limit.
        """
        order, said = self._order, self.folder / "said"
        order.armed = 0
        order.at, order.count, order.kind, order.path = fault.at, 0, b"", b""
        order.error = getattr(errno, fault.what, 0)
        order.signal = getattr(signal, fault.what, 0)
        order.shortened = int(fault.what == "short")
        order.sticky = int(fault.what in ("ENOSPC", "EDQUOT", "EROFS"))
        order.root = str(folder.resolve()).encode()
        order.log = str(log or "").encode()
        order.armed = 1
        code = self._ask(argv, folder, seconds, memory=memory)
        order.armed = 0
        text = said.read_text(encoding="utf-8", errors="replace")
        return Outcome(code, text, order.count, order.kind.decode(), order.path.decode())

    def warm(self, argv: list[str], folder: Path) -> None:
        """Run a command in the warm process itself: what it loads and compiles is there for all forks."""
        code = self._ask(argv, folder, 600, here=True)
        assert code == 0, (self.folder / "said").read_text(encoding="utf-8")

    def _ask(
        self, argv: list[str], folder: Path, seconds: float, *, memory: int = 0, here: bool = False
    ) -> int | None:
        task = {"argv": argv, "folder": str(folder), "said": str(self.folder / "said")}
        task |= {"seconds": seconds, "memory": memory, "here": here}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        code: int | None = json.loads(self._process.stdout.readline())["code"]
        return code

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.processor = used.ru_utime + used.ru_stime

    def __enter__(self) -> Commands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Call:
    """One entry of a log: what a run did to the files below its folder.

    Args:
        kind: "call" for each counted call (its kind is `second`); otherwise what was done and succeeded:
            "create" (emptied or made), "touch" (made if it was not there), "write", "fsync", "truncate",
            "allocate", "rename", "exchange", "unlink", "mkdir".
        path: what it was done to.
        second: the new name of a rename.
        offset: of a write; the length of a truncation; the inode of what was made or synced.
        data: what was written; of a synced file, all that it holds.
    """

    kind: str
    path: str
    second: str
    offset: int
    data: bytes


def calls(log: Path) -> Iterator[Call]:
    """The entries of a log, in order."""
    with open(log, "rb") as file:
        while line := file.readline():
            kind, offset, size, path, second = line.decode()[:-1].split("\t")
            yield Call(kind, path, second, int(offset), file.read(int(size)))
