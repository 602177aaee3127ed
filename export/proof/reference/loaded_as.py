"""Where transformers' own loader puts each tensor of a checkpoint.

It renames, splits and stacks when it loads (its `conversion_mapping`), so what a parameter holds is asked of
it and not guessed by names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LoadedAs:
    """Where a tensor goes.

    Attributes:
        names: the parameters and buffers that it becomes a part of.
        whole: whether it is one of them, unchanged.
    """

    names: tuple[str, ...]
    whole: bool


def loaded_as(
    model: Any, renaming: Sequence[Any], tensors: Collection[str], known: Collection[str]
) -> dict[str, LoadedAs]:
    """Ask transformers where tensors go: by its renaming, or by the name alone if that fails.

    Args:
        model: a model of transformers.
        renaming: what `get_model_conversion_mapping` says of it.
        tensors: names in the checkpoint.
        known: names of the model's parameters and buffers.

    Returns:
        By tensor; what the model has no place for is left out.
    """
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    found: dict[str, LoadedAs] = {}
    names, prefix = dict.fromkeys(known, True), model.base_model_prefix
    renamings = [each for each in renaming if isinstance(each, WeightRenaming)]
    converters = [each for each in renaming if isinstance(each, WeightConverter)]
    parts = {pattern: each.target_patterns for each in converters for pattern in each.source_patterns}
    for tensor in tensors:
        name, pattern = rename_source_key(tensor, renamings, converters, prefix, names)
        if name not in names and tensor in names:
            name, pattern = rename_source_key(tensor, [], [], prefix, names)
        if name not in names:
            continue
        if pattern is None:
            found[tensor] = LoadedAs((name,), True)
        else:
            first, *others = parts[pattern]
            found[tensor] = LoadedAs((name, *(name.replace(first, other) for other in others)), False)
    return found
