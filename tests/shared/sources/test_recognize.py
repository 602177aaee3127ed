"""What is there instead of what was wanted: each layout that people give is named, with what to give."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafold.cli import main
from lorafold.errors import InputError
from lorafold.models import Base, locate
from lorafold.sources.adapter_base import on_an_adapter, other_base_named
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
    "ms-swift's output": (
        lambda folder: trainer(folder / "v0-20260101").parent,
        "a folder that holds several adapters",
        "v0-20260101/checkpoint-100",
    ),
    "an adapter in a checkpoint's subfolder": (
        lambda folder: adapter(folder / "checkpoint-5" / "adapter_model").parent.parent,
        "a folder that holds an adapter",
        "checkpoint-5/adapter_model",
    ),
    "adapters by name": (
        lambda folder: adapter(adapter(folder / "train").parent / "reference").parent,
        "a folder that holds several adapters",
        "reference",
    ),
    "an archive": (lambda folder: archive(folder / "a.zip"), "a zip archive", None),
}


INCOMPLETE = {
    "adapters.safetensors": ("the weights of an mlx-lm adapter without adapter_config.json", "mlx-lm saved"),
    "adapters.npz": ("the weights of an mlx-lm adapter without adapter_config.json", "mlx-lm saved"),
    "adapter_model.safetensors": ("the weights of an adapter without adapter_config.json", "copy"),
    "pytorch_lora_weights.safetensors": ("an adapter for image models (diffusers)", "language model"),
    "adapter_0.pt": ("a torchtune adapter in its own format", "PEFT's format"),
    "lit_model.pth.lora": ("a LitGPT checkpoint", "convert_from_litgpt"),
    "consolidated.00.pth": ("a model in its maker's own format", "for transformers"),
    "__0_0.distcp": ("the shards of a training (FSDP, DeepSpeed)", "gather"),
    "model.safetensors": ("the weights of a model without config.json", "download config.json"),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_a_folder_without_the_file_that_tells(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(b"x")
    what, fix = INCOMPLETE[name]
    assert main(["export", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert what in error and fix in error


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("adapter_config.json", "{}")
    return path


def test_all_adapters_that_may_be_meant_are_named(tmp_path: Path) -> None:
    """TRL keeps the reference beside what it trains, in folders of their names."""
    for name in ("train", "reference"):
        adapter(tmp_path / name)
    assert instead(tmp_path, "an adapter") == (
        "this is a folder that holds several adapters, not an adapter",
        f"give {tmp_path / 'reference'} or {tmp_path / 'train'}",
    )
    assert instead(archive(tmp_path / "a.zip"), "an adapter") == (
        "this is a zip archive, not an adapter",
        "unpack it first",
    )


def test_a_chain_of_adapters_is_named_from_its_beginning(tmp_path: Path) -> None:
    first = adapter(tmp_path / "first")
    second = adapter(tmp_path / "second", base=str(first))
    third = adapter(tmp_path / "third", base=str(second))
    error = on_an_adapter(str(second), third, "at")
    assert error.fix == (
        f"fold all in their order: lorafold export {first} --adapter {second} --adapter {third}"
    )
    adapter(first, base=str(third))  # a circle ends
    assert on_an_adapter(str(second), third, "at").fix


@pytest.mark.parametrize(
    ("named", "given", "told"),
    [
        ("Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2-1.5B", True),
        ("Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2-1.5B-Instruct", False),
        ("unsloth/Qwen2-1.5B-Instruct-bnb-4bit", "modelscope:Qwen/Qwen2-1.5B-Instruct", False),
        ("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "meta-llama/Llama-3.2-1B", False),
        ("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "meta-llama/Llama-3.2-3B", True),
        ("/root/.cache/modelscope/hub/Qwen/Qwen2-7B", "Qwen/Qwen2-7B-Instruct", True),
        ("/root/.cache/modelscope/hub/Qwen/Qwen2-7B", "/models/anything", False),
        ("Qwen/Qwen2-7B", "/models/anything", False),
        ("", "Qwen/Qwen2-7B", False),
    ],
)
def test_another_repository_than_the_adapter_names(
    named: str, given: str, told: bool, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "a", base=named)
    found = other_base_named(folder, Base(tmp_path, given))
    assert found == (named if told else None)


def test_links_whose_files_were_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A snapshot of the hub's cache, copied with its links alone."""
    for folder, name in (("adapter", "adapter_config.json"), ("base", "config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).symlink_to("../../blobs/0f0f")
        assert main(["export", str(tmp_path / folder), "--out", str(tmp_path / "out")]) == 3
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{name}: a link to ../../blobs/0f0f, which is not there" in error


def test_a_base_that_is_no_model_is_said_to_be_the_adapter_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base").mkdir()
    stacked = adapter(tmp_path / "stacked", base=str(tmp_path / "base"))
    config = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA", "target_modules": ["x"]}
    (stacked / "adapter_config.json").write_text(json.dumps(config))
    _weights(stacked)
    assert main(["export", str(stacked), "--out", str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        f"adapter_config.json: base_model_name_or_path: the base '{tmp_path / 'base'}' cannot be used"
        in error
    )


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


ADDRESSES = {
    "https://huggingface.co/org/some-adapter": "give the id: org/some-adapter",
    "https://hf-mirror.com/org/some-adapter/tree/main": "give the id: org/some-adapter",
    "https://huggingface.co/org/x/tree/v1.0": "give the id: org/x@v1.0",
    "https://huggingface.co/org/x/blob/main/adapter_config.json": "give the id: org/x",
    "hf.co/org/x?library=peft": "give the id: org/x",
    "https://www.modelscope.cn/models/org/x": "give the id: org/x",
    "https://huggingface.co/org/x/tree/main/checkpoint-9": "--include 'checkpoint-9/*' --local-dir DIR",
    "org/x/v1.5": "hf download org/x --include 'v1.5/*' --local-dir DIR) and give DIR/v1.5",
}


@pytest.mark.parametrize("given", ADDRESSES)
def test_the_address_of_a_page(given: str) -> None:
    with pytest.raises(InputError, match=r"the address of a page|no such model") as caught:
        locate(given, offline=True)
    assert ADDRESSES[given] in str(caught.value.fix)


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
