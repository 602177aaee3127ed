"""What one tensor of a GGUF file is made of: rows of Hugging Face tensors, and how they are changed.

In these words `arch.map_tensors` describes a conversion to the plan, the writer and the proof. Shapes are
numpy's (rows first, columns last); GGUF stores them reversed
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGUFValueType

from lorafold.gguf_file.header import GgufArray

EntryValue = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float] | GgufArray


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A typed metadata entry.

    Attributes:
        key: the full key, e.g. "llama.context_length".
        value: a scalar, or for arrays a sequence (a numpy array will do) or the packed array of another file.
        type: the GGUF value type; ARRAY for arrays.
        subtype: the element type of an array, else None.
    """

    key: str
    value: EntryValue
    type: GGUFValueType
    subtype: GGUFValueType | None = None


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows of a source tensor seen as 2-D: leading dimensions flattened, a 1-D tensor is one row.

    Attributes:
        source: the Hugging Face tensor's name.
        start: first row.
        stop: one past the last row.
        scale: what the rows are multiplied by.
    """

    source: str
    start: int
    stop: int
    scale: float = 1.0


ColumnRange = tuple[int, int, int]
"""Columns of a source: first, one past the last, step."""


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """One tensor of the GGUF file.

    Exactly one of `sources` and `constant` is given. If `transpose` is set, each of `sources` is a matrix
    stored as (cols, rows), and the tensor is the stack of their transposes. A fold always sees the Hugging
    Face orientation.

    Attributes:
        name: the GGUF name, e.g. "blk.0.attn_q.weight".
        shape: numpy order; the total of rows is prod(shape[:-1]), a 1-D tensor is one row.
        sources: row ranges, concatenated along the rows; rows beyond them are zeros.
        op: key in `gguf.rows.ROW_OPS`: what is done to a block of float32 rows; None leaves them as they are.
        group: a block of rows must start and end at a multiple of this.
        param: the op's parameter.
        columns: the columns of the sources that are taken, in this order; () takes all as they are. They are
            chosen before anything else, so in a transposed tensor they are its rows.
        transpose: the sources are stored transposed (GPT-2's Conv1D, experts of gpt-oss).
        flat: the sources are vectors, whose numbers fill the rows one after the other.
        constant: the values themselves, for tensors that no checkpoint holds (rope factors); exact in
            float32.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[RowRange, ...] = ()
    op: str | None = None
    group: int = 1
    param: int | float | None = None
    columns: tuple[ColumnRange, ...] = ()
    transpose: bool = False
    flat: bool = False
    constant: tuple[float, ...] | None = None

    @property
    def rows(self) -> int:
        """Rows of the tensor seen as 2-D."""
        return math.prod(self.shape[:-1])

    @property
    def height(self) -> int:
        """Rows of one matrix: of the whole tensor, unless it is a stack of experts or heads."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def cols(self) -> int:
        """Columns: the length of one row."""
        return self.shape[-1]
