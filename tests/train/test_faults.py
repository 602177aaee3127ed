"""Runs that go wrong: signals, NaN, damaged bases, impossible configs, outputs in the way."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_run
from transformers import AutoModelForCausalLM

from lorafold.artifacts import damaged_files, lock, read_manifest
from lorafold.errors import BusyError, InputError, LorafoldError, NumericError, UnsafeInputError, UsageError
from lorafold.sources.recognize import run_folder
from lorafold.train import TrainConfig, train
from lorafold.train.saved.checkpoints import list_checkpoints, restore_parameters


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_run(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(config: TrainConfig, number: signal.Signals, code: int) -> None:
    def interrupt(name: str, done: float, total: float | None, note: str = "") -> None:
        if name == "train" and done == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    stopped = train(dataclasses.replace(config, logging_steps=5), interrupt)
    assert [row["step"] for row in stopped.records] == [3] and stopped.loss == stopped.records[0]["loss"] > 0
    assert stopped.stopped_by == number and 128 + stopped.stopped_by == code
    assert stopped.steps == 3 and not config.output.exists()
    assert (run_folder(config.output) / "checkpoint-3").is_dir()
    assert signal.getsignal(number) is before
    assert any("go on with --resume" in text for _, text in stopped.lines())
    assert train(dataclasses.replace(config, resume=True)).steps == 8


@pytest.mark.slow
def test_a_second_sigint_aborts(config: TrainConfig) -> None:
    def interrupt(name: str, done: float, total: float | None, note: str = "") -> None:
        if name == "train" and done == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, interrupt)


def test_nan_stops_before_anything_bad_is_saved(config: TrainConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bad = tmp_path / "bad"
    shutil.copytree(config.base, bad)
    weights = load_file(bad / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericError, match="step 1: the loss became nan") as caught:
        train(dataclasses.replace(config, base=str(bad)))
    assert caught.value.exit_code == 6
    assert not config.output.exists() and not list_checkpoints(run_folder(config.output))


def test_a_nan_in_the_evaluation_stops_too(config: TrainConfig) -> None:
    """The step that is evaluated spoils the weights: its own loss was still a number."""
    wild = dataclasses.replace(
        config,
        method="full",
        learning_rate=1e30,
        max_grad_norm=0,
        lr_scheduler_type="constant",
        eval_split=0.2,
        eval_steps=1,
        load_best_model_at_end=True,
    )
    with pytest.raises(NumericError, match=r"step 1: the evaluation loss became (nan|inf)"):
        train(wild)
    assert not config.output.exists() and not (run_folder(config.output) / "best").exists()


def test_divergence_keeps_the_last_good_checkpoint(config: TrainConfig) -> None:
    wild = dataclasses.replace(
        config, method="full", learning_rate=1e30, warmup_steps=6, max_steps=20, max_grad_norm=0, save_steps=1
    )
    with pytest.raises(NumericError, match="step 2: the loss with the new weights became nan"):
        train(wild)
    (kept,) = list_checkpoints(run_folder(config.output))
    manifest = read_manifest(kept)
    assert manifest is not None and not damaged_files(kept, manifest)
    # It is good: transformers computes a loss with it, and so it is with --resume that the fault comes again.
    model = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
    restore_parameters(model, kept / "trainable.safetensors")
    ids = torch.arange(20)[None]
    assert math.isfinite(model(input_ids=ids, labels=ids).loss.item())
    with pytest.raises(NumericError, match="step 2"):
        train(dataclasses.replace(wild, resume=True))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_last_step_that_ruins_the_weights_gives_no_result(config: TrainConfig, method: Any) -> None:
    wild = {"learning_rate": 1e30, "lr_scheduler_type": "constant", "max_grad_norm": 0, "save_steps": 0}
    with pytest.raises(NumericError, match="step 1: the loss with the new weights became nan"):
        train(dataclasses.replace(config, method=method, max_steps=1, **wild))  # type: ignore[arg-type]
    assert not config.output.exists()


def test_a_folder_of_somebody_else_is_let_be(config: TrainConfig) -> None:
    run = run_folder(config.output)
    run.mkdir()
    (run / "thesis.txt").write_text("mine")
    one = dataclasses.replace(config, max_steps=1)
    for resume in (False, True):
        with pytest.raises(UsageError, match=r"out\.run: .* holds other things \(thesis\.txt\)"):
            train(dataclasses.replace(one, resume=resume))
    assert (run / "thesis.txt").read_text() == "mine"
    assert train(dataclasses.replace(one, force=True)).steps == 1 and not run.exists()
    run.write_text("a file")
    with pytest.raises(UsageError, match=r"out\.run: .* is no folder"):
        train(dataclasses.replace(one, force=True))


def test_what_is_put_beside_the_checkpoints_meanwhile_stays(config: TrainConfig) -> None:
    mine = run_folder(config.output) / "note.txt"

    def write(name: str, done: float, total: float | None, note: str = "") -> None:
        if name == "train":
            mine.write_text("mine")

    train(dataclasses.replace(config, max_steps=1), write)
    assert [path.name for path in mine.parent.iterdir()] == ["note.txt"]


def test_a_run_that_never_began_leaves_nothing(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"bad\.jsonl:1"):
        train(dataclasses.replace(config, data=(str(tmp_path / "bad.jsonl"),)))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_outputs_in_the_way(config: TrainConfig) -> None:
    config.output.mkdir()
    (config.output / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        train(config)
    with pytest.raises(UsageError, match="overlaps the input"):
        train(dataclasses.replace(config, out=Path(config.base)))
    forced = dataclasses.replace(config, force=True)
    with pytest.raises(UsageError, match="--force replaces only an earlier adapter or base"):
        train(forced)
    assert (config.output / "mine").read_text() == "x"
    (config.output / "mine").unlink()
    with lock(run_folder(config.output)), pytest.raises(BusyError, match=str(os.getpid())):
        train(config)
    assert train(config).steps == 8
    (config.output / "mine").write_text("x")  # in a folder of ours it goes with it
    assert train(forced).steps == 8
    assert not (config.output / "mine").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": float("nan")}, "--learning-rate: expected a number above 0, got nan"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"r": 0}, "--r: expected a rank of 1 or more, got 0"),
        ({"base": ""}, "--base: a model folder, a hub id or `demo` is required"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        ({"load_in_4bit": True, "method": "full"}, "choose --method qlora"),
        ({"load_in_8bit": True, "method": "pissa"}, "choose --method olora or qlora"),
        ({"early_stopping_patience": 2}, "nothing to evaluate on"),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-7}, "--learning-rate: the polynomial"),
        ({"method": "prefix", "gradient_checkpointing": True}, "--gradient-checkpointing: a trained prefix"),
    ],
)
def test_impossible_configs(config: TrainConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(dataclasses.replace(config, **change))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU can do it")
def test_dora_on_8_bit_without_a_gpu(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match="--load-in-8bit: DoRA on an 8-bit base needs a CUDA GPU"):
        train(dataclasses.replace(config, method="dora", load_in_8bit=True))


def test_unknown_target_modules(config: TrainConfig) -> None:
    with pytest.raises(UsageError, match="--target-modules: peft refuses"):
        train(dataclasses.replace(config, target_modules=("nowhere",)))


def damaged_base(config: TrainConfig, tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(config.base, folder)
    weights = folder / "model.safetensors"
    if name == "pickled":
        weights.rename(folder / "pytorch_model.bin")
    elif name == "missing":
        weights.unlink()
    elif name == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif name == "truncated":
        weights.write_bytes(weights.read_bytes()[:-8])
    else:
        values = json.loads((folder / "config.json").read_text())
        changes: dict[str, Any] = {"layers": {"num_hidden_layers": 3}, "width": {"intermediate_size": 96}}
        changes["architecture"] = {"architectures": ["XForCausalLM"], "model_type": "nonsense"}
        (folder / "config.json").write_text(json.dumps(values | changes[name]))
    return folder


@pytest.mark.parametrize(
    "name", ["pickled", "missing", "pointer", "truncated", "layers", "width", "architecture"]
)
def test_damaged_bases(config: TrainConfig, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError if name != "pickled" else UnsafeInputError) as caught:
        train(dataclasses.replace(config, base=str(damaged_base(config, tmp_path, name))))
    assert caught.value.exit_code == (4 if name == "pickled" else 3)
    assert "\n" not in str(caught.value) and caught.value.fix
    assert not config.output.exists()


def test_errors_are_ours(config: TrainConfig) -> None:
    """Whatever is wrong with the paths, the error is one of the tree."""
    for change in ({"base": "no/such/folder/here"}, {"data": ("missing.jsonl",)}, {"chat_template": "none"}):
        with pytest.raises(LorafoldError) as caught:
            train(dataclasses.replace(config, **change))  # type: ignore[arg-type]
        assert caught.value.exit_code in (2, 3)
