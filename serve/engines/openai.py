"""Models behind an OpenAI-compatible server: llama-server, vLLM, llama-cpp-python's own, and the like.

`http://HOST:PORT[/v1][#MODEL]`; the key, if one is needed, comes from OPENAI_API_KEY. The stream is
server-sent events of chat completions (https://platform.openai.com/docs/api-reference/chat-streaming), with
the log-probability of each token where the server gives it: `/lens` then shows its answers as a local model
sees them. Context and token counts come from what llama-server and vLLM offer beyond OpenAI's interface
(https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from lorafold.chat.sandbox import Message
from lorafold.errors import LorafoldError, SystemFault, UsageError
from lorafold.serve.config import Sampling
from lorafold.serve.engine import About, Cancel, Event
from lorafold.serve.engines.http import Server
from lorafold.serve.engines.server_answer import ServerAnswer, ask


class OpenAIEngine:
    """A model of a server (see `lorafold.serve.engine.Engine`).

    Args:
        address: as the user spelled it.
        context: tokens that a conversation may hold, only told to the user; None: what the server says.

    Raises:
        UsageError: the server has several models and none was named, or not this one.
        SystemFault: the server does not answer.
    """

    def __init__(self, address: str, context: int | None = None) -> None:
        url, _, name = address.partition("#")
        url = url.rstrip("/")
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._root = Server(url.removesuffix("/v1"), headers)
        self._server = Server(f"{self._root.url}/v1", headers)
        row = self._chosen(name)
        self._model = str(row["id"])
        self._context = context or self._told_context(row)
        self._extras = 2  # kinds of fields beyond OpenAI's that the server has not refused
        self.about = About(
            name=self._model.rpartition("/")[2] or self._model,
            source=address,
            kind="openai",
            quantization=str(_meta(row).get("ftype") or ""),
        )

    def _chosen(self, name: str) -> dict[str, Any]:
        """The server's row of the model."""
        listed = self._server.get("/models")
        rows = listed.get("data") if isinstance(listed, dict) else None
        found = {str(row["id"]): row for row in rows or () if isinstance(row, dict) and "id" in row}
        models = list(found)
        if name and not models:
            return {"id": name}
        if name in models or (not name and len(models) == 1):
            return found[name or models[0]]
        problem = f"the server has no model {name!r}" if name else f"the server has {len(models)} models"
        raise UsageError(
            problem, at=self._server.url, fix=f"append #NAME: {', '.join(models[:20]) or 'none listed'}"
        )

    def _told_context(self, row: dict[str, Any]) -> int | None:
        """vLLM and llama-server say it in the model's row, older llama-servers among their properties."""
        told = row.get("max_model_len") or _meta(row).get("n_ctx")
        if told is None:
            with contextlib.suppress(LorafoldError, KeyError, TypeError):
                told = self._root.get("/props")["default_generation_settings"]["n_ctx"]
        return told if isinstance(told, int) and told > 0 else None

    @property
    def context(self) -> int | None:
        """As given, or as the server says."""
        return self._context

    @property
    def scorer(self) -> None:
        """Servers score only what they write themselves."""
        return None

    @property
    def controls(self) -> None:
        """The server builds the prompt."""
        return None

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Answer a conversation (see `Engine.stream`)."""
        answer = ServerAnswer(self._server, sampling, cancel)
        reason: str | None = None
        usage: dict[str, Any] = {}
        for data in _data(self._ask(messages, sampling, cancel)):
            if data.get("error"):
                said = data["error"]
                problem = str(said.get("message", said) if isinstance(said, dict) else said)[:300]
                raise SystemFault(f"the server failed: {problem}", at=self._server.url)
            usage = data.get("usage") or usage
            for choice in data.get("choices") or ():
                delta = choice.get("delta") or {}
                thinking = delta.get("reasoning_content") or delta.get("reasoning")
                entries = (choice.get("logprobs") or {}).get("content")
                yield from answer.part(delta.get("content") or "", thinking or "", entries)
                reason = choice.get("finish_reason") or reason
        yield from answer.finish(reason, usage.get("completion_tokens"), usage.get("prompt_tokens"))

    def _ask(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[bytes]:
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
        further: dict[str, Any] = {
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "repetition_penalty": sampling.repeat_penalty,
        }
        extras = [further, {"logprobs": True, "top_logprobs": 1}][: self._extras]
        for line in ask(self._server, "/chat/completions", body, extras, cancel):
            self._extras = len(extras)  # what was refused is not asked for again
            yield line

    def count_tokens(self, text: str) -> int | None:
        """How many tokens a text has, where the server tells (llama-server and vLLM do)."""
        words = {"content": text, "add_special": False, "prompt": text, "add_special_tokens": False}
        try:
            found = self._root.post("/tokenize", {"model": self._model, **words})
        except LorafoldError:
            return None
        tokens = found.get("tokens") if isinstance(found, dict) else None
        return len(tokens) if isinstance(tokens, list) else None

    def close(self) -> None:
        """Nothing is held."""


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    """What llama-server says about a model's weights."""
    meta = row.get("meta")
    return meta if isinstance(meta, dict) else {}


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
