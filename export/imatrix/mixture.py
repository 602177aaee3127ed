"""An importance matrix of two kinds of text, each with a share; sums are additive, so that costs nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lorafold.export.imatrix.file import Imatrix, ImatrixEntry


def mixed(own: Imatrix, general: Imatrix, share: float) -> Imatrix:
    """Weigh the means of two matrices.

    With S the sums of squares and n the tokens of each, a weight's importance becomes

        share · S_own / n_own  +  (1 - share) · S_general / n_general

    The sums of what has the larger share stay as they are, and those of the other are scaled. So are the
    counts, so that an expert counts as often as its texts enter it.

    Args:
        own: of the user's texts.
        general: of the general ones.
        share: of `own`, from 0 to 1; at either end that matrix is the result, unchanged.
    """
    if share in (0, 1):
        return own if share else general
    if share < 0.5:
        return replace(mixed(general, own, 1 - share), datasets=(*own.datasets, *general.datasets))
    factor = (1 - share) / share * _tokens(own) / _tokens(general)
    names = own.entries.keys() | general.entries.keys()
    return Imatrix(
        {name: _joined(own.entries.get(name), general.entries.get(name), factor) for name in sorted(names)},
        (*own.datasets, *general.datasets),
        own.chunks + general.chunks,
        max(own.chunk_size, general.chunk_size),
    )


def _tokens(matrix: Imatrix) -> float:
    """How many were read: what is not an expert has seen them all."""
    return max(float(entry.counts.max()) for entry in matrix.entries.values())


def _joined(own: ImatrixEntry | None, general: ImatrixEntry | None, factor: float) -> ImatrixEntry:
    """One tensor's; experts that one kind of text never enters have an entry of the other alone."""
    if general is None:
        assert own is not None
        return own
    scaled = [
        np.asarray(values * np.float32(factor), np.float32) for values in (general.sums, general.counts)
    ]
    if own is None:
        return ImatrixEntry(*scaled)
    return ImatrixEntry(own.sums + scaled[0], own.counts + scaled[1])
