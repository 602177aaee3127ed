"""Collect an importance matrix from a Hugging Face model: what llama-imatrix does, without a GGUF.

It holds the sums of squared inputs at every weight of the blocks that llama.cpp multiplies with. They are
measured at the model's own parameters (`products`); which of them a GGUF tensor is made of is known from its
sources and from transformers' loader. Rows in another order do not matter here, since columns are inputs;
columns in another order do. Needs torch, that is the [train] extra.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError, SystemFault
from lorafold.export.fold.conversions import is_loaded
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.gguf.rows import take_columns
from lorafold.export.imatrix.file import Imatrix, ImatrixEntry
from lorafold.export.proof.reference.loaded_as import LoadedAs, loaded_as
from lorafold.export.quant.mixture import is_quantizable
from lorafold.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from lorafold.export.imatrix.products import Entered, Matrix
    from lorafold.export.proof.reference.layers import LayeredModel
    from lorafold.weights import TensorSource

_TOGETHER = 4096  # tokens that go through the model at once, a layer at a time
_MATCH = "give the model that the tensors were mapped from"
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_EXPERTS = re.compile(r"_exps\.weight$")


def collect(
    model: torch.nn.Module,
    tensors: Sequence[MappedTensor],
    sequences: Sequence[Sequence[int]],
    *,
    dataset: str = "",
    progress: Progress = silent,
) -> Imatrix:
    """Run token sequences through a model and measure what enters its weights.

    Args:
        model: a causal model of transformers, or a PEFT model around one; in evaluation mode. Experts that an
            adapter changes must be merged: PEFT multiplies with a matrix that it makes anew each time.
        tensors: what `arch.map_tensors` made of the base.
        sequences: token ids, each a text of its own from position 0.
        dataset: what the texts are called, for the file's metadata.
        progress: told the tokens done.

    Returns:
        The matrix: an entry for each weight of the blocks that a recipe may quantize.

    Raises:
        SystemFault: torch is not installed.
        InputError: no sequence has a token, or the model has no place for a weight.
    """
    _require_torch()
    collection = _Collection(model, tensors, sequences)
    products = collection.products
    products.place(collection.held)
    with collection.running(progress) as run, products:
        for ids in collection.texts:
            run([ids])
    return collection.matrix(dataset)


def collect_by_layer(
    model: LayeredModel,
    source: TensorSource,
    tensors: Sequence[MappedTensor],
    sequences: Sequence[Sequence[int]],
    *,
    dataset: str = "",
    progress: Progress = silent,
) -> Imatrix:
    """The same in memory for one layer: weights are read just before they are multiplied with.

    Sequences of one length go through together, so each weight is read once for every length.

    Args:
        model: computes layer by layer; it serves one collection.
        source: its weights.
        tensors, sequences, dataset, progress: see `collect`.

    Raises:
        as `collect`.
    """
    whole = model.blank.model
    collection = _Collection(whole, tensors, sequences)
    products, held = collection.products, collection.held
    handles = []
    for gate in model.gates:
        names = [name for name in gate.names if name in held]

        def come(module: torch.nn.Module, arguments: object, names: Sequence[str] = names) -> None:
            products.place({name: whole.get_parameter(name) for name in names})

        def go(
            module: torch.nn.Module, arguments: object, result: object, names: Sequence[str] = names
        ) -> None:
            products.forget(names)

        handles += [gate.module.register_forward_pre_hook(come), gate.module.register_forward_hook(go)]
    most = 1 if collection.latent else _TOGETHER  # the attended latent vector is looked at text by text
    try:
        with model.reading(source, ()), collection.running(progress) as run, products:
            for batch in _of_one_length(collection.texts, most):
                run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return collection.matrix(dataset)


def _of_one_length(texts: Sequence[Sequence[int]], most: int) -> Iterator[list[Sequence[int]]]:
    """Texts of the same length together, as long as they have at most so many tokens."""
    for length, group in itertools.groupby(sorted(texts, key=len), key=len):
        alike, count = list(group), max(most // length, 1)
        yield from (alike[at : at + count] for at in range(0, len(alike), count))


class _Collection:
    """Which matrices are looked at for which tensors, and what has entered them.

    Args:
        model: as for `collect`; its weights need not be in place.
        tensors: the same.
        sequences: the same.

    Attributes:
        texts: the sequences that have a token.
        held: the parameters that are looked at, by name.
        latent: names of `kv_b_proj`, whose halves are looked at.
        products: sees what enters.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tensors: Sequence[MappedTensor],
        sequences: Sequence[Sequence[int]],
    ) -> None:
        from lorafold.export.imatrix.products import SeenProducts

        known = {
            name.removeprefix("base_model.model.").replace(".base_layer", ""): value
            for name, value in model.named_parameters()
        }
        self._model = model
        self._own = _whole(model)
        names = collected_names(tensors, self._own.config.to_dict())
        self._wanted = [tensor for tensor in tensors if tensor.name in names]
        self._matrices = _matrices(model, self._wanted, known)
        self.texts = [ids for ids in sequences if len(ids)]
        if not self.texts:
            raise InputError(
                "no text to collect an importance matrix from", at="--imatrix-data", fix="pass some texts"
            )
        seen = {name for some in self._matrices.values() for name, _ in some}
        self.held = {name: value for name, value in known.items() if name in seen}
        self.latent = sorted(name.removesuffix("#k") for name in seen if name.endswith("#k"))
        self.products = SeenProducts()

    @contextmanager
    def running(self, progress: Progress) -> Iterator[Callable[[Sequence[Sequence[int]]], None]]:
        """Gives a function that runs texts of one length through the model."""
        import torch

        from lorafold.export.imatrix.latent import latent_products

        done, total = 0, sum(map(len, self.texts))
        progress("importance matrix (tokens)", done, total)

        def run(texts: Sequence[Sequence[int]]) -> None:
            nonlocal done
            rows = torch.tensor([list(ids) for ids in texts], device=self._device())
            with torch.inference_mode():
                self._own.base_model(input_ids=rows, use_cache=False)  # without the head
            done += rows.numel()
            progress("importance matrix (tokens)", done, total)

        with (
            _plainly(self._own, weights=bool(self.latent)),
            latent_products(self._own, self.latent, self.products.seen),
        ):
            yield run

    def matrix(self, dataset: str) -> Imatrix:
        """What has entered, as it is stored."""
        seen = self.products.seen
        found = {
            tensor.name: _entry(tensor, [seen.get(each) for each in self._matrices[tensor.name]])
            for tensor in self._wanted
        }
        entries = {name: entry for name, entry in found.items() if entry is not None}
        longest = max(map(len, self.texts))
        return Imatrix(entries, (dataset,) if dataset else (), chunks=len(self.texts), chunk_size=longest)

    def _device(self) -> Any:
        device = next(self._model.parameters()).device
        return "cpu" if device.type == "meta" else device


def _require_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise SystemFault(
            "collecting an importance matrix needs torch", fix="pip install 'lorafold[train]'"
        ) from error


def collected_names(
    tensors: Sequence[MappedTensor], config: Mapping[str, Any] = MappingProxyType({})
) -> set[str]:
    """The GGUF tensors that get an entry, as in llama.cpp.

    Embeddings are looked up, the output is better off without, and what predicts further tokens or takes the
    keys of an earlier layer is never multiplied with.

    Args:
        tensors: what `arch.map_tensors` made of the base.
        config: its config.json.
    """
    return {
        tensor.name
        for tensor in tensors
        if tensor.name.startswith("blk.")
        and is_quantizable(tensor.name, tensor.shape)
        and all(is_loaded(piece.source, config) for piece in tensor.sources)
    }


def _whole(model: Any) -> Any:
    """The model of transformers in a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _matrices(
    model: torch.nn.Module, tensors: Sequence[MappedTensor], parameters: Mapping[str, torch.Tensor]
) -> dict[str, list[Matrix]]:
    """For each tensor the matrices of the model that its own matrices are, or are rows of."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    from lorafold.export.imatrix.latent import HALVES

    own = _whole(model)
    sources = dict.fromkeys(piece.source for tensor in tensors for piece in tensor.sources)
    placed = loaded_as(own, get_model_conversion_mapping(own), sources, parameters)
    found: dict[str, list[Matrix]] = {}
    for tensor in tensors:
        half = next((mark for end, mark in HALVES.items() if tensor.name.endswith(end)), None)
        if half is not None:
            found[tensor.name] = [(_parameter(tensor.sources[0].source, placed) + half, 0)]
            continue
        found[tensor.name] = []
        for number, source in enumerate(_first_sources(tensor)):
            name, expert = _parameter(source, placed), _EXPERT.search(source)
            stacked = parameters[name].ndim > 2
            at = (int(expert[1]) if expert else number) if stacked else 0
            found[tensor.name].append((name, at))
    return found


def _parameter(source: str, placed: Mapping[str, LoadedAs]) -> str:
    """The first parameter that a tensor of the checkpoint is part of."""
    if source not in placed:
        raise InputError(f"the model has no place for {source}", at=source, fix=_MATCH)
    return placed[source].names[0]


def _first_sources(tensor: MappedTensor) -> list[str]:
    """For each matrix of a tensor the source of its first row."""
    count = tensor.rows // tensor.height
    if tensor.transpose:
        return [piece.source for piece in tensor.sources]
    lengths = (piece.stop - piece.start for piece in tensor.sources)
    starts = [0, *itertools.accumulate(lengths)][:-1]
    places_of_rows = (bisect.bisect_right(starts, number * tensor.height) - 1 for number in range(count))
    return [tensor.sources[place].source for place in places_of_rows]


@contextmanager
def _plainly(own: Any, weights: bool) -> Iterator[None]:
    """Let a model multiply with its experts one by one for a while.

    Args:
        own: a model of transformers.
        weights: its attention computes its weights as well.
    """
    experts, attention = own.get_experts_implementation(), own.config._attn_implementation
    own.set_experts_implementation("eager")
    if weights:
        own.set_attn_implementation("eager")
    try:
        yield
    finally:
        own.set_experts_implementation(experts)
        if weights:
            own.set_attn_implementation(attention)


def _entry(tensor: MappedTensor, seen: Sequence[Entered | None]) -> ImatrixEntry | None:
    """What entered a tensor, as it is stored; None if nothing did."""
    if not any(seen):
        return None
    rows = [_columns(tensor, each.sums.numpy().astype(np.float32)) for each in seen if each is not None]
    width = rows[0].size
    assert width * len(seen) == tensor.cols * (tensor.rows // tensor.height), tensor.name
    sums = np.zeros((len(seen), width), np.float32)
    sums[[number for number, each in enumerate(seen) if each is not None]] = rows
    counts = np.array([0 if each is None else each.count for each in seen], np.float32)
    # One count for each expert, one for anything else.
    return ImatrixEntry(sums.reshape(-1), counts if _EXPERTS.search(tensor.name) else counts[:1])


def _columns(tensor: MappedTensor, sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums (cols,) or (matrices, cols) in the order of the tensor's columns, in one row."""
    if tensor.columns and not tensor.transpose and sums.ndim == 1:
        sums = take_columns(sums[None], tensor.columns)
    return sums.reshape(-1)
