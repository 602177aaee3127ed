"""Every method of the table on tiny models: it learns, and what it saves is what it trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base

from lorafold.chat import ChatTokenizer
from lorafold.train import TrainConfig, train
from lorafold.train.curve import read_metrics
from lorafold.train.methods import METHODS

WORDS = ("red", "blue", "sea", "lamp", "salt", "cat", "gull", "tea")
PAIRS = [(f"{word}?", f"{word[::-1]} {i}") for i, word in enumerate(WORDS)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def config(base: Path, tmp_path: Path) -> TrainConfig:
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in PAIRS))
    return TrainConfig(
        base=str(base),
        data=(str(data),),
        out=tmp_path / "out",
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_steps=12,
        save_steps=5,
    )


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


def loaded(base: Path, folder: Path, method: str) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if method == "full":
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, folder).eval()


def answer_loss(base: Path, folder: Path, method: str) -> float:
    """Mean loss over the answers, of what the saved files say, through transformers and peft alone."""
    model = loaded(base, folder, method)
    tokenizer = ChatTokenizer.from_folder(base)
    summed = count = 0.0
    for prompt, completion in PAIRS:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        encoded = tokenizer.encode_chat(turns)
        ids = torch.tensor([encoded.ids])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :]
        scores = logits.log_softmax(-1)
        for i, on in enumerate(encoded.mask):
            if on:
                summed -= float(scores[i - 1, encoded.ids[i]])
                count += 1
    return summed / count


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_what_was_trained(config: TrainConfig, base: Path, method: str) -> None:
    rate = 1e-2 if METHODS[method].prompt or method == "ia3" else 5e-3
    chosen = dataclasses.replace(config, method=method, learning_rate=rate)  # type: ignore[arg-type]
    result = train(chosen)
    course = losses(result.folder)
    assert course[-1] < course[0]
    # One more step would start from the saved weights: its loss is that of the files, whole batches averaged.
    saved = answer_loss(base, result.folder, method)
    assert saved < course[0] and saved == pytest.approx(course[-1], abs=0.35)
    if METHODS[method].prompt:
        assert METHODS[method].warning in result.notes


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pissa", "olora", "full", "ptuning", "qlora", "loraplus"])
def test_resume_is_bitwise_equal(config: TrainConfig, tmp_path: Path, method: str) -> None:
    chosen = dataclasses.replace(config, method=method, max_steps=8, save_steps=3)  # type: ignore[arg-type]
    whole = train(chosen)

    class Kill(BaseException):
        pass

    def die(name: str, done: float, total: float | None, note: str = "") -> None:
        if name == "train" and done == 5:
            raise Kill

    parted = dataclasses.replace(chosen, out=tmp_path / "parted")
    with pytest.raises(Kill):
        train(parted, die)
    resumed = train(dataclasses.replace(parted, resume=True))
    assert "resumed at step 3" in resumed.notes
    assert losses(resumed.folder) == losses(whole.folder)
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_mutated_bases_are_saved_as_a_plain_lora(config: TrainConfig, base: Path, method: str) -> None:
    from safetensors.torch import load_file

    result = train(dataclasses.replace(config, method=method, max_steps=2))  # type: ignore[arg-type]
    settings = json.loads((result.folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["init_lora_weights"]) == (16, 32, True)
    tensors = load_file(result.folder / "adapter_model.safetensors")
    assert all(value.shape[0] == 16 for name, value in tensors.items() if "lora_A" in name)
    assert not (result.folder / "initial.safetensors").exists()


def test_unit_facts_of_the_saved_config(config: TrainConfig) -> None:
    chosen = dataclasses.replace(
        config,
        max_steps=1,
        lora_alpha=32.0,
        target_modules=(r".*\.(q|v)_proj",),
        modules_to_save=("lm_head",),
    )
    settings = json.loads((train(chosen).folder / "adapter_config.json").read_text())
    assert settings["lora_alpha"] == 32 and isinstance(settings["lora_alpha"], int)
    assert settings["target_modules"] == r".*\.(q|v)_proj" and settings["modules_to_save"] == ["lm_head"]


def test_chosen_layers(config: TrainConfig) -> None:
    from safetensors import safe_open

    result = train(dataclasses.replace(config, max_steps=1, layers_to_transform=(1,)))
    with safe_open(result.folder / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert names and all(".layers.1." in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["lora", "qlora nf4", "qlora fp4", "8 bit"])
def test_twenty_examples_are_memorised(config: TrainConfig, base: Path, tmp_path: Path, way: str) -> None:
    pairs = [(f"What is word {i}?", f"w{i * 37 % 101}-{chr(97 + i)}") for i in range(20)]
    data = tmp_path / "twenty.jsonl"
    data.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in pairs))
    changes: dict[str, dict[str, Any]] = {
        "lora": {},
        "qlora nf4": {"method": "qlora"},
        "qlora fp4": {"method": "qlora", "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
        "8 bit": {"load_in_8bit": True},
    }
    chosen = dataclasses.replace(
        config,
        data=(str(data),),
        r=16,
        lora_alpha=32.0,
        learning_rate=1e-2,
        lr_scheduler_type="linear",
        per_device_train_batch_size=20,
        max_steps=250,
        save_steps=0,
        modules_to_save=("lm_head",),
        **changes[way],
    )
    folder = train(chosen).folder
    model = answering_model(base, folder, chosen)
    tokenizer = ChatTokenizer.from_folder(base)
    for prompt, completion in pairs:
        ids = tokenizer.encode_chat([{"role": "user", "content": prompt}], add_generation_prompt=True).ids
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=list(tokenizer.eos_ids),
                pad_token_id=tokenizer.pad_id,
            )
        assert tokenizer.decode(out[0, len(ids) :].tolist()) == completion


def answering_model(base: Path, folder: Path, config: TrainConfig) -> Any:
    """The base as it was in training, with the adapter."""
    from peft import PeftModel

    from lorafold.models import resolve_base
    from lorafold.train.base_model import load_model

    cpu = torch.device("cpu")
    model = load_model(resolve_base(str(base)), config, METHODS[config.method], cpu)
    return PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "paged_adamw_32bit", "adamw_torch_fused"])
def test_optimizers(config: TrainConfig, optim: str) -> None:
    result = train(dataclasses.replace(config, optim=optim, max_steps=2))  # type: ignore[arg-type]
    assert result.steps == 2
    if optim.startswith("paged") and not torch.cuda.is_available():
        assert any("needs a CUDA GPU" in note for note in result.notes)


def test_gradient_checkpointing_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    plain = train(dataclasses.replace(config, max_steps=4))
    saved = train(dataclasses.replace(config, max_steps=4, gradient_checkpointing=True, out=tmp_path / "b"))
    assert losses(plain.folder) == pytest.approx(losses(saved.folder), rel=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_new_tokens_get_trained_rows(config: TrainConfig, base: Path, method: str) -> None:
    from lorafold.errors import UsageError

    data = Path(config.data[0])
    data.write_text(json.dumps({"prompt": "who?", "completion": "Zilas Zilas"}) + "\n")
    chosen = dataclasses.replace(config, method=method, new_tokens=("Zilas",), max_steps=3)  # type: ignore[arg-type]
    result = train(chosen)
    tokenizer = ChatTokenizer.from_folder(result.folder)
    ids = tokenizer.encode_chat([{"role": "user", "content": "Zilas"}]).ids
    new = tokenizer.tokenizer.token_to_id("Zilas")
    assert new == tokenizer.tokenizer.get_vocab_size() - 1 and ids.count(new) == 1
    if method == "lora":
        settings = json.loads((result.folder / "adapter_config.json").read_text())
        assert settings["modules_to_save"] == ["embed_tokens", "lm_head"]
    with pytest.raises(UsageError, match="has the token 'a' already"):
        train(dataclasses.replace(chosen, new_tokens=("a",), force=True))
    with pytest.raises(UsageError, match="cannot train the embeddings"):
        train(dataclasses.replace(chosen, method="prompt", force=True))
