"""The steps of one adapted module, by its kind: a linear layer, an embedding, IA3's factors, single tokens.

In: the collected `Targets`, a module's tensors and the weight of the base they belong to. Each function adds
its steps to `targets.changes`, or raises an `InputError` where shapes or ranks do not fit.
"""

from __future__ import annotations

import numpy as np

from lorafold.adapter_config import RESIDUAL_BASE
from lorafold.adapters import ModuleTensors, SavedTensor
from lorafold.errors import InputError
from lorafold.export.fold.changes import (
    AddLowRank,
    AddVector,
    Block,
    Dora,
    Replace,
    ReplaceRows,
    Scale,
    read_through,
)
from lorafold.export.fold.factors import factor_shapes, initial_part, linear_product, once
from lorafold.export.fold.names import (
    NO_MODULES_ANY_MORE,
    OTHER_BASE,
    PARAMETER_ORDER,
    TRANSPOSED_EXPERTS,
    Piece,
    matches,
)
from lorafold.export.fold.targets import Targets


def linear(targets: Targets, module: ModuleTensors, weight: str) -> None:
    """A linear layer's weight is (out, in) and its product B @ A; of a Conv1D both are transposed."""
    a, b = module.parts["lora_A"], module.parts["lora_B"]
    shape = targets.shape(weight)
    a_shape, b_shape = factor_shapes(targets.adapter, targets.factors, module.module, a, b)
    product_shape = (b_shape[0], a_shape[1])
    config, conv1d = targets.adapter.config, targets.names.is_conv1d(module.module)
    if conv1d is None:
        conv1d = config.fan_in_fan_out
    transposed = conv1d if product_shape == product_shape[::-1] else shape != product_shape
    if shape != (product_shape[::-1] if transposed else product_shape) or (transposed and not conv1d):
        raise targets.wrong_shape(f"{b} · {a}", product_shape, weight, shape)
    rank = targets.rank(module.module, a_shape[0], b_shape[1])
    for part in ("lora_diag", "lora_E"):
        if part in module.parts and targets.factors.shape(module.parts[part])[:1] != (rank,):
            raise targets.wrong_shape(
                module.parts[part], targets.factors.shape(module.parts[part]), a, a_shape
            )
    scale = config.scale(module.module)
    steps = targets.changes.setdefault(weight, [])
    steps += _without_initial(targets, module.module, weight, rank, scale, transposed)
    step = linear_product(targets.adapter, targets.factors, module, scale, shape[0], transposed)
    if "lora_magnitude_vector" in module.parts:
        steps.append(_dora(targets, module, weight, step, by_row=not transposed))
    elif (
        config.rounds_product
        or matches(config.target_parameters, f"{module.module}.weight")
        or NO_MODULES_ANY_MORE.fullmatch(module.module)
    ):
        steps.append(targets.rounded(step, weight))
    else:
        steps.append(step)
    if "lora_bias" in module.parts:
        _bias(targets, module, scale)


def _without_initial(
    targets: Targets, module: str, weight: str, rank: int, scale: float, transposed: bool
) -> list[AddLowRank]:
    """The step that takes out what the adapter's initialisation took out of the base before training."""
    config = targets.adapter.config
    method = "kasa" if config.kasa else str(config.init_lora_weights).lower()
    prior = list(targets.changes.get(weight, ()))
    if method not in ("pissa", "olora", "kasa") or (prior and isinstance(prior[0], Replace)):
        return []  # a base that was saved with the adapter has lost that part already
    if transposed and method != "pissa":
        raise InputError(
            f"{method} of a transposed weight ({module}) cannot be computed again",
            at=targets.adapter.folder,
            fix=RESIDUAL_BASE,
        )
    rows = targets.shape(weight)[0]

    def parts() -> tuple[Block, Block]:
        whole = read_through(targets.base, weight, prior, 0, rows)
        left, right = initial_part(method, whole.T if transposed else whole, rank, module)
        return (right.T, left.T) if transposed else (left, right)

    pair = once(parts)
    taken = scale if method == "olora" else 1.0
    return [targets.factors.computed_product(lambda: pair()[0], lambda: pair()[1], -taken, rows)]


def _dora(targets: Targets, module: ModuleTensors, weight: str, step: AddLowRank, *, by_row: bool) -> Dora:
    key = module.parts["lora_magnitude_vector"]
    shape = targets.shape(weight)
    if int(np.prod(targets.factors.shape(key))) != (shape[0] if by_row else shape[1]):
        raise targets.wrong_shape(key, targets.factors.shape(key), weight, shape)
    prior = list(targets.changes[weight])
    return Dora(
        step,
        targets.factors.vector(key),
        weight,
        by_row,
        lambda start, stop: read_through(targets.base, weight, prior, start, stop),
        step.stop,
    )


def _bias(targets: Targets, module: ModuleTensors, scale: float) -> None:
    key = module.parts["lora_bias"]
    bias = targets.names.find(f"{module.module}.bias")
    if bias is None:
        raise InputError(
            f"`lora_bias` of {module.module} has nowhere to go: the base has no bias there",
            at=targets.adapter.folder,
            fix="train without `lora_bias`; PEFT cannot merge it either",
        )
    if targets.factors.shape(key) != targets.names.tensors[bias].shape:
        raise targets.wrong_shape(key, targets.factors.shape(key), bias, targets.names.tensors[bias].shape)
    targets.changes.setdefault(bias, []).append(AddVector(targets.factors.vector(key), scale))


def embedding(targets: Targets, module: ModuleTensors, weight: str) -> None:
    """An embedding's weight is (tokens, width) and its product A.T @ B.T (PEFT: `lora_embedding_*`)."""
    a, b = module.parts["lora_embedding_A"], module.parts["lora_embedding_B"]
    a_shape, b_shape = factor_shapes(targets.adapter, targets.factors, module.module, a, b)
    shape, steps = targets.shape(weight), targets.changes.setdefault(weight, [])
    if shape != (a_shape[1], b_shape[0]):
        raise targets.wrong_shape(f"({b} · {a}).T", (a_shape[1], b_shape[0]), weight, shape)
    targets.rank(module.module, a_shape[0], b_shape[1])
    step = targets.factors.product(
        a, b, targets.adapter.config.scale(module.module), shape[0], transposed=True
    )
    if "lora_magnitude_vector" in module.parts:
        steps.append(_dora(targets, module, weight, step, by_row=False))
    else:
        steps.append(targets.rounded(step, weight))


def ia3(targets: Targets, module: ModuleTensors, weight: str) -> None:
    """Factors of the outputs, or of the inputs of a feed-forward layer; those of outputs scale a bias too."""
    key = module.parts["ia3_l"]
    info = targets.names.tensors[weight]
    conv1d = targets.names.is_conv1d(module.module)
    transposed = targets.adapter.config.fan_in_fan_out if conv1d is None else conv1d
    inputs = matches(targets.adapter.config.feedforward_modules, module.module)
    by_row = inputs == transposed  # of a transposed weight, a row is an input
    size = int(np.prod(targets.factors.shape(key)))
    if size != (info.rows if by_row else info.cols):
        raise targets.wrong_shape(key, targets.factors.shape(key), weight, info.shape)
    targets.changes.setdefault(weight, []).append(Scale(targets.factors.vector(key), by_row))
    bias = targets.names.find(f"{module.module}.bias")
    if bias is not None and not inputs:
        targets.changes.setdefault(bias, []).append(Scale(targets.factors.vector(key), by_row=False))


def tokens(targets: Targets, module: ModuleTensors, weight: str) -> None:
    """Rows of an embedding that were trained one by one (PEFT: `trainable_token_indices`)."""
    key = module.parts["trainable_tokens_delta"]
    indices = targets.adapter.config.trainable_token_indices
    if isinstance(indices, dict):
        named = [name for name in indices if f".{module.module}".endswith(f".{name}")]
        indices = indices[named[0]] if named else None
    shape, steps = targets.shape(weight), targets.changes.setdefault(weight, [])
    numbers = np.array(indices if indices is not None else (), dtype=np.int64)
    if targets.factors.shape(key) != (len(numbers), *shape[1:]) or len(set(numbers.tolist())) != len(numbers):
        raise InputError(
            f"{key!r} has the shape {list(targets.factors.shape(key))}, expected one row for each of the "
            f"{len(numbers)} different token indices and {list(shape[1:])} columns",
            at=targets.adapter.folder,
            fix=OTHER_BASE,
        )
    if len(numbers) and numbers.max() >= shape[0]:
        raise InputError(
            f"token {numbers.max()} was trained, but {weight} has {shape[0]} rows",
            at=targets.adapter.folder,
            fix="give the base with its embedding resized, or save the adapter with its embeddings "
            "(`save_embedding_layers=True`)",
        )
    step = ReplaceRows(targets.adapter.source, key, numbers)
    steps.append(step)
    if weight == targets.names.embedding:
        targets.shared.append(step)


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
