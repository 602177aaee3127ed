"""GGUF files for llama.cpp and Ollama, with their Modelfile, written from one read and proven."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorafold.chat import ChatTokenizer
from lorafold.export import arch
from lorafold.export.config import ExportConfig
from lorafold.export.gguf_model import PromptMetadata, plan_gguf
from lorafold.export.imatrix import read_imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.plan import describe
from lorafold.export.proof import Check
from lorafold.export.proof_chats import proof_chats
from lorafold.export.verify_logits import check_logits
from lorafold.export.verify_tensors import check_tensors
from lorafold.export.verify_tokens import check_prompt_tokens, check_tokenizer
from lorafold.export.vocab_probe import probe_texts
from lorafold.export.writer import write_gguf_files
from lorafold.progress import Progress


class GgufOutput:
    """Planned GGUF files; an `Output`."""

    def __init__(self, inputs: Inputs, config: ExportConfig) -> None:
        self._inputs, self._config = inputs, config
        self._imatrix = _read_importance(inputs, config)
        self.plan = plan_gguf(inputs, config, PromptMetadata(), self._imatrix)
        self.notes = arch.caveats(inputs.config)

    @property
    def size(self) -> int:
        """Exact bytes of all files."""
        return self.plan.size

    def describe(self) -> list[tuple[str, str]]:
        """Files with sizes and types, memory, time."""
        return describe(self.plan)

    def write(self, folder: Path, progress: Progress) -> Mapping[str, str]:
        """Write the GGUF files."""
        return write_gguf_files(
            self.plan.files,
            self._inputs.source,
            folder,
            threads=self._config.workers,
            max_memory=self._config.max_memory,
            imatrix=self._imatrix,
            progress=progress,
        )

    def prove(self, folder: Path, progress: Progress) -> list[Check]:
        """Tokens, prompts, tensors, answers."""
        inputs, files = self._inputs, self.plan.files
        first = folder / files[0].name
        checks = [check_tokenizer(first, inputs.tokenizer, probe_texts())]
        total = len(files)
        for number, file in enumerate(files):
            progress("prove the tensors", number, total)
            checks.append(
                check_tensors(
                    folder, file, inputs.source, rounding=self._config.rounding, imatrix=self._imatrix
                )
            )
        progress("prove the tensors", total, total)
        chats = proof_chats(self._config.chats, [adapter.folder for adapter, _ in inputs.adapters])
        tokenizer = ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
        checks.append(check_prompt_tokens(first, tokenizer, [_question(chat) for chat in chats]))
        models = [
            (file.recipe, folder / file.name)
            for file in files
            if "-of-" not in file.name or "-00001-" in file.name
        ]
        return checks + check_logits(models, inputs, tokenizer, chats, progress)


def _question(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    return chat[:-1] if chat[-1]["role"] == "assistant" else chat


def _read_importance(inputs: Inputs, config: ExportConfig) -> dict[str, NDArray[np.float32]] | None:
    if config.imatrix is None:
        return None
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    return read_imatrix(config.imatrix).weights([(tensor.name, tensor.shape) for tensor in tensors])
