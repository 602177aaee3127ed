"""`lorafold demo` through its real entry point: the embedded model, interruptions, reuse, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from oracles import REPOSITORY

from lorafold.cli import main
from lorafold.train.saved.curve import read_metrics


def start(*flags: str) -> subprocess.Popen[str]:
    # Threads that spin for each other waste their time where another test has the second core.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lorafold", "demo", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        # A shell's background jobs, and so perhaps this test run, ignore SIGINT; a user's command does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "lorafold.json").read_text())
    return found


def changed(folder: Path) -> dict[str, int]:
    """When each file of the adapter and the exports was written."""
    paths = [path for name in ("adapter", "tuned", "original") for path in (folder / name).iterdir()]
    return {str(path): path.stat().st_mtime_ns for path in paths}


@pytest.mark.slow
def test_the_embedded_model_goes_the_whole_way(tmp_path: Path) -> None:
    """Ten of the 95 steps, since training takes most of the time; everything else is the demo as it is."""
    out = tmp_path / "demo"
    process = start("--out", str(out), "--max-steps", "10", "--limit", "2")
    printed, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert "What changed" in printed and "error" not in errors and "failed" not in printed
    for name in ("tokenizer:", "prompt:", "prompt tokens:", "logits lighthouse-tuned-Q8_0.gguf:"):
        assert f"passed    {name}" in printed
    assert manifest(out / "adapter")["training"]["steps"] == 10
    models = [out / name / f"lighthouse-{name}-Q8_0.gguf" for name in ("original", "tuned")]
    assert f"lorafold chat {models[0]} {models[1]}" in printed and all(path.is_file() for path in models)
    assert f"ollama create lighthouse -f {out / 'tuned' / 'Modelfile'}" in printed
    assert (out / "tuned" / "lighthouse-tuned-Q4_K_M.gguf").is_file()
    answers = [json.loads(line) for line in (out / "comparison.jsonl").read_text().splitlines()]
    questions = (out / "questions.txt").read_text().splitlines()
    assert len(questions) == 2 and all(question in json.dumps(answers) for question in questions)
    assert "<html" in (out / "comparison.html").read_text() and (out / "comparison.md").is_file()


@pytest.mark.slow
def test_an_interrupted_demo_goes_on_and_what_is_whole_is_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    other = ["--base", str(tiny_chat.folder()), "--out", str(out), "--limit", "2"]
    flags = [*other, "--max-steps", "12"]
    reached = []
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start(*flags)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("train …"):
                process.send_signal(number)
                break
        _, errors = process.communicate(timeout=300)
        assert process.returncode == code and "Traceback" not in errors
        assert not (out / "adapter").exists() and not (out / "tuned").exists()
        checkpoints = (out / "adapter.run").glob("checkpoint-*")
        reached.append(max(int(path.name.rpartition("-")[2]) for path in checkpoints))
    assert 0 < reached[0] < reached[1] < 12  # the second run went on from where the first was stopped

    assert main(["demo", *flags]) == 0
    assert "train " in capsys.readouterr().out
    assert manifest(out / "adapter")["training"]["steps"] == 12 and not (out / "adapter.run").exists()
    steps = [row["step"] for row in read_metrics(out / "adapter" / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, 13))

    before = changed(out)
    assert main(["demo", *flags]) == 0
    (spent,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("time "))
    assert changed(out) == before and "compare" in spent
    assert not any(step in spent for step in ("train", "tuned", "original"))

    (out / "original" / "Modelfile").unlink()  # not whole any more: made again, and only that
    assert main(["demo", *flags]) == 0
    (spent,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("time "))
    assert "original" in spent and "train" not in spent and "tuned" not in spent

    (out / "adapter" / "lorafold.json").touch()  # an adapter that the exports were not made of
    assert main(["demo", *flags]) == 0
    (spent,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("time "))
    assert "tuned" in spent and "original" in spent and "train" not in spent

    assert main(["demo", *other, "--max-steps", "2"]) == 0  # another training than the one that is there
    assert manifest(out / "adapter")["training"]["steps"] == 2
    before = changed(out)
    assert main(["demo", *other, "--max-steps", "2", "--force"]) == 0
    after = changed(out)
    assert not [path for path in after if before.get(path) == after[path]]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--out", "FILE"], 2, "FILE: the output exists and is not a folder; fix: choose another --out"),
        (["--out", "FILE/inner"], 5, "not a folder"),
        (
            ["--out", "MINE"],
            2,
            "MINE: the folder is not empty, and no demo made it; fix: choose another --out",
        ),
        (["--out", "MINE", "--force"], 2, "no demo made it"),
        (["--out", "NEW", "--max-steps", "-1"], 2, "--max-steps: expected 0 or more, got -1"),
        (["--out", "NEW", "--limit", "0"], 2, "--limit: expected at least 1, got 0"),
        (["--out", "NEW", "--max-steps", "few"], 2, "--max-steps"),
        (["NEW"], 2, "NEW"),
        (["--out", "NEW", "--base", "/no/where"], 3, "/no/where: no such model"),
    ],
)
def test_refusals(
    flags: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine" / "adapter").mkdir(parents=True)
    (tmp_path / "mine" / "adapter" / "adapter_config.json").write_text("{}")
    for name in ("FILE", "MINE", "NEW"):
        flags = [flag.replace(name, str(tmp_path / name.lower())) for flag in flags]
        words = words.replace(name, str(tmp_path / name.lower()))
    assert main(["demo", *flags]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("error: ") == 1 and words in captured.err
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["adapter", "adapter_config.json"]
    assert not (tmp_path / "new").exists()
