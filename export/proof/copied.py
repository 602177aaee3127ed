"""Tensors that were copied from another GGUF, held against it byte by byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lorafold.export.gguf.header import GgufFile, TypedTensor
from lorafold.export.onto.source import OntoSource
from lorafold.export.proof.check import Check


def check_kept(folder: Path, file: GgufFile, kept: Sequence[TypedTensor], source: OntoSource) -> Check:
    """Compare every byte of what was copied.

    Args:
        folder: where the file lies.
        file: what was planned.
        kept: those of its tensors that are another file's.
        source: knows that file.
    """
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
