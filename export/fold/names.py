"""Which rows of a base's tensors an adapter means by a module's name.

Adapters name modules as they are called in the loaded model; files name tensors as they were once released.
The two differ in prefixes ("transformer.h.0" and "h.0"), in what transformers renames and splits when it
loads (`conversions`), and in the experts of a layer, which one side may name one by one while the other has
them stacked. `BaseNames.rows_of` finds a weight whichever of these lies between its two names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.export.fold.conversions import is_loaded, model_types, renamed, split_names
from lorafold.weights import TensorInfo, TensorSource

# (in the model, in the file); the first whose result exists counts, the identity first of all.
PREFIXES = (
    ("", ""),
    ("transformer.", ""),
    ("model.", ""),
    ("", "model."),
    ("", "transformer."),
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "model."),
    ("language_model.model.", "model.language_model."),
    ("language_model.model.", "model."),
    ("language_model.", ""),
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("", "language_model."),
    ("model.", "model.text_model."),
    ("model.", "language_model."),
    ("llm.", ""),
)

INFIXES = (
    ("", ""),
    (".mlp.", ".block_sparse_moe."),
    (".block_sparse_moe.", ".mlp."),
    ("vision_tower.", "vision_tower.vision_model."),
    ("vision_tower.vision_model.", "vision_tower."),
)

# Parameter of stacked experts in the model: the modules of one expert whose rows it stacks, by their two sets
# of names.
EXPERT_PIECES = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",)),
}

# Files of these model types hold stacks as (experts, in, out); all others as (experts, out, in).
STORED_TRANSPOSED = ("aria", "aria_text", "gpt_oss", "llama4", "llama4_text", "openai_privacy_filter")

# A module of the model that two modules of the file are put into one below the other.
JOINED = {"gate_up_proj": ("gate_proj", "up_proj")}

# transformers' Conv1D stores its weight as (in, out).
CONV1D = {"gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"), "openai-gpt": ("c_attn", "c_proj", "c_fc")}

# Input embedding in the file: the output head that a model with tied embeddings has none of.
HEADS = {
    "model.embed_tokens.weight": "lm_head.weight",
    "embed_tokens.weight": "lm_head.weight",
    "transformer.wte.weight": "lm_head.weight",
    "wte.weight": "lm_head.weight",
    "model.tok_embeddings.weight": "output.weight",
    "transformer.embedding.word_embeddings.weight": "transformer.output_layer.weight",
    "model.language_model.embed_tokens.weight": "lm_head.weight",
    "model.text_model.embed_tokens.weight": "lm_head.weight",
    "language_model.model.embed_tokens.weight": "language_model.lm_head.weight",
    "gpt_neox.embed_in.weight": "embed_out.weight",
    "backbone.embeddings.weight": "lm_head.weight",
    "transformer.word_embeddings.weight": "lm_head.weight",
}

# Modules of their own once, parameters of stacked experts or of a router since transformers 5.
NO_MODULES_ANY_MORE = re.compile(r".*\.experts\.\d+\.[^.]+|.*\.(mlp|block_sparse_moe)\.gate")

_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<leaf>[^.]+)\.weight")

COMPARED_ROWS = 1024
"""Rows that a comparison reads at once."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a tensor in the file that hold part of a weight of the model, or all of it.

    Args:
        tensor: the tensor.
        first: its first row that belongs to the weight, of the tensor seen as 2-D.
        rows: how many rows.
        expert: which expert, if the weight is a stack of experts.
        offset: row of the weight, or of the expert's part of it, that `first` is.
    """

    tensor: str
    first: int
    rows: int
    expert: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class BaseNames:
    """The tensors of a base, found by the names that a loaded model has for them.

    Args:
        tensors: the base's tensors; a tied output head stands among them with the embedding's place.
        embedding: name of the input embedding, or None.
        head: name of the output head, or None.
        tied: whether the head is the embedding.
        config: the base's config.json.
        loaded: for each weight of the loaded model the rows that hold it, as far as the names in the file and
            `conversions` tell.
    """

    tensors: Mapping[str, TensorInfo]
    embedding: str | None
    head: str | None
    tied: bool
    config: Mapping[str, Any]
    loaded: Mapping[str, tuple[Piece, ...]]
    _found: dict[str, tuple[str, tuple[Piece, ...]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], base: TensorSource, tied: bool
    ) -> BaseNames:
        """Look up embedding and head.

        A model without a head of its own has tied embeddings; so has one whose configuration says so and
        whose file holds the same numbers twice.

        Args:
            tensors: the base's tensors.
            config: the base's config.json.
            base: holds their rows.
            tied: the config's `tie_word_embeddings`.
        """
        for embedding, head in HEADS.items():
            if embedding in tensors:
                tied = head not in tensors or (tied and same_rows(base, embedding, base, head))
                if tied:
                    tensors = {**tensors, head: replace(tensors[embedding], name=head)}
                return cls(tensors, embedding, head, tied, config, _loaded(tensors, config))
        return cls(tensors, None, None, False, config, _loaded(tensors, config))

    def rows_of(self, name: str) -> tuple[Piece, ...]:
        """The rows that hold a weight or bias which the model calls `name`; empty if the base has none."""
        return self._find(name)[1]

    def find(self, name: str) -> str | None:
        """The file's tensor that a name of the model means as a whole; None if there is no such tensor."""
        pieces = self.rows_of(name)
        whole = len(pieces) == 1 and pieces[0].rows == self.tensors[pieces[0].tensor].rows
        return pieces[0].tensor if whole else None

    def part_of_model(self, name: str) -> tuple[str, str] | None:
        """The prefixes (of the name, in `loaded`) by which a weight was found; see `in_model`."""
        loaded = self._find(name)[0]
        return prefix_of(renamed(name, model_types(self.config)), loaded) if loaded else None

    def in_model(self, prefixes: Collection[tuple[str, str]]) -> Iterator[tuple[str, str, TensorInfo]]:
        """The weights that a model of these parts has, with the names that it has for them.

        Args:
            prefixes: (in the adapter's model, in `loaded`) of the parts that are known in both: a multimodal
                model has one for each part; see `part_of_model`. The longest that fits counts.

        Yields:
            The name, the tensor of the file and its entry. Weights of other parts are left out, and tensors
            that transformers does not load.
        """
        for loaded, pieces in self.loaded.items():
            tensor = pieces[0].tensor
            fitting = [pair for pair in prefixes if loaded.startswith(pair[1])]
            if not is_loaded(tensor, self.config) or not is_loaded(loaded, self.config):
                continue
            if fitting:
                model, file = max(fitting, key=lambda pair: len(pair[1]))
                yield model + loaded.removeprefix(file), tensor, self.tensors[tensor]
            elif tensor in (self.embedding, self.head):
                yield loaded, tensor, self.tensors[tensor]

    def is_conv1d(self, module: str) -> bool | None:
        """Whether a module stores its weight as (in, out); None if the base has no model type.

        `fan_in_fan_out` does not count: PEFT goes by the module's class, and corrects a flag that differs.
        """
        types = model_types(self.config)
        leaf = module.rpartition(".")[2]
        return any(leaf in CONV1D.get(type, ()) for type in types) if types else None

    def pieces(self, parameter: str) -> tuple[Piece, ...]:
        """The rows that hold a stacked parameter, expert by expert; empty if it is none."""
        direct = self.find(parameter)
        if direct is not None:
            shape = self.tensors[direct].shape
            if len(shape) != 3:
                return ()
            return tuple(Piece(direct, e * shape[1], shape[1], e, 0) for e in range(shape[0]))
        module, _, leaf = parameter.rpartition(".")
        for names in EXPERT_PIECES.get(leaf, ()):
            pieces: list[Piece] = []
            expert = 0
            while found := self._one_below_the_other(f"{module}.{expert}", names, expert):
                pieces += found
                expert += 1
            if pieces:
                return tuple(pieces)
        return ()

    def expert_shape(self, pieces: tuple[Piece, ...]) -> tuple[int, int, int]:
        """(experts, rows, cols) of a stacked parameter."""
        experts = 1 + max(piece.expert for piece in pieces)
        rows = sum(piece.rows for piece in pieces if piece.expert == 0)
        return experts, rows, self.tensors[pieces[0].tensor].cols

    # What `rows_of` tries.

    def _find(self, name: str) -> tuple[str, tuple[Piece, ...]]:
        """The name in `loaded` and the rows; ("", ()) if there is nothing of that name."""
        if name not in self._found:
            ways = (self._as_loaded, self._by_other_leaf, self._in_stack, self._joined)
            self._found[name] = next((found for way in ways if (found := way(name))[1]), ("", ()))
        return self._found[name]

    def _as_loaded(self, name: str) -> tuple[str, tuple[Piece, ...]]:
        if name in self.loaded:  # most names, and asked for every expert
            return name, self.loaded[name]
        types = model_types(self.config)
        for other in _spellings(name):
            for spelling in dict.fromkeys((other, renamed(other, types))):
                if spelling in self.loaded:
                    return spelling, self.loaded[spelling]
        return "", ()

    def _by_other_leaf(self, name: str) -> tuple[str, tuple[Piece, ...]]:
        """An expert's module that the file calls by the other set of names: w1 for gate_proj."""
        match = _EXPERT.fullmatch(name)
        for alternatives in EXPERT_PIECES.values() if match else ():
            for names, others in itertools.permutations(alternatives, 2):
                if match and match["leaf"] in names:
                    other = others[names.index(match["leaf"])]
                    found = self._as_loaded(f"{match['experts']}.{match['number']}.{other}.weight")
                    if found[1]:
                        return found
        return "", ()

    def _in_stack(self, name: str) -> tuple[str, tuple[Piece, ...]]:
        """An expert's module, whose weight the file has in a stack (experts, out, in)."""
        match = _EXPERT.fullmatch(name)
        if match is None or set(model_types(self.config)) & set(STORED_TRANSPOSED):
            return "", ()
        expert = int(match["number"])
        for parameter, alternatives in EXPERT_PIECES.items():
            stack = self.find(f"{match['experts']}.{parameter}")
            shape = self.tensors[stack].shape if stack else ()
            for names in alternatives:
                if stack is None or match["leaf"] not in names or len(shape) != 3 or expert >= shape[0]:
                    continue
                rows = shape[1] // len(names)
                first = expert * shape[1] + names.index(match["leaf"]) * rows
                return "", (Piece(stack, first, rows),)
        return "", ()

    def _joined(self, name: str) -> tuple[str, tuple[Piece, ...]]:
        """A module of the model that the file holds as two."""
        module, _, leaf = name.removesuffix(".weight").rpartition(".")
        if leaf not in JOINED or not name.endswith(".weight"):
            return "", ()
        return "", self._one_below_the_other(module, JOINED[leaf], 0)

    def _one_below_the_other(self, module: str, leaves: tuple[str, ...], expert: int) -> tuple[Piece, ...]:
        """The weights of several modules as pieces of one weight; empty if one of them is missing."""
        pieces: list[Piece] = []
        offset = 0
        for leaf in leaves:
            tensor = self._as_loaded(f"{module}.{leaf}.weight")[1]
            if len(tensor) != 1:
                return ()
            pieces.append(replace(tensor[0], expert=expert, offset=offset))
            offset += tensor[0].rows
        return tuple(pieces)


def _loaded(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Mapping[str, tuple[Piece, ...]]:
    """The weights of the loaded model by name, with the rows of the file that hold them."""
    types = model_types(config)
    found: dict[str, tuple[Piece, ...]] = {}
    for tensor, info in tensors.items():
        name = renamed(tensor, types)
        parts = split_names(name, types)
        if parts and info.rows % len(parts) == 0:
            rows = info.rows // len(parts)
            found |= {part: (Piece(tensor, i * rows, rows),) for i, part in enumerate(parts)}
        else:
            found[name] = (Piece(tensor, 0, info.rows),)
    return found


def same_rows(a: TensorSource, a_name: str, b: TensorSource, b_name: str) -> bool:
    """Whether two tensors hold the same numbers, compared block by block."""
    info = a.tensors[a_name]
    return info.shape == b.tensors[b_name].shape and same_blocks(
        lambda start, stop: a.rows(a_name, start, stop),
        lambda start, stop: b.rows(b_name, start, stop),
        info.rows,
    )


def same_blocks(
    a: Callable[[int, int], NDArray[np.float32]], b: Callable[[int, int], NDArray[np.float32]], rows: int
) -> bool:
    """Whether two readers of rows [start, stop) deliver the same numbers for all of `rows`."""
    return all(
        np.array_equal(a(start, stop), b(start, stop))
        for start in range(0, rows, COMPARED_ROWS)
        for stop in (min(start + COMPARED_ROWS, rows),)
    )


def prefix_of(model: str, file: str) -> tuple[str, str] | None:
    """The row of `PREFIXES` by which a tensor is called `model` on one side and `file` on the other."""
    for pair in PREFIXES:
        if model.startswith(pair[0]) and file == pair[1] + model.removeprefix(pair[0]):
            return pair
    return None


def _spellings(name: str) -> Iterator[str]:
    for model, file in PREFIXES:
        if name.startswith(model):
            other = file + name[len(model) :]
            for here, there in INFIXES:
                if here in other:
                    yield other.replace(here, there) if here else other


OTHER_BASE = "fold it into the base that it was trained on (`--base`)"
"""What helps if an adapter and a base do not belong together."""


def matches(patterns: tuple[str, ...] | str, module: str) -> bool:
    """PEFT's rule: a name of a list is the module's whole name or its end; a pattern matches all of it."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in patterns)
