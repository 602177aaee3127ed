"""GGUF files for llama.cpp and Ollama, with their Modelfile, written from one read and proven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorafold.artifacts import write_atomic
from lorafold.chat import ChatTemplate, ChatTokenizer
from lorafold.errors import InputError
from lorafold.export import arch
from lorafold.export.config import ExportConfig
from lorafold.export.gguf import GgufFile
from lorafold.export.gguf_model import PromptMetadata, plan_gguf
from lorafold.export.imatrix import read_imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.left_out import describe_left_out
from lorafold.export.modelfile import ModelfilePlan, plan_modelfile, write_modelfile
from lorafold.export.plan import describe
from lorafold.export.proof import Check
from lorafold.export.proof_chats import proof_chats
from lorafold.export.verify_logits import check_logits
from lorafold.export.verify_tensors import check_tensors
from lorafold.export.verify_tokens import check_prompt_tokens, check_tokenizer
from lorafold.export.vocab_probe import probe_texts
from lorafold.export.workers import Written
from lorafold.export.writer import write_gguf_files
from lorafold.progress import Progress


class GgufOutput:
    """Planned GGUF files; an `Output`."""

    def __init__(self, inputs: Inputs, config: ExportConfig) -> None:
        self._inputs, self._config = inputs, config
        self._imatrix = _read_importance(inputs, config)
        self._prompt = _plan_prompt(inputs, config)
        self.plan, self._vocab = plan_gguf(inputs, config, _metadata(self._prompt, inputs), self._imatrix)
        prompt_notes = self._prompt.notes if self._prompt else ("no Modelfile: --no-modelfile",)
        source = inputs.source
        folder = inputs.adapters[0][0].folder if inputs.adapters else None
        left_out = describe_left_out(inputs.config, source.tensors, source.touched, folder)
        self.notes = [*arch.caveats(inputs.config), *left_out, *self._vocab.notes, *prompt_notes]

    @property
    def size(self) -> int:
        """Exact bytes of the GGUF files."""
        return self.plan.size

    def describe(self) -> list[tuple[str, str]]:
        """Files with sizes and types, memory, time, and how Ollama will build the prompt."""
        paths = self._prompt.paths() if self._prompt else []
        return [*describe(self.plan), *paths]

    def write(self, folder: Path, progress: Progress) -> Written:
        """Write the GGUF files and a Modelfile for each model."""
        written = write_gguf_files(
            self.plan.files,
            self._inputs.source,
            folder,
            threads=self._config.workers,
            max_memory=self._config.max_memory,
            imatrix=self._imatrix,
            progress=progress,
        )
        if self._prompt:
            for number, file in enumerate(self._models()):
                name = f"Modelfile-{file.recipe}" if number else "Modelfile"
                text = write_modelfile(self._prompt, f"./{file.name}", system=self._config.system)
                write_atomic(folder / name, text)
        return written

    def next_steps(self, out: Path) -> list[tuple[str, str]]:
        """Chat here, or create the model in Ollama."""
        steps = [("chat", f"lorafold chat {out / self.plan.files[0].name}")]
        if self._prompt:
            steps.append(("Ollama", f"ollama create NAME -f {out / 'Modelfile'}"))
        return steps

    def prove(self, folder: Path, progress: Progress) -> list[Check]:
        """Tokens, prompts, tensors, answers."""
        inputs, files = self._inputs, self.plan.files
        first = folder / files[0].name
        checks = [check_tokenizer(first, inputs.tokenizer, self._vocab, probe_texts())]
        for number, file in enumerate(files):
            progress("prove the tensors", number, len(files))
            checks.append(
                check_tensors(
                    folder, file, inputs.source, rounding=self._config.rounding, imatrix=self._imatrix
                )
            )
        progress("prove the tensors", len(files), len(files))
        models = [(file.recipe, folder / file.name) for file in self._models()]
        if self._prompt is None:
            reason = "there is no chat template"
            return checks + [Check(f"logits {path.name}", "not checked", reason) for _, path in models]
        chats = proof_chats(self._config.chats, [adapter.folder for adapter, _ in inputs.adapters])
        tokenizer = ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
        checks.append(_prompt_check(self._prompt))
        questions = [_question(chat) for chat in chats]
        checks.append(check_prompt_tokens(first, tokenizer, self._vocab, questions))
        return checks + check_logits(models, inputs, tokenizer, chats, progress)

    def _models(self) -> list[GgufFile]:
        """The file that stands for each model: of a split one, the first."""
        return [file for file in self.plan.files if file.first]


def _plan_prompt(inputs: Inputs, config: ExportConfig) -> ModelfilePlan | None:
    if not config.modelfile:
        return None
    try:
        template = ChatTemplate.from_folder(inputs.tokenizer, inputs.template)
    except InputError as error:
        fix = "name one with --chat-template, or pass --no-modelfile for a model that does not chat"
        raise InputError(error.problem, at=error.at, fix=fix) from error
    return plan_modelfile(
        inputs.prompt,
        chat_template=template,
        thinking=None if config.thinking is None else config.thinking == "on",
        allow_embedded_jinja=config.allow_embedded_jinja,
    )


def _metadata(prompt: ModelfilePlan | None, inputs: Inputs) -> PromptMetadata:
    if prompt is None:
        try:
            return PromptMetadata(ChatTemplate.from_folder(inputs.tokenizer, inputs.template).source)
        except InputError:
            return PromptMetadata()  # a base model: it has none
    contract = prompt.contract
    return PromptMetadata(contract.template_source, contract.eot, contract.add_bos)


def _prompt_check(prompt: ModelfilePlan) -> Check:
    if prompt.proof is None:
        return Check("prompt", "not checked", f"there is no TEMPLATE: {prompt.contract.refusal}")
    chats, clocks = prompt.proof.conversations, prompt.proof.clocks
    figures = {"conversations": chats, "clocks": clocks}
    meaning = (
        f"the Modelfile's TEMPLATE writes what the chat template writes on {chats} random conversations "
        f"and {clocks} dates"
    )
    return Check("prompt", "passed", meaning, figures)


def _question(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    return chat[:-1] if chat[-1]["role"] == "assistant" else chat


def _read_importance(inputs: Inputs, config: ExportConfig) -> dict[str, NDArray[np.float32]] | None:
    if config.imatrix is None:
        return None
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    return read_imatrix(config.imatrix).weights([(tensor.name, tensor.shape) for tensor in tensors])
