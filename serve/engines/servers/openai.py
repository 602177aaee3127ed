"""Models behind an OpenAI-compatible server: llama-server, vLLM, llama-cpp-python's own, and the like.

`http://HOST:PORT[/v1][#MODEL]`; the key, if one is needed, comes from OPENAI_API_KEY. The stream is
server-sent events of chat completions (https://platform.openai.com/docs/api-reference/chat-streaming), with
the log-probability of each token if the server gives it: `/lens` then shows its answers as a local model
sees them. Context and token counts come from what llama-server and vLLM offer beyond OpenAI's interface
(https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorafold.chat.calls import CallForm, as_wanted
from lorafold.chat.dialogue import tools_of
from lorafold.chat.sandbox import Message
from lorafold.errors import LorafoldError, UsageError
from lorafold.serve.config import Sampling
from lorafold.serve.engines.servers.answer import ServerAnswer, ask
from lorafold.serve.engines.servers.events import DONE, ServerEvent
from lorafold.serve.engines.servers.fields import count, fault, fields, first_text, rows, said, text, word
from lorafold.serve.engines.servers.http import WRONG_ADDRESS, Failed, Server, ServerRefused
from lorafold.serve.protocol import About, Cancel, Event


class OpenAIEngine:
    """A model of a server (see `lorafold.serve.protocol.Engine`).

    Args:
        address: as the user spelled it.
        context: tokens that a conversation may hold, only told to the user; None: what the server says.

    Raises:
        UsageError: the server has several models (or lists none) and none was named, or not this one.
        SystemFault: the server does not answer.
    """

    def __init__(self, address: str, context: int | None = None) -> None:
        url, _, name = address.partition("#")
        url = url.rstrip("/")
        key = os.environ.get("OPENAI_API_KEY")
        if key and not (key.isascii() and key.isprintable()):
            problem = "the key has characters that cannot be sent in a header"
            raise UsageError(problem, at="OPENAI_API_KEY", fix="set it again, without line ends")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._root = Server(url.removesuffix("/v1"), headers)
        self._server = Server(f"{self._root.url}/v1", headers)
        row = self._chosen(name)
        self._model = name or str(row["id"])
        self._context = context or self._told_context(row)
        self._extras = 2  # kinds of fields beyond OpenAI's that the server has not refused
        self.about = About(
            name=self._model.rpartition("/")[2] or self._model,
            source=address,
            kind="openai",
            quantization=text(fields(row.get("meta")).get("ftype")),
        )

    def _chosen(self, name: str) -> Mapping[str, Any]:
        """The server's row of the model; of a model that was named, a server need not list any."""
        try:
            listed = self._server.get("/models")
        except (ServerRefused, Failed) as error:
            if name:
                return {"id": name}
            told = error.problem.removeprefix("the server answered ")
            raise UsageError(
                f"the server does not list its models ({told})",
                at=error.at,
                fix=WRONG_ADDRESS if error.fix == WRONG_ADDRESS else "append #NAME to the address",
            ) from error
        found = _models(listed)
        models = list(found)
        if name and not models:
            return {"id": name}
        if name in models or (not name and len(models) == 1):
            return found[name or models[0]]
        problem = f"the server has no model {name!r}" if name else f"the server has {len(models)} models"
        raise UsageError(
            problem, at=self._server.url, fix=f"append #NAME: {', '.join(models[:20]) or 'none listed'}"
        )

    def _told_context(self, row: Mapping[str, Any]) -> int | None:
        """vLLM and llama-server say it in the model's row, older llama-servers among their properties."""
        told = row.get("max_model_len") or fields(row.get("meta")).get("n_ctx")
        if told is None:
            with contextlib.suppress(LorafoldError):
                told = fields(fields(self._root.get("/props")).get("default_generation_settings")).get(
                    "n_ctx"
                )
        return count(told) or None

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
        answer = ServerAnswer(self._server.url, sampling, cancel, tools=bool(tools_of(messages)))
        return read_answer(self._ask(messages, sampling, cancel), answer)

    def _ask(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[ServerEvent]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(as_wanted(messages, CallForm(True, True, True, text=True))),
            **({"tools": list(tools)} if (tools := tools_of(messages)) else {}),
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
        try:
            for event in ask(self._server, "/chat/completions", body, extras, cancel):
                self._extras = len(extras)  # what was refused is not asked for again
                yield event
        except ServerRefused as error:
            if error.status == 404 and (names := self._listed()):
                fix = f"append one of its models to the address: #{', #'.join(names[:20])}"
                raise ServerRefused(error.problem, at=error.at, fix=fix, status=404) from error
            raise

    def _listed(self) -> list[str]:
        """The names of the server's models; none if it does not tell, or has this one."""
        with contextlib.suppress(LorafoldError):
            names = list(_models(self._server.get("/models")))
            return [] if self._model in names else names
        return []

    def prompt(self, messages: Sequence[Message]) -> None:
        """The server builds it."""
        return None

    def count_tokens(self, text: str) -> int | None:
        """How many tokens a text has, if the server tells (llama-server and vLLM do)."""
        words = {"content": text, "add_special": False, "prompt": text, "add_special_tokens": False}
        try:
            found = self._root.post("/tokenize", {"model": self._model, **words})
        except LorafoldError:
            return None
        tokens = fields(found).get("tokens")
        return len(tokens) if isinstance(tokens, list) else None

    def close(self) -> None:
        """Nothing is held."""


def _models(listed: Any) -> dict[str, Mapping[str, Any]]:
    """The rows of a list of models, by name, in the spellings of several servers."""
    listing = fields(listed)
    told = next((listing[key] for key in ("data", "models") if listing.get(key)), listed)
    found: dict[str, Mapping[str, Any]] = {}
    for row in told if isinstance(told, list) else ():
        name = row if isinstance(row, str) else first_text(fields(row), ("id", "name", "model"))
        if name:
            found[name] = {"id": name, **({} if isinstance(row, str) else row)}
    return found


def read_answer(events: Iterator[ServerEvent], answer: ServerAnswer) -> Iterator[Event]:
    """What the chunks of a chat completion say, or a completion that came whole.

    Args:
        events: of the server.
        answer: that they make up.

    Raises:
        SystemFault: the server reports an error, or broke off.
    """
    reason: str | None = None
    ended = refused = False
    usage: Mapping[str, Any] = {}
    number: Any = None  # of the first choice; others were not asked for
    for event in events:
        if event.name == DONE:
            ended = True
            break
        answer.check(event)
        chunk = fields(event.value)
        usage = fields(chunk.get("usage")) or usage
        choices = rows(chunk.get("choices"))
        if not choices and not usage:
            answer.pass_over(event.value)
        for choice in choices:
            number = choice.get("index") if number is None else number
            if choice.get("index") != number:
                continue
            if (told := fault(choice)) is not None:
                answer.fail(told)
            message = choice.get("delta")
            if not isinstance(message, Mapping):  # a whole body; some repeat it behind the deltas
                whole = {} if answer.spoke or answer.calls else fields(choice.get("message"))
                ended = ended or bool(whole)
                message = whole or {"content": choice.get("text")}
            entries = fields(choice.get("logprobs")).get("content")
            refused = refused or bool(text(message.get("refusal")))
            answer.calls.add(message)
            yield from answer.part(*said(message), entries)
            reason = word(choice.get("finish_reason")) or reason
    if reason == "error":
        answer.fail("the answer ended with an error that it does not describe")
    if reason in (None, "stop") and ended and (answer.spoke or answer.calls):
        reason = "stop"
    if reason == "stop" and (refused or (answer.calls and not answer.spoke)):
        reason = "refusal" if refused else "tool_calls"
    yield from answer.finish(reason, usage.get("completion_tokens"), usage.get("prompt_tokens"))
