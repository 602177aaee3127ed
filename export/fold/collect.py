"""What one adapter does to which tensors of a base.

In: an adapter and the names of a base. Out: the steps for each tensor it touches. Every tensor of the adapter
ends up in a step, or an `InputError` names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from lorafold.adapters import Adapter, ModuleTensors, SavedTensor
from lorafold.errors import InputError
from lorafold.export.fold import modules as fold_modules
from lorafold.export.fold.changes import Replace
from lorafold.export.fold.factors import FactorCache, Factors
from lorafold.export.fold.modules import adapted_experts, saved_experts, stacked_parameter
from lorafold.export.fold.names import OTHER_BASE, BaseNames, matches, prefix_of, same_rows
from lorafold.export.fold.targets import Targets
from lorafold.weights import TensorSource

# The parts that a module must have, and what makes steps of it; its other parts go with the first two.
KINDS: tuple[tuple[frozenset[str], Callable[[Targets, ModuleTensors, str], None]], ...] = (
    (frozenset({"lora_A", "lora_B"}), fold_modules.linear),
    (frozenset({"lora_embedding_A", "lora_embedding_B"}), fold_modules.embedding),
    (frozenset({"ia3_l"}), fold_modules.ia3),
    (frozenset({"trainable_tokens_delta"}), fold_modules.tokens),
)


def plan_adapter(
    adapter: Adapter, base: TensorSource, names: BaseNames, cache: FactorCache, rounding: str
) -> Targets:
    """Settle what an adapter does to a base: which steps its tensors come to.

    Args:
        adapter: the adapter.
        base: the base's weights; read later only.
        names: the base's names.
        cache: for the adapter's factors.
        rounding: "exact" or "peft".

    Returns:
        The steps by tensor, with what they say about tied embeddings.

    Raises:
        InputError: the adapter does not belong to this base, or is incomplete.
    """
    targets = Targets(adapter, base, names, Factors(adapter.source, cache), rounding)
    unknown = [saved.key for saved in adapter.saved if not _saved(targets, saved)]
    unknown += [
        key for module in adapter.modules if not _module(targets, module) for key in module.parts.values()
    ]
    if unknown:
        raise InputError(
            f"{len(unknown)} of its tensors belong to nothing in the base, the first is {unknown[0]!r}",
            at=adapter.folder,
            fix=OTHER_BASE,
        )
    check_complete(adapter, names, targets.prefixes)
    check_copies(adapter)
    return targets


# Of a tensor and of a module: False where the base has nothing of that name.


def _saved(targets: Targets, saved: SavedTensor) -> bool:
    shape = targets.factors.shape(saved.key)
    tensor = targets.names.find(saved.tensor)
    if tensor is None:
        return saved_experts(targets, saved)
    expected = targets.names.tensors[tensor].shape
    resized = tensor in (targets.names.embedding, targets.names.head) and shape[1:] == expected[1:]
    if shape != expected and not resized:
        raise targets.wrong_shape(saved.key, shape, tensor, expected)
    step = Replace(targets.adapter.source, saved.key, shape)
    targets.changes.setdefault(tensor, []).insert(0, step)
    if tensor in (targets.names.embedding, targets.names.head) and not saved.trained:
        targets.shared.append(step)
    return True


def _module(targets: Targets, module: ModuleTensors) -> bool:
    parts = set(module.parts)
    needed, steps = next((kind for kind in KINDS if kind[0] & parts), KINDS[0])
    if not needed <= parts:
        missing = sorted(needed - parts)
        raise InputError(
            f"{module.module} has {', '.join(sorted(parts))} but no {' and no '.join(missing)}",
            at=targets.adapter.folder,
            fix="save or download the adapter again",
        )
    parameter = stacked_parameter(targets, module)
    if parameter is not None:
        adapted_experts(targets, module, parameter)
        return True
    weight = targets.names.find(f"{module.module}.weight")
    if weight is None:
        return False
    prefix = prefix_of(f"{module.module}.weight", weight)
    if prefix is not None:
        targets.prefixes.add(prefix)
    steps(targets, module, weight)
    return True


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
