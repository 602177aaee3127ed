"""Command lines that name files of strangers, each with the exit code it must end with.

Each file of `wrong_files` is given to every command that reads such a thing. `given` judges a command line:
its code, its one line, and that nothing was written.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tiny_chat

from hostile.wrong_files import (
    ADAPTERS,
    BASES,
    BOMBS,
    NOT_INSPECTED,
    RECIPES,
    SESSIONS,
    SETTINGS,
    Make,
    data_files,
    ggufs,
    models,
)


@dataclass(frozen=True, slots=True)
class Words:
    """A command line.

    Attributes:
        name: the fault and the command.
        arguments: of the program.
        code: the exit code it must end with.
    """

    name: str
    arguments: tuple[str, ...]
    code: int

    @property
    def kind(self) -> str:
        """What the fault is in."""
        return self.name.partition(":")[0]


def judged(place: Path, chosen: Callable[[int, Words], bool]) -> Iterator[tuple[Words, str]]:
    """Give the command lines that are chosen, by number and content; each with what is wrong, or ""."""
    home, out = place / "files", place / "out"
    home.mkdir()
    out.mkdir()
    for number, words in enumerate(all_words(home, out)):
        if chosen(number, words):
            yield words, given(words, [out / "made", out / "report.html"])


def given(words: Words, outputs: Sequence[Path]) -> str:
    """Run a command line in this process; what is wrong with how it ended, or ""."""
    problem = _ended_wrong(words)
    left = [path for path in outputs if path.exists()]
    for path in left:  # whatever is wrong: the next command line is not to blame for it
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return problem or (f"left {', '.join(path.name for path in left)}" if left else "")


def _ended_wrong(words: Words) -> str:
    from lorafold.cli import main

    said, told = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            code = main(list(words.arguments))
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    lines = [line for line in told.getvalue().splitlines() if line.startswith("error: ")]
    if code != words.code:
        return f"ended with {code}, expected {words.code}: {' '.join(lines)[:300]}"
    if len(lines) != 1 or "Traceback" in told.getvalue() or "\x1b" in told.getvalue():
        return f"{len(lines)} lines say error: {told.getvalue()[:300]!r}"
    return ""


def _copies(
    home: Path, kind: str, source: Path, faults: dict[str, tuple[Make, int]]
) -> Iterator[tuple[str, Path, int]]:
    for number, (what, (make, code)) in enumerate(faults.items()):
        folder = home / f"{kind}{number}"
        shutil.copytree(source, folder)
        make(folder)
        yield what, folder, code


def all_words(home: Path, out: Path) -> Iterator[Words]:
    """Every command line, their files made below `home`; what they would write lies at `out`."""
    base, adapter, gguf = tiny_chat.folder(), tiny_chat.adapter(), tiny_chat.gguf()
    questions = home / "questions.txt"
    questions.write_text("Who are you?\n")
    report, to = str(out / "report.html"), str(out / "made")
    for what, folder, code in _copies(home, "base", base, BASES):
        given = str(folder)
        yield Words(f"{what}, export", ("export", given, "--out", to, "--no-verify"), code)
        yield Words(f"{what}, plan", ("export", given, "--out", to, "--plan"), code)
        yield Words(f"{what}, adapter", ("export", str(adapter), "--base", given, "--out", to), code)
        if not what.startswith(NOT_INSPECTED):
            yield Words(f"{what}, inspect", ("inspect", given), code)
    for what, folder, code in _copies(home, "adapter", adapter, ADAPTERS):
        given = str(folder)
        for name, more in (
            ("export", ()),
            ("plan", ("--plan",)),
            ("onto", ("--onto", str(gguf))),
            ("adapter", ("--format", "adapter")),
            ("folder", ("--format", "folder")),
        ):
            yield Words(f"{what}, {name}", ("export", given, "--base", str(base), "--out", to, *more), code)
    for kind, files in (("header", ggufs()), ("model", models())):
        for number, (what, data) in enumerate(files.items()):
            path = home / f"{kind}{number}.gguf"
            path.write_bytes(data)
            given, ask = str(path), ("--prompt", "hi")
            if kind == "header":
                yield Words(f"GGUF: {what}, inspect", ("inspect", given), 3)
                yield Words(f"GGUF: {what}, as adapter", ("chat", f"{gguf}+{given}", *ask), 3)
                yield Words(f"GGUF: {what}, modelfile", ("modelfile", given, "--out", to), 3)
            yield Words(f"GGUF: {what}, chat", ("chat", given, *ask), 3)
            yield Words(
                f"GGUF: {what}, compare",
                ("compare", given, str(gguf), "--prompts", str(questions), "--out", report),
                3,
            )
            yield Words(
                f"GGUF: {what}, onto",
                ("export", str(adapter), "--base", str(base), "--onto", given, "--out", to),
                3,
            )
    for number, (what, (name, data, code)) in enumerate(data_files().items()):
        path = home / f"data{number}" / name
        path.parent.mkdir()
        path.write_bytes(data)
        yield Words(f"data: {what}, inspect", ("inspect", str(path)), code)
        yield Words(
            f"data: {what}, train", ("train", "--base", str(base), "--data", str(path), "--out", to), code
        )
    yield from _recipes(home, to, base)
    for number, (what, content) in enumerate(SESSIONS.items()):
        path = home / f"session{number}.json"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        yield Words(f"session: {what}", ("chat", str(gguf), "--session", str(path), "--prompt", "hi"), 3)
        manifest = home / f"made{number}"
        manifest.mkdir()
        shutil.copy(path, manifest / "lorafold.json")
        yield Words(f"manifest: {what}, verify", ("verify", str(manifest)), 3)
        yield Words(f"manifest: {what}, push", ("push", str(manifest), "org/name", "--plan"), 3)


def _recipes(home: Path, to: str, base: Path) -> Iterator[Words]:
    for number, (what, content) in enumerate({**RECIPES, **SETTINGS, **BOMBS}.items()):
        path = home / f"recipe{number}.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        code = 2 if what in SETTINGS else 4 if what in BOMBS else 3
        given = ("--recipe", str(path), "--out", to)
        yield Words(f"recipe: {what}, train", ("train", "--data", "x", "--base", str(base), *given), code)
        if what in RECIPES:
            yield Words(f"recipe: {what}, export", ("export", str(base), *given), code)
            yield Words(f"recipe: {what}, show", ("recipes", "show", str(path)), code)
