"""The child process in which chat templates run; `sandbox.py` starts it by its path and never imports it.

It reads requests from standard input: a line with a number of bytes, then as many bytes of JSON,
`{"source": str, "dialect": str, "jobs": [{"messages", "variables", "clock"}]}`. It writes one JSON object a
line to standard output, first `{"ready": true}`, then one per job:
`{"text": str}` or `{"kind": "syntax"|"security"|"limit"|"raised"|"error", "problem": str, "line": int|null}`.
A syntax error is said once for all jobs of a request.

The environment is the one transformers gives a chat template (5.x, `utils/chat_template_utils.py`): immutable
sandbox, trim_blocks, lstrip_blocks, loop controls, the `generation` tag, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`, and `dict` and `namespace` without a way to Python's internals.
With the dialect "llama" it is llama.cpp's (`llama_dialect`). It needs only Jinja2 and the standard library,
so that it starts in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

# This file runs by its path, so its folder came first on the search path, where our own modules could
# hide the standard library's.
if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

TEXT_LIMIT = 64 * 2**20  # characters of one rendering, above what was said
DATE_OPEN, DATE_CLOSE = "\ue0d0", "\ue0d1"  # around the format, if the clock is "sentinel"


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` prints its body; the loss mask does not need the marks."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Wrap the body in a call block, whose scope is the one transformers gives it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which touching a forbidden attribute is an error at once and not an empty text."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Refuse the access."""
        raise jinja2.exceptions.SecurityError(
            f"access to the attribute {attribute!r} of a {type(obj).__name__} is forbidden"
        )


class PlainDict:
    """The template's `dict`: callable, without the class's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """`dict.fromkeys`."""
        return dict.fromkeys(*args)


class PlainNamespace(jinja2.utils.Namespace):
    """The template's `namespace`, which takes no name that starts with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self=` may be a key
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _clock(setting: str | None) -> Callable[[str], str]:
    if setting == "sentinel":
        return lambda pattern: f"{DATE_OPEN}{pattern}{DATE_CLOSE}"
    if setting is None:
        return lambda pattern: datetime.now().strftime(pattern)
    moment = datetime.fromisoformat(setting)
    return lambda pattern: moment.strftime(pattern)


def environment(dialect: str = "") -> jinja2.Environment:
    """A fresh environment as transformers makes it, less the clock; or llama.cpp's."""
    kind: type[Sandbox] = Sandbox
    if dialect == "llama":
        from lorafold.chat.llama_dialect import LlamaDialect

        kind = type("LlamaSandbox", (LlamaDialect, Sandbox), {})
    sandbox = kind(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = _tojson
    sandbox.globals |= {"raise_exception": _raise_exception, "dict": PlainDict(), "namespace": PlainNamespace}
    return sandbox


@lru_cache(maxsize=16)
def compiled(source: str, dialect: str = "") -> jinja2.Template:
    """The template of a source."""
    return environment(dialect).from_string(source)


def render(source: str, job: dict[str, Any], limit: int = TEXT_LIMIT, dialect: str = "") -> dict[str, Any]:
    """Render one job; every failure of the template becomes a row, never an exception."""
    try:
        template = compiled(source, dialect)
        text = template.render(
            messages=job["messages"],
            strftime_now=_clock(job["clock"]),
            **({"tools": None, "documents": None} | job["variables"]),
        )
        if len(text) > limit:
            return {"kind": "limit", "problem": f"the rendering has {len(text)} characters", "line": None}
        return {"text": text}
    except jinja2.TemplateSyntaxError as error:
        return {"kind": "syntax", "problem": error.message or "syntax error", "line": error.lineno}
    except jinja2.exceptions.SecurityError as error:
        return {"kind": "security", "problem": str(error), "line": _line_of(error)}
    except (MemoryError, RecursionError) as error:
        return {"kind": "limit", "problem": f"{type(error).__name__} while rendering", "line": None}
    except OverflowError as error:
        return {"kind": "limit", "problem": str(error), "line": _line_of(error)}
    except jinja2.UndefinedError as error:
        return {"kind": "error", "problem": str(error), "line": _line_of(error)}
    except jinja2.TemplateError as error:
        return {"kind": "raised", "problem": str(error), "line": _line_of(error)}
    except Exception as error:
        return {"kind": "error", "problem": f"{type(error).__name__}: {error}", "line": _line_of(error)}


def _line_of(error: BaseException) -> int | None:
    """The last line of the template in the traceback (Jinja rewrites it so that these are template lines)."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def address_space() -> int:
    """Bytes this process has mapped; an estimate if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**30


def limit_memory(ceiling: int) -> None:
    """Let this process map up to `ceiling` bytes, if the system can enforce that (Linux does)."""
    with contextlib.suppress(OSError, ValueError):  # macOS refuses; the time limit still holds there
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _send(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until standard input ends."""
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    compiled("{% for m in messages %}{{ m.content | trim }}{% endfor %}")  # what Jinja sets up lazily
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.freeze()  # what is loaded now stays, and need not be looked at again and again
    start = address_space()
    _send('{"ready": true}')
    while line := sys.stdin.buffer.readline():
        size = int(line)
        limit_memory(start + memory + 16 * size)  # what was said takes its own room
        request = json.loads(sys.stdin.buffer.read(size))
        for job in request["jobs"]:
            # SIGPROF's default action ends the process, in the middle of a C call too.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            answer = render(request["source"], job, TEXT_LIMIT + 4 * size, request.get("dialect", ""))
            signal.setitimer(signal.ITIMER_PROF, 0)
            try:
                _send(json.dumps(answer))
            except MemoryError:
                _send('{"kind": "limit", "problem": "MemoryError while rendering", "line": null}')
            if answer.get("kind") == "syntax":
                break


if __name__ == "__main__":
    main()
