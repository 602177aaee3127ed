"""Why an adapter's folder has no adapter_model.safetensors, told from what it has instead.

A training that was not gathered, a download that did not end, or another program's files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorafold.adapters.config import SAVE_AGAIN
from lorafold.errors import InputError, LorafoldError, UnsafeInputError
from lorafold.files.signatures import no_file

_TRUSTED = "load it with PEFT if you trust it, and `save_pretrained` it again"


@dataclass(frozen=True, slots=True)
class _Instead:
    """What may lie in the folder instead of the weights.

    Attributes:
        names: patterns of names.
        what: words that complete "no adapter_model.safetensors, ".
        fix: what helps; {name} is what was found.
        unsafe: reading it would run code.
    """

    names: tuple[str, ...]
    what: str
    fix: str
    unsafe: bool = False


# The first row that fits counts.
_INSTEAD = (
    _Instead(
        tuple(f"adapter_model*.{end}" for end in ("incomplete", "aria2", "part", "crdownload", "tmp")),
        "only a download that has not ended",
        "finish the download, or begin it again",
    ),
    _Instead(
        ("adapter_model.safetensors.index.json", "adapter_model-*-of-*.safetensors"),
        "but shards of it",
        "join them: load the adapter with the program that wrote it, and save it in one file",
    ),
    _Instead(
        ("adapter_model.bin", "adapter_model*.pt", "adapter_*.pt", "adapter*.pth", "adapter_model*.bin"),
        "weights only as a pickle, which can run code when loaded",
        _TRUSTED,
        unsafe=True,
    ),
    _Instead(
        ("adapters.safetensors", "adapters.npz"),
        "but mlx-lm's weights beside a configuration that is not mlx-lm's",
        "copy the adapter_config.json that mlx-lm saved with the adapter",
    ),
    _Instead(
        ("pytorch_model_fsdp*", "*.distcp", "*/*.distcp"),
        "but the shards of a training with FSDP",
        "gather them: `accelerate merge-weights {name} OUT`, or save with FSDP's FULL_STATE_DICT",
    ),
    _Instead(
        ("global_step*", "zero_to_fp32.py", "*_optim_states.pt"),
        "but the shards of a training with DeepSpeed",
        "gather them with zero_to_fp32.py, or set `stage3_gather_16bit_weights_on_model_save` and save again",
    ),
    _Instead(
        ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
        "but a whole model",
        "if the adapter is merged into it already, remove adapter_config.json and export the model",
    ),
    _Instead(
        ("*.gguf",), "but a GGUF file", "give the adapter as it was trained; llama.cpp takes the GGUF itself"
    ),
    _Instead(
        ("*.safetensors",), "but another file", "if {name} is the adapter, call it adapter_model.safetensors"
    ),
)  # fmt: skip


def why_no_weights(folder: Path) -> LorafoldError:
    """The error of an adapter's folder without adapter_model.safetensors."""
    if (folder / "adapter_model.safetensors").is_symlink():
        return no_file(folder / "adapter_model.safetensors")
    for row in _INSTEAD:
        for path in _found(folder, row.names):
            error = UnsafeInputError if row.unsafe else InputError
            name = path.relative_to(folder).as_posix()
            return error(
                f"no adapter_model.safetensors, {row.what}: {name}", at=folder, fix=row.fix.format(name=name)
            )
    return InputError("no adapter_model.safetensors", at=folder, fix=SAVE_AGAIN)


def _found(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (path for pattern in patterns for path in sorted(folder.glob(pattern)))
