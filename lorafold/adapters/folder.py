"""An adapter's folder: its configuration, and its tensors sorted by the module that they belong to.

An `Adapter` says what an adapter holds for every module of the model; which weights of a base these modules
are is settled in `lorafold.export.fold.collect`. No torch; headers alone are read.

A key of the file, as PEFT 0.4 to 0.21 write it, is

    base_model.model. MODULE [.base_layer ...] . PART [. ADAPTER NAME] [. weight | bias]

where PART is one of `_PARTS`, or the key names a whole tensor (modules_to_save, saved embeddings, biases).
What wraps the model while it is trained (torch.compile, DDP, FSDP, TRL) may leave its own name before, behind
or instead of the prefix: all of it is taken off. The folder of an mlx-lm adapter is read as if PEFT had
written it (`mlx`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from lorafold.adapters.config import CONFIG, AdapterConfig, read_adapter_config
from lorafold.adapters.foreign import BUFFERS
from lorafold.adapters.missing import why_no_weights
from lorafold.adapters.mlx import MlxFactors
from lorafold.adapters.patterns import try_patterns
from lorafold.errors import InputError
from lorafold.weights import Checkpoint, TensorSource

WEIGHTS = "adapter_model.safetensors"

_PARTS = (
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_diag",
    "lora_E",
    "ia3_l",
    "trainable_tokens_delta",
)
"""Names of an adapter's own tensors. `lora_B.bias` is kept apart as part "lora_bias"."""

# Left by samplers and statistics that only training uses; PEFT's merge does not read them.
TRAINING_ONLY = (
    "lora_monteclora_sampler",
    "lora_velora_embed",
    "lora_velora_initialized",
    "lora_arrow",
    "ranknum",
)

PEFT_PREFIX = "base_model.model."
_MODULES_TO_SAVE = ".modules_to_save."
# Names that programs around a model put into the names of its tensors, anywhere, and PEFT's own in front.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module|_forward_module|module)\."
)
_PREFIX = re.compile(
    r"^(?:(?:.*\.)?base_model\.(?:model\.)?|(?:pretrained_model|policy|actor|student|ddp_model)\.)+"
)

_PART = re.compile(
    rf"(?P<module>.+?)\.(?P<part>{'|'.join(_PARTS)})(?:\.(?P<name>[^.]+?))??(?:\.(?P<leaf>weight|bias))?"
)


@dataclass(frozen=True, slots=True)
class ModuleTensors:
    """What an adapter holds for one module.

    Args:
        module: the module's name in the model ("model.layers.0.self_attn.q_proj").
        depth: how many wrappers lie around this one (`.base_layer` in the key): experts with several adapted
            parameters are wrapped once for each.
        parts: name in the file by part, one of `_PARTS` or "lora_bias".
    """

    module: str
    depth: int
    parts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A whole tensor of the model that the adapter brings.

    Args:
        tensor: its name in the model ("lm_head.weight").
        key: its name in the file.
        trained: it was trained by itself (modules_to_save, a bias); otherwise it is the base's own value,
            saved because the vocabulary was resized.
        copy: another key with the same numbers: PEFT writes an embedding that is in modules_to_save twice
            when the vocabulary was resized. That they are the same is for the reader of the numbers to check.
    """

    tensor: str
    key: str
    trained: bool
    copy: str | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter, checked as far as it can be without its base. Use `Adapter.open`.

    Args:
        folder: its folder.
        config: its configuration.
        source: its tensors.
        modules: what it holds for each module, in the file's order.
        saved: whole tensors that it brings.
        buffers: keys of what the model computes by itself, which is not folded.
    """

    folder: Path
    config: AdapterConfig
    source: TensorSource
    modules: tuple[ModuleTensors, ...]
    saved: tuple[SavedTensor, ...]
    buffers: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the folder was not used, to be told."""
        if not self.buffers:
            return self.config.notes
        more = f" and {len(self.buffers) - 1} more" if len(self.buffers) > 1 else ""
        return (
            *self.config.notes,
            f"{self.buffers[0]!r}{more} of the adapter left out: a model computes that from its config.json",
        )

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read an adapter's configuration and headers.

        Args:
            folder: the adapter's folder.

        Returns:
            The adapter.

        Raises:
            InputError: no or a damaged configuration, a method that cannot be folded, no or damaged weights,
                or two adapters in one file.
            UnsafeInputError: the weights are only there as a pickle.
            SystemFault: a file cannot be read.
        """
        folder = Path(folder)
        if not (folder / CONFIG).exists() and not (folder / CONFIG).is_symlink():
            raise InputError(f"no {CONFIG}: not a PEFT adapter", at=folder, fix="give the adapter's folder")
        config = read_adapter_config(folder)
        if config.mlx:
            factors = MlxFactors.open(folder)
            return cls(folder, config, factors, *_sort_keys(config, factors))
        path = folder / WEIGHTS
        if not path.exists():
            raise why_no_weights(folder)
        source = Checkpoint.of_files(folder, [path])
        modules, saved, buffers = _sort_keys(config, source)
        try_patterns(config.patterns, _spellings(modules), config.path)
        shapes = ((m.module, source.tensors[m.parts["lora_A"]].shape) for m in modules if "lora_A" in m.parts)
        config = config.told_by_ranks({module: shape[0] for module, shape in shapes if len(shape) == 2})
        return cls(folder, config, source, modules, saved, buffers)


def _spellings(modules: tuple[ModuleTensors, ...]) -> Iterator[str]:
    """Every name that a pattern may be asked about for what an adapter holds."""
    for module in modules:
        yield module.module
        for key in module.parts.values():
            yield key
            yield key.removeprefix(PEFT_PREFIX)


def _sort_keys(
    config: AdapterConfig, source: TensorSource
) -> tuple[tuple[ModuleTensors, ...], tuple[SavedTensor, ...], tuple[str, ...]]:
    """Sort the file's tensors by module and part; those that a model computes by itself are kept apart."""
    modules: dict[tuple[str, int], dict[str, str]] = {}
    saved: dict[str, SavedTensor] = {}
    buffers: list[str] = []
    for key in source.tensors:
        name = in_model(key)
        if BUFFERS.fullmatch(name):
            buffers.append(key)
            continue
        if any(f".{part}." in f".{name}." for part in TRAINING_ONLY):
            continue
        match = _PART.fullmatch(name)
        if match is None:
            tensor = _whole_tensor(name)
            if tensor is None:
                continue
            trained = (
                tensor.endswith(".bias")
                or config.peft_type == "LN_TUNING"
                or config.mlx
                or _MODULES_TO_SAVE in key
                or _in_modules(tensor, config.modules_to_save)
            )
            entry = SavedTensor(tensor, key, trained)
            saved[tensor] = _one_of(config, saved[tensor], entry) if tensor in saved else entry
            continue
        module, depth = _unwrapped(match["module"].removesuffix(".token_adapter"))
        part = "lora_bias" if (match["part"], match["leaf"]) == ("lora_B", "bias") else match["part"]
        parts = modules.setdefault((module, depth), {})
        if part in parts:
            raise _twice(config, parts[part], key)
        parts[part] = key
    sorted_modules = tuple(
        ModuleTensors(module, depth, MappingProxyType(parts)) for (module, depth), parts in modules.items()
    )
    return sorted_modules, tuple(saved.values()), tuple(buffers)


def in_model(key: str) -> str:
    """A key without the names of everything that was wrapped around the model."""
    while (shorter := _PREFIX.sub("", _WRAPPERS.sub("", key))) != key:
        key = shorter
    return key


def without_names(name: str) -> str:
    """A name in the model without the adapter's own, which a saved file does not have."""
    match = _PART.fullmatch(name)
    if match is not None:
        return ".".join(filter(None, (match["module"], match["part"], match["leaf"])))
    return re.sub(r"\.modules_to_save(?:\.[^.]+)?(?=\.[^.]+$)", "", name)


def _whole_tensor(name: str) -> str | None:
    """The model's tensor that a key without an adapter's part names; None for a mere copy of the base's."""
    if ".original_module." in name:  # PEFT before 0.6 wrote the untrained copy too
        return None
    name = re.sub(r"\.(?:modules_to_save|ln_tuning_layers)(?:\.[^.]+)?(?=\.[^.]+$)", "", name)
    return re.sub(r"\.(?:token_adapter|base_layer)(?=\.)", "", name)


def _unwrapped(module: str) -> tuple[str, int]:
    """A module's own name, and how many wrappers lie around it."""
    depth = 0
    while module.endswith(".base_layer"):
        module, depth = module.removesuffix(".base_layer"), depth + 1
    return module.replace(".base_layer.", "."), depth


def _in_modules(tensor: str, modules: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to one of these modules: a module's name is a part of its path."""
    return any(re.match(rf"(^|.*\.){re.escape(module)}($|\..*)", tensor) for module in modules)


def _one_of(config: AdapterConfig, a: SavedTensor, b: SavedTensor) -> SavedTensor:
    """The entry of two for one tensor: what was trained wins over the plain name that repeats it."""
    first, second = sorted((a, b), key=lambda entry: _MODULES_TO_SAVE not in entry.key)
    plain = in_model(second.key) == second.tensor
    if a.copy or b.copy or _MODULES_TO_SAVE not in first.key or not plain:
        raise _twice(config, a.key, b.key)
    return replace(first, copy=second.key)


def _twice(config: AdapterConfig, first: str, second: str) -> InputError:
    return InputError(
        f"{first!r} and {second!r} are the same tensor of two adapters",
        at=config.path.parent / WEIGHTS,
        fix="save each adapter into its own folder",
    )
