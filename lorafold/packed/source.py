"""A packed base as a `TensorSource`: tensors of the model by name and 16-bit type, rows as float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError, NumericError
from lorafold.packed.formats import FORMATS, Format, method_of, without_packing
from lorafold.packed.layouts.bnb import STATE
from lorafold.packed.layouts.mxfp4 import BYTES, LARGEST_EXPONENT, Mxfp4
from lorafold.packed.originals import original_of
from lorafold.packed.stored import DOWNLOAD_AGAIN, PackedTensor, Stored
from lorafold.safetensors_file import TensorInfo
from lorafold.stopwatch import doing
from lorafold.weights import Checkpoint

_TYPES = {"bfloat16": "BF16", "float16": "F16"}
_PLAIN = ("F64", "F32", "F16", "BF16", "I64", "BOOL")
"""Types of tensors that need no unpacking; masks and positions are among them."""
BESIDE = (
    ".weight_scale",
    "_scale_inv",
    ".weight_global_scale",
    ".weight_shape",
    ".scales",
    ".biases",
    ".qzeros",
    ".absmax",
    ".SCB",
    "._weight_scale",
    "._weight_zero_point",
)
"""Ends of names that only stand beside a packed weight."""
_MARKS = {
    STATE: "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    "._weight_qdata": "torchao",
    ".W_q": "HQQ",
}
"""Who packed, by parts of names that no plain checkpoint has."""
_DROPPED = (".k_scale", ".v_scale", ".q_scale", ".output_scale")
"""Scales of a packed key-value cache, which says nothing of the weights."""


@dataclass(frozen=True, slots=True)
class PackedCheckpoint:
    """A base with packed weights. Use `open_base`.

    Attributes:
        folder: the model's folder.
        tensors: the model's tensors. The type of a packed one is that which it is written in if it is kept.
        method: how it is packed: a name of `formats.FORMATS`.
        words: the same, for people.
        config: its config.json without what says how it is packed.
        packed: the packed tensors by name.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo]
    method: str
    words: str
    config: Mapping[str, Any]
    packed: Mapping[str, PackedTensor]
    _stored: Stored

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a tensor as float32; see `TensorSource.rows`.

        Raises:
            InputError: scales or zero points that cannot be.
            NumericError: a NaN or an infinity among them.
            SystemFault: the file cannot be read, or has changed since it was opened.
        """
        if name not in self.packed:
            return self._stored.checkpoint.rows(name, start, stop)
        info = self.tensors[name]
        assert 0 <= start <= stop <= info.rows, (name, start, stop, info.shape)
        if start == stop:
            return np.empty((0, info.cols), np.float32)
        with doing("unpack"):
            with np.errstate(invalid="ignore", over="ignore"):  # it is told below, with its place
                block = self.packed[name].rows(self._stored, start, stop)
            if not (math.isfinite(block.max()) and math.isfinite(block.min())):
                raise _not_finite(info, start + int(np.argmin(np.isfinite(block).all(axis=1))))
            return block

    def repacked(self, name: str, start: int, stop: int, step: int = 1) -> NDArray[np.uint8]:
        """Lines of a tensor in MXFP4 as GGUF has them; see `Mxfp4.repacked`.

        Raises:
            NumericError: an exponent that makes a NaN or an infinity.
            SystemFault: as `rows`.
        """
        tensor = self.packed[name]
        assert isinstance(tensor, Mxfp4), name
        with doing("unpack"):
            lines = tensor.repacked(self._stored, start, stop, step)
        exponents = lines.reshape(len(lines), -1, 1 + BYTES)[..., 0]
        if exponents.max(initial=0) > LARGEST_EXPONENT:
            row = start + step * int(np.argmax((exponents > LARGEST_EXPONENT).any(axis=1)))
            raise _not_finite(self.tensors[name], row)
        return lines

    def close(self) -> None:
        """Close the files. A later `rows` opens them again."""
        self._stored.checkpoint.close()


def _not_finite(info: TensorInfo, row: int) -> NumericError:
    return NumericError(
        f"NaN or infinity in tensor {info.name!r}, row {row}, once it is unpacked",
        at=info.file,
        fix="use a checkpoint with finite weights",
    )


def open_base(folder: Path, config: Mapping[str, Any], id_: str = "") -> Checkpoint | PackedCheckpoint:
    """Open the weights of a base, packed or not.

    Args:
        folder: the model's folder.
        config: its config.json.
        id_: what it is called, for the name of its 16-bit original.

    Returns:
        A `Checkpoint` if config.json does not say that it is packed.

    Raises:
        InputError: a format that is not read, or parts that are missing or contradict each other; and what
            `Checkpoint.open` raises.
    """
    if (found := method_of(config)) is None:
        plain = Checkpoint.open(folder)
        _refuse_unsaid(plain)
        return plain
    key, method, settings = found
    at = f"{folder / 'config.json'}: {key}"
    if (format_ := FORMATS.get(method)) is None:
        original = original_of(id_, folder)
        raise InputError(
            f"the base is quantized ({method}), which cannot be read; these can: {', '.join(FORMATS)}",
            at=at,
            fix="use its 16-bit original" + (f", most likely {original}" if original else ""),
        )
    stored = Stored(Checkpoint.open(folder), _dtype(config))
    try:
        packed = {tensor.info.name: tensor for tensor in format_.plan(stored, settings)}
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"settings of {method} that make no sense ({error})",
            at=at,
            fix="download the config.json that belongs to these weights",
        ) from error
    if not packed:
        _refuse_plain(stored, format_, method, at)
    return PackedCheckpoint(
        folder,
        MappingProxyType(_of_model(stored, format_, packed)),
        method,
        format_.words(settings),
        without_packing(config),
        packed,
        stored,
    )


def _refuse_unsaid(checkpoint: Checkpoint) -> None:
    """Refuse packed weights of which config.json says nothing."""
    for name, info in checkpoint.tensors.items():
        packer = next((by for mark, by in _MARKS.items() if mark in name), None)
        if packer is not None:
            raise InputError(
                f"{name!r} in {info.file.name} belongs to weights that {packer} packed, of which "
                "quantization_config says nothing",
                at=checkpoint.folder / "config.json",
                fix="download the config.json that belongs to these weights",
            )


def _dtype(config: Mapping[str, Any]) -> str:
    """The 16-bit type that config.json names, else BF16."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in ("dtype", "torch_dtype"):
            if part.get(key) in _TYPES:
                return _TYPES[part[key]]
    return "BF16"


def _of_model(stored: Stored, format_: Format, packed: Mapping[str, PackedTensor]) -> dict[str, TensorInfo]:
    """The model's tensors, in the order of the files.

    Raises:
        InputError: packed numbers that nothing unpacks, or one tensor both packed and not.
    """
    owner = {part: tensor.info for tensor in packed.values() for part in tensor.parts}
    tensors: dict[str, TensorInfo] = {}
    for name, info in stored.tensors.items():
        if name in owner:
            tensors[owner[name].name] = owner[name]
            continue
        if name.endswith(_DROPPED):
            continue
        if name.endswith(BESIDE):
            raise InputError(
                f"the packed weight is missing that {name!r} belongs to", at=info.file, fix=DOWNLOAD_AGAIN
            )
        if info.dtype not in _PLAIN:
            raise InputError(
                f"tensor {name!r} is {info.dtype}, and what unpacks it is missing ({format_.needs})",
                at=info.file,
                fix=DOWNLOAD_AGAIN,
            )
        if name in packed:
            raise InputError(
                f"tensor {name!r} is there both packed and plain", at=info.file, fix=DOWNLOAD_AGAIN
            )
        tensors[name] = info
    return tensors


def _refuse_plain(stored: Stored, format_: Format, method: str, at: str) -> None:
    """Refuse a base that says it is packed and is not."""
    _of_model(stored, format_, {})
    raise InputError(
        f"it says that the weights are packed by {method}, but all of them are plain numbers",
        at=at,
        fix="if they are the 16-bit model's, remove this entry from config.json",
    )
