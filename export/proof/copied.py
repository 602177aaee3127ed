"""A GGUF made from another one, held against it: what was copied byte by byte, the rest as it was folded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lorafold.errors import InputError
from lorafold.export.gguf.header import GgufFile, TypedTensor
from lorafold.export.onto.places import Places
from lorafold.export.onto.source import OntoSource
from lorafold.export.proof.check import AGAIN, Check
from lorafold.export.proof.tensors import check_tensors
from lorafold.export.quant.mixture import Importance


def check_copy(
    folder: Path,
    file: GgufFile,
    source: OntoSource,
    *,
    rounding: str,
    imatrix: Importance | None = None,
) -> list[Check]:
    """Hold a file against the one that it was made from: what was copied, and what was folded.

    Args:
        folder: where it lies.
        file: what was planned.
        source: what it was made from.
        rounding: the export's `rounding`.
        imatrix: the importance weights it was made with.
    """
    kept = [typed for typed in file.tensors if source.keeps(typed.tensor.name, typed.type)]
    folded = replace(file, tensors=tuple(typed for typed in file.tensors if typed not in kept))
    checks = [_check_kept(folder, file, kept, source)]
    if folded.tensors:
        checks.append(check_tensors(folder, folded, source, rounding=rounding, imatrix=imatrix))
    return checks


def check_left_alone(places: Places) -> list[Check]:
    """Whether what the adapter leaves alone is the base's; no check for a quantized file, which cannot tell.

    Args:
        places: of the file's weights in the base.
    """
    try:
        count = places.check_left_alone()
    except InputError as error:
        return [
            Check(
                "left alone", "failed", f"{Path(str(error.at)).name}: {error.problem}", fix=error.fix or AGAIN
            )
        ]
    if count is None:
        return []
    meaning = f"{count} matrices that the adapter leaves alone are the base's, number by number"
    return [Check("left alone", "passed", meaning, {"tensors": count})]


def _check_kept(folder: Path, file: GgufFile, kept: Sequence[TypedTensor], source: OntoSource) -> Check:
    """Compare every byte of what was copied."""
    wrong, total = [], 0
    descriptor = os.open(folder / file.name, os.O_RDONLY)

    def copy(typed: TypedTensor, start: int, stop: int) -> bytes:
        at = len(file.header) + typed.offset + start * typed.row_bytes
        return os.pread(descriptor, (stop - start) * typed.row_bytes, at)

    try:
        for typed in kept:
            if source.differs(typed.tensor.name, partial(copy, typed)):
                wrong.append(typed.tensor.name)
            total += typed.nbytes
    finally:
        os.close(descriptor)
    name, figures = f"kept {file.name}", {"tensors": len(kept), "bytes": total}
    if wrong:
        return Check(name, "failed", f"{', '.join(wrong)} are not those of the file", figures)
    meaning = (
        f"{len(kept)} tensors that the adapter leaves alone are the file's own, {total:,} bytes compared"
    )
    return Check(name, "passed", meaning, figures)
