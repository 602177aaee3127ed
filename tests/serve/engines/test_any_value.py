"""Any JSON value at any place of what a server sends: an answer or an error of one line, no traceback."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_servers import ASKED, END, GREEDY, part, refused, server, streamed

from lorafold.errors import LorafoldError
from lorafold.serve.config import Sampling
from lorafold.serve.conversation import Answer
from lorafold.serve.engines.servers import ollama, openai
from lorafold.serve.engines.servers.answer import ServerAnswer
from lorafold.serve.engines.servers.events import ServerEvent, read_events
from lorafold.serve.engines.servers.ollama import OllamaEngine
from lorafold.serve.engines.servers.openai import OpenAIEngine
from lorafold.serve.protocol import Cancel, Event, Finished

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(alphabet=st.characters(), max_size=8)
    | st.sampled_from(
        ["error", "stop", "length", "\ud83d", "\ude00", "text", 0, 1, 10**400, -1, float("nan")]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "message",
                    "type",
                    "text",
                    "content",
                    "delta",
                    "choices",
                    "thinking",
                    "object",
                    "index",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
LOGPROBS = {"content": [{"token": "He", "logprob": -0.5, "bytes": [72, 101], "top_logprobs": []}]}
STREAM: list[Any] = [
    part("", role="assistant"),
    part(None, reasoning_content="hm"),
    part("He", logprobs=LOGPROBS),
    part("llo"),
    part("", "stop"),
    {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 4}},
]
LINES: list[Any] = [
    {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
    {"message": {"content": "He"}, "logprobs": LOGPROBS["content"], "done": False},
    {"message": {"content": "llo"}, "done": False},
    {
        "message": {"content": ""},
        "done": True,
        "done_reason": "stop",
        "eval_count": 2,
        "prompt_eval_count": 1,
    },
]
Read = Callable[[Iterator[ServerEvent], ServerAnswer], Iterator[Event]]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in places(item, (*at, key)))]


def put(whole: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The whole with another value at a place."""
    if not path:
        return value
    made = copy.deepcopy(whole)
    there = made
    for key in path[:-1]:
        there = there[key]
    there[path[-1]] = value
    return made


def outcome(read: Read, lines: Iterator[bytes]) -> Answer | LorafoldError:
    """The answer in lines of a server, checked to be one that can be shown and saved; or the error."""
    answer, last = Answer(), None
    try:
        for event in read(read_events(lines, "http://x"), ServerAnswer("http://x", GREEDY, Cancel())):
            answer.take(event)
            last = event
    except LorafoldError as error:
        assert "\n" not in str(error) and error.fix
        return error
    assert isinstance(last, Finished)
    (answer.text + answer.reasoning).encode()
    json.dumps([answer.text, answer.reason, answer.logprobs, answer.tokens, answer.prompt_tokens])
    assert answer.scored is None or "".join(text for text, _ in answer.scored) == answer.text
    return answer


def sent(values: list[Any], sse: bool) -> Iterator[bytes]:
    for value in values:
        yield (b"data: " if sse else b"") + json.dumps(value).encode()
        yield b""


@pytest.mark.parametrize(("read", "stream"), [(openai.read_answer, STREAM), (ollama.read_answer, LINES)])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_value_at_any_place(read: Read, stream: list[Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for path in places(stream) if path]))
    made = put(stream, path, data.draw(ANYTHING))
    outcome(read, sent(made, sse=data.draw(st.booleans())))


@pytest.mark.parametrize("read", [openai.read_answer, ollama.read_answer])
@given(
    lines=st.lists(
        st.binary(max_size=20)
        | st.sampled_from(
            [b"data:", b"data: {", b"event: error", b"data: [DONE]", b"{", b"}", b"error: x", b"", b":"]
        )
        | ANYTHING.map(lambda value: b"data: " + json.dumps(value).encode()),
        max_size=6,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_lines(read: Read, lines: list[bytes]) -> None:
    outcome(read, (piece for line in lines for piece in line.splitlines() or [b""]))


@given(text=st.text(alphabet=st.characters(), max_size=12), cuts=st.lists(st.integers(0, 24), max_size=5))
@settings(max_examples=100, deadline=None)
def test_text_is_whole_wherever_it_is_cut(text: str, cuts: list[int]) -> None:
    """Cut between the UTF-16 units that JSON escapes, as servers do that stream in JavaScript or Java."""
    units = text.encode("utf-16-le", errors="surrogatepass")
    at = sorted({0, *(2 * cut for cut in cuts if 2 * cut < len(units)), len(units)})
    pieces = [units[a:b].decode("utf-16-le", errors="surrogatepass") for a, b in itertools.pairwise(at)]
    answer = outcome(openai.read_answer, sent([*map(part, pieces), END], sse=True))
    assert isinstance(answer, Answer)
    assert answer.text == units.decode("utf-16-le", errors="replace")


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_a_list_of_models(data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {"data": [{"id": "m", "max_model_len": 64, "meta": {"ftype": "Q4", "n_ctx": 64}}]}
    tags = {"models": [{"name": "m:latest", "digest": "sha256:0", "details": {"quantization_level": "Q4"}}]}
    loaded = {"models": [{"name": "m:latest", "context_length": 64}]}
    props = {"default_generation_settings": {"n_ctx": 64}}
    tokens = {"tokens": [1, 2]}

    def odd(value: Any) -> Any:
        return put(value, data.draw(st.sampled_from(places(value))), data.draw(ANYTHING))

    get = {"/v1/models": odd(listed), "/props": odd(props), "/api/tags": odd(tags), "/api/ps": odd(loaded)}
    post = {"/tokenize": refused(200, odd(tokens)), "/api/chat": streamed(LINES)}
    with server(get, post) as (url, _):
        monkeypatch.setenv("OLLAMA_HOST", url)
        for open_ in (
            lambda: OpenAIEngine(url),
            lambda: OpenAIEngine(f"{url}#m"),
            lambda: OllamaEngine("ollama:m"),
        ):
            try:
                engine = open_()
                assert isinstance(engine.about.name + engine.about.quantization, str)
                assert engine.context is None or engine.context > 0
                engine.count_tokens("a")
                if isinstance(engine, OllamaEngine):
                    list(engine.stream(ASKED, Sampling(seed=0), Cancel()))
            except LorafoldError as error:
                assert "\n" not in str(error)
