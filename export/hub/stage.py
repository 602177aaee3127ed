"""`lorafold push DIR ORG/NAME`: an export goes to a hub, private unless asked otherwise.

A step of its own and no flag of the export: an upload of hours fails and goes on by itself, and what was made
is not made again for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorafold.errors import UsageError
from lorafold.export.config import PushConfig
from lorafold.export.hub.card import HubName, model_card
from lorafold.export.hub.client import PushFile, push_files
from lorafold.export.hub.facts import ExportFacts, read_facts
from lorafold.export.hub.modelscope import push_modelscope
from lorafold.export.manifest import REPORT
from lorafold.export.modelfile.parser import parse
from lorafold.progress import Lines, Progress, silent

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")
_SUFFIXES = (".gguf", ".safetensors", ".json", ".jinja", ".model", ".txt")
_MODELFILE = "Modelfile"
_PLACES: Mapping[str, HubName] = {"huggingface": "hf.co", "modelscope": "modelscope.cn"}


@dataclass(frozen=True, slots=True)
class PushResult:
    """What was pushed, or would be.

    Attributes:
        repo: "org/name".
        address: of the repository; "" if nothing was sent.
        public: everybody may see it.
        files: names and sizes in bytes.
        notes: what the user should know.
        place: where Ollama finds it: "hf.co" or "modelscope.cn".
    """

    repo: str
    address: str
    public: bool
    files: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    place: str = "hf.co"

    def lines(self) -> Lines:
        """Label and text."""
        seen = "public" if self.public else "private"
        rows = [("pushed to" if self.address else "would go to", f"{self.address or self.repo} ({seen})")]
        rows += [(name, f"{size:,} bytes") for name, size in self.files.items()]
        rows += [("note", note) for note in self.notes]
        if self.address and "Modelfile" in self.files:
            rows.append(("Ollama", f"ollama run {self.place}/{self.repo}"))
        return rows


def push(config: PushConfig, progress: Progress = silent) -> PushResult:
    """Push an export, or say what would be pushed.

    Args:
        config: which one, and where to.
        progress: told how far it is.

    Raises:
        InputError: it is no whole export, or its proof failed.
        UsageError: the name cannot be one, or is taken.
        SystemFault: the hub or the network failed; the same command goes on.
    """
    if not _REPO.fullmatch(config.repo):
        raise UsageError("not a name of a repository", at=config.repo, fix="write ORG/NAME")
    facts = read_facts(config.folder)
    license_ = config.license or facts.license
    place = _PLACES[config.to]
    files = pushed_files(facts, config.repo, license_, place)
    notes = []
    if not license_:
        notes.append("the licence of the base is not known here: name it with --license")
    if facts.verdict != "passed":
        notes.append(f"the proof of this export: {facts.verdict}; the card says so")
    sizes = {file.name: file.size for file in files}
    if config.plan:
        return PushResult(config.repo, "", config.public, sizes, tuple(notes), place)
    sending: dict[str, Any] = {"public": config.public, "force": config.force, "progress": progress}
    if config.to == "modelscope":
        address = push_modelscope(config.repo, files, license_=license_, **sending)
    else:
        address = push_files(config.repo, files, **sending)
    return PushResult(config.repo, address, config.public, sizes, tuple(notes), place)


def pushed_files(facts: ExportFacts, repo: str, license_: str, place: HubName = "hf.co") -> list[PushFile]:
    """The artifacts, the card, and the Modelfile in the pieces that `ollama run hf.co/…` reads.

    The manifest stays here: it names folders of this machine.
    """
    kept = [name for name in facts.files if name.endswith(_SUFFIXES) or name.startswith(_MODELFILE)]
    files = [PushFile(name, facts.folder / name) for name in kept]
    files.append(PushFile("README.md", model_card(facts, repo, license_, place).encode()))
    report = facts.folder / REPORT
    if report.is_file():
        files.append(PushFile(REPORT, facts.clean(report.read_text(encoding="utf-8")).encode()))
    if _MODELFILE in facts.files:
        text = (facts.folder / _MODELFILE).read_text(encoding="utf-8")
        files += (PushFile(name, content.encode()) for name, content in ollama_files(text).items())
    return files


def ollama_files(modelfile: str) -> dict[str, str]:
    """A Modelfile in pieces (https://huggingface.co/docs/hub/ollama): `template`, `system`, `params`."""
    read = parse(modelfile)
    pieces = {"template": read.template or "", "system": read.system or ""}
    params = {**read.parameters, **({"stop": list(read.stops)} if read.stops else {})}
    pieces["params"] = json.dumps(params, ensure_ascii=False) if params else ""
    return {name: text for name, text in pieces.items() if text}
