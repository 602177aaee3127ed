"""Which packed formats are read: from the method's name in config.json to the module that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorafold.packed.layouts import awq, bnb, compressed, fp8, gptq, hqq, mlx, mxfp4, torchao
from lorafold.packed.stored import PackedTensor, Stored

Plan = Callable[[Stored, Mapping[str, Any]], Iterator[PackedTensor]]


@dataclass(frozen=True, slots=True)
class Format:
    """One packed format.

    Attributes:
        plan: lists the packed tensors of a base from headers (and the few bytes that hold shapes).
        words: what to call it, made from its settings.
        needs: what stands beside a packed weight, for a message if it does not.
    """

    plan: Plan
    words: Callable[[Mapping[str, Any]], str]
    needs: str


def _bits(name: str, key: str = "bits") -> Callable[[Mapping[str, Any]], str]:
    return lambda settings: f"{name}, {settings.get(key, '?')} bits"


def _bnb(settings: Mapping[str, Any]) -> str:
    if settings.get("load_in_8bit"):
        return "bitsandbytes, int8"
    return f"bitsandbytes, {str(settings.get('bnb_4bit_quant_type', '4 bits')).upper()}"


def _torchao(settings: Mapping[str, Any]) -> str:
    kind = settings.get("quant_type")
    kind = kind.get("default") if isinstance(kind, Mapping) else kind
    kind = kind.get("_type") if isinstance(kind, Mapping) else kind
    return f"torchao, {kind}" if isinstance(kind, str) else "torchao"


def _hqq(settings: Mapping[str, Any]) -> str:
    own = settings.get("quant_config")
    weights = own.get("weight_quant_params") if isinstance(own, Mapping) else None
    return f"HQQ, {weights.get('nbits', '?')} bits" if isinstance(weights, Mapping) else "HQQ"


FORMATS: dict[str, Format] = {
    "bitsandbytes": Format(bnb.plan, _bnb, "quant_state and absmax, or SCB"),
    "fp8": Format(fp8.plan, lambda settings: "FP8", "weight_scale_inv or weight_scale"),
    "fbgemm_fp8": Format(fp8.plan, lambda settings: "FP8", "weight_scale"),
    "mxfp4": Format(mxfp4.plan, lambda settings: "MXFP4", "blocks and scales"),
    "gptq": Format(gptq.plan, _bits("GPTQ"), "qzeros and scales"),
    "awq": Format(awq.plan, _bits("AWQ"), "qzeros and scales"),
    "compressed-tensors": Format(
        compressed.plan,
        lambda settings: f"compressed-tensors, {settings.get('format', 'mixed')}",
        "weight_scale and weight_shape",
    ),
    "torchao": Format(torchao.plan, _torchao, "qdata, scale and the file's metadata"),
    "hqq": Format(hqq.plan, _hqq, "scale, zero, shape and nbits"),
    "mlx": Format(mlx.plan, _bits("MLX"), "scales and biases"),
}
"""By `quant_method`; MLX, which writes none, under its own name."""


def method_of(config: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]] | None:
    """How a base is packed: key of config.json, name of the method, its settings; None if it is not."""
    # MLX writes "quantization", and since 0.20 the other name beside it, without the method's name.
    for key in KEYS:
        if not (settings := config.get(key)):
            continue
        if not isinstance(settings, Mapping):
            return key, str(settings), {}
        method = "mlx" if key == "quantization" else settings.get("quant_method")
        if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
            method = "bitsandbytes"  # its first versions left the name out
        return key, str(method or "method not named"), settings
    return None


def without_packing(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without what says how the weights are packed."""
    return {name: value for name, value in config.items() if name not in KEYS}


KEYS = ("quantization", "quantization_config", "compression_config")
