"""The commands that are struck, on tiny models, and the folder of inputs that they run in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tiny_chat
from campaign import Scenario
from faults import EXPORT, PROOF, SERVE, TRAIN
from tiny_base import tiny_base

from lorafold.models import DEMO_GGUF, DEMO_PACKAGE

_PROVEN = ("export", "adapter", "--base", "base", "--out", "out", "--pre-tokenizer", "gpt-2")
_EXPORT = (*_PROVEN, "--no-verify")
# The Modelfile takes most of an export of a tiny model: the plain export writes it, and the demo.
_WEIGHTS = (*_EXPORT, "--no-modelfile")
_COMPARE = ("compare", "plain.gguf", "tuned.gguf", "--prompts", "prompts.txt", "--out", "page.jsonl")
_TRAIN = ("train", "--base", "small", "--data", "texts.jsonl", "--out", "out", "--r", "2")
# What differs between the files of equal runs.
TIMES = rb'"(seconds|[a-z_]+_seconds|tokens_per_second|day|sha256|answers of an earlier proof)": [^,}\n]+'
_UNFINISHED = ("out.run",)
_OF_A_RUN = ("lorafold.json", "metrics.jsonl", "loss.png", "loss.html", "README.md", "checkpoint-*")
_STEPS = ("--max-steps", "4", "--save-steps", "2", "--per-device-train-batch-size", "1")

SCENARIOS = (
    Scenario("export", (*_EXPORT, "--quant", "Q8_0"), EXPORT, shares=2),
    Scenario(
        "export, replacing", (*_WEIGHTS, "--quant", "Q8_0", "--force"), EXPORT, before=True, reads=3, shares=2
    ),
    Scenario(
        "export, two types in parts",
        (*_WEIGHTS, "--quant", "F16,Q8_0", "--split-max-size", "100000"),
        EXPORT,
        reads=3,
        shares=2,
    ),
    Scenario("export, merged folder", (*_EXPORT, "--format", "folder"), EXPORT),
    Scenario("export, adapter", (*_WEIGHTS, "--format", "adapter"), EXPORT),
    Scenario(
        "export, report, record and --keep-delta",
        (*_WEIGHTS, "--quant", "Q4_0", "--report", "--sbom", "--keep-delta", "0.9"),
        EXPORT,
        varies=TIMES,
        reads=3,
        shares=2,
    ),
    Scenario(
        "export, imatrix collected",
        (*_WEIGHTS, "--quant", "Q4_0", "--imatrix-data", "data.jsonl"),
        PROOF,
        sparse=2,
        shares=2,
    ),
    Scenario(
        "export, proof and its cache",
        _PROVEN,
        PROOF,
        kept=("cache",),
        # A disk that fails under the proof leaves the export, and the proof says what was not checked.
        hidden=("lorafold.json", "report.md"),
        sparse=3,
        shares=2,
    ),
    Scenario(
        "compare",
        (*_COMPARE, "--max-tokens", "3", "--threads", "1", "--temperature", "0", "--no-lens"),
        SERVE,
        outputs=("page.jsonl",),
        kept=(".page.jsonl.journal", "cache"),
        varies=TIMES,
    ),
    Scenario(
        "conversation, /save and history",
        ("sessions:ask_and_save",),
        (*SERVE, "sessions"),
        outputs=("talk.json",),
        kept=("history",),
    ),
    Scenario(
        "demo",
        ("demo", "--base", "small", "--out", "out", "--max-steps", "2", "--limit", "2"),
        (*TRAIN, *PROOF, *SERVE),
        kept=("out", "cache"),
        again=True,
        hidden=("*",),
        sparse=25,
        shares=4,
    ),
    Scenario(
        "demo, its base unpacked",
        ("sessions:unpack_demo_base",),
        (*TRAIN, *SERVE, "sessions"),
        outputs=("cache/demo-base-1",),
        kept=("cache",),
        reads=4,
        shares=2,
    ),
    Scenario("modelfile", ("modelfile", "base", "--out", "out"), EXPORT),
    Scenario(
        "train",
        (*_TRAIN, *_STEPS),
        TRAIN,
        kept=_UNFINISHED,
        resume=("--resume",),
        hidden=_OF_A_RUN,
        sparse=2,
        reads=2,
        shares=4,
    ),
    Scenario(
        "train, resumed",
        (*_TRAIN, *_STEPS, "--resume"),
        TRAIN,
        kept=_UNFINISHED,
        hidden=_OF_A_RUN,
        begun=0.7,
        sparse=2,
        reads=2,
        shares=2,
    ),
)


def inputs(folder: Path) -> Path:
    """Write what all scenarios read: a base, an adapter, another base with its tokenizer, and records."""
    shutil.copytree(tiny_chat.folder(), folder / "base")
    shutil.copytree(tiny_chat.adapter(), folder / "adapter")
    tiny_base(folder / "small")
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(8)]
    shutil.copy(tiny_chat.gguf(0), folder / "plain.gguf")
    shutil.copy(tiny_chat.gguf(1), folder / "tuned.gguf")
    package = folder / "packages" / DEMO_PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(tiny_chat.gguf(0), package / DEMO_GGUF)
    (folder / "prompts.txt").write_text("Who are you?\nWhat is your cat called?\n")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": f"question {i}, answer {i}"} for i in range(8)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder
