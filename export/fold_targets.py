"""What one adapter does to which tensors of a base.

In: an adapter and the names of a base. Out: the steps for each tensor it touches. Every tensor of the adapter
ends up in a step, or an `InputError` names it; shapes and ranks are compared here, so a fold that was planned
cannot fail on them later.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from lorafold.adapter_config import RESIDUAL_BASE
from lorafold.adapters import Adapter, ModuleTensors, SavedTensor
from lorafold.errors import InputError
from lorafold.export.fold_changes import (
    AddLowRank,
    AddVector,
    Block,
    Change,
    Dora,
    Replace,
    ReplaceRows,
    Scale,
    read_through,
)
from lorafold.export.fold_complete import OTHER_BASE, check_complete, check_copies, matches
from lorafold.export.fold_factors import FactorCache, Factors, initial_part, once
from lorafold.export.fold_names import (
    NO_MODULES_ANY_MORE,
    PARAMETER_ORDER,
    TRANSPOSED_EXPERTS,
    BaseNames,
    Piece,
    prefix_of,
)
from lorafold.export.fold_products import factor_shapes, linear_product
from lorafold.weights import TensorSource

COMPLETE = (
    {"lora_A", "lora_B"},
    {"lora_embedding_A", "lora_embedding_B"},
    {"ia3_l"},
    {"trainable_tokens_delta"},
)
"""The parts that a module must have; the others go with the first two."""


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

    def collect(self) -> None:
        """Fill `changes`.

        Raises:
            InputError: tensors left over or missing, ranks or shapes that do not fit.
        """
        unknown = [saved.key for saved in self.adapter.saved if not self._saved(saved)]
        unknown += [
            key
            for module in self.adapter.modules
            if not self._module(module)
            for key in module.parts.values()
        ]
        if unknown:
            raise InputError(
                f"{len(unknown)} of its tensors belong to nothing in the base, the first is {unknown[0]!r}",
                at=self.adapter.folder,
                fix=OTHER_BASE,
            )
        check_complete(self.adapter, self.names, self.prefixes)
        check_copies(self.adapter)

    # One method for each kind of tensor; each returns False where the base has no such module.

    def _saved(self, saved: SavedTensor) -> bool:
        shape = self.factors.shape(saved.key)
        tensor = self.names.find(saved.tensor)
        if tensor is None:
            return self._saved_experts(saved)
        expected = self.names.tensors[tensor].shape
        resized = tensor in (self.names.embedding, self.names.head) and shape[1:] == expected[1:]
        if shape != expected and not resized:
            raise self._wrong_shape(saved.key, shape, tensor, expected)
        step = Replace(self.adapter.source, saved.key, shape)
        self.changes.setdefault(tensor, []).insert(0, step)
        if tensor in (self.names.embedding, self.names.head) and not saved.trained:
            self.shared.append(step)
        return True

    def _saved_experts(self, saved: SavedTensor) -> bool:
        pieces = self.names.pieces(saved.tensor)
        if not pieces:
            return False
        shape, expected = self.factors.shape(saved.key), self.names.expert_shape(pieces)
        if shape != expected:
            raise self._wrong_shape(saved.key, shape, saved.tensor, expected)
        for piece in pieces:
            offset = piece.expert * expected[1] + piece.offset
            tensor_shape = self.names.tensors[piece.tensor].shape
            self.changes.setdefault(piece.tensor, []).append(
                Replace(self.adapter.source, saved.key, tensor_shape, offset)
            )
        return True

    def _module(self, module: ModuleTensors) -> bool:
        parts = set(module.parts)
        kind = next((kind for kind in COMPLETE if kind & parts), None)
        if kind is None or not kind <= parts:
            missing = sorted((kind or {"lora_A", "lora_B"}) - parts)
            raise InputError(
                f"{module.module} has {', '.join(sorted(parts))} but no {' and no '.join(missing)}",
                at=self.adapter.folder,
                fix="save or download the adapter again",
            )
        parameter = self._parameter(module)
        if parameter is not None:
            return self._experts(module, parameter)
        weight = self.names.find(f"{module.module}.weight")
        if weight is None:
            return False
        prefix = prefix_of(f"{module.module}.weight", weight)
        if prefix is not None:
            self.prefixes.add(prefix)
        if "lora_A" in parts:
            self._linear(module, weight)
        elif "lora_embedding_A" in parts:
            self._embedding(module, weight)
        elif "ia3_l" in parts:
            self._ia3(module, weight)
        else:
            self._tokens(module, weight)
        return True

    def _linear(self, module: ModuleTensors, weight: str) -> None:
        a, b = module.parts["lora_A"], module.parts["lora_B"]
        shape = self._shape(weight)
        a_shape, b_shape = factor_shapes(self.adapter, self.factors, module.module, a, b)
        product_shape = (b_shape[0], a_shape[1])
        config, conv1d = self.adapter.config, self.names.is_conv1d(module.module)
        if conv1d is None:
            conv1d = config.fan_in_fan_out
        transposed = conv1d if product_shape == product_shape[::-1] else shape != product_shape
        if shape != (product_shape[::-1] if transposed else product_shape) or (transposed and not conv1d):
            raise self._wrong_shape(f"{b} · {a}", product_shape, weight, shape)
        rank = self._rank(module.module, a_shape[0], b_shape[1])
        for part in ("lora_diag", "lora_E"):
            if part in module.parts and self.factors.shape(module.parts[part])[:1] != (rank,):
                raise self._wrong_shape(
                    module.parts[part], self.factors.shape(module.parts[part]), a, a_shape
                )
        scale = config.scale(module.module)
        steps = self.changes.setdefault(weight, [])
        steps += self._without_initial(module.module, weight, rank, scale, transposed)
        step = linear_product(self.adapter, self.factors, module, scale, shape[0], transposed)
        if "lora_magnitude_vector" in module.parts:
            steps.append(self._dora(module, weight, step, by_row=not transposed))
        elif (
            config.rounds_product
            or matches(config.target_parameters, f"{module.module}.weight")
            or NO_MODULES_ANY_MORE.fullmatch(module.module)
        ):
            steps.append(self._rounded(step, weight))
        else:
            steps.append(step)
        if "lora_bias" in module.parts:
            self._bias(module, scale)

    def _without_initial(
        self, module: str, weight: str, rank: int, scale: float, transposed: bool
    ) -> list[AddLowRank]:
        """The step that takes out what the adapter's initialisation took out of the base before training."""
        config = self.adapter.config
        method = "kasa" if config.kasa else str(config.init_lora_weights).lower()
        prior = list(self.changes.get(weight, ()))
        if method not in ("pissa", "olora", "kasa") or (prior and isinstance(prior[0], Replace)):
            return []  # a base that was saved with the adapter has lost that part already
        if transposed and method != "pissa":
            raise InputError(
                f"{method} of a transposed weight ({module}) cannot be computed again",
                at=self.adapter.folder,
                fix=RESIDUAL_BASE,
            )
        rows = self._shape(weight)[0]

        def parts() -> tuple[Block, Block]:
            whole = read_through(self.base, weight, prior, 0, rows)
            left, right = initial_part(method, whole.T if transposed else whole, rank, module)
            return (right.T, left.T) if transposed else (left, right)

        pair = once(parts)
        taken = scale if method == "olora" else 1.0
        return [self.factors.computed_product(lambda: pair()[0], lambda: pair()[1], -taken, rows)]

    def _dora(self, module: ModuleTensors, weight: str, step: AddLowRank, *, by_row: bool) -> Dora:
        key = module.parts["lora_magnitude_vector"]
        shape = self._shape(weight)
        if int(np.prod(self.factors.shape(key))) != (shape[0] if by_row else shape[1]):
            raise self._wrong_shape(key, self.factors.shape(key), weight, shape)
        prior = list(self.changes[weight])
        return Dora(
            step,
            self.factors.vector(key),
            weight,
            by_row,
            lambda start, stop: read_through(self.base, weight, prior, start, stop),
            step.stop,
        )

    def _bias(self, module: ModuleTensors, scale: float) -> None:
        key = module.parts["lora_bias"]
        bias = self.names.find(f"{module.module}.bias")
        if bias is None:
            raise InputError(
                f"`lora_bias` of {module.module} has nowhere to go: the base has no bias there",
                at=self.adapter.folder,
                fix="train without `lora_bias`; PEFT cannot merge it either",
            )
        if self.factors.shape(key) != self.names.tensors[bias].shape:
            raise self._wrong_shape(key, self.factors.shape(key), bias, self.names.tensors[bias].shape)
        self.changes.setdefault(bias, []).append(AddVector(self.factors.vector(key), scale))

    def _embedding(self, module: ModuleTensors, weight: str) -> None:
        """An embedding's weight is (tokens, width) and its product A.T @ B.T (PEFT: `lora_embedding_*`)."""
        a, b = module.parts["lora_embedding_A"], module.parts["lora_embedding_B"]
        a_shape, b_shape = factor_shapes(self.adapter, self.factors, module.module, a, b)
        shape, steps = self._shape(weight), self.changes.setdefault(weight, [])
        if shape != (a_shape[1], b_shape[0]):
            raise self._wrong_shape(f"({b} · {a}).T", (a_shape[1], b_shape[0]), weight, shape)
        self._rank(module.module, a_shape[0], b_shape[1])
        step = self.factors.product(a, b, self.adapter.config.scale(module.module), shape[0], transposed=True)
        if "lora_magnitude_vector" in module.parts:
            steps.append(self._dora(module, weight, step, by_row=False))
        else:
            steps.append(self._rounded(step, weight))

    def _ia3(self, module: ModuleTensors, weight: str) -> None:
        key = module.parts["ia3_l"]
        info = self.names.tensors[weight]
        conv1d = self.names.is_conv1d(module.module)
        transposed = self.adapter.config.fan_in_fan_out if conv1d is None else conv1d
        inputs = matches(self.adapter.config.feedforward_modules, module.module)
        by_row = inputs == transposed  # of a transposed weight, a row is an input
        size = int(np.prod(self.factors.shape(key)))
        if size != (info.rows if by_row else info.cols):
            raise self._wrong_shape(key, self.factors.shape(key), weight, info.shape)
        self.changes.setdefault(weight, []).append(Scale(self.factors.vector(key), by_row))
        bias = self.names.find(f"{module.module}.bias")
        if bias is not None and not inputs:
            self.changes.setdefault(bias, []).append(Scale(self.factors.vector(key), by_row=False))

    def _tokens(self, module: ModuleTensors, weight: str) -> None:
        key = module.parts["trainable_tokens_delta"]
        indices = self.adapter.config.trainable_token_indices
        if isinstance(indices, dict):
            named = [name for name in indices if f".{module.module}".endswith(f".{name}")]
            indices = indices[named[0]] if named else None
        shape, steps = self._shape(weight), self.changes.setdefault(weight, [])
        numbers = np.array(indices if indices is not None else (), dtype=np.int64)
        if self.factors.shape(key) != (len(numbers), *shape[1:]) or len(set(numbers.tolist())) != len(
            numbers
        ):
            raise InputError(
                f"{key!r} has the shape {list(self.factors.shape(key))}, expected one row for each of the "
                f"{len(numbers)} different token indices and {list(shape[1:])} columns",
                at=self.adapter.folder,
                fix=OTHER_BASE,
            )
        if len(numbers) and numbers.max() >= shape[0]:
            raise InputError(
                f"token {numbers.max()} was trained, but {weight} has {shape[0]} rows",
                at=self.adapter.folder,
                fix="give the base with its embedding resized, or save the adapter with its embeddings "
                "(`save_embedding_layers=True`)",
            )
        step = ReplaceRows(self.adapter.source, key, numbers)
        steps.append(step)
        if weight == self.names.embedding:
            self.shared.append(step)

    # Experts, adapted as one parameter.

    def _parameter(self, module: ModuleTensors) -> str | None:
        """The stacked parameter that a wrapper belongs to, by its place among the wrappers of its module."""
        found = []
        for target in self.adapter.config.target_parameters:
            name = f"{module.module}.{target.rpartition('.')[2]}"
            if (name == target or name.endswith(f".{target}")) and self.names.pieces(name):
                found.append(name)
        if not found:
            return None
        leaves = [name.rpartition(".")[2] for name in found]
        order = sorted(dict.fromkeys(leaves), key=lambda leaf: (*_order(leaf), leaf))
        if module.depth >= len(order):
            return None
        return f"{module.module}.{order[len(order) - 1 - module.depth]}"

    def _experts(self, module: ModuleTensors, parameter: str) -> bool:
        a, b = module.parts["lora_A"], module.parts["lora_B"]
        pieces = self.names.pieces(parameter)
        experts, rows, cols = self.names.expert_shape(pieces)
        a_shape, b_shape = factor_shapes(self.adapter, self.factors, module.module, a, b)
        transposed = self.names.model_type in TRANSPOSED_EXPERTS
        expected = (rows, cols) if transposed else (cols, rows)
        if (a_shape[1], b_shape[0]) != expected or a_shape[0] % experts or b_shape[1] != a_shape[0]:
            raise self._wrong_shape(f"{b} · {a}", (b_shape[0], a_shape[1]), parameter, (experts, rows, cols))
        self._rank(parameter, a_shape[0] // experts, b_shape[1] // experts)
        scale = self.adapter.config.scale(parameter)
        for piece in pieces:
            self._expert_piece(piece, a, b, scale, experts, transposed)
        return True

    def _expert_piece(
        self, piece: Piece, a: str, b: str, scale: float, experts: int, transposed: bool
    ) -> None:
        step = self.factors.expert_product(
            a, b, scale, piece.expert, experts, transposed=transposed, offset=piece.offset, rows=piece.rows
        )
        self.changes.setdefault(piece.tensor, []).append(self._rounded(step(piece.first), piece.tensor))

    # Checks, and rounding.

    def _shape(self, weight: str) -> tuple[int, ...]:
        """A tensor's shape as its steps find it: with a resized vocabulary a saved tensor comes first."""
        steps = self.changes.get(weight, ())
        return steps[0].shape if steps and isinstance(steps[0], Replace) else self.names.tensors[weight].shape

    def _rounded(self, step: AddLowRank, tensor: str) -> AddLowRank:
        """The step as PEFT rounds it where it rounds a product before adding it."""
        return replace(step, rounded=self.names.tensors[tensor].dtype) if self.rounding == "peft" else step

    def _rank(self, module: str, a_rank: int, b_rank: int) -> int:
        config = self.adapter.config
        expected = a_rank if config.peft_type == "ADALORA" else config.rank(module)
        if not a_rank == b_rank == expected:
            raise InputError(
                f"{module}: A has rank {a_rank} and B has rank {b_rank}, the configuration says {expected}",
                at=self.adapter.config.path,
                fix="use the adapter_config.json that was saved with these weights",
            )
        return expected

    def _wrong_shape(
        self, key: str, shape: tuple[int, ...], tensor: str, expected: tuple[int, ...]
    ) -> InputError:
        return InputError(
            f"made for another base: {key!r} has the shape {list(shape)}, {tensor} of the base has "
            f"{list(expected)}",
            at=self.adapter.folder,
            fix=OTHER_BASE,
        )


def plan_adapter(
    adapter: Adapter, base: TensorSource, names: BaseNames, cache: FactorCache, rounding: str
) -> Targets:
    """Settle what an adapter does to a base.

    Args:
        adapter: the adapter.
        base: the base's weights; read later only.
        names: the base's names.
        cache: for the adapter's factors.
        rounding: "exact" or "peft".

    Returns:
        The steps by tensor, with what they say about tied embeddings.

    Raises:
        InputError: the adapter does not belong to this base, or is incomplete.
    """
    targets = Targets(adapter, base, names, Factors(adapter.source, cache), rounding)
    targets.collect()
    return targets


def _order(leaf: str) -> tuple[int]:
    return (PARAMETER_ORDER.index(leaf) if leaf in PARAMETER_ORDER else len(PARAMETER_ORDER),)
