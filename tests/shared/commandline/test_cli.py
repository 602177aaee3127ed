"""The command line through its real entry point: results on stdout, errors as one line, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_chat

from lorafold.cli import app, main

RUN = [sys.executable, "-m", "lorafold"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nope"], 2, "there is no command 'nope'"),
        (["export"], 2, "SOURCE is missing"),
        (["exprot", "x"], 2, "fix: here it is export"),
        (["export", "x"], 2, "--out is missing"),
        (["export", "--out", "OUT", "--quant", "Q8_0", "F16", "ADA"], 2, "--quant took all of Q8_0 F16 ADA"),
        (
            ["export", "--quant", "Q8_0", "ADA"],
            2,
            "fix: write SOURCE before --quant: lorafold export ADA --quant",
        ),
        (["chat"], 2, "MODELS is missing"),
        (["compare", "a.gguf", "b.gguf", "q.txt"], 2, "--prompts is missing"),
        (["chat", "--prompt", "hi", "--prompt", "ho", "no.gguf"], 3, "no.gguf: no such file"),
        (
            ["compare", "--prompts", "QUEST", "--out", "OUT.html", "no.gguf", "b.gguf"],
            3,
            "no.gguf: no such file",
        ),
        (["export", "x", "--out", "y", "--nope"], 2, "--nope: lorafold export has no such option"),
        (
            ["export", "/no/where", "--out", "OUT"],
            3,
            "no such model (expected an adapter or a base: a folder, a hub",
        ),
        (["export", "BASE", "--out", "OUT", "--quant", "Q9"], 2, "unknown quantization type 'Q9'"),
        (["export", "BASE", "--out", "OUT", "--quant", "q5"], 2, "choose one of Q5_K_M, Q5_K_S, Q5_1, Q5_0"),
        (["export", "BASE", "--out", "BASE/inner"], 2, "overlaps the input"),
        (["export", "BASE", "--out", "FULL"], 2, "not empty (file); fix: choose another"),
        (["export", "BASE", "--out", "OUT", "--threads", "-1"], 2, "threads"),
        (["train", "--base", "BASE"], 2, "--data is missing"),
        (["train", "--base", "BASE", "--data", "x.jsonl", "--out", "OUT", "--r", "0"], 2, "--r"),
        (["train", "--recipe", "no.yaml"], 3, "no such recipe"),
        (["train", "--recipe", "qwen2"], 3, "no such recipe; fix: --recipe qwen2-1.5b-persona"),
        (["train", "--recipe", "Qwen3"], 3, "fix: --recipe qwen3-lora or qwen3-qlora"),
        (["inspect", "/no/where"], 3, "no such file or folder"),
        (["inspect", "FULL"], 3, "nothing known"),
        (["verify", "FULL"], 3, "not an export"),
        (["verify", "/no/where"], 3, "/no/where: there is no such folder"),
        (["verify", "EXPORTED/tuned-Q8_0.gguf"], 3, "this is a file, not an export's folder; fix: give "),
        (["chat", "no.gguf", "--prompt", "hi"], 3, "no.gguf"),
        (
            ["chat", "no-such", "--prompt", "hi"],
            3,
            "a GGUF file, a Hugging Face folder or hub id, `demo`, ollama:",
        ),
        (["chat", "EXPORTED", "--prompt", "hi"], 3, "EXPORTED/tuned-Q8_0.gguf"),
        (
            ["chat", "BASE+x.gguf", "--prompt", "hi"],
            3,
            "x.gguf: an adapter GGUF needs a base GGUF, not BASE; fix",
        ),
        (
            ["chat", "demo+x.gguf", "--prompt", "hi"],
            3,
            "needs a base GGUF, not demo; fix: lorafold export demo",
        ),
        (["modelfile", "/no/where"], 3, "no such"),
    ],
)
def test_every_failure_is_one_line_with_its_code(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "tuned-Q8_0.gguf").write_text("")
    (tmp_path / "q.txt").write_text("Who are you?\n")
    places = {"QUEST": str(tmp_path / "q.txt"), "EXPORTED": str(tmp_path / "exported")}
    places |= {"OUT": str(tmp_path / "out"), "FULL": str(tmp_path / "full"), "BASE": str(tiny_chat.folder())}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
        words = words.replace(name, place)
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0] and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", list(app))
def test_only_what_a_command_works_on_stands_without_its_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not command.startswith("-"):
        assert main([command, "--help"]) == 0
        parameters = re.findall(r"│ [* ]? *([A-Z][A-Z-]+) --", capsys.readouterr().out)
        works_on = {"export": "SOURCE", "verify": "FOLDER", "chat": "MODELS", "compare": "MODELS"}
        works_on |= dict.fromkeys(("modelfile", "inspect"), "PATH")
        assert parameters == [works_on[command]] if command in works_on else parameters == []


def test_recipe_values_yield_to_flags_and_unknown_keys_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"source: {tiny_chat.folder()}\nquantization: [F32]\n")
    assert main(["export", "--recipe", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "quantization" in capsys.readouterr().err
    recipe.write_text("quant: [F32, Q8_0]\nverify: false\nname: from-recipe\n")
    command = ["export", str(tiny_chat.folder()), "--recipe", str(recipe), "--out", str(tmp_path / "out")]
    assert main([*command, "--name", "from-flag"]) == 0
    manifest = json.loads((tmp_path / "out" / "lorafold.json").read_text())
    assert manifest["config"]["quant"] == ["F32", "Q8_0"] and manifest["config"]["verify"] is False
    assert manifest["config"]["name"] == "from-flag"


def test_a_recipe_builds_no_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("quant: !!python/object/apply:os.system ['touch /tmp/never']\n")
    assert main(["export", "x", "--out", "y", "--recipe", str(recipe)]) == 3
    assert "not readable as YAML" in capsys.readouterr().err


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; from lorafold.cli import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'numba', 'peft', 'datasets'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("train", "export", "modelfile", "verify", "chat", "compare", "inspect", "doctor", "demo"):
        assert command in done.stdout


def test_export_never_imports_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from lorafold.cli import main;"
        f"base, out = {str(tiny_chat.folder())!r}, {str(tmp_path / 'out')!r};"
        "code = main(['export', base, '--out', out, '--no-verify']);"
        "assert code == 0; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_their_code_and_leave_nothing(number: int, code: int, tmp_path: Path) -> None:
    """The proof of a tiny export takes seconds: the signal arrives in it."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*RUN, "export", str(tiny_chat.folder()), "--out", str(out), "--quant", "F32"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell's background jobs, and so perhaps this test run, ignore SIGINT; a user's command does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("prove the tensors"):
            break
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(60) == code and "Traceback" not in rest
    assert not out.exists() and not list(tmp_path.glob(".out.partial"))


def test_a_closed_stdout_is_no_traceback() -> None:
    process = subprocess.Popen([*RUN, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) in (0, 141) and "Traceback" not in errors


def test_inspect_tells_what_things_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"instruction": "Hi", "output": "Hello"}\n')
    started = time.monotonic()
    for path, words in (
        (tiny_chat.folder(), "LlamaForCausalLM"),
        (tiny_chat.adapter(), "LORA"),
        (tiny_chat.gguf(), "quantization"),
        (data, "instruction × 1"),
    ):
        assert main(["inspect", str(path)]) == 0
        assert words in capsys.readouterr().out
    assert time.monotonic() - started < 120


def test_json_holds_what_the_text_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = str(tiny_chat.folder()), str(tmp_path / "out")

    def told(*command: str) -> dict[str, Any]:
        assert main([*command, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    planned = told("export", base, "--out", out, "--quant", "F32", "--plan")
    assert any(row["label"] and row["text"] for row in planned["plan"])
    made = told("export", base, "--out", out, "--quant", "F32", "--no-verify")
    [name] = [file for file in made["files"] if file.endswith(".gguf")]
    assert made["files"][name] == (tmp_path / "out" / name).stat().st_size
    assert made["proof"]["verdict"] == "not checked"
    proof = told("verify", out)
    assert {"tokenizer", f"tensors {name}"} <= {check["name"] for check in proof["checks"]}
    assert proof["verdict"] == "passed" and str(len(proof["checks"])) in proof["summary"]
    assert any("LlamaForCausalLM" in row["text"] for row in told("inspect", base)["found"])
    assert [row["gguf"] for row in told("models", "Qwen3ForCausalLM")["models"]] == ["qwen3"]
    assert {"export", "chat", "train"} <= {row["job"] for row in told("doctor")["jobs"]}
