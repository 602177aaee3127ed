"""The factors of an adapter, brought into the shape that a fold adds: left (rows, rank), right (rank, cols).

A factor is delivered when a block needs it, so that an adapter is never in memory as a whole. Rows of a
plain `lora_B` are read straight from the file; what has to be transposed, cut or computed is made once and
kept in a cache of bounded size.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorafold.adapters.fields import MERGE_FIRST
from lorafold.adapters.folder import Adapter, ModuleTensors
from lorafold.errors import InputError
from lorafold.export.fold.changes import AddLowRank, Block
from lorafold.weights import TensorSource

CACHE_BYTES = 48 << 20
"""Most bytes of factors kept. A single larger one is kept too, or it would be read again for every block."""

IDLE_REQUESTS = 256
"""A factor that was not among so many requests belongs to a tensor that is done: it makes room at once, so
that the cache does not fill up with the model's layers."""


@dataclass(slots=True)
class FactorCache:
    """The factors used last, whichever thread used them."""

    limit: int = CACHE_BYTES
    _kept: OrderedDict[Hashable, tuple[Block, int]] = field(default_factory=OrderedDict)  # with its request
    _requests: int = 0
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable, build: Callable[[], Block]) -> Block:
        """The factor of this key, built if it is not kept. Two threads may build it; both get the same."""
        with self._lock:
            self._requests += 1
            if key in self._kept:
                block = self._kept[key][0]
                self._kept[key] = (block, self._requests)
                self._kept.move_to_end(key)
                return block
        built = build()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = (built, self._requests)
                self._bytes += built.nbytes
                while len(self._kept) > 1 and (self._bytes > self.limit or self._oldest_is_idle()):
                    self._bytes -= self._kept.popitem(last=False)[1][0].nbytes
        return built

    def _oldest_is_idle(self) -> bool:
        _, asked = next(iter(self._kept.values()))
        return self._requests - asked > IDLE_REQUESTS


@dataclass(frozen=True, slots=True)
class Factors:
    """The tensors of one adapter as factors.

    Args:
        source: the adapter's file.
        cache: shared by all adapters of a fold.
    """

    source: TensorSource
    cache: FactorCache

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor as stored."""
        return self.source.tensors[key].shape

    def whole(self, key: str) -> Block:
        """A whole tensor as 2-D float32, cached."""
        return self.cache.get((id(self.source), key), lambda: self._read(key))

    def vector(self, key: str) -> Callable[[], Block]:
        """A tensor of any shape as a flat vector, cached."""
        return lambda: self.whole(key).reshape(-1)

    def made(self, what: str, keys: tuple[str, ...], build: Callable[[], Block]) -> Callable[[], Block]:
        """Something computed from these tensors, cached under the name `what`."""
        return lambda: self.cache.get((id(self.source), what, keys), lambda: np.ascontiguousarray(build()))

    def product(self, a: str, b: str, scale: float, rows: int, *, transposed: bool) -> AddLowRank:
        """scale · B @ A for a weight (out, in), or its transpose for a weight stored as (in, out).

        Args:
            a: key of A (rank, in).
            b: key of B (out, rank).
            scale: the adapter's scale.
            rows: rows of the weight.
            transposed: whether the weight is stored as (in, out).
        """
        if not transposed:
            return AddLowRank(
                lambda start, stop: self.source.rows(b, start, stop), lambda: self.whole(a), scale, 0, rows
            )
        left = self.made("transposed", (a,), lambda: self._read(a).T)
        right = self.made("transposed", (b,), lambda: self._read(b).T)
        return AddLowRank(lambda start, stop: left()[start:stop], right, scale, 0, rows)

    def computed_product(
        self, left: Callable[[], Block], right: Callable[[], Block], scale: float, rows: int
    ) -> AddLowRank:
        """scale · left @ right with both factors computed."""
        return AddLowRank(lambda start, stop: left()[start:stop], right, scale, 0, rows)

    def block_diagonal(self, key: str, blocks: int) -> Callable[[], Block]:
        """A factor stored as its diagonal blocks, (blocks · m, n), spread out to (blocks · m, blocks · n)."""

        def spread() -> Block:
            stored = self._read(key)
            rows, cols = stored.shape[0] // blocks, stored.shape[1]
            full = np.zeros((blocks * rows, blocks * cols), np.float32)
            for i in range(blocks):
                full[i * rows : (i + 1) * rows, i * cols : (i + 1) * cols] = stored[i * rows : (i + 1) * rows]
            return full

        return self.made("block diagonal", (key,), spread)

    def expert_product(
        self,
        a: str,
        b: str,
        scale: float,
        expert: int,
        experts: int,
        *,
        transposed: bool,
        offset: int,
        rows: int,
    ) -> Callable[[int], AddLowRank]:
        """The product of one expert of a parameter adapted as a whole (PEFT's `target_parameters`).

        PEFT stores A as (experts · rank, in), expert by expert, and B as (out, rank · experts), rank by rank.

        Args:
            a: key of A.
            b: key of B.
            scale: the adapter's scale.
            expert: which expert.
            experts: how many there are.
            transposed: whether an expert's weight is stored as (in, out).
            offset: row of the expert's product that is the first one here.
            rows: how many of its rows are used.

        Returns:
            A function: first row of the tensor -> the step.
        """

        def b_of() -> Block:
            whole = self._read(b)
            return whole.reshape(whole.shape[0], -1, experts).transpose(2, 0, 1)

        all_b = self.made("by expert", (b,), b_of)
        a_left = self.made("transposed", (a,), lambda: self._read(a).T)
        rank = self.shape(a)[0] // experts

        if transposed:

            def left(start: int, stop: int) -> Block:
                part = a_left()[offset + start : offset + stop, expert * rank : (expert + 1) * rank]
                return np.ascontiguousarray(part)

            right = self.made(f"expert {expert}", (b,), lambda: all_b()[expert].T)
        else:

            def left(start: int, stop: int) -> Block:
                return np.ascontiguousarray(all_b()[expert, offset + start : offset + stop])

            def right() -> Block:
                return self.whole(a)[expert * rank : (expert + 1) * rank]

        return lambda first: AddLowRank(left, right, scale, first, first + rows)

    def _read(self, key: str) -> NDArray[np.float32]:
        info = self.source.tensors[key]
        return self.source.rows(key, 0, info.rows)

    def check_finite(self) -> None:
        """Read everything once.

        Raises:
            NumericError: a NaN or an infinity, with the tensor's name.
        """
        for key, info in self.source.tensors.items():
            step = max(1, (1 << 20) // max(info.cols, 1))
            for start in range(0, info.rows, step):
                self.source.rows(key, start, min(start + step, info.rows))


def once(build: Callable[[], tuple[Block, Block]]) -> Callable[[], tuple[Block, Block]]:
    """A function that builds a pair of factors when first called, and keeps it."""
    lock = threading.Lock()
    kept: list[tuple[Block, Block]] = []

    def get() -> tuple[Block, Block]:
        with lock:
            if not kept:
                kept.append(build())
            return kept[0]

    return get


def initial_part(method: str, weight: Block, rank: int, at: str) -> tuple[Block, Block]:
    """The part of a base weight that an initialisation took out before training.

    PEFT takes the same part out again whenever it loads such an adapter, so base and adapter alone suffice.

    Args:
        method: "pissa": the `rank` largest singular values (arXiv:2404.02948); "olora": the first `rank`
            columns of Q with the first rows of R (arXiv:2406.01775); "kasa": the `rank` smallest singular
            values (arXiv:2412.06071).
        weight: the base weight, float32 (out, in).
        rank: rank of the adapter.
        at: the module, for the error.

    Returns:
        left (out, rank) and right (rank, in), whose product is to be subtracted.

    Raises:
        InputError: the rank does not leave anything of the weight.
    """
    smallest = min(weight.shape)
    if rank > smallest or (method == "kasa" and rank == smallest):
        raise InputError(
            f"rank {rank} is too large for a weight of {weight.shape}",
            at=at,
            fix="give the base that the adapter was trained on (--base)",
        )
    if method == "olora":
        q, r = np.linalg.qr(weight)
        left, right = q[:, :rank], r[:rank]
    else:
        u, s, v = np.linalg.svd(weight, full_matrices=False)
        part = slice(smallest - rank, smallest) if method == "kasa" else slice(0, rank)
        left, right = u[:, part] * s[part], v[part]
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


def factor_shapes(
    adapter: Adapter, factors: Factors, module: str, a: str, b: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B; block-diagonal ones as they are when spread out.

    Args:
        adapter: whose they are.
        factors: its tensors.
        module: their module.
        a: key of A.
        b: key of B.

    Raises:
        InputError: one of them is not a matrix.
    """
    a_shape, b_shape = factors.shape(a), factors.shape(b)
    for key, shape in ((a, a_shape), (b, b_shape)):
        if len(shape) > 2:
            raise InputError(
                f"{key!r} has the shape {list(shape)}: the factor of a convolution, which is not folded here",
                at=adapter.folder,
                fix=MERGE_FIRST,
            )
        if len(shape) != 2 or 0 in shape:
            raise InputError(
                f"{key!r} has the shape {list(shape)}, expected two dimensions",
                at=adapter.folder,
                fix="gather sharded weights (DeepSpeed, FSDP) before saving",
            )
    side, count = _blocks(adapter, module)
    if side == "a":
        a_shape = (a_shape[0], a_shape[1] * count)
    elif side == "b":
        b_shape = (b_shape[0], b_shape[1] * count)
    return a_shape, b_shape


def linear_product(
    adapter: Adapter, factors: Factors, module: ModuleTensors, scale: float, rows: int, transposed: bool
) -> AddLowRank:
    """The step that adds scale · B @ A.

    Args:
        adapter: whose product it is.
        factors: its tensors.
        module: those of the layer.
        scale: what the product is multiplied with.
        rows: rows of the weight as stored.
        transposed: whether it is stored as (in, out).
    """
    a, b = module.parts["lora_A"], module.parts["lora_B"]
    diagonal, weights = module.parts.get("lora_diag"), module.parts.get("lora_E")
    side, count = _blocks(adapter, module.module)
    if diagonal is None and weights is None and not side:
        return factors.product(a, b, scale, rows, transposed=transposed)

    def stored(key: str) -> Callable[[], Block]:
        return lambda: factors.whole(key)

    make_a = factors.block_diagonal(a, count) if side == "a" else stored(a)
    make_b = factors.block_diagonal(b, count) if side == "b" else stored(b)
    if diagonal is not None:
        values, plain_b = factors.vector(diagonal), make_b
        make_b = factors.made("times diagonal", (b, diagonal), lambda: plain_b() * values()[None, :])
    if weights is not None:
        of_rows, plain_a = factors.vector(weights), make_a
        make_a = factors.made("times weights", (a, weights), lambda: of_rows()[:, None] * plain_a())
    if not transposed:
        return factors.computed_product(make_b, make_a, scale, rows)
    left = factors.made("A transposed", (a, b), lambda: make_a().T)
    right = factors.made("B transposed", (a, b), lambda: make_b().T)
    return factors.computed_product(left, right, scale, rows)


def _blocks(adapter: Adapter, module: str) -> tuple[str, int]:
    """Which factor of a module is stored as diagonal blocks, and how many: ("a", 4), ("b", 4) or ("", 1)."""
    if adapter.config.blocks is not None:
        count, with_a, with_b = adapter.config.blocks
        leaf = module.rpartition(".")[2]
        for side, names in (("a", with_a), ("b", with_b)):
            if any(name in leaf for name in names):
                return side, count
    return "", 1
