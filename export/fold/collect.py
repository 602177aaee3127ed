"""What one adapter does to which tensors of a base.

In: an adapter and the names of a base. Out: the steps for each tensor it touches. Every tensor of the adapter
ends up in a step, or an `InputError` names it.
"""

from __future__ import annotations

from collections.abc import Callable

from lorafold.adapters import Adapter, ModuleTensors, SavedTensor
from lorafold.errors import InputError
from lorafold.export.fold import modules as fold_modules
from lorafold.export.fold.changes import Replace
from lorafold.export.fold.complete import OTHER_BASE, check_complete, check_copies
from lorafold.export.fold.experts import adapted_experts, saved_experts, stacked_parameter
from lorafold.export.fold.factors import FactorCache, Factors
from lorafold.export.fold.names import BaseNames, prefix_of
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
