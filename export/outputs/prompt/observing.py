"""The prompts of written GGUF files, asked of the user's running servers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from lorafold.chat.dialogue import with_tools
from lorafold.chat.tokenizer import ChatTokenizer, Message
from lorafold.errors import UsageError
from lorafold.export.gguf.header import GgufFile
from lorafold.export.inputs import Inputs
from lorafold.export.modelfile.plan import ModelfilePlan
from lorafold.export.ollama.client import LlamaServer, Ollama
from lorafold.export.proof.check import Check
from lorafold.export.proof.observed import Observing, observe_llama_server, observe_ollama
from lorafold.export.proof.sample import question
from lorafold.progress import Progress

_QUESTIONS = 3  # ordinary conversations whose tokens a running server counts


def observe_prompts(
    folder: Path,
    files: Sequence[GgufFile],
    prompt: ModelfilePlan | None,
    inputs: Inputs,
    chats: Sequence[Sequence[Message]],
    observing: Observing,
    progress: Progress,
) -> list[Check]:
    """Compare the prompts of the first model with those that running servers build.

    Args:
        folder: where the files lie.
        files: all of them; the first model's parts are sent.
        prompt: the Modelfile's plan.
        inputs: what the files were made from.
        chats: ordinary conversations, whose tokens are counted too.
        observing: which servers.
        progress: told how far it is.

    Raises:
        UsageError: there is no Modelfile, or the name is taken.
        LorafoldError: a server cannot be asked.
    """
    if prompt is None:
        raise UsageError(
            "without a Modelfile there is no prompt to compare", at="--ollama", fix="leave out --no-modelfile"
        )
    tokenizer = ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
    questions = [list[Message](question(chat)) for chat in chats if not with_tools(chat)][:_QUESTIONS]
    bos = (prompt.form.bos or "") if prompt.form is not None and prompt.contract.add_bos else ""
    checks = []
    if observing.ollama is not None:
        parts = itertools.takewhile(lambda file: not file.first, files[1:])
        checks.append(
            observe_ollama(
                Ollama(observing.ollama),
                folder,
                (folder / "Modelfile").read_text(encoding="utf-8"),
                {file.name: None for file in (files[0], *parts)},
                prompt.template,
                equal=prompt.route.equal,
                bos=bos,
                keep=observing.name,
                questions=questions,
                count=lambda chat: len(tokenizer.encode_prompt(chat)),
                progress=progress,
            )
        )
    if observing.llama_server is not None and prompt.native is not None:
        checks.append(
            observe_llama_server(
                LlamaServer(observing.llama_server),
                prompt.template,
                prompt.native,
                bos=bos,
                questions=questions,
                encode=tokenizer.encode_prompt,
                progress=progress,
            )
        )
    return checks
