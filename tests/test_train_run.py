"""Whole runs on tiny models: the loss against a hand-written loop, and what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_run import ROWS, steady, tiny_run

from lorafold.artifacts import damaged_files, read_manifest
from lorafold.train import TrainConfig, train
from lorafold.train.run import run_folder


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_run(tmp_path / "out")


def test_loss_equals_a_hand_written_loop(config: TrainConfig) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = dataclasses.replace(
        config, lora_dropout=0.0, group_by_length=False, warmup_steps=2, lr_scheduler_type="linear"
    )
    result = train(plain)
    ours = [row["loss"] for row in steady(result.folder)]

    # The same run written down once more with nothing of ours but the order of the examples.
    from lorafold.train.collate import plan_epoch

    tokenizer = AutoTokenizer.from_pretrained(config.base)
    texts, masks = [], []
    for row in ROWS:
        head = [{"role": "user", "content": row["instruction"]}]
        full = [*head, {"role": "assistant", "content": row["output"]}]
        start = tokenizer.apply_chat_template(head, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.apply_chat_template(full, return_dict=True)["input_ids"]
        texts.append(ids)
        masks.append([False] * len(start) + [True] * (len(ids) - len(start) - 1) + [False])  # last: newline
    torch.manual_seed(plain.seed)
    model = AutoModelForCausalLM.from_pretrained(config.base, dtype=torch.float32)
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


def test_the_template_it_was_trained_with_goes_along(config: TrainConfig) -> None:
    result = train(dataclasses.replace(config, chat_template="chatml", max_steps=1))
    manifest = read_manifest(result.folder)
    assert manifest is not None
    assert (result.folder / "chat_template.jinja").read_text() == manifest["chat_template"]


def test_the_adapter_folder(config: TrainConfig) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = train(config)
    folder = result.folder
    manifest = read_manifest(folder)
    assert manifest is not None and manifest["kind"] == "adapter" and not damaged_files(folder, manifest)
    assert manifest["config"]["learning_rate"] == 5e-3 and manifest["data"]["examples"] == 14
    assert manifest["base"]["id"] == str(Path(config.base).resolve()) and manifest["base"]["fingerprint"]
    assert {"torch", "peft", "transformers", "lorafold"} <= set(manifest["versions"])
    assert "im_start" in manifest["chat_template"]
    wanted = {"adapter_model.safetensors", "adapter_config.json", "README.md", "metrics.jsonl", "loss.png"}
    assert wanted <= {path.name for path in folder.iterdir()}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not run_folder(folder).exists() and not list(folder.parent.glob(".out*"))
    assert "base_model: " in (folder / "README.md").read_text()
    # PEFT reads the folder and a checkpoint inside it, and both answer as trained.
    for source in (folder, folder / "checkpoint-6"):
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.base), source)
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
