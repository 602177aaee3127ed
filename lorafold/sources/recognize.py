"""Recognises a folder or file that the user gave by mistake, so that the error can say what it is.

People give a Trainer's output folder, an adapter as a base, one file of a folder, or a folder of the hub's
cache. Only names are looked at; nothing is read but small JSON files.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.errors import LorafoldError
from lorafold.files.jsonfile import read_object
from lorafold.files.signatures import head_of, told_by
from lorafold.sources.naming import HUB_ID, dotted, is_dotted

ADAPTER, MODEL = "adapter_config.json", "config.json"
_STEP = re.compile(r"checkpoint-(\d+)$")
_DEEP, _MANY = 3, 200  # how far below a folder something is looked for, and among how many names
# A page or a file of a repository, on the hub, its mirrors, or ModelScope.
_ADDRESS = re.compile(
    r"(?:https?://|hf://)?(?:huggingface\.co|hf\.co|hf-mirror\.com|(?:www\.)?modelscope\.cn/models)/"
    rf"(?P<id>{HUB_ID})"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/?#]+)(?P<inside>/[^?#]*)?)?"
)


# A folder without the file that tells what it is: names of files in it, what they are, what helps.
_INCOMPLETE = (
    (
        ("adapters.safetensors", "adapters.npz", "*_adapters.safetensors"),
        "the weights of an mlx-lm adapter without adapter_config.json",
        "copy the adapter_config.json that mlx-lm saved with them into the folder",
    ),
    (
        ("adapter_model.safetensors", "adapter_model.bin"),
        "the weights of an adapter without adapter_config.json",
        "copy the adapter_config.json that was saved with them into the folder",
    ),
    (
        ("pytorch_lora_weights.*",),
        "an adapter for image models (diffusers)",
        "give the adapter of a language model",
    ),
    (
        ("adapter_*.pt", "adapter*.pth"),
        "a torchtune adapter in its own format",
        "save it in PEFT's format (adapter_model.safetensors with adapter_config.json)",
    ),
    (
        ("lit_model.pth*",),
        "a LitGPT checkpoint",
        "convert it where it was made: litgpt merge_lora, then litgpt convert_from_litgpt",
    ),
    (
        ("consolidated.*.pth", "params.json"),
        "a model in its maker's own format",
        "give the repository's version for transformers",
    ),
    (
        ("*.distcp", "pytorch_model_fsdp*", "global_step*", "zero_to_fp32.py"),
        "the shards of a training (FSDP, DeepSpeed)",
        "gather them first: `accelerate merge-weights`, or zero_to_fp32.py",
    ),
    (
        (
            "model.safetensors",
            "model.safetensors.index.json",
            "model-*-of-*.safetensors",
            "pytorch_model*.bin",
        ),
        "the weights of a model without config.json",
        "download config.json and the tokenizer's files into the folder",
    ),
)


@dataclass(frozen=True, slots=True)
class Place:
    """What is there.

    Attributes:
        what: words that complete "this is …", such as "a model folder".
        use: what to give instead; None if this path is usable itself, but for another purpose.
        fix: what helps, if it is not to give another path.
        more: other paths that may be meant as well.
    """

    what: str
    use: Path | None = None
    fix: str = ""
    more: tuple[Path, ...] = ()


def recognize(place: Path) -> Place | None:
    """Recognise what is at a path; None if it is nothing we know."""
    if place.is_file():
        return _file(place)
    if not place.is_dir():
        return None
    if is_adapter(place):
        return Place(f"an adapter{_of_base(place)}")
    if (place / MODEL).is_file():
        return Place("a model folder")
    if ggufs := sorted(place.glob("*.gguf")):
        return Place("a folder with GGUF files", ggufs[0])
    if adapter := newest_checkpoint(place, ADAPTER):
        return Place("a Trainer's output folder with adapters in checkpoint-*", adapter)
    if model := newest_checkpoint(place, MODEL):
        return Place("a Trainer's output folder with models in checkpoint-*", model)
    if snapshot := _newest_snapshot(place):
        return Place("a repository's folder in the hub's cache", snapshot)
    for names, what, fix in _INCOMPLETE:
        if any(any(place.glob(name)) for name in names):
            return Place(what, fix=fix)
    for name, what in ((ADAPTER, "an adapter"), (MODEL, "a model folder")):
        if hits := _below(place, name):
            several = "several adapters" if name == ADAPTER else "several model folders"
            held = what if len(hits) == 1 else several
            return Place(f"a folder that holds {held}", hits[0], more=tuple(hits[1:]))
    return None


def is_adapter(folder: Path) -> bool:
    """Whether an adapter lies in the folder, and not a model beside a forgotten configuration."""
    return (folder / ADAPTER).is_file() and not any(
        (folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")
    )


def _below(place: Path, name: str) -> list[Path]:
    """The folders that hold a file of this name, up to `_DEEP` levels down; later checkpoints come first."""
    level = [place]
    for _ in range(_DEEP):
        level = [path for above in level for path in sorted(above.iterdir())[:_MANY] if path.is_dir()][:_MANY]
        if hits := [path for path in level if (path / name).is_file()]:
            return sorted(hits, key=lambda path: -_step(path))
    return []


def _step(path: Path) -> int:
    match = _STEP.match(path.name)
    return int(match[1]) if match else 0


def newest_checkpoint(folder: Path, name: str) -> Path | None:
    """The checkpoint-N of the highest N that holds a file of this name."""
    steps = {
        _step(path): path for path in folder.iterdir() if _STEP.match(path.name) and (path / name).is_file()
    }
    return steps[max(steps)] if steps else None


def run_folder(out: Path) -> Path:
    """Where an unfinished training into `out` is kept."""
    return out.with_name(f"{out.name}.run")


def unfinished(place: Path) -> str | None:
    """What to do about a folder that is missing because the training into it has not ended."""
    if not place.name or not any(run_folder(place).glob("checkpoint-*")):
        return None
    return f"the training into it has not ended: add --resume to its command ({run_folder(place)} keeps it)"


def instead(place: Path, wanted: str) -> tuple[str, str] | None:
    """Problem and cure for an error about a place that is not what was wanted.

    Args:
        place: what was given.
        wanted: what was expected, in the error's words ("a model folder").
    """
    found = recognize(place)
    if found is None:
        return None
    problem = f"this is {found.what}, not {wanted}"
    if found.fix:
        return problem, found.fix
    if found.use is not None:
        return problem, f"give {' or '.join(map(str, (found.use, *found.more[:3])))}"
    if is_adapter(place):
        base = _config(place).get("base_model_name_or_path")
        return problem, f"give its base ({base or 'the model that it was trained on'})"
    if place.suffix == ".gguf":
        return problem, "give the Hugging Face folder that it was made from"
    return problem, f"give {wanted}"


def likely_hub_id(path: str) -> str | None:
    """The hub id that a path of another machine most likely stands for; None if it does not look like one."""
    parts = [part for part in dotted(path).split("/") if part]
    for part in parts:
        if part.startswith("models--") and part.count("--") >= 2:  # the hub's cache
            return "/".join(part.split("--", 2)[1:])
    downloaded = not is_dotted(path) or any(part in ("hub", "modelscope") for part in parts[:-2])
    if not downloaded or not all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", part) for part in parts[-2:]):
        return None
    return "/".join(parts[-2:])


def download_again(folder: Path) -> str:
    """The command that goes on with a download that stopped half-way: it fetches what is missing."""
    place = str(folder.absolute())
    repository = likely_hub_id(place) or "ORG/NAME"
    if "modelscope" in place or not is_dotted(place):
        command = f"modelscope download --model {repository}"
    elif "models--" in place:
        command = f"hf download {repository}"
    else:
        command = f"hf download {repository} --local-dir {shlex.quote(str(folder))}"
    return f"the download stopped half-way; go on with it, what is there is kept: {command}"


def hub_address(spec: str) -> tuple[str, str] | None:
    """The id and the folder inside the repository that a page's address names; None if it is no address.

    `https://huggingface.co/ORG/NAME/tree/REVISION/FOLDER` is ("ORG/NAME@REVISION", "FOLDER").
    """
    match = _ADDRESS.match(spec)
    if match is None:
        return None
    revision = "" if match["revision"] in (None, "main", "master") else f"@{match['revision']}"
    return match["id"] + revision, (match["inside"] or "").strip("/")


def inside_repository(spec: str) -> tuple[str, str] | None:
    """ORG/NAME/FOLDER as (ORG/NAME, FOLDER), if it may be a folder inside a repository of the hub."""
    match = re.fullmatch(rf"({HUB_ID})/([\w.-][\w./-]*?)/*", spec)
    return None if match is None else (match[1], match[2])


def _file(path: Path) -> Place | None:
    names = {
        "adapter_model": ADAPTER,
        "adapter_config": ADAPTER,
        "adapters": ADAPTER,
        "model": MODEL,
        "config": MODEL,
    }
    for stem, config in names.items():
        if path.name.startswith(stem) and (path.parent / config).is_file():
            return Place("one file of a folder", path.parent)
    if path.suffix == ".gguf":
        return Place("a GGUF file")
    found = None if path.suffix == ".safetensors" else told_by(head_of(path))
    return Place(found.what, fix=found.fix) if found is not None else None


def _of_base(folder: Path) -> str:
    base = _config(folder).get("base_model_name_or_path")
    return f" for {base}" if isinstance(base, str) and base else ""


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / ADAPTER)
    except LorafoldError:
        return {}  # whoever opens the adapter will say what is wrong with it


def _newest_snapshot(folder: Path) -> Path | None:
    """models--ORG--NAME/snapshots/REVISION: the one that refs/main names, else any."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return None
    ref = folder / "refs" / "main"
    if ref.is_file() and (named := snapshots / ref.read_text().strip()).is_dir():
        return named
    return next(iter(sorted(path for path in snapshots.iterdir() if path.is_dir())), None)
