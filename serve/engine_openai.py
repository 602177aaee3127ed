"""Models behind an OpenAI-compatible server: llama-server, vLLM, llama-cpp-python's own, and the like.

`http://HOST:PORT[/v1][#MODEL]`; the key, if one is needed, comes from OPENAI_API_KEY. The stream is
server-sent events of chat completions (https://platform.openai.com/docs/api-reference/chat-streaming).
Prompts are built by the server, which also means that text looking like a control token is taken as one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from lorafold.errors import SystemFault, UsageError
from lorafold.jinja_sandbox import Message
from lorafold.serve.config import Sampling
from lorafold.serve.engine import About, Cancel, Event, Finished, Reason, Started, Token
from lorafold.serve.http_stream import Refused, Server

SERVER_PROMPT = "the server builds the prompt: text that looks like a control token is taken as one"
_REASONS: dict[str, Reason] = {"stop": "stop", "length": "length"}


class OpenAIEngine:
    """A model of a server (see `lorafold.serve.engine.Engine`).

    Args:
        address: as the user spelled it.
        context: tokens that a conversation may hold, only told to the user.

    Raises:
        UsageError: the server has several models and none was named, or not this one.
        SystemFault: the server does not answer.
    """

    def __init__(self, address: str, context: int | None = None) -> None:
        url, _, name = address.partition("#")
        url = url.rstrip("/")
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._server = Server(url if url.endswith("/v1") else f"{url}/v1", headers)
        self._context = context
        self._model = self._chosen(name)
        self._extras = True  # until the server refuses what OpenAI's own does not know
        self._about = About(
            name=self._model.rpartition("/")[2] or self._model,
            source=address,
            kind="openai",
            quantization="",
            notes=(SERVER_PROMPT,),
        )

    def _chosen(self, name: str) -> str:
        listed = self._server.get("/models")
        rows = listed.get("data") if isinstance(listed, dict) else None
        models = [str(row["id"]) for row in rows or () if isinstance(row, dict) and "id" in row]
        if name and (name in models or not models):
            return name
        if not name and len(models) == 1:
            return models[0]
        problem = f"the server has no model {name!r}" if name else f"the server has {len(models)} models"
        raise UsageError(
            problem, at=self._server.url, fix=f"append #NAME: {', '.join(models[:20]) or 'none listed'}"
        )

    @property
    def about(self) -> About:
        """Which weights answer, as far as the server says."""
        return self._about

    @property
    def context(self) -> int | None:
        """As given; the server has its own limit."""
        return self._context

    @property
    def scorer(self) -> None:
        """Servers keep the full distributions to themselves."""
        return None

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Answer a conversation (see `Engine.stream`)."""
        begin = time.perf_counter()
        started, reason = False, None
        usage: dict[str, Any] = {}
        for data in self._events(messages, sampling, cancel):
            if isinstance(data.get("error"), dict):
                problem = str(data["error"].get("message", data["error"]))[:300]
                raise SystemFault(f"the server failed: {problem}", at=self._server.url)
            usage = data.get("usage") or usage
            for choice in data.get("choices") or ():
                if not started:
                    yield Started(None, elapsed=time.perf_counter() - begin)
                    started = True
                if text := (choice.get("delta") or {}).get("content"):
                    yield Token(text, None, None, time.perf_counter() - begin)
                reason = choice.get("finish_reason") or reason
        if not started and not cancel.is_set():
            raise SystemFault(
                "the server sent no answer", at=self._server.url, fix="look at the server's log"
            )
        if reason is None and not cancel.is_set():
            raise SystemFault(
                "the server broke off in the middle of an answer",
                at=self._server.url,
                fix="look at the server's log, and ask again",
            )
        yield Finished(
            "cancelled" if cancel.is_set() and reason is None else _REASONS.get(str(reason), "stop"),
            time.perf_counter() - begin,
            tokens=usage.get("completion_tokens"),
            prompt_tokens=usage.get("prompt_tokens"),
        )

    def _events(
        self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel
    ) -> Iterator[dict[str, Any]]:
        """The stream's objects; asked again without extras where the server knows only OpenAI's fields."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        extras = {
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "repetition_penalty": sampling.repeat_penalty,
        }
        try:
            lines = self._server.lines(
                "/chat/completions", {**body, **extras} if self._extras else body, cancel
            )
            yield from _data(lines)
        except Refused:
            if not self._extras:
                raise
            self._extras = False
            yield from _data(self._server.lines("/chat/completions", body, cancel))

    def count_tokens(self, text: str) -> None:
        """Not known."""
        return None

    def close(self) -> None:
        """Nothing is held."""


def _data(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of server-sent events; comments and other fields are passed over."""
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return
        try:
            event = json.loads(payload)
        except ValueError as error:
            raise SystemFault(f"the server sent something that is not JSON: {payload[:60]!r}") from error
        if isinstance(event, dict):
            yield event
