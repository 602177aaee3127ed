"""The 16-bit original of a packed base, by its name or by its card."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafold.packed.originals import original_of


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "unsloth/Qwen3-4B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("TheBloke/Mistral-7B-v0.1-AWQ", None),
        ("mlx-community/Qwen3-4B-4bit", None),
        ("unsloth/Qwen3-4B", None),
        ("/home/me/unsloth/Qwen3-4B-bnb-4bit", None),
    ],
)
def test_the_original_by_the_name(name: str, original: str | None, tmp_path: Path) -> None:
    assert original_of(name, tmp_path) == original


def test_the_original_by_the_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(
        "---\nlicense: mit\nbase_model:\n- org/Model-7B\nbase_model_relation: quantized\n---\nText"
    )
    assert original_of("mlx-community/Model-7B-4bit", tmp_path) == "org/Model-7B"
    card.write_text("---\nbase_model: org/Model-7B\nbase_model_relation: finetune\n---\n")
    assert original_of("mlx-community/Model-7B-4bit", tmp_path) is None
