"""What an adapter touches, found in a GGUF; or the reason why the two do not belong together, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.fold.names import HEADS
from lorafold.export.onto.alike import check_alike
from lorafold.export.onto.entries import SAME_BASE
from lorafold.export.onto.lines import NONE
from lorafold.export.onto.match import Search, TensorMap
from lorafold.export.onto.model import BaseGguf, FileTensor
from lorafold.export.onto.nearest import find_nearest
from lorafold.export.onto.scaled import find_scaled
from lorafold.export.onto.shuffled import find_shuffled, find_vectors
from lorafold.progress import Progress, silent
from lorafold.weights import Checkpoint, TensorInfo, TensorSource

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Parts of a multimodal model that a language model's GGUF does not hold.
_TOWERS = ("visual.", "vision_", "vision.", "audio_", "projector", "patch_embed", "mtp.", "talker.")


class FoldedRows(Protocol):
    """Rows of a base with adapters folded in."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) with everything folded in."""

    def exact_rows(self, name: str, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Single rows by the slow, independent path."""


class Fold(FoldedRows, Protocol):
    """The part of a `Folded` that is needed here."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor of the result."""

    @property
    def touched(self) -> Mapping[str, str]:
        """What was done to each changed tensor, in words."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where everything is that the adapter touches.

    Attributes:
        search: the lines, and the map of each GGUF tensor that changes.
        added: GGUF tensors that the file lacks and the result needs: a head that is its own now.
        notes: what the user should know.
    """

    search: Search
    added: tuple[FileTensor, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def maps(self) -> Mapping[str, TensorMap]:
        """The map of each GGUF tensor that changes, by name."""
        return self.search.maps


def find_sources(
    fold: Fold, base: TensorSource, model: BaseGguf, progress: Progress = silent, *, threads: int = 1
) -> Found:
    """Find every row that the adapters change.

    Args:
        fold: the base with the adapters folded in.
        base: the base alone.
        model: the GGUF.
        progress: told how far it is.
        threads: how many layers are looked for at once.

    Raises:
        InputError: something that is touched is not in the file, or is there twice.
    """
    names = list(fold.touched)
    _check_sizes(fold, base, names)
    if not model.exact:
        _check_norms(base, model)
    search = searched(base, model, names, progress, threads=threads)
    added, notes = _settle_roles(search, fold)
    _check_found(search, names, notes)
    _check_once(search, names)
    check_alike(search)
    return Found(search, added, tuple(notes))


def searched(
    base: TensorSource,
    model: BaseGguf,
    names: Sequence[str],
    progress: Progress = silent,
    *,
    threads: int = 1,
) -> Search:
    """Look for tensors in a GGUF; what of them was not found is not asked here.

    Args:
        base: the checkpoint.
        model: the GGUF.
        names: tensors of the checkpoint, and perhaps an output head that is tied to the embedding.
        progress: told how far it is.
        threads: how many layers are looked for at once; of a file on a hub, one after the other.
    """
    assert isinstance(base, Checkpoint), "values are compared as they are stored"
    embedding = next((name for name in HEADS if name in base.tensors), None)
    head = None if embedding is None else HEADS[embedding]
    origins = {name: name if name in base.tensors or embedding is None else embedding for name in names}
    search = Search(base, model, origins, embedding, head)
    for name in names:
        search.covered[name] = np.zeros(search.info(name).rows, np.bool_)
        search.row_strip(name)  # numbered here, so that the numbers do not depend on the threads
    groups = list(search.groups(names))
    with ThreadPoolExecutor(threads if model.hub is None else 1, thread_name_prefix="lorafold-find") as pool:
        for number, _ in enumerate(pool.map(lambda group: search.find_rows(*group), groups)):
            progress("look for the base's rows", number, 2 * len(groups))
    for number, (inside, tensors) in enumerate(groups, len(groups)):
        progress("look for the base's rows", number, 2 * len(groups))
        if search.uncovered(inside):
            search.find_columns(search.uncovered(inside), tensors)
            find_shuffled(search, inside, tensors)
            find_scaled(search, inside, tensors)
            find_vectors(search, inside, tensors)
            find_nearest(search, inside, tensors)
    progress("look for the base's rows", 2 * len(groups), 2 * len(groups))
    if left := search.uncovered(names):
        everywhere = list(model.tensors.values())
        search.find_rows(left, everywhere)
        search.find_columns(search.uncovered(left), everywhere)
    search.maps = {name: search.maps[name] for name in model.tensors if name in search.maps}
    return search


def _check_sizes(fold: Fold, base: TensorSource, names: Sequence[str]) -> None:
    for name in names:
        if name in base.tensors and fold.tensors[name].shape != base.tensors[name].shape:
            before, after = base.tensors[name].shape[0], fold.tensors[name].shape[0]
            raise InputError(
                f"the adapter resizes {name} from {before} to {after} rows, and the GGUF knows no "
                "tokens for the new ones",
                at="--onto",
                fix="export without --onto, which writes a header of its own",
            )


def _check_norms(base: TensorSource, model: BaseGguf) -> None:
    """Refuse a quantized file by its norms, which are not quantized: most must be the base's, or one more.

    Its matrices cannot tell a revision that differs by less than the quantization's own error.
    """
    known = set()
    for name, info in base.tensors.items():
        if len(info.shape) == 1 and "norm" in name:
            values = base.rows(name, 0, 1)
            known |= {values.tobytes(), (values + np.float32(1)).tobytes()}
    norms = [
        tensor
        for tensor in model.tensors.values()
        if tensor.type == Type.F32 and len(tensor.shape) == 1 and "norm.weight" in tensor.name
    ]
    other = [tensor.name for tensor in norms if model.values(tensor.name, 0, 1).tobytes() not in known]
    if known and len(other) > len(norms) / 2:
        raise InputError(
            f"{len(other)} of its {len(norms)} norms are not the base's, the first is {other[0]}",
            at=model.header.path,
            fix=SAME_BASE,
        )


def _settle_roles(search: Search, fold: Fold) -> tuple[tuple[FileTensor, ...], list[str]]:
    """Embedding and output head of the same values, each from its own; a head that is new is added."""
    notes: list[str] = []
    for gguf_name, wrong in ((EMBEDDING, search.head), (HEAD, search.embedding)):
        own = search.embedding if gguf_name == EMBEDDING else search.head
        # A tied base has no head of its own: its embedding may stand in the file twice.
        found = search.maps.get(gguf_name)
        if found is None or wrong not in search.origins or own not in fold.tensors:
            continue
        strip = search.row_strip(str(wrong))
        misplaced = (found.lines >= strip.first) & (found.lines < strip.first + strip.count)
        if misplaced.any():
            found.lines[misplaced] = NONE
            if (found.lines == NONE).all():
                del search.maps[gguf_name]
    for name in (search.embedding, search.head):
        if name in search.origins:
            search.covered[str(name)][:] = False
            search.cover([search.row_strip(str(name))])
    head, tensors = search.head, search.model.tensors
    untied = head in search.origins and head not in search.base.tensors
    if untied and HEAD not in tensors and EMBEDDING in tensors:
        strip = search.row_strip(str(head))
        like = tensors[EMBEDDING]
        if like.rows > strip.count:
            return (), notes
        search.maps[HEAD] = TensorMap(np.arange(strip.first, strip.first + like.rows, dtype=np.uint32))
        search.cover([strip])
        notes.append(f"{HEAD} is new: the adapter changes one side of the tied embedding alone")
        return (FileTensor(HEAD, like.shape, like.type, like.path, like.offset),), notes
    return (), notes


def _check_found(search: Search, names: Sequence[str], notes: list[str]) -> None:
    missing = []
    for name in search.uncovered(names):
        covered = search.covered[name]
        file_name = {search.embedding: EMBEDDING, search.head: HEAD}.get(name)
        file = search.model.tensors.get(file_name or "")
        if file is not None and file.rows < len(covered) and covered[: file.rows].all():
            notes.append(f"{name} has {len(covered) - file.rows} rows behind the last token of the file")
        else:
            missing.append(name)
    if not missing:
        return
    name = missing[0]
    covered = search.covered[name]
    which = f"{name}, of which {int(covered.sum()):,} of {len(covered):,} rows were found"
    if all(any(word in one for word in _TOWERS) for one in missing):
        raise InputError(
            f"it leaves out {len(missing)} tensors that the adapter changes, the first is {name}: they are "
            "no part of the language model",
            at=search.model.header.path,
            fix="pass the base's projector with --mmproj, train on the language model's modules alone, or "
            "export a merged folder (--format folder)",
        )
    if search.twice:
        raise InputError(
            f"rows of {min(search.twice)} are equal to several of the base's, and nothing tells them apart "
            f"(the adapter changes {which})",
            at=search.model.header.path,
            fix="export without --onto, or as a merged folder (--format folder)",
        )
    raise InputError(
        f"{len(missing)} of {len(names)} tensors that the adapter changes are not in it, the first is "
        f"{which}",
        at=search.model.header.path,
        fix=SAME_BASE,
    )


def _check_once(search: Search, names: Sequence[str]) -> None:
    """Refuse a line that stands in the file twice: which of the two the adapter means is not known."""
    owner: dict[int, str] = {}
    used = np.zeros(search.lines.total, np.bool_)
    tied = search.embedding if search.head not in search.origins else None
    for gguf_name, found in search.maps.items():
        numbers = found.lines[found.lines != NONE]
        again = numbers[used[numbers]]
        used[numbers] = True
        ordered = np.sort(numbers)
        repeated = bool((ordered[1:] == ordered[:-1]).any())
        strips = search.lines.strips_of(numbers)
        if repeated or again.size:
            both = gguf_name in (EMBEDDING, HEAD) and {strip.tensor for strip in strips} == {tied}
            if not both or repeated:
                first = search.lines.strips[int(search.lines.owners(again if again.size else numbers)[0])]
                other = next((owner[strip.first] for strip in strips if strip.first in owner), gguf_name)
                raise InputError(
                    f"rows of {first.tensor} are in it twice, in {other} and in {gguf_name}",
                    at=search.model.header.path,
                    fix="export without --onto, or as a merged folder (--format folder)",
                )
        owner.update({strip.first: gguf_name for strip in strips})
    for name in names:
        strips = [strip for strip in search.lines.strips if strip.tensor == name]
        rows = [
            strip
            for strip in strips
            if not strip.columns and used[strip.first : strip.first + strip.count].any()
        ]
        columns = [
            strip for strip in strips if strip.columns and used[strip.first : strip.first + strip.count].any()
        ]
        for strip in columns:
            for other_strip in rows:
                inside = used[other_strip.first + strip.start : other_strip.first + strip.stop]
                if inside.any():
                    raise InputError(
                        f"rows of {name} are in it twice, as rows and as columns",
                        at=search.model.header.path,
                        fix="export without --onto, or as a merged folder (--format folder)",
                    )
