"""What the tests on a CUDA GPU share: numbers and examples by seed, a tiny model with LoRA, a distance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lorafold.chat.tokenizer import Encoded


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64."""
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-12))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    draw = torch.Generator("cuda").manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=draw, device="cuda").to(dtype)


def seed_of(number: int) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.int32, device="cuda")


def examples(count: int = 12, vocabulary: int = 200) -> list[Encoded]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        length = int(torch.randint(3, 70, (), generator=draw))
        ids = torch.randint(vocabulary, (length,), generator=draw).tolist()
        found.append(Encoded(ids, [index >= length // 2 for index in range(length)]))
    return found


def adapted(folder: Path, dtype: torch.dtype, attention: str = "sdpa", **lora: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    torch.manual_seed(0)
    settings = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **lora)
    return get_peft_model(model.cuda(), settings)
