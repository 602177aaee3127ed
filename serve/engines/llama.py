"""GGUF files answered by llama.cpp: one model, any number of adapters, prompts read once.

The prompt is built by `lorafold.chat.tokenizer` from the file's own template, so text that looks like a
control token stays text. A conversation's tokens stay in the KV cache; of the next prompt only what is new is
read.
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.chat.dialogue import tools_of
from lorafold.chat.tokenizer import Message
from lorafold.errors import InputError
from lorafold.libraries.llama import complaint, look
from lorafold.serve.config import REPEAT_WINDOW, Sampling
from lorafold.serve.engines.digests import weights_sha256
from lorafold.serve.engines.fit import PromptFitter
from lorafold.serve.engines.llama_cache import KeyValueCache
from lorafold.serve.engines.llama_model import LlamaModel
from lorafold.serve.engines.local_answer import Decoder, Reader, score_answer, stream_answer
from lorafold.serve.engines.threads import ModelThread
from lorafold.serve.protocol import About, Cancel, Event, context_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LlamaEngine:
    """The engine of a GGUF (see `lorafold.serve.protocol.Engine`).

    Args:
        model: the base's weights, perhaps shared.
        adapters: adapter GGUFs to apply.
        source: as the user spelled the model.
        context: tokens that a conversation may hold; see `context_of`.
        threads: to compute with when no other model answers; 0: one per core.
        exact: keep keys and values in float32 (see `KeyValueCache`).
    """

    def __init__(
        self,
        model: LlamaModel,
        adapters: Sequence[Path] = (),
        *,
        source: str,
        context: int | None = None,
        threads: int = 0,
        exact: bool = False,
    ) -> None:
        self.c = model.c
        self.model = model
        model.users += 1
        self._context, notes = context_of(context, int(self.c.llama_model_n_ctx_train(model.pointer)))
        files = [model.path, *adapters]
        self.about = About(
            name="+".join(path.name for path in files),
            source=source,
            kind="llama.cpp",
            quantization=model.header.quantization,
            digest=lambda: "+".join(weights_sha256(path) for path in files),
            notes=notes,
        )
        self._vocabulary = ""
        thread = ModelThread(threads)
        self._cache = thread.run(lambda count: self._open(adapters, count, exact))
        self._reader = Reader(self._cache, thread, PromptFitter(model.encode, self._context))

    def _open(self, adapters: Sequence[Path], threads: int, exact: bool) -> KeyValueCache:
        pointers = []
        for path in adapters:
            look(path, "adapter")
            pointer = self.c.llama_adapter_lora_init(self.model.pointer, str(path).encode())
            if not pointer:
                raise InputError(
                    f"llama.cpp cannot apply this adapter to {self.model.path.name}: {complaint()}",
                    at=path,
                    fix="pass the base it was trained on",
                )
            pointers.append(pointer)
        return KeyValueCache(self.model, pointers, self._context, threads, exact)

    @property
    def context(self) -> int:
        """Tokens that a conversation may hold."""
        return self._context

    @property
    def scorer(self) -> LlamaEngine:
        """Itself: llama.cpp gives all probabilities."""
        return self

    @property
    def controls(self) -> frozenset[str]:
        """The file's control tokens: typed, they stay text."""
        return self.model.template.controls

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Answer a conversation (see `Engine.stream`)."""
        spelled = bool(tools_of(messages))  # many calls begin with a control token
        utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with _sampler(self.c, self.model.size, sampling) as draw:
            decoder = Decoder(
                draw=partial(self._next, draw),
                ends=self.model.ends,
                text=lambda token: utf8.decode(self.model.piece(token, special=spelled)),
                rest=lambda: utf8.decode(b"", final=True),
            )
            yield from stream_answer(self._reader, decoder, messages, sampling, cancel)

    def _next(self, draw: Callable[[Any], int], previous: int | None) -> tuple[int, float]:
        """Read the token before, draw the next one; with its log-probability."""
        if previous is not None:
            self._cache.read([previous])
        token = draw(self._cache.context)
        return token, self._cache.log_probability(token)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt that the model reads (see `Engine.prompt`)."""
        ids = self._reader.fitter.fit_again(messages, Sampling().max_tokens)
        return b"".join(self.model.piece(token, special=True) for token in ids).decode(errors="replace")

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.model.tokenize(text))

    @property
    def vocabulary(self) -> str:
        """A digest of the vocabulary."""
        self._vocabulary = self._vocabulary or self.model.vocabulary_digest()
        return self._vocabulary

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, control tokens in it taken as text."""
        return self.model.tokenize(text)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""
        return [self.model.piece(token) for token in ids]

    def log_probabilities(
        self, messages: Sequence[Message], answer: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """The vocabulary's log-probabilities at each token of an answer (see `Scorer.log_probabilities`)."""
        return score_answer(self._reader, messages, answer)

    def close(self) -> None:
        """Free the conversation, and the weights if nobody else uses them."""
        self._reader.thread.close(self._cache.close)
        self.model.release()


@contextlib.contextmanager
def _sampler(c: Any, vocabulary: int, sampling: Sampling) -> Iterator[Callable[[Any], int]]:
    """A chain of llama.cpp's samplers in its usual order, as a function of the context."""
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    try:
        if sampling.repeat_penalty != 1:
            penalties = c.llama_sampler_init_penalties(
                vocabulary, REPEAT_WINDOW, sampling.repeat_penalty, 0.0, 0.0
            )
            c.llama_sampler_chain_add(chain, penalties)
        if sampling.temperature == 0:
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_greedy())
        else:
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_top_k(sampling.top_k))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_top_p(sampling.top_p, 1))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_min_p(sampling.min_p, 1))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_temp(sampling.temperature))
            c.llama_sampler_chain_add(chain, c.llama_sampler_init_dist(sampling.seed or 0))
        yield lambda context: int(c.llama_sampler_sample(chain, context, -1))
    finally:
        c.llama_sampler_free(chain)
