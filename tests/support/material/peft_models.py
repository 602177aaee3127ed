"""Tiny bases with adapters that PEFT made, and what PEFT and transformers make of them: the fold's oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import SIZES, tiny_model, write_model

from lorafold.export.fold.folded import Folded
from lorafold.weights import Checkpoint

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def _gpt2() -> Any:
    return transformers.GPT2Config(
        vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )


def _mixtral() -> Any:
    return transformers.MixtralConfig(**(SIZES | {"num_local_experts": 4, "num_hidden_layers": 2}))


def _qwen3_moe() -> Any:
    experts = {"num_experts": 4, "moe_intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    return transformers.Qwen3MoeConfig(**(SIZES | experts))


def _gpt_oss() -> Any:
    """Experts stored as (experts, in, out), with one size for both, so that only the model type tells."""
    experts = {"num_local_experts": 4, "num_hidden_layers": 2, "intermediate_size": 64, "head_dim": 16}
    return transformers.GptOssConfig(**(SIZES | experts))


def _gemma3() -> Any:
    """A multimodal model: its files call the parts otherwise than the loaded model does."""
    text = SIZES | {"num_hidden_layers": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
    images = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Gemma3Config(
        text_config=text, vision_config=images | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gpt_oss": _gpt_oss,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
}


def base_model(folder: Path, family: str, dtype: str, **changes: Any) -> Path:
    if family in FAMILIES:
        return write_model(FAMILIES[family](), folder, dtype, 0)
    return tiny_model(family, folder, dtype, **changes)


def load(folder: Path, dtype: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def draw(model: Any, seed: int = 0, size: float = 0.05) -> Any:
    """Give every adapter tensor a random value: PEFT starts B at zero, which would hide everything."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(
            part in name
            for part in ("lora_A", "lora_B", "lora_E", "lora_embedding", "lora_diag", "trainable_tokens")
        ):
            # In place: tied adapters share their memory.
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * size)
        elif any(part in name for part in ("lora_magnitude", "ia3_l", "modules_to_save", "ln_tuning")):
            noise = torch.randn(parameter.shape, generator=generator) * size
            parameter.data.copy_(parameter.data.float() * (1 + noise))
    return model


def make_adapter(base: Path, folder: Path, dtype: str, config: Any, seed: int = 0) -> Path:
    draw(peft.get_peft_model(load(base, dtype), config), seed).save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path, folder: Path, dtype: str) -> Checkpoint:
    model = peft.PeftModel.from_pretrained(load(base, dtype), adapter).merge_and_unload()
    model.save_pretrained(folder)
    return Checkpoint.open(folder)


def all_rows(source: Any, name: str) -> Any:
    return source.rows(name, 0, source.tensors[name].rows)


def assert_equal(folded: Folded, merged: Checkpoint, allowed: int = 0, step: float = 0.0) -> None:
    """Every tensor of both; of all numbers `allowed` may differ, by `step` of the tensor's largest."""
    assert set(folded.tensors) == set(merged.tensors)
    different = 0
    for name in merged.tensors:
        assert folded.tensors[name].shape == merged.tensors[name].shape, name
        got, wanted = all_rows(folded, name), all_rows(merged, name)
        wrong = got != wanted
        if wrong.any():
            different += int(wrong.sum())
            worst = np.abs(got - wanted).max() / np.abs(wanted).max()
            assert worst <= step, (name, worst)
    assert different <= allowed, different


QKV = ["q_proj", "k_proj", "v_proj"]


TOKENS = [[1, 5, 17, 200, 3, 9, 9, 60], [2, 7, 311, 4, 40, 41, 42, 8]]


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.float().numpy()


def resized_adapter(folder: Path, base: Path, spare: int = 3, **options: Any) -> Path:
    """An adapter with two tokens more, and some rows that no token has, saved as PEFT saves it by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|tool|>", "<|result|>"], special_tokens=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer) + spare, mean_resizing=False)
    options = {"target_modules": ["q_proj", "v_proj"], **options}
    settings = peft.LoraConfig(r=4, lora_alpha=32, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    tuned = peft.get_peft_model(model, settings)
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
