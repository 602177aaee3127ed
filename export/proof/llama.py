"""llama.cpp as the judge: a file's own tokenizer, and its logits."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.machine import idle_cores

GGML_TYPE_F32 = 0

Tokenize = Callable[[str, bool], list[int]]


@contextlib.contextmanager
def vocabulary(gguf: Path) -> Iterator[Tokenize]:
    """Load the vocabulary alone and yield (text, parse_special) -> ids, without adding BOS or EOS."""
    with _load(gguf, vocab_only=True) as llama:

        def tokenize(text: str, parse_special: bool) -> list[int]:
            ids: list[int] = llama.tokenize(text.encode("utf-8"), add_bos=False, special=parse_special)
            return ids

        yield tokenize


class Runner:
    """A loaded model that gives logits.

    Args:
        llama: the loaded model.
    """

    def __init__(self, llama: Any) -> None:
        self._llama = llama

    @property
    def width(self) -> int:
        """Tokens of the vocabulary."""
        return int(self._llama.n_vocab())

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits after each token: float32 (len(ids), vocabulary)."""
        self._llama.reset()
        self._llama.eval(ids)
        return np.array(self._llama.scores[: len(ids)], dtype=np.float32)

    def answer(self, ids: list[int], max_tokens: int, stops: frozenset[int]) -> list[int]:
        """The greedy continuation of a prompt, up to and including a stop token."""
        self._llama.reset()
        self._llama.eval(ids)
        answer: list[int] = []
        while len(answer) < max_tokens:
            token = int(np.argmax(self._llama.scores[len(ids) + len(answer) - 1]))
            answer.append(token)
            if token in stops:
                break
            self._llama.eval([token])
        return answer


@contextlib.contextmanager
def runner(gguf: Path, context: int) -> Iterator[Runner]:
    """Load a model for prompts of at most `context` tokens."""
    threads = idle_cores()
    # Keys and values in float32, no flash attention: 16-bit ones would add an error that is not the file's.
    with _load(
        gguf,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        flash_attn=False,
        n_ctx=context,
        n_batch=context,
        n_ubatch=context,
        logits_all=True,
        n_threads=threads,
        n_threads_batch=threads,
    ) as llama:
        yield Runner(llama)


@contextlib.contextmanager
def _load(gguf: Path, **options: Any) -> Iterator[Any]:
    _silence()
    import llama_cpp

    try:
        llama = llama_cpp.Llama(str(gguf), verbose=False, **options)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"llama.cpp cannot load it ({error})", at=gguf, fix="export it again") from error
    try:
        yield llama
    finally:
        llama.close()


@functools.cache
def _silence() -> None:
    """Send llama.cpp's log nowhere; its callback must stay alive as long as the library."""
    import llama_cpp

    callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    _KEPT.append(callback)


_KEPT: list[Any] = []
