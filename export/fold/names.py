"""Which tensor of a base an adapter means by a module's name.

Adapters name modules as they are called in the loaded model; files name tensors as they were once released.
The two differ in prefixes ("transformer.h.0" and "h.0"), and transformers 5 stacks the experts of a layer
into one parameter that the files hold in pieces. Both are tables here, from its `conversion_mapping.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

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
)

INFIXES = (
    ("", ""),
    (".mlp.", ".block_sparse_moe."),
    (".block_sparse_moe.", ".mlp."),
    ("vision_tower.", "vision_tower.vision_model."),
    ("vision_tower.vision_model.", "vision_tower."),
)

# Parameter of stacked experts in the model: its pieces in the file for one expert, stacked along the rows.
EXPERT_PIECES = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}

# The order in which the experts' modules register their parameters; PEFT wraps the first one innermost.
PARAMETER_ORDER = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")

# Experts stored as (experts, in, out); everyone else stores (experts, out, in).
TRANSPOSED_EXPERTS = ("gpt_oss", "llama4", "llama4_text")

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
    "language_model.model.embed_tokens.weight": "language_model.lm_head.weight",
}


# Modules of their own once, parameters of stacked experts or of a router since transformers 5.
NO_MODULES_ANY_MORE = re.compile(r".*\.experts\.\d+\.[^.]+|.*\.(mlp|block_sparse_moe)\.gate")

COMPARED_ROWS = 1024
"""Rows that a comparison reads at once."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a parameter of stacked experts, as a range of rows of a tensor in the file.

    Args:
        tensor: the tensor.
        first: its first row that belongs to the expert.
        rows: how many rows.
        expert: which expert.
        offset: row of the expert's weight that `first` is.
    """

    tensor: str
    first: int
    rows: int
    expert: int
    offset: int


@dataclass(frozen=True, slots=True)
class BaseNames:
    """The tensors of a base, found by the names that a loaded model has for them.

    Args:
        tensors: the base's tensors; a tied output head stands among them with the embedding's place.
        embedding: name of the input embedding, or None.
        head: name of the output head, or None.
        tied: whether the head is the embedding.
        model_type: the config's `model_type`.
    """

    tensors: Mapping[str, TensorInfo]
    embedding: str | None
    head: str | None
    tied: bool
    model_type: str
    _found: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls, tensors: Mapping[str, TensorInfo], model_type: str, base: TensorSource, tied: bool
    ) -> BaseNames:
        """Look up embedding and head.

        A model without a head of its own has tied embeddings; so has one whose configuration says so and
        whose file holds the same numbers twice.

        Args:
            tensors: the base's tensors.
            model_type: the config's `model_type`.
            base: where their rows are.
            tied: the config's `tie_word_embeddings`.
        """
        for embedding, head in HEADS.items():
            if embedding in tensors:
                tied = head not in tensors or (tied and same_rows(base, embedding, base, head))
                if tied:
                    tensors = {**tensors, head: replace(tensors[embedding], name=head)}
                return cls(tensors, embedding, head, tied, model_type)
        return cls(tensors, None, None, False, model_type)

    def find(self, name: str) -> str | None:
        """The file's name of a tensor that the model calls `name`; None where the base has no such tensor."""
        if name not in self._found:
            self._found[name] = next((other for other in _spellings(name) if other in self.tensors), None)
        return self._found[name]

    def in_model(self, name: str, prefixes: Collection[tuple[str, str]]) -> str | None:
        """The model's name of a tensor in the file, as far as it can be told.

        Args:
            name: in the file.
            prefixes: (in the model, in the file) of the parts that are known in both: a multimodal model has
                one for each part; see `prefix_of`. The longest that fits counts.

        Returns:
            The name; None where the tensor belongs to none of these parts.
        """
        fitting = [pair for pair in prefixes if name.startswith(pair[1])]
        if not fitting:
            return name if name in (self.embedding, self.head) else None
        model, file = max(fitting, key=lambda pair: len(pair[1]))
        return model + name.removeprefix(file)

    def is_conv1d(self, module: str) -> bool | None:
        """Whether a module stores its weight as (in, out); None where the model type does not say."""
        names = CONV1D.get(self.model_type)
        return None if names is None else module.rpartition(".")[2] in names

    def pieces(self, parameter: str) -> tuple[Piece, ...]:
        """Where the experts of a stacked parameter lie in the file; empty where it is none."""
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
            while all(self.find(f"{module}.{expert}.{name}.weight") for name in names):
                offset = 0
                for name in names:
                    tensor = self.find(f"{module}.{expert}.{name}.weight")
                    assert tensor is not None
                    rows = self.tensors[tensor].rows
                    pieces.append(Piece(tensor, 0, rows, expert, offset))
                    offset += rows
                expert += 1
            if pieces:
                return tuple(pieces)
        return ()

    def expert_shape(self, pieces: tuple[Piece, ...]) -> tuple[int, int, int]:
        """(experts, rows, cols) of a stacked parameter."""
        experts = 1 + max(piece.expert for piece in pieces)
        rows = sum(piece.rows for piece in pieces if piece.expert == 0)
        return experts, rows, self.tensors[pieces[0].tensor].cols


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
    """The row of `PREFIXES` by which a tensor is called `model` in the model and `file` in the file."""
    for pair in PREFIXES:
        if model.startswith(pair[0]) and file == pair[1] + model.removeprefix(pair[0]):
            return pair
    return None


def _spellings(name: str) -> Iterator[str]:
    for model, file in PREFIXES:
        if name.startswith(model):
            renamed = file + name[len(model) :]
            for here, there in INFIXES:
                if here in renamed:
                    yield renamed.replace(here, there) if here else renamed


OTHER_BASE = "fold it into the base that it was trained on (`--base`)"


def matches(patterns: tuple[str, ...] | str, module: str) -> bool:
    """PEFT's rule: a name of a list is the module's whole name or its end; a pattern matches all of it."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in patterns)
