"""The model card: README.md of an adapter's folder, with the hub's YAML head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lorafold.console import sanitize
from lorafold.train.config import TrainConfig
from lorafold.train.methods import METHODS
from lorafold.train.saved.result import next_commands

# The hub's tag of a method, if it is not LoRA or one of its variants.
_TAGS = {
    "full": None,
    "ia3": "ia3",
    "ptuning": "p-tuning",
    "prompt": "prompt-tuning",
    "prefix": "prefix-tuning",
}

# Fields that a reader of the card wants to see; all of them are in lorafold.json.
_OF_LORA = ("r", "lora_alpha", "lora_dropout")
_OF_LAYERS = ("target_modules", "target_parameters")
_OF_PROMPTS = ("num_virtual_tokens",)
_SHOWN = (
    "method",
    *_OF_LORA,
    *_OF_LAYERS,
    *_OF_PROMPTS,
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "optim",
    "seed",
)


def model_card(
    config: TrainConfig,
    facts: dict[str, Any],
    title: str,
    *,
    curve: bool,
    samples: Sequence[dict[str, str]] | None = None,
) -> str:
    """Write the card.

    Args:
        config: resolved.
        facts: what goes into lorafold.json.
        title: heading of the card.
        curve: whether loss.png is there.
        samples: question, expected and answer of the last evaluation.

    Returns:
        Markdown.
    """
    method, tag = METHODS[config.method], _TAGS.get(config.method, "lora")
    whole = method.peft is None
    head = {
        "base_model": facts["base"]["id"],
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lorafold", *([tag] if tag else [])],
    }
    values = config.resolved()
    idle = {
        *(() if tag == "lora" else _OF_LORA),
        *(_OF_LAYERS if whole or method.prompt else ()),
        *(() if method.prompt else _OF_PROMPTS),
    }
    rows = f"| data | {', '.join(map(_data_name, config.data))} |\n"
    rows += "\n".join(f"| {name} | {_cell(values[name])} |" for name in _SHOWN if name not in idle)
    training, data = facts["training"], facts["data"]
    what = "All weights" if whole else "An adapter"
    text = (
        f"---\n{yaml.safe_dump(head, sort_keys=True)}---\n\n"
        f"# {title}\n\n"
        f"{what} trained with lorafold {facts['versions']['lorafold']} on `{facts['base']['id']}`, "
        f"{data['examples']} examples, {training['steps']} steps"
    )
    if training["loss"] is not None:
        text += f"; last loss {training['loss']:.4f}"
    if training["eval_loss"] is not None:
        text += f", evaluation loss {training['eval_loss']:.4f}"
    use = "\n".join(next_commands(config, Path(title)))
    text += ".\n"
    if "```" not in use:  # which a system message could hold, and end the block with it
        text += f"\n## Use\n\n```sh\n{sanitize(use)}\n```\n"
    text += f"\n## Training\n\n| setting | value |\n|---|---|\n{rows}\n"
    text += "\n![loss](loss.png)\n" if curve else ""
    if samples:
        text += (
            "\n## Sample answers\n\nHeld-out questions, always the likeliest token, at the last evaluation.\n"
        )
        text += "\n| question | answer | in the data |\n|---|---|---|\n"
        keys = ("question", "answer", "expected")
        text += "".join(f"| {' | '.join(_quoted(row[key]) for key in keys)} |\n" for row in samples)
    return text + _LICENCE


_LICENCE = """
## Licence

The terms of the base and of the data hold here too. Before you publish this folder, name the licence in the
head of this file (`license:`).
"""


def _data_name(spec: str) -> str:
    """A file by its name alone, since its path tells about the machine; a data set of the hub by its id."""
    return _quoted(Path(spec).name if Path(spec).exists() else spec)


def _quoted(text: str) -> str:
    """A model's or a file's text in a table's cell, with nothing in it that Markdown or HTML would obey."""
    plain = " ".join(sanitize(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", plain)


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value).replace("|", "\\|")
