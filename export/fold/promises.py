"""What an adapter's configuration promises, against what its file holds.

Half of what was trained may be missing: filtered out by whoever copied the tensors, not gathered from the
machines of a training, or ignored because a flag was edited away. Each side without the other is refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from lorafold.adapters.config import SAVE_AGAIN, AdapterConfig
from lorafold.adapters.folder import PEFT_PREFIX, Adapter, ModuleTensors
from lorafold.adapters.foreign import BUFFERS
from lorafold.adapters.patterns import BEFORE_NUMBER, try_patterns
from lorafold.errors import InputError
from lorafold.export.fold.conversions import model_types, renamed
from lorafold.export.fold.names import OTHER_BASE, BaseNames, matches, same_rows

GATHER = "gather sharded weights (DeepSpeed ZeRO-3, FSDP) before saving"


@dataclass(frozen=True, slots=True)
class _Promise:
    """A part that modules have if, and only if, an option is set.

    Attributes:
        part: of a module, one of `adapters.PARTS` or "lora_bias".
        option: in adapter_config.json, as it is written for messages.
        is_set: whether a configuration sets it.
        beside: the part of a module that tells whether the promise concerns it.
    """

    part: str
    option: str
    is_set: Callable[[AdapterConfig], bool]
    beside: tuple[str, ...] = ("lora_A",)


PROMISES = (
    _Promise("lora_magnitude_vector", "use_dora", lambda c: c.use_dora, ("lora_A", "lora_embedding_A")),
    _Promise("lora_bias", "lora_bias", lambda c: c.lora_bias),
    _Promise("lora_diag", "kasa_config", lambda c: c.kasa),
    _Promise("lora_E", "peft_type ADALORA", lambda c: c.peft_type == "ADALORA"),
    _Promise("lora_A", "peft_type LORA", lambda c: "LORA" in c.peft_type, ("lora_A",)),
    _Promise("lora_embedding_A", "peft_type LORA", lambda c: "LORA" in c.peft_type, ("lora_embedding_A",)),
    _Promise("ia3_l", "peft_type IA3", lambda c: c.peft_type == "IA3", ("ia3_l",)),
)


def check_parts(adapter: Adapter) -> None:
    """Compare the parts of each module, and the tensors that were saved whole, with the options.

    Raises:
        InputError: a part is promised and missing, or there and not promised, or a tensor is empty.
    """
    config = adapter.config
    pruned = {
        key for module in adapter.modules if is_pruned(adapter, module) for key in module.parts.values()
    }
    for key, info in adapter.source.tensors.items():
        if 0 in info.shape and key not in pruned:
            raise InputError(
                f"{key!r} holds nothing (its shape is {list(info.shape)}), expected two dimensions",
                at=adapter.folder,
                fix=GATHER,
            )
    for module in adapter.modules:
        for promise in PROMISES:
            _check_promise(adapter, module, promise)
        _check_target(adapter, module)
    for entry in adapter.saved:
        if config.ensure_weight_tying:  # the tied side is saved too, under no name of the configuration
            continue
        if ".modules_to_save." in entry.key and not _is_saved(config.modules_to_save, entry.tensor):
            raise _not_promised(adapter, entry.key, "modules_to_save")
        if ".ln_tuning_layers." in entry.key and config.peft_type != "LN_TUNING":
            raise _not_promised(adapter, entry.key, "peft_type LN_TUNING")
    has_tokens = any("trainable_tokens_delta" in module.parts for module in adapter.modules)
    if config.trainable_token_indices and not has_tokens:
        raise InputError(
            "it holds no trained tokens, though its trainable_token_indices name some",
            at=adapter.folder,
            fix=SAVE_AGAIN,
        )
    if has_tokens and config.trainable_token_indices is None:
        raise _not_promised(adapter, "trainable_tokens_delta", "trainable_token_indices")


def _check_promise(adapter: Adapter, module: ModuleTensors, promise: _Promise) -> None:
    # PEFT adapts parameters of experts by none of these options.
    if not set(promise.beside) & set(module.parts) or (module.depth and adapter.config.target_parameters):
        return
    is_there, is_set = promise.part in module.parts, promise.is_set(adapter.config)
    option = "fine_tune_type dora" if adapter.config.mlx and promise.option == "use_dora" else promise.option
    if is_there and not is_set:
        raise _not_promised(adapter, module.parts[promise.part], option)
    if is_set and not is_there and not _is_parameter(adapter.config, module.module):
        raise InputError(
            f"{module.module} has no {promise.part}, which {option} in adapter_config.json promises",
            at=adapter.folder,
            fix=f"{SAVE_AGAIN}: without it half of what was trained is lost",
        )


def is_pruned(adapter: Adapter, module: ModuleTensors) -> bool:
    """Whether AdaLoRA left a module no rank at all: it changes nothing, and its factors have no numbers."""
    if adapter.config.peft_type != "ADALORA" or not {"lora_A", "lora_B", "lora_E"} <= set(module.parts):
        return False
    tensors = adapter.source.tensors
    a, b, e = (tensors[module.parts[part]].shape for part in ("lora_A", "lora_B", "lora_E"))
    return len(a) == len(b) == 2 and a[0] == b[1] == e[0] == 0


def _check_target(
    adapter: Adapter, module: ModuleTensors, parts: tuple[str, ...] = ("lora_A", "ia3_l")
) -> None:
    """Refuse what the configuration does not target: PEFT would take no notice of it."""
    config = adapter.config
    key = next((module.parts[part] for part in parts if part in module.parts), None)
    if key is None or not config.target_modules or config.target_modules == "all-linear":
        return
    # Experts: see `check_complete`. Tied sides: PEFT adapts the one that is not named too.
    if _is_parameter(config, module.module) or ".experts." in module.module or config.ensure_weight_tying:
        return
    if any("." not in name for name in config.target_parameters):
        return  # a parameter's bare name ("gate_up_proj") tells no module: any may hold it
    # A pattern may name wrappers that stood around the model while it was trained.
    spelled = re.sub(r"\.(?:lora_A|lora_embedding_A|ia3_l)(?:\..*)?$", "", key)
    spellings = (module.module, spelled, spelled.removeprefix(PEFT_PREFIX))
    if not any(_is_targeted(config, name) for name in spellings):
        raise InputError(
            f"{key!r} is in the file, but adapter_config.json does not target {module.module} "
            "(target_modules, exclude_modules, layers_to_transform), so that PEFT ignores it",
            at=adapter.folder,
            fix="set them as they were in the training, or save the adapter again without that tensor",
        )


def _is_parameter(config: AdapterConfig, module: str) -> bool:
    """Whether a module is only the holder of parameters that were adapted without one."""
    return any(f".{module}.".endswith(f".{name.rpartition('.')[0]}.") for name in config.target_parameters)


def _is_saved(modules: Collection[str], tensor: str) -> bool:
    """Whether a tensor belongs to a module that is saved whole: for PEFT the end of its name counts."""
    path = list(itertools.accumulate(tensor.split(".")[:-1], lambda a, b: f"{a}.{b}"))
    return any(name.endswith(module) for module in modules for name in path)


def _not_promised(adapter: Adapter, key: str, option: str) -> InputError:
    reader = "mlx-lm" if adapter.config.mlx else "PEFT"
    return InputError(
        f"{key!r} is in the file, but adapter_config.json does not set {option}, so that {reader} ignores it",
        at=adapter.folder,
        fix=f"set {option} as it was in the training, or save the adapter again without that tensor",
    )


def check_complete(
    adapter: Adapter, names: BaseNames, prefixes: Collection[tuple[str, str]]
) -> tuple[str, ...]:
    """Compare the modules that an adapter targets with those that it has.

    Experts are left out: transformers 5 has no modules for them any more, so their names in `target_modules`
    may mean nothing. So is what transformers does not load: no adapter can have anything for it.

    PEFT has a list for some model types if `target_modules` is missing, and finds nothing otherwise. Here the
    tensors tell: what one layer has, all must have.

    Args:
        adapter: the adapter.
        names: the base's names.
        prefixes: of the parts of the model in which it adapts something; see `BaseNames.in_model`. Another
            part may not have been in the model that it was trained on (a multimodal base's image encoder).

    Returns:
        The names of modules that the tensors tell, if the configuration does not.

    Raises:
        InputError: a targeted layer has no tensors, or a module to save was not saved.
    """
    config, types = adapter.config, model_types(names.config)
    inside = (name.removesuffix(".weight") for name, _, _ in names.in_model(prefixes))
    try_patterns(config.patterns, inside, config.path)
    for adapted in adapter.modules:
        _check_target(adapter, adapted, ("lora_embedding_A",))
    present = {renamed(module.module, types) for module in adapter.modules}
    told = _told_by_tensors(adapter)
    targets = replace(config, target_modules=told) if told else config
    for name, tensor, info in names.in_model(prefixes) if targets.target_modules and prefixes else ():
        if not name.endswith(".weight") or len(info.shape) != 2 or ".experts." in name:
            continue
        module = name.removesuffix(".weight")
        if module in present:
            continue
        if tensor in (names.embedding, names.head) and config.ensure_weight_tying:
            continue
        if _is_targeted(targets, module):
            raise _untold(adapter, module) if told else _missing(adapter, module, "target_modules")
    _check_saved(adapter, names, prefixes)
    _check_tokens(adapter, names)
    return told


def _check_saved(adapter: Adapter, names: BaseNames, prefixes: Collection[tuple[str, str]]) -> None:
    """Look for everything that `modules_to_save` names: PEFT saves each module whose name ends so, whole."""
    wanted = adapter.config.modules_to_save
    saved = {entry.tensor for entry in adapter.saved}
    for name in wanted:
        if not any(_is_saved((name,), tensor) for tensor in saved):
            raise _missing(adapter, name, "modules_to_save")
    found = {names.find(tensor) for tensor in saved}
    for name, tensor, _ in names.in_model(prefixes) if wanted else ():
        # A tied side is saved once, experts may be stacked on one side alone, and buffers are computed.
        if tensor in (names.embedding, names.head) or ".experts." in name or BUFFERS.fullmatch(name):
            continue
        if _is_saved(wanted, name) and tensor not in found:
            raise _missing(adapter, name, "modules_to_save")


def _check_tokens(adapter: Adapter, names: BaseNames) -> None:
    """Look for the tokens of every layer that `trainable_token_indices` names."""
    indices = adapter.config.trainable_token_indices
    if not isinstance(indices, Mapping):
        return
    there = [module.module for module in adapter.modules if "trainable_tokens_delta" in module.parts]
    present = [numbers for layer, numbers in indices.items() if any(name.endswith(layer) for name in there)]
    for layer, numbers in indices.items():
        # PEFT saves the tokens of tied layers once if they are the same.
        if not any(name.endswith(layer) for name in there) and not (names.tied and numbers in present):
            raise _missing(adapter, layer, "trainable_token_indices")


def _told_by_tensors(adapter: Adapter) -> tuple[str, ...]:
    """The last names of the adapted modules, if the configuration does not say which are targeted."""
    config = adapter.config
    if config.mlx or config.target_parameters or "LORA" not in config.peft_type:
        return ()
    if config.target_modules and config.target_modules != "all-linear":
        return ()
    adapted = [module.module for module in adapter.modules if "lora_A" in module.parts]
    return tuple(sorted({module.rpartition(".")[2] for module in adapted if ".experts." not in module}))


def _untold(adapter: Adapter, module: str) -> InputError:
    says = adapter.config.target_modules
    return InputError(
        f"adapter_config.json {f'says target_modules {says!r}' if says else 'has no target_modules'}, and of "
        f"the tensors nothing is for {module}, while other layers have some",
        at=adapter.folder,
        fix="set target_modules (and layers_to_transform) as they were in the training, or " + SAVE_AGAIN,
    )


def check_biases(adapter: Adapter, names: BaseNames) -> None:
    """Look for the biases that were trained with the adapted modules; PEFT 0.6 to 0.9 forgot to save some.

    Raises:
        InputError: a bias of the base was trained, as the configuration says, and is missing.
    """
    if adapter.config.bias not in ("all", "lora_only"):
        return
    saved = {names.find(entry.tensor) for entry in adapter.saved}
    for module in adapter.modules:
        bias = names.find(f"{module.module}.bias")
        if bias is not None and bias not in saved:
            raise InputError(
                f"it holds no bias of {module.module}, though bias {adapter.config.bias!r} promises one",
                at=adapter.folder,
                fix=f'{SAVE_AGAIN}; if no bias was trained, set "bias" to "none" in adapter_config.json',
            )


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


def _is_targeted(config: AdapterConfig, module: str) -> bool:
    """Whether the configuration targets a module, by the rules of PEFT's `check_target_module_exists`."""
    if matches(config.exclude_modules or (), module):
        return False
    if any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in config.modules_to_save):
        return False
    if not matches(config.target_modules or (), module):
        return False
    if isinstance(config.target_modules, str) or config.layers_to_transform is None:
        return True
    patterns = config.layers_pattern or (r"[^.]*",)
    found = (re.match(BEFORE_NUMBER.format(pattern), module) for pattern in patterns)
    match = next((match for match in found if match), None)
    return match is not None and int(match[1]) in config.layers_to_transform


def _missing(adapter: Adapter, module: str, option: str) -> InputError:
    return InputError(
        f"it holds nothing for {module}, which its {option} names",
        at=adapter.folder,
        fix=f"{SAVE_AGAIN}, or {OTHER_BASE}",
    )
