"""How many inputs each parser's present code has taken, over all runs of `fuzz.py`: fuzzed.json.

A parser's code is the modules of the product that its inputs run, without their comments and docstrings. If
one of them changes, the parser starts again at zero.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LEDGER = Path(__file__).with_name("fuzzed.json")
# What runs in a process of its own, by what starts it.
_BESIDE = {
    "lorafold/chat/sandbox.py": "lorafold/chat/sandbox_worker.py",
    "lorafold/adapters/patterns.py": "lorafold/adapters/pattern_trial.py",
}
_NO_CODE = {"lorafold/version.py"}  # it changes with each release, and nothing that a file meets with it


@dataclass(slots=True)
class Standing:
    """What a parser went through.

    Attributes:
        modules: of the product that its inputs run, as paths from the root.
        code: digest of them, as they were.
        inputs: how many it was given.
        guided: how many of them by coverage.
        runs: over which they came.
        seconds: of processor time that this took.
        finds: where it broke.
    """

    modules: list[str]
    code: str
    inputs: int = 0
    guided: int = 0
    runs: int = 0
    seconds: float = 0.0
    finds: int = 0

    @property
    def present(self) -> bool:
        """Whether its code is still the one that took the inputs."""
        return digest(self.modules) == self.code


def read(ledger: Path = LEDGER) -> dict[str, Standing]:
    """All parsers whose code is still the one that took the inputs."""
    rows = json.loads(ledger.read_text(encoding="utf-8")) if ledger.exists() else {}
    found = {name: Standing(**row) for name, row in rows.items()}
    return {name: row for name, row in found.items() if row.present}


def add(ledger: Path, name: str, run: Standing) -> Standing:
    """Add a run to what is there of the same code; what it comes to. Several processes may add at once."""
    with open(ledger, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows: dict[str, Any] = json.loads(file.read() or "{}")
        before = Standing(**rows[name]) if name in rows else None
        if before is not None and before.present:
            modules = sorted({*before.modules, *run.modules})
            run = Standing(
                modules,
                digest(modules),
                before.inputs + run.inputs,
                before.guided + run.guided,
                before.runs + run.runs,
                round(before.seconds + run.seconds, 1),
                before.finds + run.finds,
            )
        rows[name] = asdict(run)
        file.truncate(0)
        file.write(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
    return run


def digest(modules: Collection[str]) -> str:
    """Of the code of modules, the first twelve digits; one that is gone counts as empty."""
    whole = sha256("\n".join(f"{name} {_code(ROOT / name)}" for name in sorted(modules)).encode())
    return whole.hexdigest()[:12]


def _code(path: Path) -> str:
    return _bare(path.read_text(encoding="utf-8")) if path.exists() else ""


@cache
def _bare(text: str) -> str:
    """A module without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body[0] = ast.Pass()
    return ast.unparse(tree)


@contextlib.contextmanager
def watched(stages: Collection[str]) -> Iterator[Callable[[], list[str]]]:
    """Note the modules of the product of which a function runs in the block.

    Args:
        stages: folders of the product.

    Yields:
        What tells them, with the modules that are loaded and hold nothing but tables.
    """
    ran: set[str] = set()
    place: dict[str, str] = {}

    def name_of(file: str) -> str:
        if file not in place:
            path = Path(file).resolve()
            inside = any(path.is_relative_to(ROOT / stage) for stage in stages)
            place[file] = path.relative_to(ROOT).as_posix() if inside else ""
        return place[file]

    def note(frame: FrameType, event: str, _: object) -> None:
        name = name_of(frame.f_code.co_filename) if event == "call" else ""
        if name and name not in ran and not _imports(frame, name_of):
            ran.add(name)

    def told() -> list[str]:
        loaded = {name_of(getattr(module, "__file__", None) or "") for module in [*sys.modules.values()]}
        tables = {name for name in loaded - ran - _NO_CODE if name and _is_table(ROOT / name)}
        return sorted({*ran, *tables, *(_BESIDE[name] for name in ran & _BESIDE.keys())})

    sys.setprofile(note)
    try:
        yield told
    finally:
        sys.setprofile(None)


def _imports(frame: FrameType | None, name_of: Callable[[str], str]) -> bool:
    """Whether a frame belongs to the import of a module of the product, which happens once, early or late."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and name_of(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


@cache
def _is_table(path: Path) -> bool:
    """Whether a module has statements, but no function that could run."""
    nodes = [*ast.walk(ast.parse(_code(path)))]
    return any(isinstance(node, ast.Assign | ast.AnnAssign) for node in nodes) and not any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) for node in nodes
    )
