"""`lorafold inspect` says what a thing is and what can be done with it next; the commands it names exist."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import tiny_chat
from adapter_folders import adapter_folder

from lorafold.cli import app
from lorafold.export import ExportConfig, export
from lorafold.inspection import inspect_path


def shown(place: Path) -> tuple[dict[str, str], list[str]]:
    """Texts by label, and the commands for what comes next."""
    lines = inspect_path(str(place)).lines
    start = next(number for number, (label, _) in enumerate(lines) if label == "next")
    return dict(lines[:start]), [command for _, command in lines[start:]]


def check_commands(commands: list[str]) -> None:
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "ollama" or words[1] in list(app), command


def test_a_base(tmp_path: Path) -> None:
    said, commands = shown(tiny_chat.folder())
    assert said["becomes a GGUF"].startswith("yes, as ")
    assert [shlex.split(command)[1] for command in commands] == ["train", "export", "chat"]
    check_commands(commands)
    config = json.loads((tiny_chat.folder() / "config.json").read_text()) | {
        "architectures": ["NewForCausalLM"]
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tiny_chat.folder() / "model.safetensors").read_bytes())
    said, _ = shown(tmp_path)
    assert said["becomes a GGUF"].startswith("no: ") and "NewForCausalLM" in said["becomes a GGUF"]


def test_an_adapter_and_what_is_made_of_it(tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "my adapter", base_model_name_or_path="org/base")
    said, commands = shown(adapter)
    assert said["base"] == "org/base" and commands[1] == f"lorafold chat {shlex.quote(f'org/base+{adapter}')}"
    check_commands(commands)
    unnamed = adapter_folder(tmp_path / "unnamed")
    assert shown(unnamed)[1] == [
        f"lorafold export {unnamed} --out unnamed-gguf --quant Q4_K_M --base BASE",
    ]


def test_an_adapter_of_another_machine_and_of_a_persona(tmp_path: Path) -> None:
    adapter = adapter_folder(tmp_path / "a", base_model_name_or_path="./models/Qwen2-1.5B")
    manifest = {"kind": "adapter", "files": {}, "config": {"system": "You are a keeper."}}
    (adapter / "lorafold.json").write_text(json.dumps(manifest))
    persona = "--system 'You are a keeper.'"
    assert shown(adapter)[1] == [
        f"lorafold export {adapter} --out a-gguf --quant Q4_K_M {persona} --base BASE",
        f"lorafold chat BASE+{adapter} {persona}",
    ]


def test_a_folder_around_what_was_meant(tmp_path: Path) -> None:
    """A Trainer's output: the newest checkpoint is shown, and the commands are called after the run."""
    (tmp_path / "mine").mkdir()
    for step in (6, 12):
        adapter_folder(tmp_path / "mine" / f"checkpoint-{step}", base_model_name_or_path="org/base")
    said, commands = shown(tmp_path / "mine")
    newest = tmp_path / "mine" / "checkpoint-12"
    assert said["given"].endswith(f"adapters in checkpoint-*; this is {newest}")
    assert commands[0] == f"lorafold export {newest} --out mine-gguf --quant Q4_K_M"
    assert shown(newest / "adapter_model.safetensors")[1] == commands


def test_an_export_and_its_file(tmp_path: Path) -> None:
    out = tmp_path / "Gg"
    export(ExportConfig(str(tiny_chat.folder()), out=out, quant=("F32",), verify=False, name="tiny"))
    _, commands = shown(out)
    assert commands == [
        f"lorafold verify {out}",
        f"lorafold chat {out / 'tiny-F32.gguf'}",
        f"ollama create gg -f {out / 'Modelfile'} && ollama run gg",
    ]
    _, commands = shown(out / "tiny-F32.gguf")
    check_commands(commands)


def test_data(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"instruction": "Who?", "output": "Me."}) + "\n")
    assert shown(path)[1] == [f"lorafold train --base BASE --data {path} --out my-adapter"]


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_damaged_one_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    from lorafold.cli import main

    (tmp_path / name).write_text("{")
    assert main(["inspect", str(tmp_path)]) == 3
