"""Models of a running Ollama: `ollama:NAME[:TAG]`, at OLLAMA_HOST or this machine's usual port.

The answer streams as JSON lines (https://docs.ollama.com/api/chat; faults, also amid a stream:
https://docs.ollama.com/api/errors). Ollama builds the prompt from the model's Modelfile. From 0.12.11 on it
tells the log-probability of each token.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from lorafold.chat.sandbox import Message
from lorafold.errors import LorafoldError, SystemFault, UsageError
from lorafold.serve.config import REPEAT_WINDOW, Sampling
from lorafold.serve.engine import About, Cancel, Event
from lorafold.serve.engines.http import Server
from lorafold.serve.engines.server_answer import ServerAnswer, ask

DEFAULT_HOST = "http://127.0.0.1:11434"


class OllamaEngine:
    """A model of Ollama (see `lorafold.serve.engine.Engine`).

    Args:
        model: "ollama:NAME".
        context: tokens that a conversation may hold (num_ctx); Ollama's own setting where None.

    Raises:
        UsageError: Ollama does not have this model.
        SystemFault: Ollama does not answer.
    """

    def __init__(self, model: str, context: int | None = None) -> None:
        self._server = Server(_host(), sign_in="sign in with `ollama signin`")
        self._given = self._context = context
        name = model.removeprefix("ollama:")
        if not name:
            raise UsageError("no model named", at=model, fix="write ollama:NAME")
        row = self._find(name)
        self._name = str(row["name"])
        digest = str(row.get("digest", "")).removeprefix("sha256:")
        self.about = About(
            name=self._name,
            source=model,
            kind="ollama",
            quantization=str((row.get("details") or {}).get("quantization_level", "")),
            digest=lambda: digest,
        )

    def _find(self, name: str) -> dict[str, Any]:
        tags = self._server.get("/api/tags")
        rows = [row for row in (tags.get("models") or ()) if isinstance(row, dict) and "name" in row]
        for wanted in (name, f"{name}:latest"):
            for row in rows:
                if row["name"] == wanted:
                    return row
        known = ", ".join(str(row["name"]) for row in rows[:20])
        raise UsageError(
            f"Ollama has no model {name!r}",
            at=self._server.url,
            fix=f"choose one of {known}" if known else f"ollama create {name} -f Modelfile",
        )

    @property
    def context(self) -> int | None:
        """As given, or as Ollama says after the first answer."""
        return self._context

    @property
    def scorer(self) -> None:
        """Ollama scores only what it writes itself."""
        return None

    @property
    def controls(self) -> None:
        """The server builds the prompt."""
        return None

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Answer a conversation (see `Engine.stream`)."""
        body = {
            "model": self._name,
            "messages": list(messages),
            "stream": True,
            "options": self._options(sampling),
        }
        answer = ServerAnswer(self._server, sampling, cancel)
        end: dict[str, Any] = {}
        for line in ask(self._server, "/api/chat", body, [{"logprobs": True}], cancel):
            row = self._row(line)
            message = row.get("message") or {}
            yield from answer.part(
                message.get("content") or "", message.get("thinking") or "", row.get("logprobs")
            )
            if row.get("done"):
                end = row
                break
        reason = str(end.get("done_reason") or "stop") if end else None
        yield from answer.finish(reason, end.get("eval_count"), end.get("prompt_eval_count"))
        if self._context is None and not cancel.is_set():
            self._note_context()

    def _note_context(self) -> None:
        """The context that Ollama gave the model, known once it is loaded."""
        with contextlib.suppress(LorafoldError, AttributeError, TypeError):
            for row in self._server.get("/api/ps").get("models") or ():
                if row.get("name") == self._name and isinstance(row.get("context_length"), int):
                    self._context = row["context_length"]

    def _row(self, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            problem = f"Ollama sent something that is not JSON: {line[:60]!r}"
            raise SystemFault(problem, at=self._server.url) from error
        if not isinstance(row, dict) or row.get("error"):
            said = row.get("error") if isinstance(row, dict) else row
            raise SystemFault(f"Ollama failed: {said}"[:300], at=self._server.url)
        return row

    def _options(self, sampling: Sampling) -> dict[str, Any]:
        options: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "repeat_last_n": REPEAT_WINDOW,
            "seed": sampling.seed,
            "num_predict": sampling.max_tokens,
        }
        if self._given is not None:
            options["num_ctx"] = self._given
        return options

    def count_tokens(self, text: str) -> None:
        """Ollama has no endpoint for that."""
        return None

    def close(self) -> None:
        """Nothing is held; Ollama unloads the model by itself."""


def _host() -> str:
    """OLLAMA_HOST as Ollama reads it: scheme and port may be missing."""
    given = os.environ.get("OLLAMA_HOST", "").strip().rstrip("/")
    if not given:
        return DEFAULT_HOST
    if "://" not in given:
        given = f"http://{given}"
    host = given.partition("://")[2]
    return given if ":" in host or "/" in host else f"{given}:11434"
