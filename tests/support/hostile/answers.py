"""What hubs, servers and models answer, as `targets` has it: nothing of it is trusted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hostile.targets import Parse, Target, chosen_of, dumped, each_asked

_CALL = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
_LOGPROBS = {
    "content": [
        {"token": "He", "logprob": -0.5, "bytes": [72, 101], "top_logprobs": [{"token": "a", "logprob": -2}]}
    ]
}


def _part(said: Any, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of an OpenAI-compatible stream."""
    return {"choices": [{"index": 0, "delta": {"content": said}, "finish_reason": reason, **more}]}


def _stream(server: str) -> Callable[[Path], Parse]:
    """What a server streams, a line at a time, until it can be shown and saved."""

    def start(_: Path) -> Parse:
        from lorafold.serve.config import Sampling
        from lorafold.serve.conversation import Answer
        from lorafold.serve.engines.servers import ollama, openai
        from lorafold.serve.engines.servers.answer import ServerAnswer
        from lorafold.serve.engines.servers.events import read_events
        from lorafold.serve.protocol import Cancel, Finished
        from lorafold.serve.terminal.views import summary

        read = {"ollama": ollama.read_answer, "openai": openai.read_answer}[server]
        sampling = Sampling(temperature=0, seed=5, max_tokens=16)

        def parse(data: bytes) -> None:
            answer, last = Answer(), None
            lines, tools = iter(data.splitlines()), len(data) % 2 == 0
            arriving = ServerAnswer("http://x", sampling, Cancel(), tools=tools)
            for event in read(read_events(lines, "http://x"), arriving):
                answer.take(event)
                last = event
            assert isinstance(last, Finished)
            (answer.text + answer.reasoning).encode()
            json.dumps([answer.text, answer.reason, answer.logprobs, answer.tokens, answer.calls])
            assert answer.scored is None or "".join(text for text, _ in answer.scored) == answer.text
            summary(answer)

        return parse

    return start


def _openai_seeds() -> list[bytes]:
    streams = (
        [
            _part("", role="assistant"),
            {"choices": [{"delta": {"content": None, "reasoning_content": "hm"}}]},
            _part("He", logprobs=_LOGPROBS),
            _part("llo"),
            _part("", "stop"),
            {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 4}},
        ],
        [
            {"choices": [{"index": 0, "delta": {"tool_calls": [_CALL]}, "finish_reason": "tool_calls"}]},
            {"usage": {"prompt_tokens": 1}, "timings": {"predicted_ms": 3.5}},
        ],
        [{"choices": [{"message": {"content": "whole"}, "finish_reason": "length"}]}],
    )
    sse = [b"\n\n".join(b"data: " + dumped(row) for row in rows) + b"\n\ndata: [DONE]\n" for rows in streams]
    return [*sse, *(b"\n".join(map(dumped, rows)) for rows in streams)]


def _ollama_seeds() -> list[bytes]:
    end = {
        "message": {"content": ""},
        "done": True,
        "done_reason": "stop",
        "eval_count": 2,
        "prompt_eval_count": 1,
    }
    said = [
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"message": {"content": "He"}, "logprobs": _LOGPROBS["content"], "done": False},
        {"message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}},
        end,
    ]
    return [b"\n".join(map(dumped, said)) + b"\n", b"\n".join(map(dumped, [said[1], end]))]


def _calls(_: Path) -> Parse:
    """What a model wrote, in which calls are looked for."""
    from lorafold.chat.call_spellings import split_calls, told

    def parse(data: bytes) -> None:
        text, calls = split_calls(data.decode("utf-8", "replace"))
        json.dumps([text, calls])
        for call in calls:
            told(call)

    return parse


def _calls_seeds() -> list[bytes]:
    call = '{"name": "f", "arguments": {"x": 1, "y": ["a"]}}'
    texts = (
        f"well <tool_call>\n{call}\n</tool_call><tool_call>{call}</tool_call><|im_end|>",
        "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{call}\n```<｜tool▁call▁end｜>",
        '<|tool_call>call:f{x:<|"|>a<|"|>,y:[1,None],z:{a:1}}<tool_call|>',
        "<start_function_call>call:f{x:<escape>a<escape>}<end_function_call>",
        f"[TOOL_CALLS][{call}]</s>",
        '[TOOL_CALLS]f[CALL_ID]1[ARGS]{"x": 1}',
        f"<|python_tag|>{call}; {call}<|eom_id|>",
    )
    return [text.encode() for text in texts]


@contextlib.contextmanager
def _hub_answers(body: bytes) -> Iterator[None]:
    """The edge: while it lasts, the hub's client gets these bytes for an answer, whatever it asks."""
    import httpx2
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory

    def answer(request: Any) -> Any:
        head = {"Content-Type": "application/json", "X-Repo-Commit": "0" * 40, "ETag": '"1"'}
        return httpx2.Response(200, headers=head, content=body, request=request)

    transport = httpx2.MockTransport(answer)
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=transport, trust_env=False))
    try:
        yield
    finally:
        huggingface_hub.set_client_factory(default_client_factory)


def _hub(_: Path) -> Parse:
    """What a hub says of a repository, when a file of it is looked for: the one that the first byte names."""
    from lorafold.hub.files import HubSpec, find_files

    texts = ("org/name:Q8_0", "org/name", "org/name:a.gguf")
    specs = [spec for text in texts if (spec := HubSpec.parse(text)) is not None]
    searches = [partial(find_files, spec, offline=False) for spec in specs]

    def parse(data: bytes) -> None:
        chosen, body = chosen_of(searches, data)
        with _hub_answers(body):
            each_asked(chosen)

    return parse


def _hub_seeds() -> list[bytes]:
    names = ("README.md", "a-Q8_0.gguf", "mmproj-a.gguf")
    parts = ("b-Q8_0-00001-of-00002.gguf", "b-Q8_0-00002-of-00002.gguf", "x/a.gguf")
    about = {
        "id": "org/name",
        "modelId": "org/name",
        "sha": "0" * 40,
        "private": False,
        "gated": False,
        "tags": ["gguf"],
        "downloads": 1,
        "likes": 0,
        "lastModified": "2025-01-01T00:00:00.000Z",
        "createdAt": "2025-01-01T00:00:00.000Z",
        "cardData": {"license": "mit", "base_model": "org/base"},
        "config": {"model_type": "llama"},
        "safetensors": {"parameters": {"F16": 1}, "total": 1},
        "gguf": {"total": 1, "architecture": "llama"},
    }
    one = dumped(about | {"siblings": [{"rfilename": name} for name in names]})
    whole = dumped(about | {"siblings": [{"rfilename": "a-Q8_0.gguf", "size": 1, "blobId": "0"}]})
    split = dumped(about | {"siblings": [{"rfilename": name} for name in parts]})
    return [b"\0" + one, b"\0" + split, b"\1" + one, b"\1" + whole, b"\2" + split]


ANSWERS: Sequence[Target] = (
    Target("stream-openai", _stream("openai"), _openai_seeds, "lines"),
    Target("stream-ollama", _stream("ollama"), _ollama_seeds, "lines"),
    Target("tool-calls", _calls, _calls_seeds, "calls"),
    Target("hub", _hub, _hub_seeds, "json", chosen=True),
)
