"""Each recipe end to end, on a small random model of its family with a real tokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from known_recipes import RECIPES, recipe
from oracles import shared
from tiny_base import tiny_base
from tiny_index import tiny_index

from lorafold.errors import UnsafeInputError
from lorafold.train import train

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Recipe: classes, tokenizer, template where that tokenizer's folder has none, what the tutorial sets.
KNOWN: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "qwen2-1.5b-persona": ("Qwen2", "qwen2", None, {"r": 8, "lora_alpha": 32, "max_length": 384}),
    "index-1.9b-persona": ("Index", "none", None, {"r": 8, "lora_alpha": 32, "max_length": 384}),
    "deepseek-7b-qlora": (
        "Llama",
        "deepseek-llm",
        "deepseek-llm",
        {"r": 8, "lora_alpha": 32, "max_length": 384},
    ),
    "llama2-7b-chat-qlora": ("Llama", "llama2", "llama-2", {"r": 64, "lora_alpha": 16, "max_length": 1024}),
}


# Recipes for whole families: classes of a tiny model.
FAMILIES = {"qwen3": "Qwen3", "llama3": "Llama", "gemma3": "Gemma3", "mistral": "Mistral", "any": "Qwen2"}
WAYS = ("lora", "qlora")


def test_every_recipe_is_tested() -> None:
    of_families = {f"{name}-{way}" for name in FAMILIES for way in WAYS}
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(KNOWN) | of_families


@pytest.mark.parametrize("name", FAMILIES)
def test_the_two_ways_of_a_family_differ_in_what_a_4_bit_base_needs(name: str) -> None:
    plain, in_4bit = (recipe(f"{name}-{way}") for way in WAYS)
    assert {
        field.name
        for field in dataclasses.fields(plain)
        if getattr(plain, field.name) != getattr(in_4bit, field.name)
    } == {"method", "optim"}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_recipe_runs(name: str, way: str, tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base", family=FAMILIES[name])
    data = tmp_path / "data.jsonl"
    rows = [{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = recipe(
        f"{name}-{way}", base=str(base), data=(str(data),), out=tmp_path / "out", num_train_epochs=1
    )
    result = train(config)
    assert result.steps == 2 and 0 < result.loss < 20
    settings = json.loads((result.folder / "adapter_config.json").read_text())
    assert settings["r"] == 16 and any(name.endswith("q_proj") for name in settings["target_modules"])
    assert (result.folder / "heldout.jsonl").is_file()


@pytest.mark.parametrize("name", KNOWN)
def test_figures_are_the_tutorials(name: str) -> None:
    config = recipe(name)
    figures = KNOWN[name][3]
    assert {key: getattr(config, key) for key in figures} == figures
    assert list(config.target_modules) == SEVEN and config.lora_dropout == 0.1
    assert (config.learning_rate, config.max_steps) in [(1e-4, 0), (2e-4, 500)]
    assert config.save_steps == 100 and config.gradient_accumulation_steps == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_recipe_end_to_end(name: str, tmp_path: Path) -> None:
    family, tokenizer, template, figures = KNOWN[name]
    if family == "Index":  # whose tokenizer is not among the shared ones
        base = tiny_index(tmp_path / "base")
    else:
        base = tiny_base(tmp_path / "base", family=family, tokenizer=shared(f"tokenizers/{tokenizer}"))
    rows = json.loads(shared("data/huanhuan.json").read_text(encoding="utf-8"))[:24]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    changes: dict[str, Any] = {"base": str(base), "data": (str(data),), "out": tmp_path / "out"}
    changes |= {"num_train_epochs": 2, "max_steps": 0, "gradient_accumulation_steps": 2, "save_steps": 2}
    changes |= {"logging_steps": 1, **({"chat_template": template} if template else {})}
    if name.startswith("index"):
        with pytest.raises(UnsafeInputError, match=r"its own Python code.*--trust-remote-code"):
            train(recipe(name, **changes))
        changes["trust_remote_code"] = True
    result = train(recipe(name, **changes))
    assert result.steps == 6 and 0 < result.loss < 20
    settings = json.loads((result.folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (figures["r"], figures["lora_alpha"])
    assert sorted(settings["target_modules"]) == sorted(SEVEN)
    assert settings["lora_dropout"] == 0.1
