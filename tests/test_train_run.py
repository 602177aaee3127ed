"""Whole runs on tiny models: the loss against a hand-written loop, exact resume, faults, what is written."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base

from lorafold.artifacts import damaged_files, lock, read_manifest
from lorafold.errors import BusyError, InputError, LorafoldError, NumericError, UnsafeInputError, UsageError
from lorafold.train import TrainConfig, train
from lorafold.train.checkpoints import list_checkpoints
from lorafold.train.curve import read_metrics
from lorafold.train.run import run_folder

ROWS = [{"instruction": f"question {i}", "output": "answer " * (1 + i % 4) + str(i)} for i in range(14)]
VOLATILE = ("tokens_per_second", "memory_gib")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def config(base: Path, data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        base=str(base),
        data=(str(data),),
        out=tmp_path / "out",
        learning_rate=5e-3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        lora_dropout=0.1,
        max_steps=8,
        save_steps=2,
    )


def steady(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if key not in VOLATILE}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def same_files(one: Path, other: Path, names: tuple[str, ...]) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


class Kill(BaseException):
    """Stands for SIGKILL inside this process: nothing of ours catches it."""


def die_at(step: int, *, before_done: bool = True) -> Any:
    """A progress that dies when a step is reported, which is before the step's checkpoint."""

    def progress(name: str, done: float, total: float | None, note: str = "") -> None:
        if name == "train" and done == step:
            raise Kill

    return progress


# 14 examples, 2 a batch, 2 batches a step: 4 steps an epoch, the last of them of one batch.
def test_loss_equals_a_hand_written_loop(config: TrainConfig, base: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = dataclasses.replace(
        config, lora_dropout=0.0, group_by_length=False, warmup_steps=2, lr_scheduler_type="linear"
    )
    result = train(plain)
    ours = [row["loss"] for row in steady(result.folder)]

    # The same run written down once more with nothing of ours but the order of the examples.
    from lorafold.train.collate import plan_epoch

    tokenizer = AutoTokenizer.from_pretrained(base)
    texts, masks = [], []
    for row in ROWS:
        head = [{"role": "user", "content": row["instruction"]}]
        full = [*head, {"role": "assistant", "content": row["output"]}]
        start = tokenizer.apply_chat_template(head, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.apply_chat_template(full, return_dict=True)["input_ids"]
        texts.append(ids)
        masks.append([False] * len(start) + [True] * (len(ids) - len(start) - 1) + [False])  # last: newline
    torch.manual_seed(plain.seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=plain.learning_rate, weight_decay=0.0
    )
    expected = []
    for step in range(8):
        rate = min((step) / 2, (8 - step) / 6) * plain.learning_rate
        for group in optimizer.param_groups:
            group["lr"] = rate
        plan = plan_epoch([0] * 14, 2, seed=plain.seed, epoch=step // 4, group=False)
        losses = []
        for index in [i for batch in plan[step % 4 * 2 : step % 4 * 2 + 2] for i in batch]:
            ids = torch.tensor([texts[index]])
            logits = model(input_ids=ids).logits[0].double().log_softmax(-1)
            losses += [-logits[i - 1, texts[index][i]] for i, on in enumerate(masks[index]) if on]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())
    assert ours == pytest.approx(expected, rel=2e-5)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(
    ("cut", "kept"),
    [(3, 2), (4, 2), (7, 6)],
    ids=["between checkpoints", "at an epoch's border", "late"],
)
def test_resume_is_bitwise_equal(config: TrainConfig, tmp_path: Path, cut: int, kept: int) -> None:
    whole = train(config)
    parted = dataclasses.replace(config, out=tmp_path / "parted")
    with pytest.raises(Kill):
        train(parted, die_at(cut))
    assert not (tmp_path / "parted").exists()
    resumed = train(dataclasses.replace(parted, resume=True))
    assert f"resumed at step {kept}" in resumed.notes
    assert steady(resumed.folder) == steady(whole.folder)
    assert same_files(whole.folder, resumed.folder, ("adapter_model.safetensors", "adapter_config.json"))
    last = "checkpoint-6/optimizer.safetensors"
    assert same_files(whole.folder, resumed.folder, (last,))


def test_kill_in_mid_accumulation_resumes_bitwise_equal(config: TrainConfig, tmp_path: Path) -> None:
    """Die between the two forward passes of step 6, with a gradient half accumulated."""
    whole = train(config)
    parted = dataclasses.replace(config, out=tmp_path / "parted")
    passes = 0

    def count(module: Any, inputs: Any) -> None:
        nonlocal passes
        passes += isinstance(module, torch.nn.Embedding)
        if passes == 11:  # 2 a step in steps 1 to 3, 1 in step 4, 2 in step 5, then the second of step 6
            raise Kill

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        with pytest.raises(Kill):
            train(parted)
    finally:
        hook.remove()
    resumed = train(dataclasses.replace(parted, resume=True))
    assert "resumed at step 4" in resumed.notes
    assert steady(resumed.folder) == steady(whole.folder)
    assert same_files(whole.folder, resumed.folder, ("adapter_model.safetensors",))


@pytest.mark.parametrize("damage", ["flip", "remove", "truncate", "no manifest"])
def test_a_damaged_checkpoint_is_never_chosen(config: TrainConfig, damage: str) -> None:
    with pytest.raises(Kill):
        train(config, die_at(7))
    newest = list_checkpoints(run_folder(config.output))[0]
    path = newest / "optimizer.safetensors"
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-1] ^= 1
        path.write_bytes(raw)
    elif damage == "truncate":
        path.write_bytes(raw[:-1])
    else:
        (path if damage == "remove" else newest / "lorafold.json").unlink()
    result = train(dataclasses.replace(config, resume=True))
    assert "resumed at step 4" in result.notes
    assert any(note.startswith("checkpoint-6 is not whole") for note in result.notes)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(config: TrainConfig, number: signal.Signals, code: int) -> None:
    def interrupt(name: str, done: float, total: float | None, note: str = "") -> None:
        if name == "train" and done == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    stopped = train(config, interrupt)
    assert stopped.stopped_by == number and 128 + stopped.stopped_by == code
    assert stopped.steps == 3 and not config.output.exists()
    assert (run_folder(config.output) / "checkpoint-3").is_dir()
    assert signal.getsignal(number) is before
    assert any("go on with --resume" in text for _, text in stopped.lines())
    assert train(dataclasses.replace(config, resume=True)).steps == 8


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


def test_divergence_keeps_the_last_good_checkpoint(config: TrainConfig) -> None:
    wild = dataclasses.replace(
        config, method="full", learning_rate=1e30, warmup_steps=6, max_steps=20, max_grad_norm=0, save_steps=1
    )
    with pytest.raises(NumericError):
        train(wild)
    kept = list_checkpoints(run_folder(config.output))
    assert kept
    for path in kept:
        manifest = read_manifest(path)
        assert manifest is not None and not damaged_files(path, manifest)


def test_resume_refuses_another_configuration_data_or_base(
    config: TrainConfig, tmp_path: Path, data: Path
) -> None:
    with pytest.raises(Kill):
        train(config, die_at(5))
    again = dataclasses.replace(config, resume=True)
    with pytest.raises(UsageError, match=r"configuration changed.*learning_rate was 0.005, is 0.1"):
        train(dataclasses.replace(again, learning_rate=0.1))
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace("question 3", "question three"))
    with pytest.raises(InputError, match="the data set changed"):
        train(dataclasses.replace(again, data=(str(other),)))
    with pytest.raises(InputError, match="the base model changed"):
        train(dataclasses.replace(again, base=str(tiny_base(tmp_path / "b", intermediate_size=96))))
    with pytest.raises(UsageError, match="an unfinished run"):
        train(config)
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps(ROWS))  # the same examples in another file
    assert train(dataclasses.replace(again, data=(str(moved),), save_steps=3)).steps == 8


def test_resume_with_force_starts_over_where_it_cannot_go_on(config: TrainConfig) -> None:
    with pytest.raises(Kill):
        train(config, die_at(5))
    changed = dataclasses.replace(config, learning_rate=1e-3)
    result = train(dataclasses.replace(changed, resume=True, force=True))
    assert any(note.endswith("starting over") for note in result.notes)
    assert [row["step"] for row in steady(result.folder)] == list(range(1, 9))


def test_a_kill_while_tidying_up_loses_nothing(config: TrainConfig) -> None:
    """Die after the result is in place and before the checkpoints have moved into it."""
    result = train(config)
    run = run_folder(config.output)
    run.mkdir()
    (result.folder / "checkpoint-6").rename(run / "checkpoint-6")
    again = train(dataclasses.replace(config, resume=True))
    assert again.notes == ("this run had finished already: nothing was done",)
    assert (again.steps, again.loss, again.records) == (8, result.loss, result.records)
    assert (result.folder / "checkpoint-6").is_dir() and not run.exists()
    with pytest.raises(UsageError, match="not empty"):
        train(dataclasses.replace(config, resume=True, learning_rate=0.1))


def test_the_template_it_was_trained_with_goes_along(config: TrainConfig) -> None:
    result = train(dataclasses.replace(config, chat_template="chatml", max_steps=1))
    manifest = read_manifest(result.folder)
    assert manifest is not None
    assert (result.folder / "chat_template.jinja").read_text() == manifest["chat_template"]


def test_resume_without_a_whole_checkpoint_starts_over(config: TrainConfig) -> None:
    with pytest.raises(Kill):
        train(dataclasses.replace(config, save_steps=4), die_at(5))
    (newest,) = list_checkpoints(run_folder(config.output))
    (newest / "lorafold.json").write_text("{")
    result = train(dataclasses.replace(config, save_steps=4, resume=True))
    assert "nothing to resume: starting at step 0" in result.notes
    assert [row["step"] for row in steady(result.folder)] == list(range(1, 9))


def test_outputs_in_the_way(config: TrainConfig, data: Path) -> None:
    config.output.mkdir()
    (config.output / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        train(config)
    with pytest.raises(UsageError, match="overlaps the input"):
        train(dataclasses.replace(config, out=Path(config.base)))
    with lock(run_folder(config.output)), pytest.raises(BusyError, match=str(os.getpid())):
        train(dataclasses.replace(config, force=True))
    assert (config.output / "mine").read_text() == "x"
    assert train(dataclasses.replace(config, force=True)).steps == 8
    assert not (config.output / "mine").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": float("nan")}, "--learning-rate: expected a number above 0, got nan"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"r": 0}, "--r: expected a rank of 1 or more, got 0"),
        ({"base": ""}, "--base: it is required"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        ({"load_in_4bit": True, "method": "full"}, "use --method qlora"),
        ({"early_stopping_patience": 2}, "nothing to evaluate on"),
    ],
)
def test_impossible_configs(config: TrainConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(dataclasses.replace(config, **change))


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


def test_the_adapter_folder(config: TrainConfig, base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = train(config)
    folder = result.folder
    manifest = read_manifest(folder)
    assert manifest is not None and manifest["kind"] == "adapter" and not damaged_files(folder, manifest)
    assert manifest["config"]["learning_rate"] == 5e-3 and manifest["data"]["examples"] == 14
    assert manifest["base"]["id"] == str(base.resolve()) and manifest["base"]["fingerprint"]
    assert {"torch", "peft", "transformers", "lorafold"} <= set(manifest["versions"])
    assert "im_start" in manifest["chat_template"]
    wanted = {"adapter_model.safetensors", "adapter_config.json", "README.md", "metrics.jsonl", "loss.png"}
    assert wanted <= {path.name for path in folder.iterdir()}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not run_folder(folder).exists() and not list(folder.parent.glob(".out*"))
    assert "base_model: " in (folder / "README.md").read_text()
    # PEFT reads the folder and a checkpoint inside it, and both answer as trained.
    for source in (folder, folder / "checkpoint-6"):
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), source)
        assert any(name.endswith("lora_A.default.weight") for name, _ in loaded.named_parameters())


def test_evaluation_best_and_early_stop(config: TrainConfig, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    # Letters that training never shows become less likely with every step.
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"instruction": "question", "output": "ZZZZ"}))
    watched = dataclasses.replace(
        config,
        eval_data=(str(other),),
        eval_steps=1,
        max_steps=40,
        save_steps=1,
        save_total_limit=50,
        early_stopping_patience=4,
        load_best_model_at_end=True,
    )
    result = train(watched)
    losses = {row["step"]: row["eval_loss"] for row in steady(result.folder) if "eval_loss" in row}
    best = min(losses, key=lambda step: (losses[step], step))
    assert result.steps == best + 4 < 40 and result.eval_loss == losses[best]
    assert any(note.endswith(f"best evaluation, of step {best}") for note in result.notes)
    final = load_file(result.folder / "adapter_model.safetensors")
    then = load_file(result.folder / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all(torch.equal(final[name], then[name]) for name in final)


def test_tensorboard_gets_the_figures(config: TrainConfig) -> None:
    pytest.importorskip("tensorboardX")
    result = train(dataclasses.replace(config, report_to="tensorboard", max_steps=2))
    (events,) = (result.folder / "runs").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_errors_are_ours(config: TrainConfig) -> None:
    """Whatever is wrong with the paths, the error is one of the tree."""
    for change in ({"base": "no/such/folder/here"}, {"data": ("missing.jsonl",)}, {"chat_template": "none"}):
        with pytest.raises(LorafoldError) as caught:
            train(dataclasses.replace(config, **change))  # type: ignore[arg-type]
        assert caught.value.exit_code in (2, 3)
