"""A causal language model of transformers, loaded the same way by training, proof and chat.

Nothing is downloaded, no pickle is read, nothing is printed. A tensor that is missing or of another shape is
an error: transformers itself would go on with random numbers.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lorafold.errors import InputError
from lorafold.libraries.quiet import quiet_bitsandbytes
from lorafold.safetensors_file import read_header

# What loading raises for a model, an adapter or a version that does not fit: there is no common ancestor.
REFUSALS = (
    ValueError,
    RuntimeError,
    OSError,
    ImportError,
    LookupError,
    AttributeError,
    TypeError,
    SafetensorError,
)


def automatic_class(config: Any) -> Any:
    """transformers' automatic class for a config: the one for models that see images if it is one of those.

    Some of them, such as Gemma 3, are causal language models too, and are taken as such.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(config)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def load_causal_lm(folder: Path, **options: Any) -> Any:
    """Load a model folder.

    Args:
        folder: the model's.
        options: of `from_pretrained`: `dtype`, `device_map`, `quantization_config`, `trust_remote_code`, …

    Returns:
        A transformers model.

    Raises:
        InputError: transformers cannot load it, or tensors are missing or of another shape.
        MemoryError, RuntimeError, OSError: memory ran out (`is_memory_fault` tells).
    """
    quiet_bitsandbytes()
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            remote = bool(options.get("trust_remote_code"))
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=remote)
            model, info = automatic_class(config).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except REFUSALS as error:
        if is_memory_fault(error):
            raise
        check_headers(Path(folder))
        raise InputError(
            f"transformers cannot load it ({told(error)})",
            at=folder,
            fix="correct config.json, or download the model again",
        ) from error
    _check_loaded(folder, info)
    return model


def check_headers(folder: Path) -> None:
    """Look at the weights of a folder, once something could not load them: our words name the cause.

    Raises:
        InputError: a file is damaged, or something else than its name says.
    """
    for path in sorted(folder.glob("*.safetensors")):
        read_header(path)


def told(error: BaseException) -> str:
    """The first line of what a library says, with the kind of error if that is all."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def is_memory_fault(error: BaseException) -> bool:
    """Whether memory ran out, by exceptions of Python and CUDA or texts of torch, cuBLAS and errno."""
    import torch

    texts = ("can't allocate memory", "Cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        text in str(error) for text in texts
    )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and warnings off the terminal, which belongs to the caller."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # transformers and peft deprecate each other's attributes.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_loaded(folder: Path, info: dict[str, Any]) -> None:
    """Refuse what transformers would only warn about: it fills missing tensors with random numbers."""
    for key, what in (
        ("mismatched_keys", "shape against config.json"),
        ("missing_keys", "missing from the weights"),
    ):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ())
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(f"{what}: {shown}", at=folder, fix="download the model again")
