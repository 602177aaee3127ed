"""What is there instead of what was wanted: each layout that people give is named, with what to give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafold.cli import main
from lorafold.sources.recognize import instead, likely_hub_id, newest_checkpoint, recognize


def adapter(folder: Path, base: str = "org/base") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


def model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def trainer(folder: Path) -> Path:
    for step in (50, 100, 9):
        adapter(folder / f"checkpoint-{step}")
    return folder


def cache(folder: Path) -> Path:
    home = folder / "models--org--name"
    for revision in ("aaa", "bbb"):
        model(home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("bbb\n")
    return home


PLACES: dict[str, tuple[Callable[[Path], Path], str, str | None]] = {
    "adapter": (adapter, "an adapter for org/base", None),
    "model": (model, "a model folder", None),
    "a Trainer's output": (trainer, "a Trainer's output folder with adapters", "checkpoint-100"),
    "full checkpoints": (
        lambda folder: model(folder / "checkpoint-7").parent,
        "a Trainer's output folder with models",
        "checkpoint-7",
    ),
    "weights of an adapter": (
        lambda folder: adapter(folder / "mine") / "adapter_model.safetensors",
        "one file of a folder",
        "mine",
    ),
    "the hub's cache": (cache, "a repository's folder in the hub's cache", "snapshots/bbb"),
    "one folder deeper": (lambda folder: adapter(folder / "final").parent, "a folder that holds", "final"),
}


@pytest.mark.parametrize("name", PLACES)
def test_every_place_is_named(name: str, tmp_path: Path) -> None:
    make, what, use = PLACES[name]
    found = recognize(make(tmp_path))
    assert found is not None and found.what.startswith(what)
    assert (found.use is None) == (use is None) and (use is None or str(found.use).endswith(use))


def test_nothing_known_is_nothing(tmp_path: Path) -> None:
    assert recognize(tmp_path) is None and recognize(tmp_path / "absent") is None
    (tmp_path / "checkpoint-x").mkdir()
    assert newest_checkpoint(tmp_path, "config.json") is None
    assert instead(tmp_path, "a model") is None


def test_a_damaged_configuration_is_still_an_adapter(tmp_path: Path) -> None:
    (adapter(tmp_path) / "adapter_config.json").write_text("{")
    assert instead(tmp_path, "a model folder") == (
        "this is an adapter, not a model folder",
        "give its base (the model that it was trained on)",
    )


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/root/autodl-tmp/qwen/Qwen2-1___5B-Instruct/", "qwen/Qwen2-1.5B-Instruct"),
        ("/home/me/.cache/modelscope/hub/Qwen/Qwen2-7B", "Qwen/Qwen2-7B"),
        ("/x/hub/models--meta-llama--Llama-2-7b-hf/snapshots/abc", "meta-llama/Llama-2-7b-hf"),
        ("/content/drive/llama", None),
        ("models/llama", None),
    ],
)
def test_what_a_path_of_another_machine_stands_for(path: str, wanted: str | None) -> None:
    assert likely_hub_id(path) == wanted


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["export", "OUT", "--base", "MODEL"], 3, ["adapters in checkpoint-*", "give", "checkpoint-100"]),
        (["export", "OUT"], 3, ["adapters in checkpoint-*", "checkpoint-100"]),
        (["export", "ADAPTER", "--base", "OTHER"], 3, ["is an adapter itself", "--adapter"]),
        (["export", "STACKED"], 3, ["is an adapter itself", "lorafold export", "--adapter"]),
        (["train", "--base", "ADAPTER", "--data", "x.json", "--out", "o"], 3, ["an adapter for org/base"]),
        (["inspect", "OUT"], 3, ["checkpoint-100"]),
    ],
)
def test_the_commands_say_it(
    arguments: list[str], code: int, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "OUT": trainer(tmp_path / "out"),
        "MODEL": model(tmp_path / "model"),
        "ADAPTER": adapter(tmp_path / "adapter"),
        "OTHER": adapter(tmp_path / "other"),
    }
    places["STACKED"] = adapter(tmp_path / "stacked", base=str(places["OTHER"]))
    given = [str(places.get(word, word)) for word in arguments]
    if given[0] != "inspect":
        given += [] if "--out" in given else ["--out", str(tmp_path / "result")]
    for path in (tmp_path / "adapter", tmp_path / "stacked"):
        config = json.loads((path / "adapter_config.json").read_text())
        config |= {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
        (path / "adapter_config.json").write_text(json.dumps(config))
        _weights(path)
    assert main(given) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error


def _weights(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
