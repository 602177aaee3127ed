"""Sees every product of activations with weights of a model while it computes, however its code spells it.

A model multiplies by modules (`Linear`, `Conv1D`), by parameters (stacked experts, one by one or all at
once), by slices of them and by transposes. All of these are calls of a few functions of torch, and one of
their arguments shares its memory with a parameter. Where it begins there and which way its rows lie tells
which matrix was multiplied with, so no kind of layer needs a rule of its own.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Matrix = tuple[str, int]
"""A parameter's name, and which of its matrices: 0 unless it is a stack."""

_LINEAR = frozenset({torch.nn.functional.linear})
_MATMUL = frozenset(
    {
        *(torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.bmm),
        *(torch.Tensor.__matmul__, torch.Tensor.__rmatmul__),
    }
)
_ADDED = frozenset({torch.addmm, torch.baddbmm, torch.Tensor.addmm, torch.Tensor.baddbmm})


@dataclass(slots=True)
class Entered:
    """What entered one matrix, or several of a stack of heads.

    Attributes:
        sums: squared inputs summed over tokens, (cols,) or (heads, cols) float64, on the CPU.
        count: tokens.
    """

    sums: torch.Tensor
    count: int


def enter(seen: dict[Matrix, Entered], matrix: Matrix, inputs: torch.Tensor) -> None:
    """Add inputs (tokens, …, cols) to what entered a matrix."""
    sums, count = inputs.detach().to(torch.float64).square().sum(0).cpu(), len(inputs)
    if (entered := seen.get(matrix)) is None:
        seen[matrix] = Entered(sums, count)
    else:
        entered.sums += sums
        entered.count += count


class SeenProducts(TorchFunctionMode):  # type: ignore[misc]
    """A context within which products are seen.

    Attributes:
        seen: what entered each matrix.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Matrix, Entered] = {}
        self._named: dict[str, torch.Tensor] = {}
        self._sort()

    def place(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Look at further weights.

        Args:
            parameters: weights that are in memory, by name; each a matrix or a stack of matrices.
        """
        self._named |= {name: value for name, value in parameters.items() if value.is_contiguous()}
        self._sort()

    def forget(self, names: Iterable[str]) -> None:
        """Look at weights no more: something else may lie in their memory soon."""
        for name in names:
            self._named.pop(name, None)
        self._sort()

    def _sort(self) -> None:
        """By the address at which each begins; several may share one storage."""
        placed = ((value.data_ptr(), name, value) for name, value in self._named.items())
        self._parameters = sorted(placed, key=lambda held: held[0])
        self._addresses = [address for address, _, _ in self._parameters]

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """Carry a call out, and look at it."""
        named = named or {}
        if function in _LINEAR:
            given = [*arguments, *(named[name] for name in ("input", "weight") if name in named)]
            self._look(given[0], given[1])
        elif function in _MATMUL and len(arguments) > 1:
            swapped = function is torch.Tensor.__rmatmul__
            self._look_both(arguments[swapped], arguments[1 - swapped])
        elif function in _ADDED and len(arguments) > 2:
            self._look_both(arguments[1], arguments[2])
        return function(*arguments, **named)

    def _look_both(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Look at a product of two matrices or stacks, either of which may be a weight."""
        if min(left.ndim, right.ndim) >= 2:
            self._look(left, right.mT)
            self._look(right.mT, left)

    def _look(self, inputs: torch.Tensor, weight: torch.Tensor) -> None:
        """Look at inputs (…, cols) that are multiplied with a weight (…, rows, cols), if it is one."""
        place = bisect.bisect_right(self._addresses, weight.data_ptr()) - 1
        if place < 0 or weight.ndim not in (2, 3):
            return
        address, name, parameter = self._parameters[place]
        offset, cols = (weight.data_ptr() - address) // parameter.element_size(), parameter.shape[-1]
        if offset >= parameter.numel() or cols not in (weight.stride(-1), weight.stride(-2)):
            return  # something else, or its numbers in another order
        matrix, first = divmod(offset, parameter.shape[-2] * cols)
        if first:
            return  # further rows of a matrix, which the same inputs enter
        if inputs.is_mkldnn:
            inputs = inputs.to_dense()
        if weight.ndim == 2:
            enter(self.seen, (name, matrix), inputs.reshape(-1, inputs.shape[-1]))
        elif inputs.ndim == 3:
            for number, part in enumerate(inputs):
                # Where all tokens go through all experts, those of others are zeros.
                enter(self.seen, (name, matrix + number), part[part.count_nonzero(-1) > 0])
