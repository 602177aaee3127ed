"""The product that a LoRA adapter adds to a linear layer, in all the forms that PEFT stores it in.

In: the tensors of one module. Out: their shapes as factors, and the step that adds them. Besides plain A and
B there are a diagonal between them (KaSA, arXiv:2412.06071; AdaLoRA, arXiv:2303.10512) and factors of which
only the diagonal blocks are stored (block-diagonal LoRA, PEFT's `use_bdlora`).
"""

from __future__ import annotations

from collections.abc import Callable

from lorafold.adapters import Adapter, ModuleTensors
from lorafold.errors import InputError
from lorafold.export.fold.changes import AddLowRank, Block
from lorafold.export.fold.factors import Factors


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
