"""The model card: README.md of an adapter's folder, with the hub's YAML head."""

from __future__ import annotations

from typing import Any

import yaml

from lorafold.train.config import TrainConfig

# Fields that a reader of the card wants to see; all of them are in lorafold.json.
_SHOWN = (
    "method",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "optim",
    "seed",
)


def model_card(config: TrainConfig, facts: dict[str, Any], *, curve: bool) -> str:
    """Write the card.

    Args:
        config: resolved.
        facts: what goes into lorafold.json.
        curve: whether loss.png is there.

    Returns:
        Markdown.
    """
    whole = config.method == "full"
    head = {
        "base_model": facts["base"]["id"],
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lorafold", *([] if whole else ["lora" if config.method != "ia3" else "ia3"])],
    }
    values = config.resolved()
    rows = "\n".join(f"| {name} | {_cell(values[name])} |" for name in _SHOWN)
    training, data = facts["training"], facts["data"]
    what = "All weights" if whole else "An adapter"
    text = (
        f"---\n{yaml.safe_dump(head, sort_keys=True)}---\n\n"
        f"# {config.output.name}\n\n"
        f"{what} trained with lorafold {facts['versions']['lorafold']} on `{facts['base']['id']}`, "
        f"{data['examples']} examples, {training['steps']} steps; last loss {training['loss']:.4f}"
    )
    if training["eval_loss"] is not None:
        text += f", evaluation loss {training['eval_loss']:.4f}"
    text += f".\n\n| setting | value |\n|---|---|\n{rows}\n"
    return text + ("\n![loss](loss.png)\n" if curve else "")


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value).replace("|", "\\|")
