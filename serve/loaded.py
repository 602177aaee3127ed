"""One model to ask from Python: `lorafold.load(MODEL).ask("…")`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafold.chat.sandbox import Message
from lorafold.errors import UsageError
from lorafold.serve.answers import seeded
from lorafold.serve.config import ChatConfig, Sampling
from lorafold.serve.engines.open import open_engines
from lorafold.serve.origin import with_own_system
from lorafold.serve.protocol import Cancel, Engine, Finished, Token


class Model:
    """An open model. Close it, or use it as a context manager.

    Attributes:
        name: as in headings.
    """

    def __init__(self, engine: Engine, system: str | None) -> None:
        self.name = engine.about.name
        self._engine = engine
        self._system = system

    def ask(self, question: str | Sequence[Message], **sampling: Any) -> str:
        """The answer to a question, or to a conversation that ends with one. Nothing is remembered.

        Args:
            question: a text, or messages with "role" and "content".
            sampling: fields of `lorafold.serve.config.Sampling` (`temperature`, `max_tokens`, `seed`, …).

        Raises:
            InputError: the conversation does not fit, or the template refuses it.
            UsageError: a setting of the sampling is not known or out of range.
        """
        asked = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
        if self._system and asked[0]["role"] != "system":
            asked.insert(0, {"role": "system", "content": self._system})
        try:
            chosen = seeded(Sampling(**sampling))
        except TypeError as error:
            raise UsageError(
                str(error).partition(") ")[2], fix="see lorafold.serve.config.Sampling"
            ) from error
        events = self._engine.stream(asked, chosen, Cancel())
        return "".join(event.text for event in events if isinstance(event, Token | Finished))

    def close(self) -> None:
        """Free the model."""
        self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<lorafold model {self.name}>"


def load(model: str | Path, **options: Any) -> Model:
    """Open a model to ask it from Python.

    Args:
        model: as for `lorafold chat`: a GGUF, an export folder, a Hugging Face folder, `BASE+ADAPTER`, …
        options: fields of `ChatConfig` (`system`, `context`, `threads`, `chat_template`, `load_in_4bit`, …).

    Raises:
        InputError: the model does not exist or is damaged.
        SystemFault: a package, the memory or a server is missing.
    """
    config, _ = with_own_system(ChatConfig(models=(str(model),), **options))
    (engine,) = open_engines(config)
    return Model(engine, config.system)
