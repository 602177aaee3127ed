"""The steps of one adapter as they are collected, and what every kind of module asks of them.

Shapes and ranks are compared while a fold is planned, so that the fold itself cannot fail on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lorafold.adapters.folder import Adapter
from lorafold.errors import InputError
from lorafold.export.fold.changes import AddLowRank, Change, Replace
from lorafold.export.fold.factors import Factors
from lorafold.export.fold.names import OTHER_BASE, BaseNames, Piece
from lorafold.weights import TensorSource

RESIZED = (
    "give the base with its embedding resized, or save the adapter with its embeddings "
    "(`save_embedding_layers=True`)"
)


@dataclass(slots=True)
class Targets:
    """The steps of one adapter, collected module by module.

    Args:
        adapter: the adapter.
        base: the base's weights.
        names: the base's names.
        factors: the adapter's tensors as factors.
        changes: the result: steps by tensor.
        rounding: "peft" if products are rounded as PEFT rounds them.
        shared: steps for one side of a tied embedding that hold for the other too.
        prefixes: of the parts of the model in which something is adapted; see `BaseNames.in_model`.
        swapped: how PEFT stored the factors of square experts, once that is known; see `experts`.
        experts: how it stored those of each stacked parameter, and of how many experts, by the key of A.
        told: the modules that its tensors say it targets, if its configuration does not.
        notes: what was decided here that the user should know.
    """

    adapter: Adapter
    base: TensorSource
    names: BaseNames
    factors: Factors
    rounding: str = "exact"
    changes: dict[str, list[Change]] = field(default_factory=dict)
    shared: list[Change] = field(default_factory=list)
    prefixes: set[tuple[str, str]] = field(default_factory=set)
    swapped: bool | None = None
    experts: dict[str, tuple[bool, int]] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def shape(self, weight: str) -> tuple[int, ...]:
        """A tensor's shape as its steps find it: with a resized vocabulary a saved tensor comes first."""
        steps = self.changes.get(weight, ())
        return steps[0].shape if steps and isinstance(steps[0], Replace) else self.names.tensors[weight].shape

    def resized(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """The pieces of a weight as its steps find them: a whole tensor has the rows of a saved one."""
        first = pieces[0]
        if len(pieces) > 1 or first.rows != self.names.tensors[first.tensor].rows:
            return pieces
        shape = self.shape(first.tensor)
        return (replace(first, rows=shape[0]),) if len(shape) == 2 else pieces

    def rounded(self, step: AddLowRank, tensor: str) -> AddLowRank:
        """The step with its product rounded first, as PEFT does in some places."""
        return replace(step, rounded=self.names.tensors[tensor].dtype) if self.rounding == "peft" else step

    def rank(self, module: str, a_rank: int, b_rank: int) -> int:
        """The rank that both factors of a module and the configuration agree on.

        Raises:
            InputError: they do not.
        """
        config = self.adapter.config
        expected = a_rank if config.peft_type == "ADALORA" else config.rank(module)
        if not a_rank == b_rank == expected:
            says = f"says {expected}"
            if "r" in config.assumed and expected == config.r:
                says = f"has no r, for which PEFT takes {expected}"
            raise InputError(
                f"{module}: A has rank {a_rank} and B has rank {b_rank}, the configuration {says}",
                at=self.adapter.config.path,
                fix="use the adapter_config.json that was saved with these weights",
            )
        return expected

    def turned(
        self, a: tuple[str, tuple[int, ...]], b: tuple[str, tuple[int, ...]], expected: tuple[int, int]
    ) -> InputError | None:
        """That factors fit the base, but not in PEFT's form; None if they do not fit at all.

        Args:
            a, b: keys and shapes of lora_A, (rank, in) as PEFT writes it, and of lora_B, (out, rank).
            expected: (out, in) of the base's weight.
        """
        (a_key, a_shape), (b_key, b_shape) = a, b
        out, into = expected
        forms = (
            ((a_shape[0], b_shape[1], a_shape[1] == b_shape[0]), (into, out), "stored transposed"),
            ((b_shape[1], a_shape[0], a_shape[1] == b_shape[0]), (into, out), "swapped"),
        )
        for (left, right, same_rank), wanted, how in forms:
            if same_rank and (left, right) == wanted:
                return InputError(
                    f"{a_key!r} {list(a_shape)} and {b_key!r} {list(b_shape)} are {how}: PEFT writes lora_A "
                    "as (rank, in) and lora_B as (out, rank)",
                    at=self.adapter.folder,
                    fix="save it with PEFT, or give the folder as the program that trained it wrote it",
                )
        return None

    def wrong_shape(
        self, key: str, shape: tuple[int, ...], tensor: str, expected: tuple[int, ...]
    ) -> InputError:
        """That one of the adapter's tensors does not go with one of the base's."""
        if tensor in (self.names.embedding, self.names.head) and shape[1:] == expected[1:]:
            return InputError(
                f"{key!r} was trained with a vocabulary of {shape[0]} tokens, {tensor} of the base has "
                f"{expected[0]}",
                at=self.adapter.folder,
                fix=RESIZED,
            )
        return InputError(
            f"made for another base: {key!r} has the shape {list(shape)}, {tensor} of the base has "
            f"{list(expected)}",
            at=self.adapter.folder,
            fix=OTHER_BASE,
        )
