"""Types by size: what a tensor can be raised to, and which of them keep an adapter's change on this base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from gguf import GGMLQuantizationType as Type

from lorafold.export.gguf.header import padded
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.quant import ggml
from lorafold.export.quant.mixture import Importance
from lorafold.export.survival.rows import TunedSource, kind_of
from lorafold.export.survival.share import Survival
from lorafold.export.survival.survey import Survey

# Every engine reads these, and none of them needs importance weights. By size, the common ones first.
LADDER = (
    *(Type.Q2_K, Type.Q3_K, Type.IQ4_XS, Type.Q4_K, Type.Q4_0, Type.IQ4_NL, Type.Q4_1),
    *(Type.Q5_K, Type.Q5_0, Type.Q5_1, Type.Q6_K, Type.Q8_0, Type.F16, Type.F32),
)
# More rows are measured if a share is nearer to the border than so many standard errors, or than this.
_SURE, _NEAR = 3.0, 0.05
_FIRST = 131_072  # weights that are measured first; four times as many each time that this does not tell


def bits(kind: Type) -> float:
    """Bits of one weight, the block's scales included."""
    values, nbytes = ggml.block_size(kind)
    return 8 * nbytes / values


def bytes_of(tensor: MappedTensor, kind: Type) -> int:
    """Bytes of a tensor in a file, padding included."""
    return padded(tensor.rows * ggml.row_size(kind, tensor.cols))


def bytes_together(model: Iterable[tuple[MappedTensor, Type]]) -> int:
    """Bytes of all tensors of a model in a file, padding included."""
    return sum(bytes_of(tensor, kind) for tensor, kind in model)


def least_bytes(model: Iterable[tuple[MappedTensor, Type]]) -> int:
    """Bytes of a model's tensors if each that is quantized has the smallest type that fits it."""
    return sum(
        min(bytes_of(tensor, other) for other in (kind, *fitting(tensor)))
        if ggml.block_size(kind)[0] > 1
        else bytes_of(tensor, kind)
        for tensor, kind in model
    )


def fitting(tensor: MappedTensor) -> list[Type]:
    """The ladder's types whose blocks divide the tensor's rows, smallest first."""
    return [kind for kind in LADDER if tensor.cols % ggml.block_size(kind)[0] == 0]


def measure(
    tensor: MappedTensor,
    kinds: Sequence[Type],
    source: TunedSource,
    *,
    border: float,
    exact: TunedSource | None = None,
    imatrix: Importance | None = None,
) -> Mapping[Type, Survival]:
    """What survives of one tensor's change in several types, on as many rows as it takes to tell.

    Args:
        tensor: the tensor.
        kinds: the types.
        source: what it is made from.
        border: the share that is asked about: if a result is near it, more rows are measured; infinity for
            a first look.
        exact: see `Survey`.
        imatrix: importance weights by tensor.

    Returns:
        By type; without those that cannot hold the values, and empty if nothing changes.
    """
    found: dict[Type, Survival] = {}
    weights, open_ = _FIRST, list(kinds)
    while open_:
        models = {kind.name: [(tensor, kind)] for kind in open_}
        survey = Survey(models, source, exact=exact, imatrix=imatrix, weights=weights)
        survey.sample(skip_too_large=True)
        results = survey.found()
        for kind in open_:
            found.pop(kind, None)
            if one := results[kind.name]:
                found[kind] = one[0]
        open_ = [kind for kind in open_ if kind in found and _is_near(found[kind], border)]
        weights *= 4
    return found


def _is_near(survival: Survival, border: float) -> bool:
    """Whether more rows might put a share on the other side of the border, or of that for too much."""
    distance = min(abs(survival.share - border), abs(survival.share - (2 - border)))
    return not survival.exact and distance < max(_SURE * survival.uncertainty, _NEAR)


def safest(survey: Survey) -> dict[Type, float]:
    """The share furthest off 1 that each type of the ladder keeps, of one tensor of each kind, on some rows.

    Args:
        survey: whose tensors are asked about.
    """
    first = {kind_of(name): measured.tensor for name, measured in reversed(survey.measured.items())}
    shares: dict[Type, float] = {}
    for tensor in first.values():
        if tensor.rows > 1:
            found = measure(
                tensor,
                fitting(tensor),
                survey.source,
                border=math.inf,
                exact=survey.exact,
                imatrix=survey.imatrix,
            )
            for kind, one in found.items():
                shares[kind] = max(one.share, shares.get(kind, 1.0), key=lambda share: abs(1 - share))
    return {kind: shares[kind] for kind in LADDER if kind in shares}
