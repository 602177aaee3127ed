"""What a server's refusal means: a few causes that servers tell in words of their own, each with its cure.

Sources: llama-server's server-common.cpp and server-http.cpp, vLLM's and SGLang's OpenAI front ends, Ollama's
routes.go, LM Studio, text-generation-inference's validation.rs, llama-cpp-python's errors.py, OpenAI's codes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorafold.errors import InputError, LorafoldError, SystemFault
from lorafold.serve.engines.servers.fields import fault, fields, parsed, shortened


@dataclass(frozen=True, slots=True)
class Cause:
    """A cause that many servers tell.

    Attributes:
        statuses: of the answers that may mean it.
        words: what is in their text.
        problem: the cause in our words.
        fix: the cure.
        kind: of the error; the request is not repeated with fewer fields.
    """

    statuses: frozenset[int]
    words: re.Pattern[str]
    problem: str
    fix: str
    kind: type[LorafoldError]


def _words(*parts: str) -> re.Pattern[str]:
    return re.compile("|".join(parts), re.IGNORECASE)


CAUSES = (
    Cause(
        frozenset((400, 413, 422, 500)),
        _words(
            r"exceed_context_size|context_length_exceeded",
            r"(maximum|available|model'?s|max) context[ _](length|size|window)",
            r"(exceeds?|longer than|greater than|too large for) .{0,60}(context|maximum number of tokens)",
            r"context (length|size|window).{0,40}(exceeded|not enough|too small)",
            r"(prompt|input|request) (is )?too long",
            r"`inputs`( tokens \+ `max_new_tokens`)? must (be|have)",
            r"input (length|token count) .{0,20}exceeds",
            r"when context the overflows|reduce the length of the",
        ),
        "the conversation does not fit into the server's context",
        "say less, start over with /reset, lower --max-tokens, or start the server with a larger context",
        InputError,
    ),
    Cause(
        frozenset((425, 500, 502, 503)),
        _words(
            r"loading( the)? model|model .{0,60}(is |still |being )+load(ing|ed)\b",
            r"(server|model|engine) (is )?(not (yet )?ready|starting|warming up)",
        ),
        "the server is still loading its model",
        "wait until it is loaded, and ask again",
        SystemFault,
    ),
    Cause(
        frozenset((400, 404, 500, 503)),
        _words(
            r"no models? (is |are )?(currently )?loaded|model (has )?(been )?unloaded",
            r"(model|engine) .{0,60}(is )?not loaded|unloaded or crashed",
        ),
        "the server has no model loaded",
        "load one there, and ask again",
        SystemFault,
    ),
)


def cause_of(status: int | None, told: str) -> Cause | None:
    """The cause that a server tells, or None if it is another one.

    Args:
        status: of the answer; None for an error within one.
        told: its text, with whatever code stands beside it.
    """
    for cause in CAUSES:
        if (status is None or status in cause.statuses) and cause.words.search(told):
            return cause
    return None


def pause(told: str | None) -> str:
    """How long a server wants to be left alone, if its Retry-After says so in seconds."""
    seconds = (told or "").strip()
    return f" (in {seconds} s, it says)" if re.fullmatch(r"\d{1,6}(\.\d{1,3})?", seconds) else ""


def message_of(raw: bytes) -> str:
    """The text of an error's body in the usual spellings; of a page what a reader would see."""
    try:
        body = parsed(raw)
    except ValueError:
        return page_text(raw.decode("utf-8", errors="replace"))
    known = fields(body)
    wrapped = {"error": next(filter(None, (known.get(key) for key in ("error", "message", "detail"))), None)}
    return fault(wrapped) or shortened(body)


def page_text(text: str) -> str:
    """A text without the marks of HTML, on one line."""
    if is_page(text):
        text = re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<!--.*?-->", " ", text)
        text = re.sub(r"<[^>]*>?", " ", text)
    return " ".join(text.split())[:200]


def is_page(text: str) -> bool:
    """Whether a text is a web page, as a proxy sends one."""
    return re.match(r"\s*<(!doctype|html|head|body|h1|\?xml)\b", text, re.IGNORECASE) is not None
