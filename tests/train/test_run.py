"""Whole runs on tiny models: the loss against a hand-written loop, and what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from tiny_run import ROWS, steady, tiny_run

from lorafold.artifacts import damaged_files, read_manifest
from lorafold.sources.recognize import run_folder
from lorafold.train import TrainConfig, train
from lorafold.train.saved.card import model_card
from lorafold.train.saved.curve import draw_png


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
    from lorafold.train.tokens.collate import plan_epoch

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
    wanted = {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "metrics.jsonl",
        "loss.png",
        "loss.html",
    }
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


@pytest.mark.parametrize("steps", [3, 50])
def test_the_last_step_is_always_logged(config: TrainConfig, steps: int) -> None:
    result = train(dataclasses.replace(config, logging_steps=steps))
    rows = steady(result.folder)
    assert [row["step"] for row in rows] == ([3, 6, 8] if steps == 3 else [8])
    assert result.loss == rows[-1]["loss"]


def test_a_run_that_stops_early_between_two_logged_steps(config: TrainConfig) -> None:
    """Its last step is logged all the same, told as the run's loss, and found again by --resume."""
    early = dataclasses.replace(
        config,
        eval_split=0.2,
        eval_steps=1,
        early_stopping_patience=2,
        max_steps=40,
        learning_rate=0.5,
        logging_steps=50,
    )
    result = train(early)
    assert result.steps < 40
    (row,) = (row for row in steady(result.folder) if "loss" in row)
    assert row["step"] == result.steps and row["loss"] == result.loss > 0
    assert f"last loss {result.loss:.4f}" in (result.folder / "README.md").read_text()
    again = train(dataclasses.replace(early, resume=True))
    assert (again.loss, again.steps) == (result.loss, result.steps)


@pytest.mark.parametrize(
    ("method", "tag", "shown", "hidden"),
    [
        ("dora", "lora", "| r | 8 |", "num_virtual_tokens"),
        ("ia3", "ia3", "target_modules", "lora_alpha"),
        ("prefix", "prefix-tuning", "| num_virtual_tokens | 20 |", "target_modules"),
        ("prompt", "prompt-tuning", "num_virtual_tokens", "| r |"),
        ("ptuning", "p-tuning", "num_virtual_tokens", "lora_dropout"),
    ],
)
def test_the_card_tells_what_the_method_has(
    config: TrainConfig, method: str, tag: str, shown: str, hidden: str
) -> None:
    chosen = dataclasses.replace(config, method=method)  # type: ignore[arg-type]
    facts = {
        "base": {"id": "base"},
        "versions": {"lorafold": "1"},
        "data": {"examples": 3},
        "training": {"steps": 2, "loss": None, "eval_loss": None},
    }
    card = model_card(chosen, facts, "title", curve=False)
    assert f"- {tag}\n" in card and shown in card and hidden not in card
    assert tag == "lora" or "- lora\n" not in card
    assert f"lorafold chat {config.base}+title\n```" in card
    assert f"| data | {Path(config.data[0]).name.replace('_', chr(92) + '_')} |" in card
    assert config.data[0] not in card and "## Licence" in card
    assert "## Use" not in model_card(dataclasses.replace(chosen, system="```\n# x"), facts, "t", curve=False)


def test_outputs_by_other_names(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to an empty folder (on another disk where there is one), the working folder, odd letters."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(dir=shared if shared.is_dir() else None) as disk:
        (real := Path(disk) / "real").mkdir()
        (tmp_path / "link").symlink_to(real)
        linked = train(dataclasses.replace(config, out=tmp_path / "link", max_steps=1))
        assert linked.folder == tmp_path / "link" and (tmp_path / "link").is_symlink()
        assert (real / "adapter_model.safetensors").is_file()
        assert [path.name for path in Path(disk).iterdir()] == ["real"]
        assert [path.name for path in tmp_path.iterdir()] == ["link"]
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    result = train(dataclasses.replace(config, out=Path("."), max_steps=1))
    assert result.folder == here and (here / "adapter_model.safetensors").is_file()
    assert len(result.records) == 1 and any("`cd .`" in note for note in result.notes)
    odd = train(dataclasses.replace(config, out=tmp_path / "a$\\q$b", max_steps=1))
    assert (odd.folder / "loss.png").is_file()


def test_a_curve_that_cannot_be_drawn_costs_the_picture_only(tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 1.0}]
    assert draw_png(records, tmp_path / "good.png", "a$\\q$b 你好")
    assert not draw_png(records, tmp_path / "bad.png", "\udcff")  # a name that is no UTF-8
    assert [path.name for path in tmp_path.iterdir()] == ["good.png"]


def test_tensorboard_gets_the_figures(config: TrainConfig) -> None:
    pytest.importorskip("tensorboardX")
    result = train(dataclasses.replace(config, report_to="tensorboard", max_steps=2))
    (events,) = (result.folder / "runs").iterdir()
    assert b"train/loss" in events.read_bytes()
