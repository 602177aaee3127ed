"""What one adapter does to which tensors of a base: the steps for each tensor that it touches.

Every tensor of the adapter ends up in a step, or an `InputError` names it. What the configuration promises
and the file lacks is an error too, and so is what the file holds and PEFT would not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lorafold.adapters.config import CONFIG, SAVE_AGAIN
from lorafold.adapters.folder import Adapter, ModuleTensors, SavedTensor
from lorafold.adapters.foreign import foreign, refusal
from lorafold.errors import InputError
from lorafold.export.fold import modules as fold_modules
from lorafold.export.fold.changes import Replace
from lorafold.export.fold.experts import adapted_experts, saved_experts, stacked_parameter
from lorafold.export.fold.factors import FactorCache, Factors
from lorafold.export.fold.names import OTHER_BASE, BaseNames, Piece
from lorafold.export.fold.promises import check_biases, check_complete, check_copies, check_parts, is_pruned
from lorafold.export.fold.targets import Targets
from lorafold.weights import TensorSource

# A projection, and those that another form of the same model has instead.
_QKV, _GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
FUSED = (
    *((name, _QKV) for name in ("qkv_proj", "W_pack", "query_key_value", "c_attn", "wqkv", "qkv", "Wqkv")),
    ("gate_up_proj", _GATE_UP),
)

LINEAR = frozenset({"lora_A", "lora_B"})
# The parts that a module of another kind must have, and what makes steps of it; its other parts go with them.
OTHERS: tuple[tuple[frozenset[str], Callable[[Targets, ModuleTensors, str], None]], ...] = (
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
    _refuse_foreign(adapter, adapter.source.tensors, known=True)
    check_parts(adapter)
    targets = Targets(adapter, base, names, Factors(adapter.source, cache), rounding)
    unknown = [saved.key for saved in adapter.saved if not _saved(targets, saved)]
    unknown += [
        key for module in adapter.modules if not _module(targets, module) for key in module.parts.values()
    ]
    if unknown:
        _refuse_foreign(adapter, unknown, known=False)
        _refuse_other_form(adapter, names)
        raise InputError(
            f"{len(unknown)} of its tensors belong to nothing in the base, the first is {unknown[0]!r}",
            at=adapter.folder,
            fix=OTHER_BASE,
        )
    targets.told = check_complete(adapter, names, targets.prefixes)
    if targets.told and not adapter.config.target_modules:
        targets.notes.append(
            f"{CONFIG} has no target_modules: by its tensors these were trained: {', '.join(targets.told)}"
        )
    check_biases(adapter, names)
    check_copies(adapter)
    return targets


# Both return False if the base has no tensor or module of that name.


def _saved(targets: Targets, saved: SavedTensor) -> bool:
    shape = targets.factors.shape(saved.key)
    tensor = targets.names.find(saved.tensor)
    if tensor is None:
        if pieces := targets.names.rows_of(saved.tensor):
            raise _only_lora(targets, saved.key, pieces)
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
    needed, steps = next((kind for kind in OTHERS if kind[0] & parts), (LINEAR, None))
    if not needed <= parts:
        missing = sorted(needed - parts)
        raise InputError(
            f"{module.module} has {', '.join(sorted(parts))} but no {' and no '.join(missing)}",
            at=targets.adapter.folder,
            fix=SAVE_AGAIN,
        )
    if is_pruned(targets.adapter, module):
        return bool(targets.names.rows_of(f"{module.module}.weight"))
    parameter = stacked_parameter(targets, module)
    if parameter is not None:
        adapted_experts(targets, module, parameter)
        return True
    name = f"{module.module}.weight"
    pieces = targets.names.rows_of(name)
    if not pieces:
        return False
    prefix = targets.names.part_of_model(name)
    if prefix is not None:
        targets.prefixes.add(prefix)
    if steps is None:
        fold_modules.linear(targets, module, pieces)
        return True
    weight = targets.names.find(name)
    if weight is None:
        raise _only_lora(targets, module.module, pieces)
    steps(targets, module, weight)
    return True


def _refuse_foreign(adapter: Adapter, keys: Iterable[str], *, known: bool) -> None:
    """Refuse what other programs and other parts of a training write by its name, not as another base's."""
    for key in keys:
        if (kind := foreign(key, known=known)) is not None:
            raise refusal(key, kind, adapter.folder)


def _refuse_other_form(adapter: Adapter, names: BaseNames) -> None:
    """Refuse an adapter of the same model in another form: one projection where the base has three.

    Unsloth's Phi-3 and Phi-4 are Llama's form of them, for example.
    """
    for module in adapter.modules:
        parent, _, leaf = module.module.rpartition(".")
        if names.rows_of(f"{module.module}.weight"):
            continue
        for fused, parts in FUSED:
            others = (fused,) if leaf in parts else parts if leaf == fused else ()
            if others and all(names.rows_of(f"{parent}.{other}.weight") for other in others):
                raise InputError(
                    f"{module.module} is {' and '.join(others)} in the base: the adapter is of another form "
                    "of the model",
                    at=adapter.folder,
                    fix=f"{OTHER_BASE}; a version of it with the same names of layers will do",
                )


def _only_lora(targets: Targets, name: str, pieces: tuple[Piece, ...]) -> InputError:
    tensors = ", ".join(dict.fromkeys(piece.tensor for piece in pieces))
    return InputError(
        f"{name!r} has no tensor of its own in the base, which holds it in {tensors}: only LoRA and DoRA can "
        "be folded there",
        at=targets.adapter.folder,
        fix="merge it with PEFT and export the result",
    )
