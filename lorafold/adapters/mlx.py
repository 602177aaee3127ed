"""The tensors of an mlx-lm adapter under the names and in the shapes that PEFT gives them.

mlx-lm multiplies rows by matrices, so its factors lie the other way round, and the factors of all experts of
a layer are one tensor. For a weight W (out, in) it computes W + scale · (a b)ᵀ:

    MODULE.lora_a (in, r)      MODULE.lora_b (r, out)        a linear layer
    MODULE.lora_a (E · r, in)  MODULE.lora_b (E, out, r)     experts: ...switch_mlp.gate_proj
    MODULE.m (out,)                                          DoRA's magnitudes

A full fine-tune has whole tensors instead. Source: mlx_lm/tuner/lora.py and dora.py, 0.10 to 0.28.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorafold.adapters.config import SAVE_AGAIN
from lorafold.errors import InputError
from lorafold.weights import Checkpoint, TensorInfo

MLX_WEIGHTS = "adapters.safetensors"
_EMBEDDINGS = ("embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embeddings")


@dataclass(frozen=True, slots=True)
class _View:
    """Rows [first, first + rows) of a tensor of the file, or all of it transposed."""

    key: str
    first: int = 0
    rows: int = 0
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class MlxFactors:
    """An mlx-lm adapter as a `TensorSource` with PEFT's names.

    Args:
        folder: the adapter's.
        tensors: the entries, with the shapes that PEFT gives them.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo]
    _file: Checkpoint = field(repr=False)
    _views: Mapping[str, _View] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> MlxFactors:
        """Read the headers of an mlx-lm adapter.

        Raises:
            InputError: no or damaged weights, or of a kind that cannot be folded.
            SystemFault: a file cannot be read.
        """
        path = folder / MLX_WEIGHTS
        if not path.exists():
            missing = f"an mlx-lm adapter without {MLX_WEIGHTS}"
            if (folder / "adapters.npz").exists():
                raise InputError(
                    f"{missing}, only with the older adapters.npz",
                    at=folder,
                    fix="load it with mlx-lm 0.10 or later, and save it again",
                )
            saved = sorted(folder.glob(f"*_{MLX_WEIGHTS}"))  # NUMBER_adapters.safetensors, while it trains
            fix = f"copy {saved[-1].name} to {MLX_WEIGHTS}" if saved else SAVE_AGAIN
            raise InputError(missing, at=folder, fix=fix)
        file = Checkpoint.of_files(folder, [path])
        tensors: dict[str, TensorInfo] = {}
        views: dict[str, _View] = {}
        for key, info in file.tensors.items():
            for name, shape, view in _as_peft(folder, key, info, file.tensors):
                tensors[name] = replace(info, name=name, shape=shape)
                views[name] = view
        return cls(folder, tensors, file, views)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor; see `TensorSource.rows`."""
        view = self._views[name]
        if not view.transposed:
            return self._file.rows(view.key, view.first + start, view.first + stop)
        whole = self._file.rows(view.key, 0, self._file.tensors[view.key].rows)
        return np.ascontiguousarray(whole[:, start:stop].T)


def _as_peft(
    folder: Path, key: str, info: TensorInfo, tensors: Mapping[str, TensorInfo]
) -> Iterator[tuple[str, tuple[int, ...], _View]]:
    """The tensors that one tensor of the file becomes: name, shape, and where its rows are."""
    module, _, part = key.rpartition(".")
    if part not in ("lora_a", "lora_b", "m"):
        yield key, info.shape, _View(key, 0, info.rows)
        return
    if module.rpartition(".")[2] in _EMBEDDINGS:
        raise InputError(
            f"{key!r}: mlx-lm adapts a tied embedding on both sides, which is not folded here",
            at=folder,
            fix="fuse it with mlx-lm (`mlx_lm.fuse --de-quantize`), then export the fused model",
        )
    if part == "m":
        yield f"{module}.lora_magnitude_vector", info.shape, _View(key, 0, info.rows)
        return
    peft = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}[part]
    stack = tensors.get(f"{module}.lora_b")
    if stack is None or len(stack.shape) != 3:
        if len(info.shape) != 2:
            raise InputError(
                f"{key!r} has the shape {list(info.shape)}, expected two dimensions",
                at=folder,
                fix=SAVE_AGAIN,
            )
        yield f"{module}.{peft}", info.shape[::-1], _View(key, transposed=True)
        return
    experts, outputs, rank = stack.shape
    rows, cols = (rank, info.cols) if part == "lora_a" else (outputs, rank)
    if info.rows != experts * rows:
        raise InputError(
            f"{key!r} has {info.rows} rows, expected {rows} for each of {experts} experts",
            at=folder,
            fix=SAVE_AGAIN,
        )
    for expert in range(experts):
        name = module.replace(".switch_mlp.", f".experts.{expert}.").replace(
            ".switch_glu.", f".experts.{expert}."
        )
        yield f"{name}.{peft}", (rows, cols), _View(key, expert * rows, rows)
