"""Collect an importance matrix from a Hugging Face model: what llama-imatrix does, without a GGUF.

It holds the sums of squared inputs at every linear layer of the blocks. The permutation of q and k rows does
not matter here, since columns are inputs. Needs torch, that is the [train] extra.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lorafold.errors import InputError, SystemFault
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.file import Imatrix, ImatrixEntry
from lorafold.export.quant.mixture import is_quantizable
from lorafold.progress import Progress, silent

if TYPE_CHECKING:
    import torch

_Hook = Callable[["torch.nn.Module", tuple["torch.Tensor", ...], dict[str, Any]], None]

_MATCH = "give the model that the tensors were mapped from"
_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight$")
_EXPERTS_MODULE = re.compile(r"\blayers\.(\d+)\..*\bexperts(\.base_layer)*$")


class _Sums:
    """The running sums of one or several tensors that share their input."""

    def __init__(self, experts: int = 1) -> None:
        self.experts = experts
        self.values: torch.Tensor | None = None  # (experts, cols) float64
        self.counts = np.zeros(experts, np.int64)

    def add(self, inputs: torch.Tensor, expert: int = 0) -> None:
        """Add inputs (tokens, cols)."""
        import torch

        flat = inputs.detach().reshape(-1, inputs.shape[-1]).to(torch.float64)
        if self.values is None:
            self.values = torch.zeros(self.experts, flat.shape[-1], dtype=torch.float64)
        self.values[expert] += flat.square().sum(0).cpu()
        self.counts[expert] += len(flat)

    def entry(self) -> ImatrixEntry | None:
        """The sums as they are stored; None if the layer was never called."""
        if self.values is None:
            return None
        sums = self.values.numpy().astype(np.float32).reshape(-1)
        return ImatrixEntry(sums, self.counts.astype(np.float32))


def collect(
    model: torch.nn.Module,
    tensors: Sequence[MappedTensor],
    sequences: Sequence[Sequence[int]],
    *,
    dataset: str = "",
    progress: Progress = silent,
) -> Imatrix:
    """Run token sequences through a model and measure the inputs of its linear layers.

    Args:
        model: a causal model of transformers, or a PEFT model around one; in evaluation mode.
        tensors: what `arch.map_tensors` made of the base.
        sequences: token ids, each a text of its own from position 0.
        dataset: what the texts are called, for the file's metadata.
        progress: told the tokens done.

    Returns:
        The matrix: an entry for each weight of the blocks that a recipe may quantize.

    Raises:
        SystemFault: torch is not installed.
        InputError: no sequence has a token, or a linear layer of the model cannot be found.
    """
    try:
        import torch
    except ImportError as error:
        raise SystemFault(
            "collecting an importance matrix needs torch", fix="pip install 'lorafold[train]'"
        ) from error
    sums = {name: _Sums() for name in collected_names(tensors)}
    hooked = _layers(model, tensors, sums)
    hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer, hook in hooked]
    texts = [ids for ids in sequences if len(ids)]
    if not texts:
        raise InputError(
            "no text to collect an importance matrix from", at="--imatrix-data", fix="pass some texts"
        )
    done, total = 0, sum(map(len, texts))
    progress("importance matrix (tokens)", done, total)
    try:
        for ids in texts:
            row = torch.tensor([list(ids)], device=next(model.parameters()).device)
            with torch.inference_mode():
                model(input_ids=row, use_cache=False, logits_to_keep=1)  # only the layers' inputs matter
            done += len(ids)
            progress("importance matrix (tokens)", done, total)
    finally:
        for hook in hooks:
            hook.remove()
    entries = {name: entry for name, part in sums.items() if (entry := part.entry()) is not None}
    return Imatrix(entries, (dataset,) if dataset else (), chunks=len(texts), chunk_size=max(map(len, texts)))


def collected_names(tensors: Sequence[MappedTensor]) -> set[str]:
    """The GGUF tensors that get an entry, as in llama.cpp: embeddings are looked up, and the output is better
    off without."""
    return {
        tensor.name
        for tensor in tensors
        if tensor.name.startswith("blk.") and is_quantizable(tensor.name, tensor.shape)
    }


def _layers(
    model: torch.nn.Module, tensors: Sequence[MappedTensor], sums: dict[str, _Sums]
) -> list[tuple[torch.nn.Module, _Hook]]:
    """Find every layer whose input is to be measured, and how; `sums` grows to the number of experts."""
    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    experts = {
        int(found.group(1)): module
        for name, module in modules.items()
        if (found := _EXPERTS_MODULE.search(name)) and "gate_up_proj" in module._parameters
    }
    stacks: dict[int, dict[str, _Sums]] = {}
    layers: list[tuple[torch.nn.Module, _Hook]] = []
    for tensor in tensors:
        if tensor.name not in sums:
            continue
        if found := _EXPERTS.match(tensor.name):
            sums[tensor.name] = part = _Sums(tensor.shape[0])
            stacks.setdefault(int(found.group(1)), {})[found.group(2)] = part
            continue
        path = tensor.sources[0].source.removesuffix(".weight")
        layers.append((modules.get(path) or _by_suffix(modules, path), _linear_hook(sums[tensor.name])))
    for number, parts in stacks.items():
        if number not in experts:
            raise InputError(f"the model has no experts in layer {number}", at=f"layers.{number}", fix=_MATCH)
        layers.append((experts[number], _experts_hook(experts[number], parts)))
    return layers


def _by_suffix(modules: dict[str, torch.nn.Module], path: str) -> torch.nn.Module:
    """The module whose name ends like a checkpoint's ("language_model." comes, goes and moves in front)."""
    tail = path[path.index("layers.") :] if "layers." in path else path
    names = [name for name in modules if name == tail or name.endswith("." + tail)]
    if len(names) > 1:  # a multimodal model's other towers have layers too
        names = [name for name in names if "language_model." in name]
    found = [modules[name] for name in names]
    if len(found) != 1:
        problem = f"{len(found)} layers of the model are called {tail}, expected 1"
        raise InputError(problem, at=path, fix=_MATCH)
    return found[0]


def _linear_hook(part: _Sums) -> _Hook:
    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        part.add(args[0])

    return hook


def _experts_hook(experts: Any, parts: dict[str, _Sums]) -> _Hook:
    """Measure a stack of experts of transformers 5, `experts(hidden, chosen, weights)`.

    Its matrices `gate_up_proj` (experts, 2 * inner, cols) and `down_proj` are multiplied inside, where no
    hook reaches, so the input of `down_proj` is computed once more here.
    """

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        import torch

        hidden = args[0] if args else kwargs["hidden_states"]
        chosen = args[1] if len(args) > 1 else kwargs["top_k_index"]  # (tokens, experts per token)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        for expert in range(len(experts.gate_up_proj)):
            tokens = torch.nonzero(chosen == expert)[:, 0]
            if not len(tokens):
                continue
            inputs = hidden[tokens]
            for name in ("gate", "up"):
                if name in parts:
                    parts[name].add(inputs, expert)
            if "down" in parts:
                gate, up = torch.nn.functional.linear(inputs, experts.gate_up_proj[expert]).chunk(2, dim=-1)
                parts["down"].add(experts.act_fn(gate) * up, expert)

    return hook
