"""The prompt as a running server really builds it: asked, and compared byte for byte with the training's.

Ollama shows a prompt by `_debug_render_only`, llama-server by `/apply-template`. A model is created in Ollama
only on request, under a name that nobody has, and removed again if it was for the proof alone or failed it.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from lorafold.chat.sandbox import Message, Refusal
from lorafold.chat.template import ChatTemplate
from lorafold.errors import LorafoldError, UsageError
from lorafold.export.modelfile.native import Native, find_thinking, state_name
from lorafold.export.modelfile.parser import Modelfile, parse
from lorafold.export.modelfile.probe import Chat, Reference, find_reference
from lorafold.export.modelfile.proof import random_chats
from lorafold.export.ollama.client import LlamaServer, Ollama
from lorafold.export.ollama.rules import Refused, jinja_abilities
from lorafold.export.proof.check import Check
from lorafold.progress import Progress

CHATS = 24  # random conversations that a server is asked about, under each setting of thinking


@dataclass(frozen=True, slots=True)
class Observing:
    """Which running servers are asked.

    Attributes:
        ollama: the address of an Ollama, "" for OLLAMA_HOST or this machine; None: none is asked.
        name: the model to create there and keep; None: one for the proof alone.
        llama_server: the address of a llama-server that has loaded the file, or None.
    """

    ollama: str | None = None
    name: str | None = None
    llama_server: str | None = None


OTHER_ENGINES = "run this model with llama-server, LM Studio or Jan"
REPORT_IT = (
    "please report this with the server's version; --ollama-path turns the way that Ollama takes, and "
    "`lorafold chat FILE` needs no server"
)
Count = Callable[[list[Message]], int]


def check_name(server: Ollama, name: str | None) -> str:
    """Whether a model of this name can be created.

    Returns:
        The server's version.

    Raises:
        UsageError: there is one already, or this is no name.
        SystemFault: the server does not answer.
    """
    if name is not None and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*)?", name, re.ASCII):
        raise UsageError(
            f"{name[:60]!r} is no name for a model", at="--ollama", fix="choose one such as my-model:8b"
        )
    version = server.version()
    if name is not None and server.has(name):
        raise UsageError(
            f"Ollama has a model {name!r} already, which may not be ours",
            at=server.url,
            fix=f"choose another name, or remove it yourself: ollama rm {name}",
        )
    return version


def observe_ollama(
    server: Ollama,
    folder: Path,
    modelfile: str,
    files: Mapping[str, str | None],
    template: ChatTemplate,
    *,
    equal: Sequence[bool | None],
    bos: str,
    keep: str | None,
    questions: Sequence[list[Message]],
    count: Count,
    progress: Progress,
) -> Check:
    """Create a model in Ollama and compare the prompts that it builds.

    Args:
        server: the running Ollama.
        folder: where the files lie.
        modelfile: the Modelfile's text.
        files: the model's parts, name -> sha256 where it is known.
        template: the chat template of training.
        equal: the settings of `think` under which the prompts shall be the training's.
        bos: the BOS that the engine puts before a prompt, or ""; a renderer of Ollama's writes it itself.
        keep: the name to create; None: a throwaway name, which is removed again.
        questions: ordinary conversations whose tokens are counted.
        count: how many tokens training has for one.
        progress: told how far it is.

    Returns:
        Whether the prompts and counts were the same.

    Raises:
        UsageError: Ollama has a model of that name.
        LorafoldError: the server cannot be asked; nothing of ours is left on it then.
    """
    version = check_name(server, keep)
    if not equal:
        meaning = f"Ollama {version} builds another prompt, whatever the Modelfile says; nothing was created"
        return Check("Ollama", "failed", meaning, {"version": version, "prompts": 0}, fix=OTHER_ENGINES)
    name = keep or f"lorafold-proof-{secrets.token_hex(4)}"
    read = parse(modelfile)
    # A renderer writes it itself, and the server takes it off again.
    written, bos = ("", bos) if read.renderer is None else (bos, "")
    system = read.system if (read.system or "").strip() else None
    with _created(
        server, name, created_fields(read), folder, files, kept=keep is not None, progress=progress
    ) as stays:
        wrong, compared = _compare(server, name, template, system, equal, bos, progress)
        asked = [] if wrong else [(count(chat), _count(server, name, chat, written)) for chat in questions]
        counts = [(ours, theirs) for ours, theirs in asked if theirs is not None]
        different = sum(ours != theirs for ours, theirs in counts)
        passed = not wrong and not different
        stays(passed)
    figures = {"version": version, "prompts": compared, "counts": len(counts), "different": different}
    if wrong:
        meaning = f"Ollama {version} builds another prompt: {wrong}"
        return Check("Ollama", "failed", meaning, figures, fix=REPORT_IT)
    if different:
        meaning = (
            f"Ollama {version} reads another number of tokens for {different} of {len(counts)} questions"
        )
        return Check("Ollama", "failed", meaning, figures, fix=REPORT_IT)
    settings = ", ".join(state_name(state) for state in equal)
    meaning = (
        f"proven on your Ollama {version}: {compared} prompts are those of training, byte for byte (think "
        f"{settings}); {len(counts)} questions have as many tokens"
    )
    return Check("Ollama", "passed", meaning, figures)


def _count(server: Ollama, name: str, chat: list[Message], bos: str) -> int | None:
    prompt = server.prompt(name, chat, None)
    return None if isinstance(prompt, Refused) else server.count(name, prompt.removeprefix(bos))


def created_fields(read: Modelfile) -> dict[str, Any]:
    """A Modelfile as `/api/create` wants it, without its files."""
    parameters = {**read.parameters, **({"stop": list(read.stops)} if read.stops else {})}
    named = {
        "template": read.template,
        "system": read.system,
        "parser": read.parser,
        "renderer": read.renderer,
        "requires": read.requires,
        "parameters": parameters,
    }
    return {name: value for name, value in named.items() if value}


@contextlib.contextmanager
def _created(
    server: Ollama,
    name: str,
    fields: Mapping[str, Any],
    folder: Path,
    files: Mapping[str, str | None],
    *,
    kept: bool,
    progress: Progress,
) -> Iterator[Callable[[bool], None]]:
    """A model on the server, which stays only if it is to be kept and the caller says that it passed."""
    parts = {}
    for part, digest in files.items():
        path = folder / part
        size = path.stat().st_size
        parts[part] = server.upload(path, digest, partial(_tell, progress, f"send {part} to Ollama", size))
    passed = False

    def stays(answer: bool) -> None:
        nonlocal passed
        passed = answer

    try:
        server.create(name, {**fields, "files": parts}, lambda said: progress(f"Ollama: {said}", 0, None))
        yield stays
    finally:
        if not (kept and passed):
            with contextlib.suppress(LorafoldError):  # what was wrong before is what counts
                server.delete(name)


def _tell(progress: Progress, step: str, size: int, sent: int) -> None:
    progress(step, sent, size)


def _compare(
    server: Ollama,
    name: str,
    template: ChatTemplate,
    system: str | None,
    equal: Sequence[bool | None],
    bos: str,
    progress: Progress,
) -> tuple[str | None, int]:
    """The first difference, or None, and how many prompts were compared."""
    reference = find_reference(template, {})
    switches = find_thinking(reference).switches
    asked = list(random_chats(CHATS, seed=11))
    compared = 0
    for state in equal:
        if state is True and not switches:
            continue
        variables = {} if state is None else dict.fromkeys(switches, state)
        told = [Chat(chat.system if chat.system is not None else system, chat.turns) for chat in asked]
        for chat, ours in zip(asked, told, strict=True):
            wanted = _wanted(reference, ours, variables)
            if wanted is None:
                continue
            prompt = server.prompt(name, chat.messages(), state)
            compared += 1
            progress("compare prompts with Ollama's", compared, len(equal) * CHATS)
            if isinstance(prompt, Refused):
                return f"it refuses think {state_name(state)} ({prompt.problem})", compared
            if bos + prompt not in (wanted, _wanted(reference, ours, variables)):  # midnight may have passed
                return (
                    f"think {state_name(state)}, on {chat.messages()}: {_first(wanted, bos + prompt)}",
                    compared,
                )
    return None, compared


def _wanted(reference: Reference, chat: Chat, variables: Mapping[str, Any]) -> str | None:
    (text,) = reference.render([chat], variables, clock=datetime.now().isoformat())
    return None if isinstance(text, Refusal) else text


def _first(wanted: str, found: str) -> str:
    """Where two texts begin to differ."""
    at = next(
        (i for i, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b),
        min(len(wanted), len(found)),
    )
    return f"{found[max(0, at - 20) : at + 30]!r} instead of {wanted[max(0, at - 20) : at + 30]!r}"


def observe_llama_server(
    server: LlamaServer,
    template: ChatTemplate,
    native: Native,
    *,
    bos: str,
    questions: Sequence[list[Message]],
    encode: Callable[[list[Message]], list[int]],
    progress: Progress,
) -> Check:
    """Compare the prompts and token ids of a llama-server that has loaded the file.

    Args:
        server: the running llama-server.
        template: the chat template of training.
        native: what is known of the Jinja in the file.
        bos: the BOS that the engine puts before a prompt, or "".
        questions: ordinary conversations whose token ids are compared.
        encode: the ids of training for one.
        progress: told how far it is.

    Raises:
        LorafoldError: the server cannot be asked.
    """
    reference = find_reference(template, {})
    switches = find_thinking(reference).switches
    equal = [state for state in native.equal if switches or state is None]
    asked, compared = list(random_chats(CHATS, seed=11)), 0
    for state in equal:
        variables = {} if state is None else dict.fromkeys(switches, state)
        thinking = True if state is None and "thinking" in jinja_abilities(native.source) else state
        for chat in asked:
            wanted = _wanted(reference, chat, variables)
            if wanted is None:
                continue
            prompt = bos + server.prompt(chat.messages(), thinking)
            compared += 1
            progress("compare prompts with llama-server's", compared, len(equal) * CHATS)
            if prompt not in (wanted, _wanted(reference, chat, variables)):
                meaning = (
                    f"llama-server builds another prompt: think {state_name(state)}, on {chat.messages()}: "
                )
                meaning += _first(wanted, prompt)
                return Check("llama-server", "failed", meaning, {"prompts": compared}, fix=REPORT_IT)
    different = sum(server.ids(server.prompt(chat, None)) != encode(chat) for chat in questions)
    figures = {"prompts": compared, "questions": len(questions), "different": different}
    if different:
        meaning = f"llama-server reads other token ids for {different} of {len(questions)} questions"
        return Check("llama-server", "failed", meaning, figures, fix=REPORT_IT)
    settings = ", ".join(state_name(state) for state in equal)
    meaning = (
        f"proven on your llama-server: {compared} prompts are those of training, byte for byte "
        f"(think {settings}); {len(questions)} questions have the same token ids"
    )
    return Check("llama-server", "passed", meaning, figures)
