"""Loads a base for training, in the type and on the device that the config asks for, and checks it.

Only safetensors are read. Headers are validated by `lorafold.weights` before transformers sees the folder,
and a tensor that is missing or of another shape is an error here, not a random initialisation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorafold.errors import InputError, SystemFault
from lorafold.libraries.causal_lm import is_memory_fault, load_causal_lm
from lorafold.models import Base, require
from lorafold.train.config import TrainConfig
from lorafold.train.methods import Method
from lorafold.train.model.packing import check_packed, in_4bit, packing_of, packs, stored_type
from lorafold.weights import Checkpoint

if TYPE_CHECKING:
    import torch


def pick_device() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type for a name; "auto" is bfloat16 on a GPU that computes in it, float16 on an older one.

    A CPU without bfloat16 instructions is far slower in bfloat16 than in float32.
    """
    import torch

    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_model(base: Base, config: TrainConfig, method: Method, device: torch.device) -> Any:
    """Load the base for training.

    Returns:
        A transformers causal language model; its weights are frozen unless the method trains them all.

    Raises:
        UsageError: the method needs weights that the base has packed.
        InputError: the weights are damaged or do not fit the config.
        UnsafeInputError: there are only pickled weights.
        SystemFault: a package or memory is missing.
    """
    Checkpoint.open(base.folder)
    check_packed(base, method)
    packing = packing_of(base)
    quantized = packing is None and packs(config, method)
    # All that is trained is float32: every weight, or what is added to a base of any type.
    dtype = pick_dtype("float32" if method.peft is None else config.dtype, device)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    if quantized:
        require("bitsandbytes", extra="train")
        options["quantization_config"] = _quantization(config, device)
    # Weights that will be cut up among GPUs need not fit on one; 4-bit ones are made there.
    start: Any = "cpu" if config.fsdp and not quantized and packing is None else device
    options["device_map"] = config.device_map or {"": start}
    try:
        model = load_causal_lm(base.folder, **options)
    except InputError as error:
        if packing is not None:
            error.fix = f"install what transformers asks for, or train on the 16-bit original of {base.id}"
        raise
    _keep_differentiable(model)
    model.config.use_cache = False
    # peft's `prepare_model_for_kbit_training` would also widen embeddings and norms to float32: 1.6 GiB more
    # for a 7B model, which their own type does without.
    model.requires_grad_(method.peft is None)
    return model


def _keep_differentiable(model: Any) -> None:
    """Keep 4-bit layers from repacking their weights on a CPU, after which they give no gradient.

    On CPUs with bfloat16 instructions bitsandbytes repacks a layer at its first pass in evaluation mode, for
    an operation without a derivative, and trains on with it: every step after an evaluation or a checkpoint
    would be wrong, with no more than a warning of torch.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _quantization(config: TrainConfig, device: torch.device) -> Any:
    from transformers import BitsAndBytesConfig

    if not in_4bit(config):
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=pick_dtype(config.bnb_4bit_compute_dtype, device),
    )


@contextlib.contextmanager
def memory_faults() -> Iterator[None]:
    """Turn running out of memory into a fault that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_memory_fault(error):
            raise
        raise SystemFault(
            "out of memory",
            fix="lower --per-device-train-batch-size or --max-length, or pass --gradient-checkpointing "
            "or --method qlora",
        ) from error


def base_dtype(base: Base) -> torch.dtype:
    """The type in which the base's weights are stored; float32 if config.json does not say."""
    import torch

    found = getattr(torch, stored_type(base), torch.float32)
    return found if isinstance(found, torch.dtype) else torch.float32
