"""llama.cpp as the judge: a file's own tokenizer, and its logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import SystemFault
from lorafold.libraries.llama import FLASH_ATTENTION_OFF, complaint, library, load_weights
from lorafold.libraries.llama import tokenize as ids_of
from lorafold.machine import idle_cores

GGML_TYPE_F32 = 0  # ggml_type

Tokenize = Callable[[str, bool], list[int]]


@contextlib.contextmanager
def vocabulary(gguf: Path) -> Iterator[Tokenize]:
    """Load the vocabulary alone and yield (text, parse_special) -> ids, without adding BOS or EOS."""
    model = load_weights(gguf, vocab_only=True)
    try:
        vocab = library().llama_model_get_vocab(model)
        yield lambda text, parse_special: ids_of(vocab, text, parse_special)
    finally:
        library().llama_model_free(model)


class Runner:
    """A loaded model that gives logits.

    Args:
        model: pointer to the weights.
        context: pointer to a context of the model.
        path: the file, for messages.
    """

    def __init__(self, model: Any, context: Any, path: Path) -> None:
        self._c = library()
        self._context = context
        self._path = path
        self.width = int(self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(model)))

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Logits after each token from the number `first` on: float32 (len(ids) - first, vocabulary)."""
        self._forget()
        tokens = [(token, place, 0) for place, token in enumerate(ids)]
        return self._read(tokens, [place >= first for place in range(len(ids))])

    def answers(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stops: frozenset[int]
    ) -> list[tuple[list[int], NDArray[np.float32]]]:
        """The greedy continuations of some prompts, all at once, up to and including a stop token.

        Returns:
            Ids, and the logits (ids, vocabulary) by which each was chosen.
        """
        self._forget()
        logits: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
        for number, ids in enumerate(prompts):
            tokens = [(token, place, number) for place, token in enumerate(ids)]
            ends = [place == len(ids) - 1 for place in range(len(ids))]
            logits[number].append(self._read(tokens, ends)[0])
        found: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        while going:
            for number in going:
                found[number].append(int(np.argmax(logits[number][-1])))
            going = [n for n in going if found[n][-1] not in stops and len(found[n]) < max_tokens]
            if going:
                tokens = [(found[n][-1], len(prompts[n]) + len(found[n]) - 1, n) for n in going]
                for number, row in zip(going, self._read(tokens, [True] * len(tokens)), strict=True):
                    logits[number].append(row.copy())
        return [(ids, np.stack(rows)) for ids, rows in zip(found, logits, strict=True)]

    def _forget(self) -> None:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)

    def _read(self, tokens: Sequence[tuple[int, int, int]], wanted: Sequence[bool]) -> NDArray[np.float32]:
        """Read tokens; logits (sum of wanted, vocabulary) after those that are wanted.

        Args:
            tokens: id, position and number of the sequence.
            wanted: for each whether its logits are.
        """
        batch = self._c.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, ((token, place, sequence), want) in enumerate(zip(tokens, wanted, strict=True)):
                batch.token[i] = token
                batch.pos[i] = place
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = want
            code = self._c.llama_decode(self._context, batch)
        finally:
            self._c.llama_batch_free(batch)
        if code:
            raise SystemFault(
                f"llama.cpp failed with code {code} ({complaint()})", at=self._path, fix="free some memory"
            )
        pointer = self._c.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(sum(wanted), self.width)).copy()


@contextlib.contextmanager
def runner(gguf: Path, context: int, sequences: int = 1) -> Iterator[Runner]:
    """Load a model.

    Args:
        gguf: the file.
        context: tokens of the longest conversation.
        sequences: how many conversations it answers at once.
    """
    c, threads = library(), idle_cores()
    model = load_weights(gguf)
    try:
        parameters = c.llama_context_default_params()
        parameters.n_ctx = context * sequences
        parameters.n_batch = parameters.n_ubatch = context
        parameters.n_seq_max, parameters.kv_unified = sequences, sequences > 1
        parameters.n_threads = parameters.n_threads_batch = threads
        # Keys and values in float32, no flash attention: 16-bit ones would add an error of their own.
        parameters.type_k = parameters.type_v = GGML_TYPE_F32
        parameters.flash_attn_type = FLASH_ATTENTION_OFF
        pointer = c.llama_init_from_model(model, parameters)
        if not pointer:
            raise SystemFault(
                f"no memory for a context of {context:,} tokens ({complaint()})",
                at=gguf,
                fix="free some memory, or export without the proof (--no-verify)",
            )
        try:
            yield Runner(model, pointer, gguf)
        finally:
            c.llama_free(pointer)
    finally:
        c.llama_model_free(model)
