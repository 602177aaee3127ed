"""Whether an adapter has everything that its configuration promises for this base.

In: an adapter and the names of a base. Out: nothing, or an `InputError` that names the first module without
its tensors, or with two that contradict each other. PEFT leaves such a module as it is and says nothing: half
of a fine-tune would be lost unseen.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from lorafold.adapters import Adapter
from lorafold.errors import InputError
from lorafold.export.fold.names import BaseNames, same_rows

OTHER_BASE = "fold it into the base that it was trained on (`--base`)"


def matches(patterns: tuple[str, ...] | str, module: str) -> bool:
    """PEFT's rule: a name of a list is the module's whole name or its end; a pattern matches all of it."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in patterns)


def check_complete(adapter: Adapter, names: BaseNames, prefixes: Collection[tuple[str, str]]) -> None:
    """Compare the modules that an adapter targets with those that it has.

    Experts are left out: transformers 5 has no modules for them any more, so their names in `target_modules`
    may mean nothing.

    Args:
        adapter: the adapter.
        names: the base's names.
        prefixes: of the parts of the model in which it adapts something; see `BaseNames.in_model`. Another
            part may not have been in the model that it was trained on (a multimodal base's image encoder).

    Raises:
        InputError: a targeted layer has no tensors, or a module to save was not saved.
    """
    config = adapter.config
    present = {module.module for module in adapter.modules}
    if config.target_modules and config.target_modules != "all-linear" and prefixes:
        for tensor, info in names.tensors.items():
            name = names.in_model(tensor, prefixes)
            if name is None or not name.endswith(".weight") or len(info.shape) != 2 or ".experts." in name:
                continue
            module = name.removesuffix(".weight")
            if module in present:
                continue
            if tensor in (names.embedding, names.head) and config.ensure_weight_tying:
                continue
            if _is_targeted(adapter, module):
                raise _missing(adapter, module, "target_modules")
    saved = [entry.tensor for entry in adapter.saved]
    for wanted in config.modules_to_save:
        if not any(re.match(rf"(^|.*\.){re.escape(wanted)}\.", tensor) for tensor in saved):
            raise _missing(adapter, wanted, "modules_to_save")


def check_copies(adapter: Adapter) -> None:
    """Compare what the adapter holds under two names; see `SavedTensor.copy`.

    Raises:
        InputError: they are two different tensors, so one of them is not what was trained.
    """
    for saved in adapter.saved:
        if saved.copy and not same_rows(adapter.source, saved.key, adapter.source, saved.copy):
            raise InputError(
                f"{saved.key!r} and {saved.copy!r} hold different numbers, expected the same tensor twice",
                at=adapter.folder,
                fix="save the adapter again with PEFT",
            )


def _is_targeted(adapter: Adapter, module: str) -> bool:
    """Whether the configuration targets a module, by the rules of PEFT's `check_target_module_exists`."""
    config = adapter.config
    if matches(config.exclude_modules or (), module):
        return False
    if any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in config.modules_to_save):
        return False
    if not matches(config.target_modules or (), module):
        return False
    if isinstance(config.target_modules, str) or config.layers_to_transform is None:
        return True
    patterns = config.layers_pattern or (r"[^.]*",)
    found = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns)
    match = next((match for match in found if match), None)
    return match is not None and int(match[1]) in config.layers_to_transform


def _missing(adapter: Adapter, module: str, option: str) -> InputError:
    return InputError(
        f"nothing in it for {module}, which its {option} names",
        at=adapter.folder,
        fix=f"save or download the adapter again, or {OTHER_BASE}",
    )
