"""Experts that are stacked into one parameter: which parameter an adapter means, and how its factors lie.

PEFT adapts such a parameter, of shape (E, d1, d2) in the model, as a whole (`target_parameters`). It stores

    A (E · r, a)    expert by expert, each with its r rows
    B (b, r · E)    rank by rank, each with its E columns

and adds to each expert either B_e A_e, with a = d2 and b = d1 ("swapped"), or its transpose, with a = d1 and
b = d2. Which of the two a file holds depends on the version of PEFT that wrote it:

    0.17.0 to 0.18.1    never swapped
    0.19.0              swapped if the module's `is_transposed` is true
    0.19.1 and later    swapped if it is not

If d1 and d2 differ, the shapes tell. If they do not, other parameters of the same adapter may tell, because
the rule is one for a whole model; otherwise `peft_version` in adapter_config.json does (since 0.18.0). If
nothing tells, the adapter is refused: folded the wrong way round it gives a model that talks, but worse.

What else changed its meaning between PEFT 0.4 and 0.21, and what decides:

    whole modules       up to 0.5 with an untrained copy, `original_module`     the name; `adapters.folder`
    `.base_layer`       since 0.6 in the names of what is wrapped               the name; `adapters.folder`
    DoRA magnitudes     `lora_magnitude_vector`, with ".weight" in 0.11         the name; `adapters.folder`
    alpha_pattern       up to 0.13 one pattern decided rank and alpha           the version; `adapters.config`
    AdaLoRA's ranks     the tensors are cut to them, `rank_pattern` holds masks the shapes; `adapters.config`
    experts one by one  modules up to transformers 4, stacks since 5            the name; `names`
    names of modules    transformers 4 saw those of the file                    the name; `conversions`
"""

from __future__ import annotations

from collections.abc import Iterator

from lorafold.adapters.folder import ModuleTensors, SavedTensor
from lorafold.adapters.peft_reading import is_transposed, stored_swapped
from lorafold.errors import InputError
from lorafold.export.fold.changes import Replace
from lorafold.export.fold.factors import factor_shapes
from lorafold.export.fold.targets import Targets

# The order in which the experts' modules register their parameters; PEFT wraps the first one innermost.
PARAMETER_ORDER = (
    "gate_up_proj",
    "gate_up_proj_bias",
    "up_proj",
    "up_proj_bias",
    "down_proj",
    "down_proj_bias",
)

_PLACES = {leaf: place for place, leaf in enumerate(PARAMETER_ORDER)}


def saved_experts(targets: Targets, saved: SavedTensor) -> bool:
    """Put a parameter that was saved whole in the place of its pieces; False if the base has none."""
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
    """A product for each expert of a stacked parameter."""
    a, b = module.parts["lora_A"], module.parts["lora_B"]
    pieces = targets.names.pieces(parameter)
    shape = targets.names.expert_shape(pieces)
    experts = shape[0]
    a_shape, b_shape = factor_shapes(targets.adapter, targets.factors, module.module, a, b)
    swapped = _swapped(a_shape, b_shape, shape)
    if experts == 1:
        swapped &= {True}  # PEFT takes a single one for a linear layer: B A, whatever the version
    if not swapped or a_shape[0] % experts or b_shape[1] != a_shape[0]:
        raise targets.wrong_shape(f"{b} · {a}", (b_shape[0], a_shape[1]), parameter, shape)
    targets.rank(parameter, a_shape[0] // experts, b_shape[1] // experts)
    is_swapped = swapped.pop() if len(swapped) == 1 else _decide(targets, parameter)
    if experts > 1:
        targets.experts[a] = is_swapped, experts
    scale = targets.adapter.config.scale(parameter)
    for piece in pieces:
        step = targets.factors.expert_product(
            a,
            b,
            scale,
            piece.expert,
            experts,
            transposed=not is_swapped,
            offset=piece.offset,
            rows=piece.rows,
        )
        targets.changes.setdefault(piece.tensor, []).append(targets.rounded(step(piece.first), piece.tensor))


def _swapped(a_shape: tuple[int, ...], b_shape: tuple[int, ...], shape: tuple[int, int, int]) -> set[bool]:
    """Which of the two ways the factors fit a parameter (experts, rows, cols), by their shapes alone."""
    _, rows, cols = shape
    fits = (a_shape[1], b_shape[0])
    return {way for way, expected in ((True, (cols, rows)), (False, (rows, cols))) if fits == expected}


def _decide(targets: Targets, parameter: str) -> bool:
    """Whether the factors of a square parameter are swapped."""
    if targets.swapped is None:
        others = {way for ways in _ways(targets) if len(ways) == 1 for way in ways}
        if len(others) == 1:
            (targets.swapped,) = others
        else:
            targets.swapped = _by_version(targets, parameter)
    return targets.swapped


def _ways(targets: Targets) -> Iterator[set[bool]]:
    """For every stacked parameter that the adapter adapts, the ways in which its factors fit."""
    for module in targets.adapter.modules:
        parameter = stacked_parameter(targets, module)
        if parameter is not None and {"lora_A", "lora_B"} <= set(module.parts):
            shape = targets.names.expert_shape(targets.names.pieces(parameter))
            a, b = module.parts["lora_A"], module.parts["lora_B"]
            yield _swapped(targets.factors.shape(a), targets.factors.shape(b), shape)


def _by_version(targets: Targets, parameter: str) -> bool:
    """What the version of PEFT that wrote the adapter did.

    Raises:
        InputError: it is not known, or is one of a development between two rules.
    """
    written = targets.adapter.config.peft_version
    swapped = stored_swapped(written, transposed=is_transposed(targets.names.config))
    if swapped is not None:
        return swapped
    size = targets.names.expert_shape(targets.names.pieces(parameter))[1]
    raise InputError(
        f"{parameter} is square ({size} x {size}), and PEFT stored the factors of experts one way round up "
        f"to 0.18.1, another way in 0.19.0 and a third since 0.19.1; the file says "
        + (f"{written!r}, which lies between two of them" if written else "no peft_version"),
        at=targets.adapter.config.path,
        fix='set "peft_version" in it to the version of PEFT that saved this adapter',
    )
