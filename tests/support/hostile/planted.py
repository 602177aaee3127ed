"""Parsers with a planted fault, which a fuzzer must find: if it finds none of these, it finds nothing.

Each reads a safetensors header as the program does, and breaks at a tensor whose name is empty: such a file
is right in all other respects, so that a change of bytes does not come upon it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from hostile.targets import WEIGHTS, Target, one_file

_SAFETENSORS = next(target for target in WEIGHTS if target.name == "safetensors")


def _traceback() -> None:
    raise IndexError("planted")


def _death() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    while True:
        pass


def _growth() -> None:
    bytearray(3 << 30)


def _broken(fault: Callable[[], None]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        from lorafold.safetensors_file import read_header

        if "" in read_header(path):
            fault()

    return read


PLANTED: dict[str, Target] = {
    name: Target(
        name, one_file("model.safetensors", _broken(fault)), _SAFETENSORS.seeds, _SAFETENSORS.form, slow=True
    )
    for name, fault in {
        "planted-traceback": _traceback,
        "planted-death": _death,
        "planted-hang": _hang,
        "planted-growth": _growth,
    }.items()
}
