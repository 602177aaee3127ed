"""Models of a running Ollama: `ollama:NAME[:TAG]`, at OLLAMA_HOST or this machine's usual port.

The answer streams as JSON lines (https://docs.ollama.com/api/chat; faults, also within a stream:
https://docs.ollama.com/api/errors). Ollama builds the prompt from the model's Modelfile. From 0.12.11 on it
tells the log-probability of each token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorafold.chat.calls import CallForm, as_wanted
from lorafold.chat.dialogue import tools_of
from lorafold.chat.sandbox import Message
from lorafold.errors import LorafoldError, UsageError
from lorafold.libraries.ollama import ollama_url
from lorafold.serve.config import REPEAT_WINDOW, Sampling
from lorafold.serve.engines.servers.answer import ServerAnswer, ask
from lorafold.serve.engines.servers.events import ServerEvent
from lorafold.serve.engines.servers.fields import count, fields, rows, said, text, word
from lorafold.serve.engines.servers.http import Server, ServerRefused
from lorafold.serve.protocol import About, Cancel, Event


class OllamaEngine:
    """A model of Ollama (see `lorafold.serve.protocol.Engine`).

    Args:
        model: "ollama:NAME".
        context: tokens that a conversation may hold (num_ctx); None: Ollama's own setting.

    Raises:
        UsageError: Ollama does not have this model.
        SystemFault: Ollama does not answer.
    """

    def __init__(self, model: str, context: int | None = None) -> None:
        self._server = Server(ollama_url(), sign_in="sign in with `ollama signin`")
        self._given = self._context = context
        name = model.removeprefix("ollama:")
        if not name:
            raise UsageError("no model named", at=model, fix="write ollama:NAME")
        row = self._find(name)
        self._name = str(row["name"])
        digest = text(row.get("digest")).removeprefix("sha256:")
        self.about = About(
            name=self._name,
            source=model,
            kind="ollama",
            quantization=text(fields(row.get("details")).get("quantization_level")),
            digest=lambda: digest,
        )

    def _find(self, name: str) -> Mapping[str, Any]:
        listed = rows(fields(self._server.get("/api/tags")).get("models"))
        for wanted in (name, f"{name}:latest"):
            for row in listed:
                if row.get("name") == wanted:
                    return row
        known = ", ".join(filter(None, (text(row.get("name")) for row in listed[:20])))
        raise UsageError(
            f"Ollama has no model {name!r}",
            at=self._server.url,
            fix=f"choose one of {known}" if known else f"ollama create {name} -f Modelfile",
        )

    @property
    def context(self) -> int | None:
        """As given, or as Ollama says after the first answer."""
        return self._context

    def resize(self, context: int) -> None:
        """Ask for another context from now on; Ollama loads the model again for it."""
        self._given = self._context = context

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
            "messages": [_named(message) for message in as_wanted(messages, CallForm(True, True, True))],
            **({"tools": list(tools)} if (tools := tools_of(messages)) else {}),
            "stream": True,
            "truncate": False,  # a conversation that does not fit is refused, not cut without a word
            "options": self._options(sampling),
        }
        answer = ServerAnswer(self._server.url, sampling, cancel, tools=bool(tools_of(messages)))
        try:
            yield from read_answer(ask(self._server, "/api/chat", body, [{"logprobs": True}], cancel), answer)
        except ServerRefused as error:
            if error.status == 404 and not cancel.is_set():
                self._find(self._name)  # it tells which are there, if this one has gone
            raise
        if self._context is None and not cancel.is_set():
            self._note_context()

    def _note_context(self) -> None:
        """The context that Ollama gave the model, known once it is loaded."""
        with contextlib.suppress(LorafoldError):
            for row in rows(fields(self._server.get("/api/ps")).get("models")):
                if row.get("name") == self._name:
                    self._context = count(row.get("context_length")) or None

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

    def prompt(self, messages: Sequence[Message]) -> None:
        """The server builds it."""
        return None

    def count_tokens(self, text: str) -> None:
        """Ollama has no endpoint for that."""
        return None

    def close(self) -> None:
        """Nothing is held; Ollama unloads the model by itself."""


def _named(message: Message) -> Message:
    """A message with Ollama's own name for the tool that a result is of."""
    return {**message, "tool_name": message["name"]} if message["role"] == "tool" else message


def read_answer(events: Iterator[ServerEvent], answer: ServerAnswer) -> Iterator[Event]:
    """What the lines of a chat say.

    Args:
        events: of the server.
        answer: that they make up.

    Raises:
        SystemFault: the server reports an error, or broke off.
    """
    reason: str | None = None
    row: Mapping[str, Any] = {}
    for event in events:
        answer.check(event)
        row = fields(event.value)
        if not ("message" in row or row.get("done")):
            answer.pass_over(event.value)
            continue
        message = fields(row.get("message"))
        answer.calls.add(message)
        yield from answer.part(*said(message), row.get("logprobs"))
        if row.get("done"):
            reason = word(row.get("done_reason")) or "stop"
            break
    if reason == "stop" and answer.calls and not answer.spoke:
        reason = "tool_calls"
    yield from answer.finish(reason, row.get("eval_count"), row.get("prompt_eval_count"))
