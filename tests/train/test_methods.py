"""Every method of the table on tiny models: it learns, and what it saves is what it trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import tiny_base
from tiny_run import tiny_run

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.train import TrainConfig, train
from lorafold.train.methods import METHODS
from lorafold.train.saved.curve import read_metrics

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


def loaded(base: Path, folder: Path, config: TrainConfig) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if config.method == "full":
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    if METHODS[config.method].quantized:
        return answering_model(base, folder, config)
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, folder).eval()


def answer_loss(base: Path, folder: Path, config: TrainConfig) -> float:
    """Mean loss over the answers, of what the saved files say, through transformers and peft alone."""
    model = loaded(base, folder, config)
    tokenizer = ChatTokenizer.from_folder(base)
    summed = count = 0.0
    for prompt, completion in PAIRS:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        encoded = tokenizer.encode_chat(turns)
        ids = torch.tensor([encoded.ids])
        with torch.no_grad():
            logits = (
                model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :].float()
            )
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
    # Evaluated after the last step on its own training data: the loss of the model in memory as it was saved.
    chosen = dataclasses.replace(config, method=method, learning_rate=rate, eval_data=config.data)  # type: ignore[arg-type]
    result = train(chosen)
    course = losses(result.folder)
    assert course[-1] < course[0]
    live = result.eval_loss
    assert live is not None and answer_loss(base, result.folder, chosen) == pytest.approx(live, rel=1e-5)
    settings = result.folder / "adapter_config.json"
    if method == "lora":  # which would show if the scale were another one
        halved = json.loads(settings.read_text()) | {"lora_alpha": chosen.lora_alpha / 2}
        settings.write_text(json.dumps(halved))
        assert answer_loss(base, result.folder, chosen) != pytest.approx(live, rel=1e-4)
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
    from lorafold.train.model.base import load_model

    cpu = torch.device("cpu")
    model = load_model(resolve_base(str(base)), config, METHODS[config.method], cpu)
    return PeftModel.from_pretrained(model, folder).eval()


def test_bitsandbytes_before_it_had_a_wait_of_its_own(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.46, the oldest that is allowed, waits through torch.cuda: its classes are taken as they are."""
    import bitsandbytes

    from lorafold.train.optimizers import build_optimizer

    monkeypatch.delattr(bitsandbytes.optim.optimizer, "sync_gpu")
    chosen = dataclasses.replace(config, optim="paged_adamw_8bit")
    built = build_optimizer(torch.nn.Linear(2, 2), chosen, torch.device("cuda"))
    assert type(built) is bitsandbytes.optim.AdamW and built.is_paged


@pytest.mark.parametrize(
    "optim",
    ["sgd", "adafactor", "paged_adamw_32bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_fused"],
)
def test_optimizers(config: TrainConfig, optim: str) -> None:
    result = train(dataclasses.replace(config, optim=optim, max_steps=2))  # type: ignore[arg-type]
    assert result.steps == 2
    notes = [note for note in result.notes if "needs a CUDA GPU" in note]
    if optim.endswith("bit") and not torch.cuda.is_available():
        same = "adamw_torch does the same sums here" in notes[0]
        assert same is optim.endswith("32bit") and ("its state in 32 bits" in notes[0]) is not same
    else:
        assert not notes


def test_weight_decay_of_loraplus(config: TrainConfig, base: Path) -> None:
    """The decay of the groups as peft makes them: A, embeddings, B, and what is never decayed."""
    from peft import get_peft_model

    from lorafold.models import resolve_base
    from lorafold.train.model.base import load_model
    from lorafold.train.optimizers import build_optimizer

    cpu = torch.device("cpu")
    chosen = dataclasses.replace(config, method="loraplus", weight_decay=0.1)
    method = METHODS["loraplus"]
    assert method.peft is not None
    model = get_peft_model(load_model(resolve_base(str(base)), chosen, method, cpu), method.peft(chosen))
    groups = build_optimizer(model, chosen, cpu).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.1, 0.0]
    assert groups[0]["params"] and groups[2]["params"] and not groups[3]["params"]


WHOLE: dict[str, dict[str, Any]] = {
    "head": {"modules_to_save": ("lm_head",)},
    "norms": {"modules_to_save": ("norm",)},
    "new tokens": {"new_tokens": ("Zilas",)},
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("what", WHOLE)
def test_what_is_trained_whole_is_float32_beside_a_16_bit_base(
    config: TrainConfig, base: Path, tmp_path: Path, what: str, dtype: Any
) -> None:
    """Steps of 1e-5, most of which bfloat16 would round away; the course is that of a float32 base."""
    from safetensors.torch import load_file

    low = dataclasses.replace(
        config, dtype=dtype, learning_rate=1e-5, max_steps=4, eval_data=config.data, **WHOLE[what]
    )
    result = train(low)
    saved = load_file(result.folder / "adapter_model.safetensors")
    assert all(value.dtype == torch.float32 for value in saved.values())
    old = load_file(base / "model.safetensors")
    whole = {
        name.removeprefix("base_model.model."): value for name, value in saved.items() if "lora" not in name
    }
    assert whole
    for name, value in whole.items():
        if "embed_tokens" not in name:  # of which few rows occur in the data
            before = old[name].to(getattr(torch, dtype)).float()
            assert float((value[: len(before)] == before).float().mean()) < 0.01
    wide = train(dataclasses.replace(low, dtype="float32", out=tmp_path / "wide"))
    assert result.eval_loss == pytest.approx(wide.eval_loss, rel=2e-3)
    if what != "new tokens":  # whose rows a plain base lacks
        assert answer_loss(base, result.folder, low) == pytest.approx(result.eval_loss, rel=1e-3)


def test_a_head_trained_beside_a_16_bit_base_is_folded(
    config: TrainConfig, base: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from tiny_chat import exported

    low = dataclasses.replace(config, dtype="bfloat16", max_steps=2, modules_to_save=("lm_head",))
    folder = train(low).folder
    (head,) = (v for n, v in load_file(folder / "adapter_model.safetensors").items() if "lm_head" in n)
    path = exported(str(folder), tmp_path / "gguf", base=str(base), quant=("F32",))
    assert torch.equal(torch.from_numpy(gguf_tensors(path)["output.weight"]), head)


def gguf_tensors(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {tensor.name: tensor.data.copy() for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_stays_tied_after_full_fine_tuning(
    config: TrainConfig, tmp_path: Path, tied: bool
) -> None:
    """A 16-bit base is trained in float32 and written in its own type, each weight once."""
    from safetensors.torch import load_file
    from tiny_chat import exported
    from transformers import AutoModelForCausalLM

    base = tiny_base(tmp_path / "tied", tie_word_embeddings=tied)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    result = train(dataclasses.replace(config, base=str(base), method="full", max_steps=1))
    weights = load_file(result.folder / "model.safetensors")
    assert ("lm_head.weight" in weights) is not tied
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert json.loads((result.folder / "config.json").read_text())["tie_word_embeddings"] is tied
    path = exported(str(result.folder), tmp_path / "gguf", quant=("F16",))
    assert ("output.weight" in gguf_tensors(path)) is not tied


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


@pytest.mark.slow
def test_an_evaluation_does_not_change_the_training_of_a_4_bit_base(tmp_path: Path) -> None:
    """bitsandbytes repacks weights in evaluation mode, and training went on without their gradient."""
    pytest.importorskip("bitsandbytes")
    losses = []
    for every in (1, 8):
        config = dataclasses.replace(
            tiny_run(tmp_path / str(every)), method="qlora", eval_split=0.2, eval_steps=every
        )
        result = train(dataclasses.replace(config, save_steps=0))
        losses.append([row["loss"] for row in result.records if "loss" in row])
    assert losses[0] == losses[1]
