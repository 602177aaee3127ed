"""The steps of experts, which an adapter sees as one stacked parameter and a base may hold one by one.

In: the collected `Targets`, and a saved tensor or a wrapper of PEFT's `target_parameters`. The steps go to
the `Piece`s in which the base has the parameter's parts.
"""

from __future__ import annotations

from lorafold.adapters import ModuleTensors, SavedTensor
from lorafold.export.fold.changes import Replace
from lorafold.export.fold.names import PARAMETER_ORDER, TRANSPOSED_EXPERTS, Piece
from lorafold.export.fold.products import factor_shapes
from lorafold.export.fold.targets import Targets

_PLACES = {leaf: place for place, leaf in enumerate(PARAMETER_ORDER)}


def saved_experts(targets: Targets, saved: SavedTensor) -> bool:
    """Put a parameter that was saved whole in the place of its pieces; False where the base has none."""
    pieces = targets.names.pieces(saved.tensor)
    if not pieces:
        return False
    shape, expected = targets.factors.shape(saved.key), targets.names.expert_shape(pieces)
    if shape != expected:
        raise targets.wrong_shape(saved.key, shape, saved.tensor, expected)
    for piece in pieces:
        offset = piece.expert * expected[1] + piece.offset
        tensor_shape = targets.names.tensors[piece.tensor].shape
        targets.changes.setdefault(piece.tensor, []).append(
            Replace(targets.adapter.source, saved.key, tensor_shape, offset)
        )
    return True


def stacked_parameter(targets: Targets, module: ModuleTensors) -> str | None:
    """The stacked parameter that a wrapper belongs to, by its place among the wrappers of its module."""
    found = []
    for target in targets.adapter.config.target_parameters:
        name = f"{module.module}.{target.rpartition('.')[2]}"
        if (name == target or name.endswith(f".{target}")) and targets.names.pieces(name):
            found.append(name)
    if not found:
        return None
    leaves = [name.rpartition(".")[2] for name in found]
    order = sorted(dict.fromkeys(leaves), key=lambda leaf: (_PLACES.get(leaf, len(_PLACES)), leaf))
    if module.depth >= len(order):
        return None
    return f"{module.module}.{order[len(order) - 1 - module.depth]}"


def adapted_experts(targets: Targets, module: ModuleTensors, parameter: str) -> None:
    """A product for each expert; PEFT stacks their ranks: A is (experts · rank, …), B (…, rank · experts)."""
    a, b = module.parts["lora_A"], module.parts["lora_B"]
    pieces = targets.names.pieces(parameter)
    experts, rows, cols = targets.names.expert_shape(pieces)
    a_shape, b_shape = factor_shapes(targets.adapter, targets.factors, module.module, a, b)
    transposed = targets.names.model_type in TRANSPOSED_EXPERTS
    expected = (rows, cols) if transposed else (cols, rows)
    if (a_shape[1], b_shape[0]) != expected or a_shape[0] % experts or b_shape[1] != a_shape[0]:
        raise targets.wrong_shape(f"{b} · {a}", (b_shape[0], a_shape[1]), parameter, (experts, rows, cols))
    targets.rank(parameter, a_shape[0] // experts, b_shape[1] // experts)
    scale = targets.adapter.config.scale(parameter)
    for piece in pieces:
        _expert_piece(targets, piece, a, b, scale, experts, transposed)


def _expert_piece(
    targets: Targets, piece: Piece, a: str, b: str, scale: float, experts: int, transposed: bool
) -> None:
    step = targets.factors.expert_product(
        a, b, scale, piece.expert, experts, transposed=transposed, offset=piece.offset, rows=piece.rows
    )
    targets.changes.setdefault(piece.tensor, []).append(targets.rounded(step(piece.first), piece.tensor))
