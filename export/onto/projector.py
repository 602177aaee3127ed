"""The projector (mmproj) of a multimodal base: held against the base's own tower, then kept or folded onto.

llama.cpp keeps what sees and hears in a GGUF of its own. Its matrices are the checkpoint's, so they are found
by their values as those of the language model are: each of them must be there, or the file is another base's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.fold.changes import Block
from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.header import GgufFile
from lorafold.export.gguf.plan import GgufModel, plan_files
from lorafold.export.onto import entries
from lorafold.export.onto.entries import SAME_BASE
from lorafold.export.onto.find import find_sources, searched
from lorafold.export.onto.lines import NONE
from lorafold.export.onto.model import BaseGguf
from lorafold.export.onto.source import OntoSource, check_types
from lorafold.progress import Progress, silent
from lorafold.weights import Checkpoint, TensorInfo, item_size

# The language model's tensors, by the beginnings of their names; all others may be a tower's.
_LANGUAGE = re.compile(
    r"(model\.)?(language_model|text_model|layers|embed_tokens\w*|norm|lm_head|mtp)\b", re.IGNORECASE
)
# Converters compute these from the checkpoint's: cut, turned, summed up, resized.
_COMPUTED = re.compile(r"(patch|pos\w*|class|rel_pos)_embd?|conv1d")
_WIDTHS = ("clip.vision.projection_dim", "clip.audio.projection_dim")


def is_tower(name: str) -> bool:
    """Whether a tensor of a checkpoint may belong to what sees or hears."""
    return _LANGUAGE.match(name) is None


@dataclass(frozen=True, slots=True)
class PartOfFold:
    """A fold of which some tensors count as touched alone; a `find.Fold`.

    Attributes:
        whole: all of it.
        names: those tensors.
    """

    whole: Folded
    names: frozenset[str]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the result."""
        return self.whole.tensors

    @property
    def touched(self) -> Mapping[str, str]:
        """What was done to each changed tensor, in words."""
        return {name: how for name, how in self.whole.touched.items() if name in self.names}

    def rows(self, name: str, start: int, stop: int) -> Block:
        """Rows [start, stop) with everything folded in."""
        return self.whole.rows(name, start, stop)

    def exact_rows(self, name: str, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Single rows by the slow, independent path."""
        return self.whole.exact_rows(name, rows)


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector that belongs to the base. Use `Projector.open`.

    Attributes:
        source: its rows, folded where the adapters change them.
        file: what is written.
        compared: matrices that were found in the base.
        notes: what the user should know.
    """

    source: OntoSource
    file: GgufFile
    compared: int
    notes: tuple[str, ...]

    @classmethod
    def open(
        cls,
        place: str,
        fold: Folded,
        config: Mapping[str, Any],
        name: str,
        *,
        offline: bool = False,
        progress: Progress = silent,
    ) -> Projector:
        """Find every matrix of a projector in the base.

        Args:
            place: a file, or ORG/NAME-GGUF:FILE on a hub.
            fold: the base with the adapters folded in.
            config: the base's config.json.
            name: the model's, for the file's.
            offline: never connect.
            progress: told how far it is.

        Raises:
            InputError: not a projector, or another base's.
            SystemFault: a hub failed.
        """
        if not isinstance(fold.base, Checkpoint):
            raise InputError(
                "the base is packed, and a projector is compared with 16-bit weights",
                at="--mmproj",
                fix="pass the 16-bit original with --base, or copy the projector yourself",
            )
        model = BaseGguf.open(place, projector=True, offline=offline, progress=progress)
        header = model.header
        width = (config.get("text_config") or config).get("hidden_size")
        for key in _WIDTHS:
            made_for = header.number(key)
            if None not in (made_for, width) and made_for != width:
                raise InputError(
                    f"its {key} is {made_for:,}, and the base's language model is {width:,} wide",
                    at=header.path,
                    fix=SAME_BASE,
                )
        towers = [
            info.name
            for info in fold.base.tensors.values()
            if is_tower(info.name) and len(info.shape) > 1 and item_size(info)
        ]
        matrices = [tensor for tensor in model.tensors.values() if len(tensor.shape) > 1]
        maps = searched(fold.base, model, towers, progress).maps
        other = [t.name for t in matrices if t.name not in maps or (maps[t.name].lines == NONE).any()]
        wrong = [each for each in other if not _COMPUTED.search(each)]
        if wrong or not len(matrices) > len(other):
            first = (wrong or other or ["none"])[0]
            raise InputError(
                f"{len(wrong or other)} of its {len(matrices)} matrices are not in the base, the first is "
                f"{first}",
                at=header.path,
                fix=SAME_BASE,
            )
        touched = frozenset(n for n in fold.touched if is_tower(n))
        found = find_sources(PartOfFold(fold, touched), fold.base, model, progress)
        source = OntoSource(fold, model, found)
        check_types(source)
        typed = tuple((source.mapped(tensor), tensor.type) for tensor in source.file_tensors())
        planned = GgufModel(f"mmproj-{header.quantization}", entries.entries(header, {}), typed)
        (file,) = plan_files([planned], name, threads=1, max_memory=1 << 20).files
        notes = (
            [f"{', '.join(other)} of the projector could not be compared: they are computed from the base's"]
            if other
            else []
        )
        return cls(source, replace(file, first=False), len(matrices) - len(other), tuple(notes))

    @property
    def touched(self) -> Collection[str]:
        """The checkpoint's tensors that are folded here."""
        return self.source.found.search.origins

    def describe(self) -> tuple[str, str]:
        """What is done with it."""
        count = len(self.source.touched)
        how = f"{count} tensors folded" if count else "kept byte by byte"
        path = self.source.model.header.path
        return "mmproj", f"{path}: {self.compared} matrices are the base's own; {how}, as {self.file.name}"
