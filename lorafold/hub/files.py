"""Which GGUF of a repository a user means: ORG/NAME, with a type or a file's name behind a colon.

unsloth/Qwen3-0.6B-GGUF:BF16                  the file, or the parts, whose name ends in the type
unsloth/Qwen3-0.6B-GGUF@REVISION:BF16         the same at a branch, tag or commit
unsloth/Qwen3-0.6B-GGUF:mmproj-F16.gguf       one file by its name
modelscope:unsloth/Qwen3-0.6B-GGUF:BF16       from ModelScope, whose files are downloaded whole
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorafold.errors import InputError, SystemFault, UsageError
from lorafold.hub.faults import hub_faults, unreachable
from lorafold.sources.naming import HUB_ID

_SPEC = re.compile(
    rf"(?P<scope>modelscope:)?(?P<id>{HUB_ID})(?:@(?P<revision>[\w./-]+))?(?::(?P<wanted>[\w./ -]+))?"
)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
# Beside models a repository of GGUFs holds these; they are meant by their file's name alone.
_OTHERS = re.compile(r"mmproj|imatrix", re.IGNORECASE)
OTHERWISE = "download the file and give its path"
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class HubSpec:
    """What the user typed, taken apart.

    Attributes:
        repository: "org/name".
        revision: branch, tag or commit; "" for the default one.
        wanted: a type, or a file's name; "" if there is only one.
        modelscope: whether it lies there.
    """

    repository: str
    revision: str
    wanted: str
    modelscope: bool

    @classmethod
    def parse(cls, spec: str) -> HubSpec | None:
        """The parts of a spec; None if it is a path."""
        found = _SPEC.fullmatch(spec)
        if found is None or Path(spec).exists() or (found["wanted"] is None and spec.endswith(".gguf")):
            return None
        return cls(found["id"], found["revision"] or "", found["wanted"] or "", bool(found["scope"]))


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file at one commit of a repository.

    Attributes:
        repository: "org/name".
        commit: the hub's.
        name: path inside the repository.
    """

    repository: str
    commit: str
    name: str

    @property
    def path(self) -> Path:
        """What it is called in messages, and wherever a path stands for a file."""
        return Path(self.repository) / self.name

    @property
    def spec(self) -> str:
        """What finds this very file again."""
        return f"{self.repository}@{self.commit}:{self.name}"


def find_files(spec: HubSpec, *, offline: bool) -> list[Path] | list[HubFile]:
    """The file that is meant, or all parts of it: on this disk if a cache holds them, else on the hub.

    Raises:
        InputError: no such repository or file, or several that may be meant.
        SystemFault: the network failed, and no cache holds it.
    """
    if spec.modelscope:
        return _in_modelscope(spec)
    if offline:
        return _in_cache(spec, offline=True)
    import huggingface_hub

    try:
        with hub_faults(spec.repository, instead=OTHERWISE):
            about = huggingface_hub.HfApi().model_info(spec.repository, revision=spec.revision or None)
            listed = [file.rfilename for file in about.siblings or ()]
            if not all(isinstance(name, str) for name in (about.sha, *listed)):
                raise ValueError("a name that is no text")
    except SystemFault:
        return _in_cache(spec, offline=False)  # the network is away
    commit = str(about.sha)
    names = choose(listed, spec)
    cached = [huggingface_hub.try_to_load_from_cache(spec.repository, n, revision=commit) for n in names]
    here = [Path(path) for path in cached if isinstance(path, str)]
    return here if len(here) == len(names) else [HubFile(spec.repository, commit, name) for name in names]


def _in_cache(spec: HubSpec, *, offline: bool) -> list[Path]:
    import huggingface_hub

    with hub_faults(spec.repository, offline=offline, instead=OTHERWISE):
        folder = Path(
            huggingface_hub.snapshot_download(
                spec.repository, revision=spec.revision or None, local_files_only=True
            )
        )
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    if not files:
        raise unreachable(spec.repository, offline=offline, instead=OTHERWISE)
    return [folder / name for name in choose(files, spec)]


def _in_modelscope(spec: HubSpec) -> list[Path]:
    from lorafold.models import modelscope_folder

    if not spec.wanted:
        raise UsageError(
            "which of its files is meant?",
            at=f"modelscope:{spec.repository}",
            fix=f"give its type or name: modelscope:{spec.repository}:BF16",
        )
    pattern = f"*{spec.wanted}" if spec.wanted.endswith(".gguf") else f"*{spec.wanted}*.gguf"
    folder = modelscope_folder(spec.repository, (pattern,))
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    return [folder / name for name in choose(names, spec)]


def choose(names: Iterable[str], spec: HubSpec) -> list[str]:
    """The files of a repository that are meant: one, or all parts of one, in order.

    Args:
        names: all of its files.
        spec: what the user typed.

    Raises:
        InputError: none is, or several are.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf"):
            groups.setdefault(_PART.sub("", name.removesuffix(".gguf")), []).append(name)
    wanted = spec.wanted
    if wanted.endswith(".gguf"):
        stem = _PART.sub("", wanted.removesuffix(".gguf"))
        meant = [own for own in groups if own == stem or own.rpartition("/")[2] == stem]
    else:
        models = [own for own in groups if not _OTHERS.search(own)]
        ends = re.compile(rf"(^|[-._/]){re.escape(wanted)}$", re.IGNORECASE)
        meant = [own for own in models if not wanted or ends.search(own)]
    if len(meant) == 1:
        return groups[meant[0]]
    some = meant or list(groups)
    listed = ", ".join(some[:_SHOWN]) + (", …" if len(some) > _SHOWN else "")
    example = f"{spec.repository}:{some[0].rpartition('/')[2]}.gguf" if some else "another repository"
    if meant:
        problem = f"{len(meant)} of its files may be meant: {listed}"
    elif groups:
        problem = f"no GGUF of it is called so ({wanted or 'no model among them'}); it has {listed}"
    else:
        problem = "it holds no GGUF"
    raise InputError(problem, at=spec.repository, fix=f"give the type or the file: {example}")
