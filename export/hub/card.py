"""The model card of a pushed export: what it is, how to run it, what was proven, whose licence holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import yaml

from lorafold.console import sanitize
from lorafold.export.hub.facts import ExportFacts
from lorafold.version import __version__

HubName = Literal["hf.co", "modelscope.cn"]
"""Where a repository lies, as `ollama run` names it."""


def model_card(facts: ExportFacts, repo: str, license_: str, place: HubName = "hf.co") -> str:
    """Write the card.

    Args:
        facts: the export.
        repo: "org/name".
        license_: for the head; "" if it is not known.
        place: the hub.

    Returns:
        Markdown with the hub's YAML head.
    """
    ggufs = [name for name in facts.files if name.endswith(".gguf")]
    head: dict[str, Any] = {
        "pipeline_tag": "text-generation",
        "library_name": "gguf" if ggufs else "transformers",
        "tags": ["lorafold", *(["gguf"] if ggufs else [])],
    }
    if facts.on_hub:
        head["base_model"] = facts.base
        head["base_model_relation"] = _relation(facts)
    if license_:
        head["license"] = license_
    made = f"with {', '.join(map(_cell, facts.adapters))} merged in" if facts.adapters else "as it is"
    made = "an adapter for it, not merged" if facts.format == "adapter" else made
    revision = f" (revision {facts.revision})" if facts.revision else ""
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=True)}---",
        "",
        f"# {_cell(facts.name)}",
        "",
        f"{_cell(facts.base)}{revision}, {made}. Made by lorafold {facts.version or __version__}.",
        "",
        "## Run it",
        "",
        "```sh",
        *(_commands if place == "hf.co" else _on_modelscope)(facts, repo, ggufs),
        "```",
        "",
        *(_NOTES if ggufs and facts.format != "adapter" else ()),
        *_files(facts),
        *_training(facts),
        *_proof(facts),
        "## Licence",
        "",
        f"The terms of the base{f' ({_cell(license_)})' if license_ else ''} and of the data hold here too.",
    ]
    return facts.clean("\n".join(lines)) + "\n"


def _relation(facts: ExportFacts) -> str:
    """What the repository is of its base, in the hub's words."""
    if facts.format == "adapter":
        return "adapter"
    return "finetune" if facts.adapters or facts.format == "folder" else "quantized"


# Beside the commands: what has no command.
_NOTES = (
    "Jan: search for the repository's name in its hub. vLLM reads merged folders, not these files: "
    "`lorafold export … --format folder` makes one.",
    "The Modelfile is what was proven for Ollama: its TEMPLATE, stops and parameters are also in `template`, "
    "`system` and `params`, which `ollama run hf.co/…` reads; only the Modelfile has its PARSER line.",
    "",
)


def _commands(facts: ExportFacts, repo: str, ggufs: list[str]) -> Iterator[str]:
    """How each program runs it, one line each."""
    name = repo.rpartition("/")[2]
    if not ggufs:
        yield f"vllm serve {repo}"
        yield f"lorafold chat {repo}"
        return
    if facts.format == "adapter":
        yield f"hf download {repo} --local-dir {name}"
        yield f"llama-server -m BASE.gguf --lora {name}/{ggufs[0]}"
        return
    tag = _tag(ggufs[0])
    yield f"llama-server -hf {repo}{tag} --jinja        # llama.cpp"
    if "Modelfile" in facts.files:
        yield f"ollama run hf.co/{repo}{tag}                # Ollama"
        yield f"hf download {repo} --local-dir {name}       # or as it was proven:"
        yield f"ollama create {name.lower()} -f {name}/Modelfile && ollama run {name.lower()}"
    yield f"lms get https://huggingface.co/{repo}       # LM Studio"


def _on_modelscope(facts: ExportFacts, repo: str, ggufs: list[str]) -> Iterator[str]:
    """The same for a repository on ModelScope, which llama.cpp and LM Studio do not fetch from by name."""
    name = repo.rpartition("/")[2]
    yield f"modelscope download --model {repo} --local_dir {name}"
    if not ggufs:
        yield f"vllm serve ./{name}"
        yield f"lorafold chat {name}"
    elif facts.format == "adapter":
        yield f"llama-server -m BASE.gguf --lora {name}/{ggufs[0]}"
    else:
        yield f"llama-server -m {name}/{ggufs[0]} --jinja        # llama.cpp"
        if "Modelfile" in facts.files:
            yield f"ollama create {name.lower()} -f {name}/Modelfile && ollama run {name.lower()}"
            yield f"ollama run modelscope.cn/{repo}                  # without the Modelfile's PARSER line"
        yield f"lms import {name}/{ggufs[0]}                     # LM Studio"


def _tag(file: str) -> str:
    """The type in a file's name, as llama.cpp and Ollama pick a file of a repository by it."""
    found = re.search(r"-((?:I?Q\d|F16|F32|BF16|TQ\d|MXFP4)[\w]*?)(?:-\d{5}-of-\d{5})?\.gguf$", file)
    return f":{found[1]}" if found else ""


def _files(facts: ExportFacts) -> list[str]:
    rows = [
        f"| {_cell(name)} | {entry['size']:,} | {entry['sha256']} |"
        for name, entry in facts.files.items()
        if name.endswith((".gguf", ".safetensors"))
    ]
    return ["## Files", "", "| file | bytes | sha256 |", "|---|---|---|", *rows, ""]


def _training(facts: ExportFacts) -> list[str]:
    rows = [f"| {_cell(name)} | {_cell(str(value))} |" for name, value in facts.settings.items()]
    if facts.data is not None:
        digest, count = facts.data
        rows.insert(0, f"| data | {count:,} examples, sha256 {digest} |")
    return ["## Training", "", "| | |", "|---|---|", *rows, ""] if rows else []


def _proof(facts: ExportFacts) -> list[str]:
    rows = [f"| {' | '.join(map(_cell, check))} |" for check in facts.checks]
    head = ["## Proof", "", f"Verdict: {facts.verdict}.", ""]
    return [*head, "| check | verdict | what it says |", "|---|---|---|", *rows, ""] if rows else head


def _cell(text: str) -> str:
    """A text in which nothing is obeyed by Markdown, HTML or a terminal."""
    plain = " ".join(sanitize(text).split())
    return re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", plain)
