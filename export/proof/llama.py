"""llama.cpp as the judge: a file's own tokenizer, and its logits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import SystemFault
from lorafold.gguf_file.header import parts_of
from lorafold.libraries.llama import FLASH_ATTENTION_OFF, complaint, library, load_weights, piece_of
from lorafold.libraries.llama import tokenize as ids_of
from lorafold.libraries.mapping import held_small
from lorafold.machine import idle_cores

GGML_TYPE_F32 = 0  # ggml_type
_MOST_MAPPED = 560_000_000  # bytes of a file that are in memory at once, about


class Vocabulary:
    """A file's vocabulary, as llama.cpp has loaded it.

    Args:
        model: pointer to the model.
        path: the file.
    """

    def __init__(self, model: Any, path: Path) -> None:
        self.path = path
        self._c = library()
        self._vocab = self._c.llama_model_get_vocab(model)

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        """The ids of a text, without adding BOS or EOS."""
        return ids_of(self._vocab, text, parse_special)

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens, control tokens written out."""
        raw = b"".join(piece_of(self._vocab, token, special=True) for token in ids)
        return raw.decode("utf-8", errors="replace")

    @property
    def bos(self) -> int:
        """The token that begins a sequence."""
        return int(self._c.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        """The token that ends a sequence."""
        return int(self._c.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether llama.cpp puts BOS before a prompt."""
        return bool(self._c.llama_vocab_get_add_bos(self._vocab))

    def ends(self, token: int) -> bool:
        """Whether an answer ends at a token; a token that it does not have ends nothing it could write."""
        unknown = token >= int(self._c.llama_vocab_n_tokens(self._vocab))
        return unknown or bool(self._c.llama_vocab_is_eog(self._vocab, token))


@contextlib.contextmanager
def vocabulary(gguf: Path) -> Iterator[Vocabulary]:
    """Load the vocabulary of a file alone."""
    model = load_weights(gguf, vocab_only=True)
    try:
        yield Vocabulary(model, gguf)
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

    def use(self, threads: int) -> None:
        """Compute on so many threads from now on."""
        self._c.llama_set_n_threads(self._context, threads, threads)

    def logits(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Logits after each token from the number `first` on: float32 (len(ids) - first, vocabulary)."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        return self._read(ids, 0, first)

    def answer(
        self, ids: Sequence[int], max_tokens: int, stops: frozenset[int]
    ) -> tuple[list[int], NDArray[np.float32]]:
        """The greedy continuation of a prompt, up to and including a stop token.

        Returns:
            Ids, and the logits (ids, vocabulary) by which each was chosen.
        """
        logits = [self.logits(ids, len(ids) - 1)[0]]
        answer = [int(np.argmax(logits[-1]))]
        while answer[-1] not in stops and len(answer) < max_tokens:
            place = len(ids) + len(answer) - 1
            logits.append(self._read([answer[-1]], place, place)[0])
            answer.append(int(np.argmax(logits[-1])))
        return answer, np.stack(logits)

    def _read(self, ids: Sequence[int], start: int, first: int) -> NDArray[np.float32]:
        """Read tokens at the positions from `start` on; logits after those at `first` and behind it."""
        batch = self._c.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i] = token
                batch.pos[i] = start + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = start + i >= first
            code = self._c.llama_decode(self._context, batch)
        finally:
            self._c.llama_batch_free(batch)
        if code:
            raise SystemFault(
                f"llama.cpp failed with code {code} ({complaint()})", at=self._path, fix="free some memory"
            )
        pointer = self._c.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(start + len(ids) - first, self.width)).copy()


@contextlib.contextmanager
def runner(gguf: Path, context: int, threads: int | None = None) -> Iterator[Runner]:
    """Load a model.

    Args:
        gguf: the file, of a split model the first.
        context: the most tokens of a conversation.
        threads: how many compute; as many as cores are idle if not given.
    """
    c, threads = library(), threads or idle_cores()
    # With a GPU the weights are there, and llama.cpp unmaps parts of the file as it likes.
    most = 0 if c.llama_supports_gpu_offload() else _MOST_MAPPED
    with held_small(parts_of(gguf), most), _loaded(gguf) as model:
        parameters = c.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
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


@contextlib.contextmanager
def _loaded(gguf: Path) -> Iterator[Any]:
    model = load_weights(gguf, as_stored=True)
    try:
        yield model
    finally:
        library().llama_model_free(model)
