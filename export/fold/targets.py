"""The steps of one adapter as they are collected, and what every kind of module asks of them.

Shapes and ranks are compared while a fold is planned, so that it cannot fail on them later.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lorafold.adapters import Adapter
from lorafold.errors import InputError
from lorafold.export.fold.changes import AddLowRank, Change, Replace
from lorafold.export.fold.factors import Factors
from lorafold.export.fold.names import OTHER_BASE, BaseNames
from lorafold.weights import TensorSource


@dataclass(slots=True)
class Targets:
    """The steps of one adapter, collected module by module.

    Args:
        adapter: the adapter.
        base: the base's weights.
        names: the base's names.
        factors: the adapter's tensors as factors.
        changes: the result: steps by tensor.
        rounding: "peft" where products are rounded as PEFT rounds them.
        shared: steps for one side of a tied embedding that hold for the other too.
        prefixes: of the parts of the model in which something is adapted; see `BaseNames.in_model`.
    """

    adapter: Adapter
    base: TensorSource
    names: BaseNames
    factors: Factors
    rounding: str = "exact"
    changes: dict[str, list[Change]] = field(default_factory=dict)
    shared: list[Change] = field(default_factory=list)
    prefixes: set[tuple[str, str]] = field(default_factory=set)

    def shape(self, weight: str) -> tuple[int, ...]:
        """A tensor's shape as its steps find it: with a resized vocabulary a saved tensor comes first."""
        steps = self.changes.get(weight, ())
        return steps[0].shape if steps and isinstance(steps[0], Replace) else self.names.tensors[weight].shape

    def rounded(self, step: AddLowRank, tensor: str) -> AddLowRank:
        """The step as PEFT rounds it where it rounds a product before adding it."""
        return replace(step, rounded=self.names.tensors[tensor].dtype) if self.rounding == "peft" else step

    def rank(self, module: str, a_rank: int, b_rank: int) -> int:
        """The rank that both factors of a module and the configuration agree on.

        Raises:
            InputError: they do not.
        """
        config = self.adapter.config
        expected = a_rank if config.peft_type == "ADALORA" else config.rank(module)
        if not a_rank == b_rank == expected:
            raise InputError(
                f"{module}: A has rank {a_rank} and B has rank {b_rank}, the configuration says {expected}",
                at=self.adapter.config.path,
                fix="use the adapter_config.json that was saved with these weights",
            )
        return expected

    def wrong_shape(
        self, key: str, shape: tuple[int, ...], tensor: str, expected: tuple[int, ...]
    ) -> InputError:
        """That one of the adapter's tensors does not go with one of the base's."""
        return InputError(
            f"made for another base: {key!r} has the shape {list(shape)}, {tensor} of the base has "
            f"{list(expected)}",
            at=self.adapter.folder,
            fix=OTHER_BASE,
        )
