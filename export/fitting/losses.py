"""What each type costs the answers in each tensor, predicted from one pass back through the model.

E is the error that a type makes on a row of a tensor, g the gradient of log p(y) of a conversation whose
tokens y are drawn from the model. To second order the KL that E causes is

    ½ · mean of ⟨g, E⟩²  over conversations, for each token

(the Fisher information as a quadratic form). The squares of a tensor's rows are added up. What the errors of
several rows do together is left out: they have little to do with each other, so it is nothing in the mean,
while one square for a whole tensor and conversation is so poor a sample (a third off with 14 conversations)
that worse types were chosen. The error beside the weights tells nothing about which tensor matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import NumericError
from lorafold.export.gguf.header import place_tensors
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.gguf.rows import RowSource
from lorafold.export.proof.reference.gradients import Product
from lorafold.export.proof.reference.rounding import RoundedSource
from lorafold.export.quant.mixture import Importance
from lorafold.export.survival.rows import as_it_is, read_rows, sample_rows
from lorafold.weights import TensorSource

_WEIGHTS = 1 << 18  # of a tensor that are measured
_AT_ONCE = 1 << 22  # numbers of the gradients that are held
# Of an output head most rows are tokens that nobody would say: this share of all that comes back is measured.
_ENERGY = 0.999


@dataclass(slots=True)
class Losses:
    """Predicts the KL of types; shown the products of a pass back.

    Args:
        kinds: the types that are asked about, by tensor.
        source: what the file is made from.
        exact: the same without a rounding on the way.
        conversations: how many there are.
        imatrix: importance weights by tensor.
        threads: how many types are rounded to at once.
    """

    kinds: Mapping[str, tuple[MappedTensor, Sequence[Type]]]
    source: RowSource
    exact: TensorSource
    conversations: int
    imatrix: Importance | None = None
    threads: int = 1
    _sums: dict[str, NDArray[np.float64]] = field(init=False, default_factory=dict)
    _seen: dict[str, set[str]] = field(init=False, default_factory=dict)
    _pieces: dict[str, list[tuple[str, int, int]]] = field(init=False, default_factory=dict)
    _rounded: dict[Type, RoundedSource] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        by_kind: dict[Type, list[tuple[MappedTensor, Type]]] = {}
        for name, (tensor, kinds) in self.kinds.items():
            if tensor.transpose or tensor.columns or tensor.flat:
                continue
            self._sums[name] = np.zeros(len(kinds))
            for rows in tensor.sources:
                self._pieces.setdefault(rows.source, []).append((name, rows.start, rows.stop))
            for kind in kinds:
                by_kind.setdefault(kind, []).append((tensor, kind))
        for kind, tensors in by_kind.items():
            typed = place_tensors(tensors)
            self._rounded[kind] = RoundedSource(typed, self.source, self.exact, self.imatrix)

    def watch(self, product: Product) -> None:
        """Enter a product; see `GradientModel.gradients`."""
        for name, start, stop in self._pieces.get(product.tensor, ()):
            first, last = np.searchsorted(product.rows, (start, stop))
            if first == last:
                continue
            chosen, share = self._chosen(product, int(first), int(last))
            self._sums[name] += self._squares(name, product, chosen) / share
            self._seen.setdefault(name, set()).add(product.tensor)

    @property
    def seen(self) -> int:
        """How many tensors were entered."""
        return len(self._seen)

    def found(self, tokens: int) -> dict[str, dict[Type, float]]:
        """KL in nats by tensor and type, for those tensors of which every part was seen.

        Args:
            tokens: how many were drawn.
        """
        return {
            name: dict(zip(self.kinds[name][1], (sums / (2 * tokens)).tolist(), strict=True))
            for name, sums in self._sums.items()
            if self._seen.get(name) == {rows.source for rows in self.kinds[name][0].sources}
        }

    def _chosen(self, product: Product, first: int, last: int) -> tuple[NDArray[np.int64], float]:
        """The places in `product.rows` that are measured, and which share of the rows they stand for."""
        info = self.exact.tensors[product.tensor]
        places = np.arange(first, last)
        if len(places) * info.cols <= _WEIGHTS:
            return places, 1.0
        energy = np.zeros(len(places))
        for token in product.back:  # (vocabulary,) of an output head; nothing is copied
            energy += np.square(token[first:last])
        order = np.argsort(-energy, kind="stable")
        needed = int(np.searchsorted(np.cumsum(energy[order]), _ENERGY * energy.sum())) + 1
        if needed < len(places) // 2:
            return places[np.sort(order[:needed])], 1.0
        sampled = sample_rows(as_it_is(info), _WEIGHTS * info.rows // len(places))
        inside = places[np.isin(product.rows[first:last], sampled)]
        return inside, len(inside) / len(places)

    def _squares(self, name: str, product: Product, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Σ ⟨g, E⟩² over the chosen rows and the conversations (kinds,)."""
        kinds, info = self.kinds[name][1], self.exact.tensors[product.tensor]
        squares = np.zeros(len(kinds))
        step = max(_AT_ONCE // (self.conversations * info.cols), 1)
        owned = [product.owners == each for each in range(self.conversations)]
        with ThreadPoolExecutor(self.threads) as pool:
            for at in range(0, len(chosen), step):
                places = chosen[at : at + step]
                numbers = product.rows[places]
                gradient = np.stack(
                    [product.back[own][:, places].T @ product.entering[own] for own in owned], 1
                )  # (rows, conversations, cols)
                tuned = read_rows(self.exact, as_it_is(info), numbers)

                def error(kind: Type, numbers: NDArray[np.int64] = numbers) -> NDArray[np.float32]:
                    try:
                        return read_rows(self._rounded[kind], as_it_is(info), numbers)
                    except NumericError:  # too large for F16
                        return np.full((len(numbers), info.cols), np.inf, np.float32)

                errors = np.stack([rows - tuned for rows in pool.map(error, kinds)], 1)  # (rows, kinds, cols)
                parts = gradient @ errors.transpose(0, 2, 1)  # (rows, conversations, kinds)
                squares += np.square(parts, dtype=np.float64).sum((0, 1))
        return squares
