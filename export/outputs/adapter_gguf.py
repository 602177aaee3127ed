"""An adapter alone as GGUF, for llama.cpp's `--lora` and Ollama's ADAPTER.

The file holds a pair NAME.lora_a, NAME.lora_b for each weight that changes. llama.cpp computes

    W x + (alpha / rank) · lora_b (lora_a x)        rank: columns of this weight's lora_b

with one alpha for the whole file, while adapters have a scale for each module (rsLoRA, patterns, weights of
several adapters). Alpha is therefore the value that most modules have, so that their trained numbers stay as
they are, and the others' lora_b takes the rest of the factor. Several adapters on one weight become one of
their summed rank. The rows of lora_b go through the same permutation as the weight's.
Specification: llama.cpp, src/llama-adapter.cpp and build_lora_mm in src/llama-graph.cpp.

    lora_a (rank, cols), lora_b (rows, rank); a stack: (experts, rank, cols), (experts, rows, rank)
    token_embd: lora_a (tokens, rank), lora_b (cols, rank): it is looked up, not multiplied
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, LlamaFileType

from lorafold.artifacts import system_faults
from lorafold.errors import InputError, NumericError
from lorafold.export.arch.asked import is_asked
from lorafold.export.config import file_stem
from lorafold.export.fold.changes import AddLowRank, Block
from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.header import GgufFile, TypedTensor, encode_header, padded, place_tensors
from lorafold.export.gguf.parts import KeyValue, MappedTensor
from lorafold.export.gguf.rows import ROW_OPS, read_block, take_columns
from lorafold.export.quant import ggml

Products = Mapping[str, Sequence[AddLowRank]]  # by Hugging Face name

FOLD_IT = "choose `--format gguf`, which folds it in"

# Operations that only move rows: lora_b goes through them like the weight. Others are not linear.
_MOVES_ROWS = frozenset({"interleave_rows"})

_FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of a product: where they stand in the matrix, where in the product, how many, times what.

    In a transposed tensor they are columns of the matrix.
    """

    row: int
    start: int
    count: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class _Term:
    """A product on rows of one matrix."""

    product: AddLowRank
    rank: int
    pieces: tuple[_Piece, ...]


@dataclass(frozen=True, slots=True)
class LowRankTensor:
    """What happens to one GGUF tensor.

    Attributes:
        tensor: the weight.
        matrices: the terms of each matrix of a stack; one entry for a plain weight.
        rank: columns of its lora_b: the terms' ranks together, the largest matrix's of a stack.
        scales: what llama.cpp multiplies each matrix's result with before it adds an adapter's.
    """

    tensor: MappedTensor
    matrices: tuple[tuple[_Term, ...], ...]
    rank: int
    scales: tuple[float, ...] = ()

    @property
    def looked_up(self) -> bool:
        """Whether it is an embedding, whose factors are stored the other way round."""
        return self.tensor.name == "token_embd.weight"

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """numpy shapes of lora_a and lora_b."""
        *stack, rows, cols = self.tensor.shape
        if self.looked_up:
            return (rows, self.rank), (cols, self.rank)
        return (*stack, self.rank, cols), (*stack, rows, self.rank)

    def factors(self, alpha: float) -> tuple[Block, Block]:
        """lora_a and lora_b, float32, such that alpha / rank times their product is the change.

        Args:
            alpha: the file's.
        """
        rows, cols = self.tensor.shape[-2:]
        a = np.zeros((len(self.matrices), self.rank, cols), np.float32)
        b = np.zeros((len(self.matrices), rows, self.rank), np.float32)
        for number, terms in enumerate(self.matrices):
            first = 0
            for term in terms:
                last = first + term.rank
                left, right = _oriented(term.product, self.tensor)
                factor = _factor(term.product.scale, self.rank, alpha)
                if self.scales:
                    factor = np.float32(factor * self.scales[number])
                if not self.tensor.transpose:
                    a[number, first:last] = right
                for piece in term.pieces:
                    part = slice(piece.start, piece.start + piece.count)
                    place = slice(piece.row, piece.row + piece.count)
                    times = factor if piece.scale == 1 else np.float32(factor * piece.scale)
                    if self.tensor.transpose:
                        a[number, first:last, place] = right[:, part]
                        b[number, :, first:last] = left if times == 1 else left * times
                    else:
                        b[number, place, first:last] = left[part] if times == 1 else left[part] * times
                first = last
            if self.tensor.op is not None:
                b[number] = ROW_OPS[self.tensor.op](b[number], self.tensor.param)
        a_shape, b_shape = self.shapes()
        if self.looked_up:
            return np.ascontiguousarray(b[0]), np.ascontiguousarray(a[0].T)
        return a.reshape(a_shape), b.reshape(b_shape)


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """An adapter file, planned.

    Attributes:
        file: its header, tensors and exact size.
        alpha: the file's adapter.lora.alpha.
        tensors: what becomes of each weight, in the order of their pairs in the file.
    """

    file: GgufFile
    alpha: float
    tensors: tuple[LowRankTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the file, exact."""
        return self.file.size

    def write(self, path: Path) -> None:
        """Write the file.

        Args:
            path: where; it appears whole or not at all.

        Raises:
            NumericError: a factor is NaN or infinite, or too large for F16.
            SystemFault: the disk refused.
        """
        temporary = path.with_name(f".{path.name}.partial")
        try:
            with system_faults(path), open(temporary, "wb") as file:
                file.write(self.file.header)
                pairs = iter(self.file.tensors)
                for low_rank in self.tensors:
                    for values in low_rank.factors(self.alpha):
                        data = _encode(next(pairs), values)
                        file.write(data)
                        file.write(bytes(padded(len(data)) - len(data)))
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _encode(typed: TypedTensor, values: Block) -> bytes:
    """One factor as the file holds it."""
    rows = values.reshape(-1, values.shape[-1])
    largest = float(np.abs(rows).max(initial=0.0))
    limit = 65504.0 if typed.type == GGMLQuantizationType.F16 else math.inf
    if not largest <= limit or largest == math.inf:
        raise NumericError(
            f"a value of {largest:g} cannot be written as {typed.type.name}",
            at=typed.tensor.name,
            fix="pass --dtype f32" if math.isfinite(largest) else "train the adapter again",
        )
    return ggml.quantize(rows, typed.type, None).tobytes()


def plan_adapter_gguf(
    folded: Folded,
    tensors: Sequence[MappedTensor],
    arch: str,
    name: str,
    *,
    type: GGMLQuantizationType = GGMLQuantizationType.F32,
    at: str | Path | None = None,
    left_out: Collection[str] = (),
) -> AdapterPlan:
    """Lay out the file.

    Args:
        folded: the base with the adapters folded in.
        tensors: the base's own tensors as `arch.map_tensors` maps them, without the fold.
        arch: `general.architecture` of the base.
        name: `general.name`, and cleaned the file's name before ".gguf".
        type: F32, F16 or BF16.
        at: the adapter's folder, for errors.
        left_out: Hugging Face tensors that are no part of llama.cpp's model; their changes are left out too.

    Raises:
        InputError: the adapters do something else than add low-rank products to weights that llama.cpp
            multiplies with.
    """
    products = _products(folded, left_out, at)
    _check_places(products, tensors, arch, at)
    scales = {tensor.name: tensor for tensor in tensors if tensor.name.endswith(".scale")}
    found = [
        replace(low_rank, scales=_scales(folded, low_rank, scales))
        for tensor in tensors
        if (low_rank := _low_rank(tensor, products)) is not None
    ]
    if not found:
        raise InputError("the adapter changes nothing", at=at, fix="train it first")
    alpha = _common_alpha(found)
    typed = place_tensors(
        [
            (MappedTensor(f"{low_rank.tensor.name}.{suffix}", shape), type)
            for low_rank in found
            for suffix, shape in zip(("lora_a", "lora_b"), low_rank.shapes(), strict=True)
        ]
    )
    metadata = [
        KeyValue("general.architecture", arch, GGUFValueType.STRING),
        KeyValue("general.type", "adapter", GGUFValueType.STRING),
        KeyValue("adapter.type", "lora", GGUFValueType.STRING),
        KeyValue("general.name", name, GGUFValueType.STRING),
        KeyValue("adapter.lora.alpha", alpha, GGUFValueType.FLOAT32),
        KeyValue("general.file_type", _FILE_TYPES[type], GGUFValueType.UINT32),
        KeyValue("general.quantization_version", 2, GGUFValueType.UINT32),
    ]
    header = encode_header(metadata, typed)
    return AdapterPlan(
        GgufFile(f"{file_stem(name)}.gguf", type.name, header, tuple(typed)), alpha, tuple(found)
    )


def _products(folded: Folded, left_out: Collection[str], at: str | Path | None) -> Products:
    """The products that are added to each changed tensor; what else is done to one is refused by name."""
    products: dict[str, Sequence[AddLowRank]] = {}
    for name, words in folded.touched.items():
        if name in left_out:
            continue
        found = folded.low_rank(name)
        if found is None:
            raise InputError(
                f"{name} is changed by more than a low-rank product ({words}), which is all that llama.cpp's"
                " adapters can carry",
                at=at,
                fix=FOLD_IT,
            )
        if found:
            products[name] = found
    return products


def _check_places(
    products: Products, tensors: Sequence[MappedTensor], arch: str, at: str | Path | None
) -> None:
    """Refuse changes of what llama.cpp does not multiply with, or without asking for an adapter."""
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    places = {piece.source: tensor for tensor in tensors for piece in tensor.sources}
    for name in products:
        tensor = places.get(name)
        if tensor is None:
            problem = f"{name} is changed, and the base has no such tensor for llama.cpp"
        elif tensor.name == "token_embd.weight" and tied:
            problem = f"{name} is both embedding and output head, which llama.cpp's adapters cannot change"
        elif not is_asked(arch, tensor.name):
            problem = f"{name} is changed, and llama.cpp's {arch} never asks an adapter for {tensor.name}"
        elif len(tensor.shape) < 2 or (tensor.op is not None and tensor.op not in _MOVES_ROWS):
            problem = f"{name} is converted by {tensor.op}, after which its change is no low-rank product"
        else:
            continue
        raise InputError(problem, at=at, fix=FOLD_IT)


def _low_rank(tensor: MappedTensor, products: Products) -> LowRankTensor | None:
    """The terms of a tensor, or None if nothing changes it."""
    if not any(products.get(piece.source) for piece in tensor.sources):
        return None
    height = tensor.shape[-2]
    # For each matrix: the pieces of each product, by its identity: pieces of one share their right factor.
    matrices: list[dict[int, list[_Piece]]] = [{} for _ in range(tensor.rows // height)]
    by_id: dict[int, AddLowRank] = {}
    first = 0  # row of the whole tensor at which the current source begins
    for number, piece in enumerate(tensor.sources):
        length = piece.stop - piece.start
        for product in products.get(piece.source, ()):
            by_id[id(product)] = product
            begin, end = max(product.start, piece.start), min(product.stop, piece.stop)
            if tensor.transpose and begin < end:  # each source is a matrix
                part = _Piece(begin - piece.start, begin - product.start, end - begin)
                matrices[number].setdefault(id(product), []).append(part)
            elif begin < end:
                matrix, row = divmod(first + begin - piece.start, height)
                assert row + end - begin <= height, "a product stays within an expert"
                pieces = matrices[matrix].setdefault(id(product), [])
                pieces.append(_Piece(row, begin - product.start, end - begin, piece.scale))
        first += length
    terms = tuple(
        tuple(_Term(by_id[key], len(by_id[key].right()), tuple(pieces)) for key, pieces in found.items())
        for found in matrices
    )
    rank = max(sum(term.rank for term in some) for some in terms)
    return LowRankTensor(tensor, terms, rank) if rank else None


def _scales(folded: Folded, low_rank: LowRankTensor, scales: Mapping[str, MappedTensor]) -> tuple[float, ...]:
    """One number for each matrix if the file has such a tensor beside the weight (Gemma 4's experts)."""
    found = scales.get(low_rank.tensor.name.removesuffix("weight") + "scale")
    if found is None or found.shape != (len(low_rank.matrices),):
        return ()
    return tuple(read_block(folded, found, 0, 1)[0].tolist())


def _oriented(product: AddLowRank, tensor: MappedTensor) -> tuple[Block, Block]:
    """Left (rows, rank) and right (rank, cols) of the GGUF weight; a transposed one swaps its factors."""
    left, right = product.left(0, product.stop - product.start), product.right()
    if tensor.columns:
        right = take_columns(right, tensor.columns)
    return (right.T, left.T) if tensor.transpose else (left, right)


def _common_alpha(found: Sequence[LowRankTensor]) -> float:
    """The alpha under which most terms need no factor of their own, exact in float32."""
    wanted = Counter(
        float(np.float32(term.product.scale * low_rank.rank))
        for low_rank in found
        for terms in low_rank.matrices
        for term in terms
    )
    wanted.pop(0.0, None)  # llama.cpp takes an alpha of 0 for a scale of 1
    return wanted.most_common(1)[0][0] if wanted else 1.0


def _factor(scale: float, rank: int, alpha: float) -> np.float32:
    """What lora_b is multiplied with, so that alpha / rank times it is the scale."""
    wanted = scale * rank
    return np.float32(1.0) if np.float32(wanted) == np.float32(alpha) else np.float32(wanted / alpha)
