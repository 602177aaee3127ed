"""Why today's PEFT would read another adapter from a folder than the one that was saved there.

PEFT takes no tensor whose name it does not expect, and says little about it; it reads the factors of square
experts by its own rule, whichever version wrote them; it knows nothing of mlx-lm. None of this is an error
there, so whoever loads an adapter with PEFT asks here first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafold.adapters.config import CONFIG, AdapterConfig, is_mlx
from lorafold.adapters.folder import PEFT_PREFIX, Adapter, ModuleTensors, in_model, without_names
from lorafold.errors import LorafoldError
from lorafold.files.jsonfile import read_object

# Model types whose experts' modules have `is_transposed` set in transformers.
IS_TRANSPOSED = ("aria", "aria_text", "gpt_oss", "openai_privacy_filter")

_NOT_SWAPPED_UNTIL, _SWAPPED_THE_OTHER_WAY, _SWAPPED_SINCE = (0, 18, 1), (0, 19, 0), (0, 19, 1)

MLX = "it is an mlx-lm adapter"
WRAPPED = "its tensors carry the names of wrappers"
UNTARGETED = f"{CONFIG} does not say which modules were trained"


def is_transposed(config: Mapping[str, Any]) -> bool:
    """Whether the experts' modules of a base with this config.json are transposed, in PEFT's sense."""
    text = config.get("text_config")
    types = {config.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else None}
    return not types.isdisjoint(IS_TRANSPOSED)


def stored_swapped(version: str | None, *, transposed: bool) -> bool | None:
    """Whether a PEFT stored the factors of experts swapped; see `lorafold.export.fold.experts`.

    Args:
        version: that wrote the file, or None.
        transposed: see `is_transposed`.

    Returns:
        None if the version is not known, or is one of a development between two rules.
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)(\.?dev)?", version or "")
    if match is None:
        return None
    number, is_dev = (int(match[1]), int(match[2]), int(match[3])), match[4] is not None
    if number < _NOT_SWAPPED_UNTIL or (number == _NOT_SWAPPED_UNTIL and not is_dev):
        return False
    if number == _SWAPPED_THE_OTHER_WAY and not is_dev:
        return transposed
    if number > _SWAPPED_SINCE or (number == _SWAPPED_SINCE and not is_dev):
        return not transposed
    return None


def peft_key(key: str, method: str) -> str:
    """The key under which PEFT looks for a tensor: without the names of wrappers and of the adapter.

    Args:
        key: as the file has it.
        method: the adapter's `peft_type`. LoRA's factors are modules with a weight, AdaLoRA's are parameters.
    """
    name = without_names(in_model(key))
    if method == "LORA" and name.endswith((".lora_A", ".lora_B")):
        name += ".weight"
    return PEFT_PREFIX + name


def why_misread(folder: Path, base: Mapping[str, Any]) -> str | None:
    """Why today's PEFT would read another adapter from this folder; None if nothing here says so.

    Args:
        folder: the adapter's. What cannot be opened here is left to PEFT.
        base: config.json of the base.
    """
    try:
        if is_mlx(read_object(folder / CONFIG)):
            return MLX
        adapter = Adapter.open(folder)
    except LorafoldError:
        return None
    config = adapter.config
    keys = [key for module in adapter.modules for key in module.parts.values()]
    keys += [entry.copy or entry.key for entry in adapter.saved]  # PEFT reads the plain one of two names
    if any(peft_key(key, config.peft_type) != key for key in keys):
        return WRAPPED
    if (
        not config.target_modules
        and not config.target_parameters
        and any("lora_A" in module.parts for module in adapter.modules)
    ):
        return UNTARGETED
    stacks = [shapes for module in adapter.modules if (shapes := _stack(adapter, module))]
    transposed = is_transposed(base)
    stored = stored_swapped(config.peft_version, transposed=transposed)
    if stored is None and any(a[1] == b[0] for a, b in stacks):
        return f"{CONFIG} does not say which PEFT stored the factors of its square experts"
    if stacks and stored is transposed:
        return turned(config)
    return None


def turned(config: AdapterConfig) -> str:
    """The reason of an adapter whose experts are stored by another rule than today's."""
    saved_by = f"PEFT {config.peft_version}" if config.peft_version else "the PEFT that saved it"
    return f"{saved_by} stored the factors of experts the other way round"


def _stack(adapter: Adapter, module: ModuleTensors) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes of A and B if they are of stacked experts: then they have the ranks of all of them."""
    config, tensors = adapter.config, adapter.source.tensors
    if not {"lora_A", "lora_B"} <= set(module.parts):
        return None
    a, b = (tensors[module.parts[part]].shape for part in ("lora_A", "lora_B"))
    leaves = {target.rpartition(".")[2] for target in config.target_parameters}
    holders = (target.rpartition(".")[0] for target in config.target_parameters)
    if not any(f".{module.module}".endswith(f".{holder}") for holder in holders):
        return None
    stacked = any(a[0] > config.rank(f"{module.module}.{leaf}") for leaf in leaves)
    return (a, b) if stacked and len(a) == len(b) == 2 else None
