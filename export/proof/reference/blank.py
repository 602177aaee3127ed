"""A model of transformers without its weights, which are put in place for a while and taken out again.

A tensor of the checkpoint is renamed, split and stacked by transformers' own rules and loader, as
`from_pretrained` would do it; what is only renamed is placed without the loader, which looks through the
whole model each time. What it reads is a source of rows: a base, a base with adapters folded in, or
one that is rounded as a file is. Everything is float32. No weight is read before it is asked for.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorafold.export.proof.reference.loaded_as import loaded_as
from lorafold.libraries.causal_lm import automatic_class, quiet_transformers
from lorafold.machine import cores
from lorafold.weights import STORED, TensorInfo, TensorSource

if TYPE_CHECKING:
    import torch


_BLOCK = 1 << 19  # weights that one thread reads at once


class BlankModel:
    """A model whose parameters are empty.

    Args:
        config: its config.json.
        tensors: what the checkpoint holds.
        device: where weights and buffers shall lie.

    Attributes:
        model: the model of transformers, in evaluation mode.
        targets: the parameters and buffers that each tensor of the checkpoint becomes a part of.

    Raises:
        InputError, ValueError, …: what transformers raises for a model that it does not know
            (`causal_lm.REFUSALS`).
    """

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], device: str = "cpu"
    ) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.device = device
        with quiet_transformers():
            self.model = _without_weights(config)
            self._renaming = get_model_conversion_mapping(self.model)
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        # What is tied is one parameter under several names.
        self._blank = dict(self.model.named_parameters(remove_duplicate=False))
        stored = [name for name, info in tensors.items() if info.dtype in STORED]
        placed = loaded_as(self.model, self._renaming, stored, self.model.state_dict())
        self.targets = {tensor: place.names for tensor, place in placed.items()}
        self._renamed = {place.names[0]: tensor for tensor, place in placed.items() if place.whole}

    def tensor_of(self, parameter: str) -> str | None:
        """The tensor of the checkpoint that a parameter is, unchanged; None if it is made of several."""
        names = [parameter, *self.tied(parameter)]
        return next((self._renamed[name] for name in names if name in self._renamed), None)

    def tied(self, parameter: str) -> list[str]:
        """All names of a parameter, its own too; of a buffer none."""
        own = self._blank.get(parameter)
        return [name for name, other in self._blank.items() if other is own]

    def names(self, module: torch.nn.Module, path: str, *, inside: bool = True) -> list[str]:
        """Full names of a module's parameters.

        Args:
            module: the module.
            path: its own full name.
            inside: also those of the modules in it.
        """
        own = (name for name, _ in module.named_parameters(recurse=inside, remove_duplicate=False))
        return [f"{path}.{name}" if path else name for name in own]

    def buffers(self) -> list[str]:
        """Full names of the buffers that the checkpoint holds."""
        own = {name for name, _ in self.model.named_buffers()}
        return [name for names in self.targets.values() for name in names if name in own]

    def fill(self, names: Collection[str], source: TensorSource) -> None:
        """Put parameters or buffers in place.

        Raises:
            ValueError: the source has nothing for one of them, or something of another shape.
        """
        wanted = set(names)
        tied = {id(self._blank[name]) for name in names if name in self._blank}
        wanted |= {name for name, blank in self._blank.items() if id(blank) in tied}
        chosen = {tensor for tensor, targets in self.targets.items() if wanted.intersection(targets)}
        # The largest first, so that no thread is left alone with one.
        largest = sorted(chosen, key=lambda tensor: (-source.tensors[tensor].nbytes, tensor))
        whole = {tensor: name for tensor in largest if (name := self._whole(tensor)) is not None}
        for name, values in zip(whole.values(), _read_all(source, whole), strict=True):
            if values.shape != self._blank[name].shape:
                raise ValueError(f"{name} is {tuple(values.shape)}")
            self.put(name, values.to(self.device))
        if parts := chosen - whole.keys():
            self._convert({tensor: _Unread(source, tensor) for tensor in parts})
        self._share(wanted)
        for name in names:
            if name in self._blank and self._get(name).is_meta:
                raise ValueError(f"no tensor of the checkpoint becomes {name}")

    def _whole(self, tensor: str) -> str | None:
        """The parameter that a tensor is, as it is; None if transformers makes something of it first."""
        (first, *others) = self.targets[tensor]
        same = not others and self._renamed.get(first) == tensor and first in self._blank
        return first if same else None

    def _convert(self, chosen: dict[str, _Unread]) -> None:
        """Let transformers split and stack tensors."""
        import torch
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        how = LoadStateDictConfig(
            device_map={"": self.device}, dtype=torch.float32, weight_mapping=self._renaming
        )
        with quiet_transformers():
            told, _ = convert_and_load_state_dict_in_model(self.model, chosen, how)
        if told.mismatched_keys or told.conversion_errors:
            first = next(iter([*told.mismatched_keys, *told.conversion_errors.values()]))
            raise ValueError(f"transformers cannot place {first}")

    def put(self, name: str, values: torch.Tensor) -> None:
        """Put one parameter in place."""
        import torch

        module, _, own = name.rpartition(".")
        self.model.get_submodule(module)._parameters[own] = torch.nn.Parameter(values, requires_grad=False)

    def empty(self, names: Collection[str] | None = None) -> None:
        """Take parameters out again, all if no names are given; what is tied to them too."""
        tied = {id(self._blank[name]) for name in (self._blank if names is None else names)}
        for name, blank in self._blank.items():
            if id(blank) in tied:
                module, _, own = name.rpartition(".")
                self.model.get_submodule(module)._parameters[own] = blank

    def lacks(self, names: Collection[str]) -> bool:
        """Whether one of these parameters is not in place."""
        return any(name in self._blank and self._get(name).is_meta for name in names)

    def _get(self, name: str) -> torch.nn.Parameter:
        module, _, own = name.rpartition(".")
        found: torch.nn.Parameter = self.model.get_submodule(module)._parameters[own]
        return found

    def _share(self, names: Collection[str]) -> None:
        """Give parameters that are tied to one that was filled the same values."""
        parameters = [name for name in names if name in self._blank]
        filled = {id(self._blank[name]): name for name in parameters if not self._get(name).is_meta}
        for name in parameters:
            if self._get(name).is_meta and (other := filled.get(id(self._blank[name]))) is not None:
                self.put(name, self._get(other).data)


class _Unread:
    """A tensor that transformers reads as it reads a slice of a safetensors file: by `[...]`."""

    def __init__(self, source: TensorSource, name: str) -> None:
        self._source = source
        self._name = name

    def __getitem__(self, _: object) -> torch.Tensor:
        return _read(self._source, self._name)


def _read_all(source: TensorSource, names: Collection[str]) -> list[torch.Tensor]:
    """Whole tensors, float32.

    They are read block by block, so that no thread waits for one that has the largest tensor, and that what
    is needed on the way to a block's values stays in the processor's caches.
    """
    import torch

    filled = {name: np.empty(source.tensors[name].shape, np.float32) for name in names}
    undivided = getattr(source, "undivided", ())

    def copy(name: str, start: int, stop: int) -> None:
        info = source.tensors[name]
        filled[name].reshape(info.rows, info.cols)[start:stop] = source.rows(name, start, stop)

    with ThreadPoolExecutor(cores()) as pool:
        waiting = []
        for name in names:
            info = source.tensors[name]
            step = info.rows if name in undivided else max(_BLOCK // max(info.cols, 1), 1)
            for start in range(0, info.rows, step or 1):
                waiting.append(pool.submit(copy, name, start, min(start + step, info.rows)))
        for each in waiting:
            each.result()
    return [torch.from_numpy(values) for values in filled.values()]


def _read(source: TensorSource, name: str) -> torch.Tensor:
    """A whole tensor, float32."""
    import torch

    info = source.tensors[name]
    return torch.from_numpy(source.rows(name, 0, info.rows).reshape(info.shape))


def model_class(config: Mapping[str, Any]) -> Any:
    """transformers' class for a config; all that `BlankModel` needs is imported on the way.

    Raises:
        as `BlankModel`.
    """
    for library in ("torch", "accelerate", "transformers.conversion_mapping"):
        importlib.import_module(library)
    settings = _settings(config)
    return automatic_class(settings)._model_mapping[type(settings)]


def _settings(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return AutoConfig.from_pretrained(folder, local_files_only=True)


def _without_weights(config: Mapping[str, Any]) -> Any:
    """A model of a config with its parameters on `meta`; buffers are computed, they are small."""
    import torch
    from accelerate import init_empty_weights

    settings = _settings(config)
    with init_empty_weights(include_buffers=False):
        model = automatic_class(settings).from_config(settings, dtype=torch.float32)
    model.tie_weights()
    return model.eval()
