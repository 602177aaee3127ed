"""The steps of one adapted module, by its kind: a linear layer, an embedding, IA3's factors, single tokens.

Each function adds its steps to `targets.changes`, or raises an `InputError` if shapes or ranks do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lorafold.adapters.config import AdapterConfig
from lorafold.adapters.fields import RESIDUAL_BASE
from lorafold.adapters.folder import ModuleTensors
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
    Piece,
    matches,
)
from lorafold.export.fold.targets import RESIZED, Targets


def linear(targets: Targets, module: ModuleTensors, pieces: Sequence[Piece]) -> None:
    """A linear layer's weight is (out, in) and its product B @ A; of a Conv1D both are transposed.

    The file may hold the weight in several pieces, or as some rows of a larger tensor.
    """
    a, b = module.parts["lora_A"], module.parts["lora_B"]
    pieces = targets.resized(pieces)
    shape = sum(piece.rows for piece in pieces), targets.names.tensors[pieces[0].tensor].cols
    a_shape, b_shape = factor_shapes(targets.adapter, targets.factors, module.module, a, b)
    product_shape = (b_shape[0], a_shape[1])
    config, conv1d = targets.adapter.config, targets.names.is_conv1d(module.module)
    if conv1d is None:
        conv1d = config.fan_in_fan_out
    transposed = conv1d if product_shape == product_shape[::-1] else shape != product_shape
    if shape != (product_shape[::-1] if transposed else product_shape) or (transposed and not conv1d):
        raise (
            targets.turned((a, a_shape), (b, b_shape), shape)
            or targets.wrong_shape(f"{b} · {a}", product_shape, pieces[0].tensor, shape)
        )
    rank = targets.rank(module.module, a_shape[0], b_shape[1])
    for part in ("lora_diag", "lora_E"):
        if part in module.parts and targets.factors.shape(module.parts[part])[:1] != (rank,):
            raise targets.wrong_shape(
                module.parts[part], targets.factors.shape(module.parts[part]), a, a_shape
            )
    scale = config.scale(module.module)
    initial = _initial(targets, module.module, pieces, rank, transposed)
    taken = scale if _method(config) == "olora" else 1.0
    product = linear_product(targets.adapter, targets.factors, module, scale, shape[0], transposed)
    for piece in pieces:
        steps = targets.changes.setdefault(piece.tensor, [])
        if initial is not None:
            whole = targets.factors.computed_product(*initial, -taken, shape[0])
            steps.append(whole.part(piece.offset, piece.rows, piece.first))
        step = product.part(piece.offset, piece.rows, piece.first)
        if "lora_magnitude_vector" in module.parts:
            steps.append(_dora(targets, module, piece, step, shape, by_row=not transposed))
        elif (
            config.rounds_product
            or matches(config.target_parameters, f"{module.module}.weight")
            or NO_MODULES_ANY_MORE.fullmatch(module.module)
        ):
            steps.append(targets.rounded(step, piece.tensor))
        else:
            steps.append(step)
    if "lora_bias" in module.parts:
        _bias(targets, module, scale)


def _method(config: AdapterConfig) -> str:
    """The initialisation that decides what was taken out of the base."""
    return "kasa" if config.kasa else str(config.init_lora_weights).lower()


def _initial(
    targets: Targets, module: str, pieces: Sequence[Piece], rank: int, transposed: bool
) -> tuple[Callable[[], Block], Callable[[], Block]] | None:
    """Both factors of what the adapter's initialisation took out of the base before training."""
    method = _method(targets.adapter.config)
    prior = {piece.tensor: list(targets.changes.get(piece.tensor, ())) for piece in pieces}
    if method not in ("pissa", "olora", "kasa") or any(
        steps and isinstance(steps[0], Replace) for steps in prior.values()
    ):
        return None  # a base that was saved with the adapter has lost that part already
    if transposed and method != "pissa":
        raise InputError(
            f"{method} of a transposed weight ({module}) cannot be computed again",
            at=targets.adapter.folder,
            fix=RESIDUAL_BASE,
        )

    def parts() -> tuple[Block, Block]:
        blocks = [
            read_through(targets.base, p.tensor, prior[p.tensor], p.first, p.first + p.rows) for p in pieces
        ]
        whole = np.concatenate(blocks)
        left, right = initial_part(method, whole.T if transposed else whole, rank, module)
        return (right.T, left.T) if transposed else (left, right)

    pair = once(parts)
    return lambda: pair()[0], lambda: pair()[1]


def _dora(
    targets: Targets,
    module: ModuleTensors,
    piece: Piece,
    step: AddLowRank,
    shape: tuple[int, ...],
    *,
    by_row: bool,
) -> Dora:
    key, tensor = module.parts["lora_magnitude_vector"], piece.tensor
    if int(np.prod(targets.factors.shape(key))) != (shape[0] if by_row else shape[1]):
        raise targets.wrong_shape(key, targets.factors.shape(key), tensor, shape)
    prior = list(targets.changes[tensor])
    magnitude = targets.factors.vector(key)
    return Dora(
        step,
        (lambda: magnitude()[piece.offset : piece.offset + piece.rows]) if by_row else magnitude,
        tensor,
        by_row,
        lambda start, stop: read_through(targets.base, tensor, prior, start, stop),
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
        steps.append(_dora(targets, module, Piece(weight, 0, shape[0]), step, shape, by_row=False))
    else:
        steps.append(targets.rounded(step, weight))


def ia3(targets: Targets, module: ModuleTensors, weight: str) -> None:
    """Factors of the outputs, or of the inputs of a feed-forward layer; those of outputs scale a bias too."""
    key = module.parts["ia3_l"]
    info = targets.names.tensors[weight]
    conv1d = targets.names.is_conv1d(module.module)
    transposed = targets.adapter.config.fan_in_fan_out if conv1d is None else conv1d
    inputs = matches(targets.adapter.config.feedforward_modules, module.module)
    # PEFT writes factors of inputs as (1, in) and those of outputs as (out, 1).
    shape = targets.factors.shape(key)
    if len(shape) == 2 and sorted(shape)[0] == 1 < max(shape) and inputs != (shape[0] == 1):
        scales, says = ("outputs", "names") if inputs else ("inputs", "does not name")
        raise InputError(
            f"{key!r} {list(shape)} scales {scales}, but feedforward_modules {says} {module.module}",
            at=targets.adapter.folder,
            fix="use the adapter_config.json that was saved with these weights",
        )
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
            fix="use the adapter_config.json that was saved with these weights",
        )
    if len(numbers) and numbers.max() >= shape[0]:
        raise InputError(
            f"token {numbers.max()} was trained, but {weight} has {shape[0]} rows",
            at=targets.adapter.folder,
            fix=RESIZED,
        )
    step = ReplaceRows(targets.adapter.source, key, numbers)
    steps.append(step)
    if weight == targets.names.embedding:
        targets.shared.append(step)
