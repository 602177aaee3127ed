"""Which share of the importance matrix the user's texts get, judged on texts of theirs that are held out.

The user's texts alone may make a file that is good at them and at little else, or, if they are few, not even
at their like. So a few shares, and no matrix at all, are tried: the model is rounded as the file will be, and
its distance from base + adapter is measured.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorafold.errors import InputError
from lorafold.export.fitting.model import MeasuredModel, held_at_once
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.imatrix.data import Matrices, collect_both, weights_of
from lorafold.export.imatrix.file import Imatrix
from lorafold.export.imatrix.texts import Texts, read_texts
from lorafold.export.inputs import Inputs
from lorafold.export.proof.measured import PerToken
from lorafold.export.proof.sample import FEWEST, evenly
from lorafold.export.quant.ggml import IGNORES_IMATRIX, requires_imatrix
from lorafold.export.survival.ladder import bytes_together
from lorafold.export.survival.survey import TypedModel
from lorafold.machine import return_free_memory
from lorafold.progress import Progress

FIXED = 0.75
"""The user's share if nothing can be judged."""
_SHARES = (0.0, 0.5, FIXED, 1.0)
# How far a matrix may take the file off on general texts, beside the file without one. Types that need a
# matrix are held against that of general texts alone, which is at home there.
_SLACK, _SLACK_AT_HOME = 1.05, 1.25
_LEAST = 2000  # tokens that a candidate is asked, however little was collected


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate.

    Attributes:
        share: of the user's texts; None is no matrix.
        own: mean KL from base + adapter on the user's texts that are held out, in nats.
        general: the same on general texts.
    """

    share: float | None
    own: float
    general: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What became of `--imatrix-data`.

    Attributes:
        share: of the user's texts in the matrix; None if none is used.
        matrix: the matrix, or None.
        judged: what was measured, by recipe: all candidates in that of the smallest file, and in the others
            what was taken beside no matrix. Empty if nothing was judged.
        texts: how many of the user's and of the general texts were asked.
        why: if nothing was judged, why.
    """

    share: float | None
    matrix: Imatrix | None
    judged: Mapping[str, Sequence[Judged]] = field(default_factory=dict)
    texts: tuple[int, int] = (0, 0)
    why: str = ""


def calibrate(
    inputs: Inputs,
    tensors: Sequence[MappedTensor],
    data: Path,
    models: Mapping[str, TypedModel],
    share: float | None,
    progress: Progress,
) -> Calibrated:
    """Collect the two matrices once each, and mix them.

    Args:
        inputs: base and adapters.
        tensors: the GGUF tensors.
        data: the user's texts.
        models: the tensors with their types, by recipe.
        share: of the user's texts, if it is given.
        progress: told how far it is.

    Raises:
        InputError: there is no text in the file, or transformers cannot run the model.
        SystemFault: torch is not installed.
    """
    texts = read_texts(inputs, data, hold_out=share is None)
    both = collect_both(inputs, tensors, texts, progress)
    gc.collect()  # a model holds itself, and its memory is needed
    return_free_memory()
    if share is not None:
        return Calibrated(share, both.mixed(share), why="by --imatrix-share")
    weighed = {name: model for name, model in models.items() if _is_weighed(model, both.own)}
    why = texts.why if weighed else f"a matrix changes nothing in {', '.join(models)}"
    if not why:
        try:
            return _Judge(inputs, texts, both, progress).calibrated(weighed)
        except InputError as error:  # it can be run, but not layer by layer
            why = error.problem
    return Calibrated(FIXED, both.mixed(FIXED), why=why)


def taken(judged: Sequence[Judged]) -> Judged:
    """The nearest on the user's texts, of those that do no harm to general ones.

    Args:
        judged: the candidates; the first is no matrix, or that of general texts alone.
    """
    first = judged[0]
    most = first.general * (_SLACK if first.share is None else _SLACK_AT_HOME)
    return min((one for one in judged if one.general <= most), key=lambda one: one.own)


def _is_weighed(model: TypedModel, matrix: Imatrix) -> bool:
    """Whether a matrix changes anything in a model."""
    return any(tensor.name in matrix.entries and kind not in IGNORES_IMATRIX for tensor, kind in model)


class _Judge:
    """Measures candidates.

    Args:
        inputs: base and adapters.
        texts: what is asked.
        both: the matrices that are mixed.
        progress: told the candidates that are measured.

    Raises:
        InputError: the model cannot be computed layer by layer.
    """

    def __init__(self, inputs: Inputs, texts: Texts, both: Matrices, progress: Progress) -> None:
        self._measured = MeasuredModel(inputs)
        self._both = both
        self._progress = progress
        own, guard = (
            held_at_once(chats, self._measured.vocabulary, 0.5) for chats in (texts.held_out, texts.guard)
        )
        # All are computed together, as wide as the longest; all candidates shall take about a collection.
        width = max(len(each.ids) for each in (*own, *guard))
        collected = sum(map(len, (*texts.own, *texts.general)))
        count = max(max(collected // len(_SHARES), _LEAST) // width // 2, FEWEST)
        self._own = evenly(own, count)
        self._asked = [*self._own, *evenly(guard, count)]
        self._done = self._total = 0

    def calibrated(self, models: Mapping[str, TypedModel]) -> Calibrated:
        """Judge all candidates in the smallest model, and in the others what is taken there.

        Args:
            models: those that a matrix makes a difference to, by recipe.
        """
        first, *others = sorted(models, key=lambda name: bytes_together(models[name]))
        needed = any(requires_imatrix(kind) for model in models.values() for _, kind in model)
        shares = _SHARES if needed else (None, *_SHARES)
        self._total = len(shares) + 2 * len(others)
        judged = {first: [self._judge(models[first], share) for share in shares]}
        share = taken(judged[first]).share
        for name in others:
            both = [share] if needed or share is None else [None, share]
            judged[name] = [self._judge(models[name], each) for each in both]
        self._progress("judge the importance matrix", self._total, self._total)
        matrix = None if share is None else self._both.mixed(share)
        return Calibrated(share, matrix, judged, (len(self._own), len(self._asked) - len(self._own)))

    def _judge(self, model: TypedModel, share: float | None) -> Judged:
        self._progress("judge the importance matrix", self._done, self._total)
        self._done += 1
        tensors = (tensor for tensor, _ in model)
        importance = None if share is None else weights_of(self._both.mixed(share), tensors)
        found = self._measured.distances(model, self._asked, importance).values
        parts = (found[: len(self._own)], found[len(self._own) :])
        return Judged(share, *(PerToken(part).mean for part in parts))
