"""Writes nested state (an optimizer's) as safetensors and JSON and reads it back: exact, without pickles.

Every tensor in a nest of dicts and lists is moved into a flat file under a number; the rest stays as JSON
with {"tensor": number} in its place. Keys that are numbers (an optimizer numbers its parameters) stay
numbers, because a dict is written as a list of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.artifacts import system_faults
from lorafold.errors import InputError
from lorafold.libraries.system_errors import system_errors

if TYPE_CHECKING:
    import torch


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: with the errno of what went wrong, which the library hides in a text.
    """
    from safetensors.torch import save_file

    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    data = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with system_errors(path):
        save_file(data, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: it is missing or damaged.
        SystemFault: the system does not let it be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with system_faults(path), system_errors(path):  # torch opens it too, and raises a RuntimeError
            tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"not readable as safetensors ({error})",
            at=path,
            fix="remove it; an older checkpoint is used then",
        ) from error
    return tensors


def flatten_state(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a nest into JSON and tensors.

    Args:
        state: dicts, lists, tuples, tensors and JSON scalars, in any depth.

    Returns:
        What `json.dumps` can write, and the tensors by the number that stands in their place.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            tensors[str(len(tensors))] = node
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(node, Mapping):
            return {"dict": [[key, walk(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {"list": [walk(item) for item in node]}
        return {"value": node}

    return walk(state), tensors


def restore_state(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put together again what `flatten_state` split; tuples come back as lists."""
    (kind, content), *_ = skeleton.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: restore_state(value, tensors) for key, value in content}
    if kind == "list":
        return [restore_state(item, tensors) for item in content]
    return content
