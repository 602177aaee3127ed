"""Regular expressions of a stranger's adapter: those that take for ever on the names they are asked about."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny_chat
from adapter_folders import adapter_folder, refused

from lorafold.adapters import patterns
from lorafold.adapters.folder import Adapter
from lorafold.cli import main
from lorafold.errors import SystemFault

FOR_EVER = "([a-z_]+[a-z_.0-9]*)*!"
# Quick on the names that the adapter holds, and slow on one of the base that it does not.
SLOW_ON_THE_BASE = rf".*(q_proj|v_proj|down_proj)|(?=.*gate_proj){FOR_EVER}"


def slow_on_the_base(folder: Path) -> Path:
    """The tiny chat's adapter with such a pattern."""
    shutil.copytree(tiny_chat.adapter(), folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": SLOW_ON_THE_BASE}))
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", FOR_EVER),
        ("exclude_modules", FOR_EVER),
        ("rank_pattern", {"q_proj": 2, FOR_EVER: 4}),
        ("alpha_pattern", {FOR_EVER: 4}),
        ("layers_pattern", [FOR_EVER]),
        ("modules_to_save", [FOR_EVER]),
        # Nothing is repeated here, and there are as many ways.
        ("target_modules", ".?" * 60 + "!"),
        ("exclude_modules", "(.|.)" * 30 + "!"),
    ],
)
def test_a_pattern_that_takes_for_ever_is_refused(field: str, value: object, tmp_path: Path) -> None:
    began = time.process_time()
    folder = adapter_folder(tmp_path / "a", **{"r": 4, "target_modules": ["q_proj"], field: value})
    error = refused(lambda: Adapter.open(folder), "takes too long on a name")
    assert f"adapter_config.json: {field}" in str(error)
    assert "repetition inside of a repetition" in str(error)
    assert time.process_time() - began < 2  # the child's time is not ours


def test_patterns_that_are_long_and_quick_are_taken(tmp_path: Path) -> None:
    llama_factory = r"^(?!.*patch_embed).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*"
    folder = adapter_folder(tmp_path / "a", r=4, target_modules=llama_factory, rank_pattern={r".*\.q_\w+": 4})
    assert Adapter.open(folder).config.target_modules == llama_factory


def test_one_child_tries_the_patterns_of_many_adapters(tmp_path: Path) -> None:
    quick = adapter_folder(tmp_path / "quick", r=4, target_modules=".*(q_proj|v_proj)")
    slow = adapter_folder(tmp_path / "slow", r=4, target_modules=FOR_EVER)
    none = adapter_folder(tmp_path / "none", r=4, modules_to_save=["(?i)q_proj+"])
    children = []
    for folder, fault in ((quick, ""), (none, "no regular"), (quick, ""), (slow, "too long"), (quick, "")):
        refused(lambda folder=folder: Adapter.open(folder), fault) if fault else Adapter.open(folder)
        children.append(patterns._kept.child and patterns._kept.child.process.pid)
    assert children[0] == children[1] == children[2], "a child that is well stays"
    assert children[3] is None and children[4] not in (None, children[0])


@pytest.mark.parametrize("pattern", ["(?i)q_proj", "(" * 5000 + ")" * 5000, "a{99999999999}"])
def test_what_is_no_pattern_in_its_place_is_refused(pattern: str, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", r=4, rank_pattern={pattern: 2})
    refused(lambda: Adapter.open(folder), "rank_pattern")


def test_a_child_that_does_not_run_is_not_the_patterns_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter_folder(tmp_path / "a", r=4, target_modules=".*(q_proj|v_proj)")
    patterns._kept.drop()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemFault, match="tries an adapter's patterns does not run") as told:
        Adapter.open(folder)
    assert "memory is free" in str(told.value) and "\n" not in str(told.value)


def test_a_child_that_the_system_ends_is_not_the_patterns_fault(tmp_path: Path) -> None:
    Adapter.open(adapter_folder(tmp_path / "quick", r=4, target_modules=".*(q_proj|v_proj)"))
    assert patterns._kept.child is not None
    slow = adapter_folder(tmp_path / "slow", r=4, target_modules=FOR_EVER)
    threading.Timer(0.3, os.kill, (patterns._kept.child.process.pid, signal.SIGKILL)).start()
    refused(lambda: Adapter.open(slow), "does not run.*memory is free", SystemFault)


def test_the_names_of_the_base_count_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pattern may be quick on what the adapter holds, and slow on what it does not."""
    folder = slow_on_the_base(tmp_path / "adapter")
    argv = ["export", str(folder), "--base", str(tiny_chat.folder()), "--out", str(tmp_path / "out")]
    assert main([*argv, "--pre-tokenizer", "gpt-2"]) == 3
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "takes too long on a name" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_peft_is_not_asked_before_the_trial(tmp_path: Path) -> None:
    """A chat loads the adapter by PEFT, which asks every module of the model, in the thread of its engine."""
    folder = slow_on_the_base(tmp_path / "adapter")
    (tmp_path / "prompts.txt").write_text("Who are you?\n")
    models = [f"{tiny_chat.folder()}+{folder}", str(tiny_chat.folder())]
    argv = [
        "compare",
        *models,
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--out",
        str(tmp_path / "p.jsonl"),
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "lorafold", *argv], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 3
    assert ended.stderr.count("error: ") == 1 and "takes too long on a name" in ended.stderr
