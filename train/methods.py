"""The methods of training: what each one trains, how it starts, and what export can do with the result.

A row builds peft's config for a method; peft does the rest. PiSSA and OLoRA start from a part of the base's
own weights and change the base in memory; `adapter.py` saves them as a plain LoRA of twice the rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorafold.train.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table.

    Attributes:
        name: what `--method` calls it.
        peft: config to peft's config; None trains all weights.
        quantized: the base is loaded in 4 bit even if the config does not ask for it.
        mutates_base: the start changes the base's weights in memory (PiSSA, OLoRA).
        prompt: it trains a prompt instead of weights, so logits have extra columns and nothing folds.
        warning: what export cannot do with it.
    """

    name: str
    peft: Callable[[TrainConfig], Any] | None
    quantized: bool = False
    mutates_base: bool = False
    prompt: bool = False
    warning: str = ""


def _lora(**options: Any) -> Callable[[TrainConfig], Any]:
    def build(config: TrainConfig) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=config.r,
            lora_alpha=_whole(config.lora_alpha),
            lora_dropout=config.lora_dropout,
            target_modules=_targets(config),
            target_parameters=list(config.target_parameters) or None,
            modules_to_save=list(config.modules_to_save) or None,
            layers_to_transform=list(config.layers_to_transform) or None,
            task_type="CAUSAL_LM",
            **options,
        )

    return build


# Linear layers that peft refuses as targets, by model_type, and "all-linear" with them: kernels for these
# layers read the weight itself (peft 0.21.2, _check_lora_target_modules_mamba in its tuners_utils.py).
PASSED_BY = dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), "out_proj")


def linear_names(model: Any) -> tuple[str, ...]:
    """Last names of the linear layers without the output head: what "all-linear" means, as a list.

    peft takes `layers_to_transform` only together with a list, and no list that names what it refuses.
    """
    head = model.get_output_embeddings()
    kinds = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D")
    found = (
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and module is not head
    )
    refused = PASSED_BY.get(model.config.model_type)
    return tuple(name for name in dict.fromkeys(found) if name != refused)


def expert_names(model: Any) -> tuple[str, ...]:
    """Last names of the experts' stacked weights, (experts, rows, cols), as `target_parameters`.

    peft adds them by these names itself where "all-linear" once meant them (Mixtral, Qwen3-MoE, DeepSeek).
    """
    found = (
        name.rpartition(".")[2]
        for name, weight in model.named_parameters()
        if weight.ndim == 3 and "experts" in name.split(".")
    )
    return tuple(dict.fromkeys(found))


def _whole(value: float) -> float:
    """A whole number as an int, as other tools expect alpha."""
    return int(value) if float(value).is_integer() else value


def _targets(config: TrainConfig) -> str | list[str]:
    """peft takes a list as names and a string as a regular expression (or "all-linear")."""
    only = config.target_modules[0] if len(config.target_modules) == 1 else ""
    is_pattern = any(sign in only for sign in "*+?|()[]\\^$")
    return only if only == "all-linear" or is_pattern else list(config.target_modules)


def _ia3(config: TrainConfig) -> Any:
    from peft import IA3Config

    # Without names peft knows the modules of each architecture; it does not accept all-linear here.
    chosen = None if config.target_modules == ("all-linear",) else _targets(config)
    save = list(config.modules_to_save) or None
    return IA3Config(target_modules=chosen, modules_to_save=save, task_type="CAUSAL_LM")


def _prompt(kind: str) -> Callable[[TrainConfig], Any]:
    def build(config: TrainConfig) -> Any:
        import peft

        options = {"num_virtual_tokens": config.num_virtual_tokens, "task_type": "CAUSAL_LM"}
        return getattr(peft, kind)(**options)

    return build


_PROMPT_WARNING = "a trained prompt changes no weights: export cannot fold it into a GGUF"

METHODS = {
    row.name: row
    for row in (
        Method("lora", _lora()),
        Method("rslora", _lora(use_rslora=True)),
        Method("dora", _lora(use_dora=True)),
        Method("pissa", _lora(init_lora_weights="pissa"), mutates_base=True),
        Method("olora", _lora(init_lora_weights="olora"), mutates_base=True),
        Method("loraplus", _lora()),
        Method("qlora", _lora(), quantized=True),
        Method("full", None),
        Method("ptuning", _prompt("PromptEncoderConfig"), prompt=True, warning=_PROMPT_WARNING),
        Method("prompt", _prompt("PromptTuningConfig"), prompt=True, warning=_PROMPT_WARNING),
        Method("prefix", _prompt("PrefixTuningConfig"), prompt=True, warning=_PROMPT_WARNING),
        Method("ia3", _ia3),
    )
}
