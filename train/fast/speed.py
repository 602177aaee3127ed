"""Chooses what a run computes with, for the machine and the model, and says it in one line.

A piece is off if it cannot run or was switched off, and the reason is kept. `check.py` then compares the
fast path's result with the plain path's.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lorafold.train.config import TrainConfig
from lorafold.train.fast.attention import VARLEN, choose_attention
from lorafold.train.fast.delta_net import confinable, confine
from lorafold.train.fast.forward import causal_model
from lorafold.train.fast.state import stateful_layers
from lorafold.train.methods import Method

if TYPE_CHECKING:
    import torch


_APART = "one example a row"
_ORIGINALS: dict[ModuleType, dict[str, Any]] = {}  # of modules that were changed, as they were


@dataclass(frozen=True, slots=True)
class Speed:
    """The pieces of the fast way that are in use.

    Attributes:
        packing: examples lie end to end instead of side by side with padding.
        attention: transformers' name of the implementation.
        liger: Liger's kernels for norms, rotary embedding and gated layers.
        fused: number of LoRA layers computed in one piece.
        direct: the loss is computed from hidden states, without all logits.
        graphs: the decoder's launches are replayed as CUDA graphs.
        checkpointing: activations are computed twice instead of kept.
        moved_out: the input embedding lies in the CPU's memory.
        capacity: maximum tokens per pack.
        reasons: why a piece is off, in words.
        dtype: the type that the run computes in, such as bfloat16.
        optimizer: its name.
        bounded: layers that keep a state are told where examples begin.
    """

    packing: bool = False
    attention: str = "sdpa"
    liger: bool = False
    fused: int = 0
    direct: bool = False
    graphs: bool = False
    checkpointing: bool = False
    moved_out: bool = False
    capacity: int = 0
    reasons: tuple[str, ...] = ()
    dtype: str = ""
    optimizer: str = ""
    bounded: bool = False

    @property
    def fast(self) -> bool:
        """Whether anything differs from the plain way."""
        return self.packing or self.liger or bool(self.fused) or self.direct

    @property
    def slowed(self) -> bool:
        """Whether examples are apart because of the model's layers."""
        return any(reason.startswith(_APART) for reason in self.reasons)

    def line(self) -> str:
        """One line for the user."""
        pieces = [
            *([self.dtype] if self.dtype else []),
            f"packed to {self.capacity:,} tokens" if self.packing else "padded",
            f"attention {self.attention.removeprefix('lorafold_')}",
            *(["states that begin with each example"] if self.bounded else []),
            *(["Liger kernels"] if self.liger else []),
            *([f"{self.fused} fused LoRA layers"] if self.fused else []),
            *(["loss without all logits"] if self.direct else []),
            *(["CUDA graphs"] if self.graphs else []),
            *(["gradient checkpointing"] if self.checkpointing else []),
            *(["input embedding in the CPU's memory"] if self.moved_out else []),
            *([self.optimizer] if self.optimizer else []),
        ]
        return "; ".join([", ".join(pieces), *self.reasons])


def choose(config: TrainConfig, method: Method, model: Any, device: torch.device) -> Speed:
    """Which pieces are to be used; nothing is changed yet.

    Args:
        config: fields that are None are chosen here.
        method: the row of the method.
        model: with the adapter in place.
        device: of the model.
    """
    gpu = device.type == "cuda"
    plain = config.attn_implementation or causal_model(model).config._attn_implementation
    reasons: list[str] = []

    def use(wanted: bool | None, conditions: Sequence[tuple[bool, str]]) -> bool:
        """On unless switched off or impossible; the reason is kept if the user asked for it."""
        if wanted is False:
            return False
        missing = next((reason for possible, reason in conditions if not possible), None)
        if missing and (wanted or gpu):
            reasons.append(missing)
        return missing is None and (gpu or bool(wanted))

    kept = stateful_layers(causal_model(model))
    bounded = bool(kept) and all(map(confinable, map(_module, kept)))
    packing = use(
        config.packing,
        (
            (not method.prompt, "not packed: a trained prompt goes before each example"),
            (
                bounded or not kept,
                f"{_APART}: {_name(kept)} keeps a state, which would run on into the next example",
            ),
            (
                bounded or bool(getattr(causal_model(model), "_supports_attention_backend", False)),
                "not packed: this model's code cannot keep packed examples apart",
            ),
        ),
    )
    triton = (find_spec("triton") is not None, "no fused kernels: Triton is not installed")
    on_gpu = (gpu, "no fused kernels: there is no CUDA GPU")
    kernels = use(config.fused_kernels, (on_gpu, triton))
    compiled = (not config.torch_compile, "compiled by torch instead of Liger's and our kernels")
    fused = use(config.fused_kernels, (on_gpu, triton, compiled))
    liger = use(
        config.use_liger_kernel,
        (
            (gpu, "no Liger kernels: there is no CUDA GPU"),
            compiled,
            (find_spec("liger_kernel") is not None, "no Liger kernels: pip install liger-kernel"),
            (_liger_knows(causal_model(model)), "no Liger kernels: they do not know this architecture"),
            (not _wraps_experts(model), "no Liger kernels: they do not know an adapter of stacked experts"),
        ),
    )
    attention = plain
    if packing and gpu and not config.attn_implementation:
        attention, why = choose_attention(causal_model(model), next(model.parameters()).dtype)
        if attention == "sdpa":
            reasons.append(f"sdpa: {why}")
    direct = kernels and not method.prompt and _direct_fits(causal_model(model))
    said = tuple(dict.fromkeys(reasons))
    return Speed(packing, attention, liger, int(fused), direct, reasons=said, bounded=packing and bounded)


def _name(layers: Sequence[type]) -> str:
    return layers[0].__name__ if layers else ""


def unpacked(speed: Speed, model: Any, attention: str) -> Speed:
    """Take packing back, from a model in which packed examples reach each other.

    Args:
        speed: that was applied to the model.
        model: changed in place.
        attention: the implementation that the model came with.
    """
    causal_model(model).set_attn_implementation(attention)
    reason = f"{_APART}: this model's code lets packed examples see each other"
    reasons = (*speed.reasons, reason)
    return replace(speed, packing=False, bounded=False, attention=attention, reasons=reasons)


def _liger_knows(causal: Any) -> bool:
    if find_spec("liger_kernel") is None:
        return False
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return causal.config.model_type in MODEL_TYPE_TO_APPLY_LIGER_FN


def _wraps_experts(model: Any) -> bool:
    """Whether peft stands between a model and its stacked experts, where Liger looks for their sizes."""
    return any(type(module).__name__ == "ParamWrapper" for module in model.modules())


def _direct_fits(causal: Any) -> bool:
    from lorafold.train.fast.head_loss import plain_head

    return plain_head(causal) is not None


def tell_of_bounds(model: Any) -> None:
    """Let layers that keep a state know where packed examples begin; what is not packed stays the same."""
    for module in {_module(layer) for layer in stateful_layers(causal_model(model))}:
        _remember(module)
        confine(module)


def _module(of: type) -> ModuleType:
    return sys.modules[of.__module__]


def _remember(module: ModuleType) -> None:
    """Keep a module of transformers as it is, until `restored_modules` puts it back."""
    _ORIGINALS.setdefault(module, dict(vars(module)))


def apply(speed: Speed, model: Any, device: torch.device) -> Speed:
    """Change the model in place to compute by a choice.

    Returns:
        The choice, with the number of layers that were fused.
    """
    causal = causal_model(model)
    if speed.attention != causal.config._attn_implementation:
        causal.set_attn_implementation(speed.attention)
    fused = 0
    if speed.fused:
        from lorafold.train.fast.fused_lora import fuse

        fused = fuse(model)
    if speed.liger:
        _apply_liger(causal)
    return replace(speed, fused=fused)


def _apply_liger(causal: Any) -> None:
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    # It would say in the first pass of every other vendor's kernels that they are not installed.
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
    _remember(_module(type(causal)))
    # Their losses are left out: ours goes through the head once for all trained positions of a step.
    _apply_liger_kernel_to_instance(causal, cross_entropy=False, fused_linear_cross_entropy=False)


@contextlib.contextmanager
def restored_modules() -> Iterator[None]:
    """Put back at the end of the block what Liger and `tell_of_bounds` replaced in transformers' modules.

    Liger replaces functions there as well as in the model, and a later model on the CPU would call them.
    """
    try:
        yield
    finally:
        for module, attributes in _ORIGINALS.items():
            vars(module).update(attributes)
        _ORIGINALS.clear()


def graphs_possible(config: TrainConfig, speed: Speed, model: Any, dtype: torch.dtype) -> bool:
    """Whether the decoder can be captured: nothing in it waits for the processor or changes its shape.

    Args:
        config: of the run.
        speed: chosen so far.
        model: that it was applied to.
        dtype: the type that the run computes in, such as bfloat16.
    """
    import torch

    from lorafold.train.fast.fused_lora import drops_elsewhere

    return (
        speed.attention == VARLEN
        and not speed.bounded  # it waits for the bounds of each pack
        and speed.direct
        and bool(speed.fused)
        and not (config.torch_compile or config.device_map)
        and dtype == torch.bfloat16
        # Gradient checkpointing may be switched on later, for want of memory.
        and not drops_elsewhere(causal_model(model).base_model)
    )
