"""What its types cost a model: the reference, rounded as llama.cpp rounds a file.

Every weight gets the error that its type makes on it, and whatever enters a product is rounded to the type
that ggml multiplies it with. The weights keep their place in transformers' model, and only the rounding error
is taken from the fold: weights that are wrong, or in a wrong order in the file, do not make this loss any
larger.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.export.gguf.header import TypedTensor
from lorafold.export.gguf.parts import RowRange
from lorafold.export.gguf.rows import RowSource, column_numbers, column_weights
from lorafold.export.quant import ggml
from lorafold.export.quant.mixture import Importance
from lorafold.export.quant.quantize import quantize
from lorafold.machine import cores
from lorafold.weights import TensorSource

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 21  # weights that are rounded at once

# ggml multiplies the rows of a type with activations of another (`vec_dot_type` in ggml-cpu.c): 16-bit types
# with their own kind, these with Q8_0 or Q8_1 (8 bits, one scale for 32 numbers), all others with Q8_K (one
# for 256).
BLOCKS_OF_32 = {Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.IQ4_NL, Type.MXFP4}


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of one checkpoint tensor that go into one tensor of the file.

    Attributes:
        typed: the file's tensor.
        rows: the checkpoint's rows.
        first: the row of the file's tensor at which they begin.
    """

    typed: TypedTensor
    rows: RowRange
    first: int

    @property
    def weights(self) -> int:
        """How many weights these are."""
        tensor = self.typed.tensor
        return (tensor.height if tensor.transpose else self.count) * tensor.cols

    @property
    def count(self) -> int:
        """Rows of the checkpoint."""
        return self.rows.stop - self.rows.start

    def touches(self, start: int, stop: int) -> bool:
        """Whether some of its rows lie in [start, stop)."""
        return self.rows.start < stop and start < self.rows.stop

    def within(self, start: int, stop: int) -> _Piece:
        """Its rows in [start, stop)."""
        first, last = max(start, self.rows.start), min(stop, self.rows.stop)
        rows = RowRange(self.rows.source, first, last, self.rows.scale)
        return _Piece(self.typed, rows, self.first + first - self.rows.start)

    def blocks(self) -> Iterator[_Piece]:
        """Parts of it that are rounded at once; none reaches over two experts, whose importance differs."""
        tensor = self.typed.tensor
        if tensor.transpose:
            yield self
            return
        height = tensor.shape[-2] if len(tensor.shape) > 2 else self.count
        step = max(BLOCK // tensor.cols, 1)
        for expert in range(0, self.count, height):
            for start in range(expert, min(expert + height, self.count), step):
                stop = min(start + step, expert + height, self.count)
                yield self.within(self.rows.start + start, self.rows.start + stop)


@dataclass(slots=True)
class Rounding:
    """What was done to a model, and what is left to do.

    Attributes:
        model: the model, its weights rounded.
        weights: how many weights the file rounds.
        found: how many of them have their place in transformers' model.
        types: the type of each rounded parameter, by its id.
    """

    model: torch.nn.Module
    weights: int = 0
    found: int = 0
    types: dict[int, Type] = field(default_factory=dict)

    @property
    def missing(self) -> float:
        """The share of the weights that could not be rounded."""
        return 1 - self.found / self.weights if self.weights else 0.0

    def round_activations(self) -> None:
        """From now on round also what enters each product."""
        for module in self.model.modules():
            # PEFT's layers show their base's weight as their own, so an adapter gets the same input as its
            # base. A stack of experts holds its weights under names of its own.
            held = [getattr(module, "weight", None), *module.parameters(recurse=False)]
            kinds = [self.types[id(each)] for each in held if id(each) in self.types]
            if kinds and kinds[0] != Type.F32 and "Embedding" not in type(module).__name__:
                module.register_forward_pre_hook(_rounds_input(kinds[0]))


def parameters_of(model: torch.nn.Module) -> dict[str, Any]:
    """The base's own parameters by name; to be taken before an adapter is put around them."""
    return dict(model.named_parameters())


def round_weights(
    model: torch.nn.Module,
    parameters: Mapping[str, Any],
    tensors: Sequence[TypedTensor],
    source: RowSource,
    exact: RowSource,
    imatrix: Importance | None = None,
) -> Rounding:
    """Give a model the error that a file's types make on its weights, in place.

    Args:
        model: the base, with the adapter beside it if there is one.
        parameters: what `parameters_of` said of the base.
        tensors: all tensors of the file.
        source: what the file was made from.
        exact: the same without the rounding to 16 bits that `--rounding peft` asks for.
        imatrix: the importance weights of the export.
    """
    done = Rounding(model)
    strange: list[_Piece] = []
    waiting = []
    with ThreadPoolExecutor(cores()) as pool:
        for piece in _pieces(tensors, plain_too=source is not exact):
            done.weights += piece.weights
            parameter = _parameter(parameters, piece.rows.source)
            if parameter is None:
                strange.append(piece)
                continue
            done.found += piece.weights
            done.types.setdefault(id(parameter), piece.typed.type)
            values = parameter.data.numpy()
            waiting += [
                pool.submit(_round, values, block, source, exact, imatrix) for block in piece.blocks()
            ]
        for each in waiting:
            each.result()
    _round_stacks(parameters, strange, done)
    return done


def _pieces(tensors: Sequence[TypedTensor], plain_too: bool) -> Iterator[_Piece]:
    """All rows that the file rounds; float32 ones only if they were rounded on the way."""
    for typed in tensors:
        if typed.type == Type.F32 and not plain_too:
            continue
        first = 0
        for rows in typed.tensor.sources:
            yield _Piece(typed, rows, first)
            first += typed.tensor.height if typed.tensor.transpose else rows.stop - rows.start


def _parameter(parameters: Mapping[str, Any], name: str) -> Any:
    """The parameter of a checkpoint's tensor; one of the two names may have a prefix that the other lacks."""
    if name in parameters:
        return parameters[name]
    near = [p for known, p in parameters.items() if known.endswith(f".{name}") or name.endswith(f".{known}")]
    return near[0] if len(near) == 1 else None


def _round(
    values: NDArray[np.float32],
    piece: _Piece,
    source: RowSource,
    exact: RowSource,
    imatrix: Importance | None,
) -> None:
    """Add a type's error on some rows to a parameter."""
    part = piece.rows
    wanted = exact.rows(part.source, part.start, part.stop)
    columns, written = _written(piece, wanted, None if source is exact else source, imatrix)
    error = written - wanted[:, columns]
    # A file may have more tokens than the model, or the reverse.
    matrix = values.reshape(-1, values.shape[-1])
    stop = min(part.stop, len(matrix))
    matrix[part.start : stop, columns] += error[: stop - part.start]


def _written(
    piece: _Piece, wanted: NDArray[np.float32], source: RowSource | None, imatrix: Importance | None
) -> tuple[Any, NDArray[np.float32]]:
    """Rows of the checkpoint as a type leaves them, and at which columns.

    Args:
        piece: which rows.
        wanted: these rows without any rounding.
        source: what the file was made from, if that is not `wanted`.
        imatrix: the importance weights of the export.
    """
    part, tensor = piece.rows, piece.typed.tensor
    rows = wanted if source is None else source.rows(part.source, part.start, part.stop)
    columns = column_numbers(tensor.columns) if tensor.columns else slice(None)
    scale = np.float32(part.scale)
    rows = rows[:, columns] if scale == 1 else rows[:, columns] * scale
    rows = np.ascontiguousarray(rows.T if tensor.transpose else rows)
    written = _there_and_back(rows, piece.typed.type, column_weights(imatrix, tensor, piece.first))
    written = written.T if tensor.transpose else written
    return columns, written if scale == 1 else written / scale


class RoundedSource:
    """A source of rows with the error that a file's types make on them; a `TensorSource`.

    Args:
        tensors: all tensors of the file.
        source: what the file was made from.
        exact: the same without the rounding to 16 bits that `--rounding peft` asks for.
        imatrix: the importance weights of the export.

    Attributes:
        types: the type in the file of each tensor that it rounds.
        weights: how many weights of each tensor it rounds.
        undivided: tensors that are rounded as a whole, whatever rows are asked for.
    """

    def __init__(
        self,
        tensors: Sequence[TypedTensor],
        source: RowSource,
        exact: TensorSource,
        imatrix: Importance | None = None,
    ) -> None:
        self.tensors = exact.tensors
        self.types: dict[str, Type] = {}
        self.weights: dict[str, int] = {}
        self.undivided: set[str] = set()
        self._exact = exact
        self._source = None if source is exact else source
        self._imatrix = imatrix
        self._pieces: dict[str, list[_Piece]] = {}
        for piece in _pieces(tensors, plain_too=source is not exact):
            name = piece.rows.source
            self.types.setdefault(name, piece.typed.type)
            self.weights[name] = self.weights.get(name, 0) + piece.weights
            self._pieces.setdefault(name, []).extend(piece.blocks())
            if piece.typed.tensor.transpose:
                self.undivided.add(name)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as the file has them, in the checkpoint's order; see `TensorSource.rows`."""
        wanted = self._exact.rows(name, start, stop)
        pieces = [each for each in self._pieces.get(name, ()) if each.touches(start, stop)]
        if not pieces:
            return wanted
        apart = all(one.rows.stop <= next_.rows.start for one, next_ in itertools.pairwise(pieces))
        rounded = wanted if apart else wanted.copy()
        for each in pieces:
            # Where it is transposed its rows are columns here, and are rounded as a whole.
            piece = each if each.typed.tensor.transpose else each.within(start, stop)
            begin, end = piece.rows.start, piece.rows.stop
            inside = start <= begin and end <= stop
            same = wanted[begin - start : end - start] if inside else self._exact.rows(name, begin, end)
            columns, written = _written(piece, same, self._source, self._imatrix)
            first, last = max(begin, start), min(end, stop)
            place = slice(first - start, last - start), columns
            if apart:
                rounded[place] = written[first - begin : last - begin]
            else:  # in two tensors of the file, whose errors add up
                rounded[place] += (written - same[:, columns])[first - begin : last - begin]
        return rounded


def _there_and_back(
    rows: NDArray[np.float32], type: Type, weights: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    return ggml.dequantize(quantize(rows, type, weights), type, rows.shape[1])


_LAYER = re.compile(r"\.(\d+)\.")
_DOWN = re.compile(r"down|\.w2\b")


def _round_stacks(parameters: Mapping[str, Any], strange: Sequence[_Piece], done: Rounding) -> None:
    """Round what transformers holds under another name than the checkpoint: experts that it stacks.

    A stack is known by its layer, its width and which side of the network it is. The values that are rounded
    are the base's: an adapter changes them too little to change the rounding's size.
    """
    for name, parameter in parameters.items():
        layer = _LAYER.search(name)
        if parameter.dim() != 3 or layer is None or id(parameter) in done.types:
            continue
        own = [
            piece
            for piece in strange
            if piece.typed.tensor.cols == parameter.shape[-1]
            and (found := _LAYER.search(piece.rows.source)) is not None
            and found[1] == layer[1]
            and bool(_DOWN.search(piece.rows.source)) == bool(_DOWN.search(name))
        ]
        if sum(piece.weights for piece in own) != parameter.numel():
            continue
        kind = own[0].typed.type
        done.types[id(parameter)] = kind
        matrix = parameter.data.numpy().reshape(-1, parameter.shape[-1])
        step = max(BLOCK // matrix.shape[1], 1)
        for start in range(0, len(matrix), step):
            matrix[start : start + step] = _there_and_back(matrix[start : start + step], kind)
        done.found += parameter.numel()


def _rounds_input(kind: Type) -> Any:
    def hook(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not arguments:  # the input has a name: leave it
            return None
        return (rounded_activations(arguments[0], kind), *arguments[1:])

    return hook


def rounded_activations(entering: torch.Tensor, kind: Type) -> torch.Tensor:
    """Activations as ggml rounds them before it multiplies them with rows of a type."""
    import torch

    if kind in (Type.F16, Type.BF16):
        return entering.to(torch.float16 if kind == Type.F16 else torch.bfloat16).to(entering.dtype)
    width = 32 if kind in BLOCKS_OF_32 else 256
    if entering.shape[-1] % width:
        return entering
    blocks = entering.unflatten(-1, (-1, width))  # (..., blocks, width)
    scale = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    whole = (blocks / scale).round()
    if width == 32:  # Q8_0 keeps its scale in 16 bits, Q8_K in 32
        scale = scale.to(torch.float16).to(scale.dtype)
    return (whole * scale).flatten(-2)
