"""Parsers of data, questions, sessions, journals, recipes and Modelfiles, as `targets` has them."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hostile.containers import archives, packed_texts, tables
from hostile.targets import Parse, Target, dumped, one_file

_ALPACA = {"instruction": "What is it?", "input": "", "output": "A lamp."}
_CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a", "reasoning_content": "r"},
    ]
}
_SHARE = {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s"}
_HISTORY = {"instruction": "q", "output": "a", "history": [["q0", "a0"]]}
_PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
_TOOLS = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "messages": [
        {"role": "user", "content": "u"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
            ],
        },
        {"role": "tool", "content": "r", "tool_call_id": "1", "name": "f"},
        {"role": "assistant", "content": "a"},
    ],
}
ROWS = (
    _ALPACA,
    _CHAT,
    _SHARE,
    _HISTORY,
    _PAIR,
    _TOOLS,
    {"text": "plain"},
    {"prompt": "p", "completion": "c"},
)


def _lines(*rows: Any) -> bytes:
    return b"".join(dumped(row) + b"\n" for row in rows)


_TEXTS = tuple(map(dumped, ROWS))


def _named(names: Sequence[str], read: Callable[[Path], object]) -> Callable[[Path], Parse]:
    """A target whose first byte chooses the file's name."""

    def start(folder: Path) -> Parse:
        paths = [folder / name for name in names]

        def parse(data: bytes) -> None:
            path = paths[data[0] % len(paths)] if data else paths[0]
            path.write_bytes(data[1:])
            try:
                read(path)
            finally:
                path.unlink(missing_ok=True)

        return parse

    return start


def _load(path: Path) -> None:
    from lorafold.train.data.load import load_data

    load_data((str(path),))


def _ask(path: Path) -> None:
    from lorafold.serve.comparison.questions import read_prompts

    read_prompts(path)


def _tools_of(path: Path) -> None:
    from lorafold.records.tools import tools_in

    tools_in(path)


def _columns(**columns: Any) -> Any:
    import pyarrow

    return pyarrow.table(columns)


def _table_seeds(write: Callable[[Any, Any], None]) -> Callable[[], Sequence[bytes]]:
    def seeds() -> list[bytes]:
        made = []
        for table in (
            _columns(instruction=["q", "r"], output=["a", None], input=["", "x"]),
            _columns(messages=[_CHAT["messages"][1:]], number=[1.5]),
        ):
            file = io.BytesIO()
            write(table, file)
            made.append(file.getvalue())
        return made

    return seeds


def _write_parquet(table: Any, file: Any) -> None:
    from pyarrow import parquet

    parquet.write_table(table, file)


def _write_arrow(table: Any, file: Any) -> None:
    from pyarrow import ipc

    with ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def _table(kind: str, write: Callable[[Any, Any], None]) -> Target:
    read = one_file(f"data.{kind}", _load)
    return Target(f"data-{kind}", read, _table_seeds(write), slow=True, made=tables(write))


_ARCHIVES = ("data.zip", "data.tar", "data.tar.gz")


def _archive_seeds() -> list[bytes]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    members = {"train.jsonl": _lines(_ALPACA), "test.jsonl": _lines(_ALPACA), "README.md": b"x"}
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    plain = tarred.getvalue()
    return [b"\0" + zipped.getvalue(), b"\1" + plain, b"\2" + gzip.compress(plain, mtime=0)]


_PACKED = ("data.jsonl.gz", "data.jsonl.bz2", "data.jsonl.xz", "data.jsonl.zst", "data.jsonl")


def _packed_seeds() -> list[bytes]:
    import pyarrow

    text = _lines(_ALPACA, _ALPACA | {"input": "x"})
    zst = pyarrow.compress(text, codec="zstd", asbytes=True)
    return [
        b"\0" + gzip.compress(text, mtime=0),
        b"\1" + bz2.compress(text),
        b"\2" + lzma.compress(text),
        b"\3" + zst,
        b"\4" + gzip.compress(gzip.compress(text, mtime=0), mtime=0),
        b"\4" + text.decode().encode("utf-16"),
    ]


_TABLES = ("data.csv", "data.tsv", "data.txt")


def _table_texts() -> list[bytes]:
    return [
        b'\0instruction,output\nq,a\n"q,\n2",b\n',
        b"\0sep=;\ninstruction;output\nq;a\n",
        b"\1instruction\toutput\nq\ta\n",
        b"\2a\nb\n\nc\n",
        b"\0\xef\xbb\xbfprompt,completion\r\nq,a\r\n",
    ]


def _session(folder: Path) -> Parse:
    from lorafold.serve.conversation import Conversation
    from lorafold.serve.terminal.views import summary

    path, again = folder / "session.json", folder / "again.json"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        found = Conversation.load(path, ["a.gguf", "b.gguf"])
        found.votes()
        for number, turn in enumerate(found.turns):
            turn.standing()
            for model in (0, 1):
                found.messages(model, number)
                found.waiting(model)
                if (answer := turn.answers.get(model)) is not None:
                    summary(answer)
                    answer.scored  # noqa: B018 - a property that reads pieces and probabilities
        again.write_bytes(json.dumps(found.as_json()).encode())
        Conversation.load(again, ["a.gguf", "b.gguf"])

    return parse


def _session_seeds() -> list[bytes]:
    from lorafold.serve.config import Sampling
    from lorafold.serve.conversation import Answer, Conversation, Turn

    answer = Answer("a", "thought", [1], [-0.5], ["a"], 1, 3, 0, 0, 0.1, 0.2, "stop", "", 7, ("s", 0))
    call = Answer("", calls=_TOOLS["messages"][1]["tool_calls"])  # type: ignore[arg-type, index]
    turns = [
        Turn("q", {0: answer, 1: call}, [1, 0], True, 0, "s", 0),
        Turn("", {0: Answer("b")}, [0, 1], results=("r",)),
    ]
    talk = Conversation(["a.gguf", "b.gguf"], Sampling(), "s", turns, None, None, tuple(_TOOLS["tools"]))  # type: ignore[arg-type]
    return [dumped(talk.as_json()), dumped(Conversation(["a.gguf"], Sampling(), None, [], None).as_json())]


def _journal(folder: Path) -> Parse:
    from lorafold.serve.comparison.journal import Journal
    from lorafold.serve.comparison.report import as_markdown
    from lorafold.serve.comparison.result import CompareResult
    from lorafold.serve.rows import ModelCard

    path = folder / ".journal"
    cards = [ModelCard(name, name, "GGUF", "Q8_0", "") for name in ("a", "b")]

    def parse(data: bytes) -> None:
        path.write_bytes(b"".join(map(_sealed, data.split(b"\n"))))
        rows = Journal(path, "same", 4, 2).rows
        result = CompareResult(cards, list(rows.values()), {}, "q.txt", 0.0, len(rows), [])
        as_markdown(result)
        _ = result.table, result.failures
        json.dumps([row.as_json() for row in rows.values()])

    return parse


def _sealed(line: bytes) -> bytes:
    """A line with the digest that a journal wants, or the reader would look no further."""
    from lorafold.files.seals import sealed

    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(record := json.loads(line), dict):
            return sealed(record).encode()
    return line + b"\n"


def _journal_seeds() -> list[bytes]:
    from lorafold.serve.rows import AnswerRow, LensRow, QuestionRow

    lens = LensRow(0.1, 0.2, [("a", -0.5, -1.0)])
    answers = [AnswerRow("a", "stop", 1, 0.5, 0.1, 2.0, 0, "r", "", lens), AnswerRow("", "not asked")]
    row = QuestionRow("q", [{"role": "user", "content": "q"}], "e", answers)
    head = {"format": "lorafold-comparison-3", "identity": "same"}
    return [_lines(head, {"number": 0, "row": row.as_json()}, {"number": 2, "row": row.as_json()})]


def _recipe(path: Path) -> None:
    from lorafold.commandline.recipes import read_recipe

    read_recipe(str(path))


def _recipe_flags(folder: Path) -> Parse:
    """As a command line reads it: what cyclopts makes of the command's flags is made once, not each time."""
    from functools import partial

    from cyclopts import CycloptsError
    from cyclopts.bind import create_bound_arguments

    from lorafold.cli import app
    from lorafold.commandline.hints import misused
    from lorafold.commandline.recipes import answers
    from lorafold.errors import UsageError

    path, command = folder / "recipe.yaml", app["train"]
    given = ["--recipe", str(path), "--out", "x", "--base", "x", "--data", "y"]
    flags, answer = command.assemble_argument_collection(), partial(answers, command, ("train",))
    state = ("_value", "_marked_converted", "_mark_converted_override")
    unread = [(flag, name, getattr(flag, name)) for flag in flags for name in state]
    _names_made_once(flags)

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        for flag, name, value in unread:
            object.__setattr__(flag, name, value)  # a flag's own way asks a validator each time
        for flag in flags:
            if flag.tokens:
                flag.tokens = []
        assert command.default_command is not None
        try:
            create_bound_arguments(command.default_command, flags, list(given), (answer,))
        except CycloptsError as error:
            error.app, error.command_chain = command, ("train",)  # as cyclopts names them
            raise UsageError(misused(error, ["train", *given], app)) from error

    return parse


def _names_made_once(flags: Any) -> None:
    """A flag's names, `--no-` and all, come of its type alone: cyclopts makes them for each word anew."""
    from functools import lru_cache, wraps

    from cyclopts import Parameter, field_info
    from cyclopts.argument import Argument, ArgumentCollection

    def once(made: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # with what an id belongs to, so that it stays

        @wraps(made)
        def remembered(owner: Any, *about: Any) -> Any:
            key = (id(owner), *about)
            if key not in known:
                known[key] = owner, made(owner, *about)
            return known[key][1]

        return remembered

    looked_for = ArgumentCollection.match
    named = lru_cache(2000)(lambda word: looked_for(flags, word))  # what names none is looked for each time

    def match(among: Any, word: Any, **how: Any) -> Any:
        return named(word) if among is flags and not how else looked_for(among, word, **how)

    Parameter.get_negatives = once(Parameter.get_negatives)
    Argument._negatives_hint = property(once(Argument._negatives_hint.fget))
    ArgumentCollection.match = match
    field_info.get_type_hints = lru_cache(field_info.get_type_hints)


def _recipe_seeds() -> list[bytes]:
    from importlib.resources import files

    known = [path.read_bytes() for path in files("lorafold.recipes").iterdir() if path.name.endswith(".yaml")]
    merged = b"_: &d {r: 8}\nbase: demo\ndata: [a.jsonl]\ntarget_modules: [q_proj]\nlearning_rate: 1e-4\n"
    return [*sorted(known), merged, b"base: x\nsystem: |\n  a\n  b\n"]


def _modelfile(_: Path) -> Parse:
    from lorafold.export.modelfile.parser import commands, parse

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        commands(text)
        parse(text).render()

    return read


def _modelfile_seeds() -> list[bytes]:
    return [
        b"# made\nFROM ./a.gguf\nFROM ./b.gguf\nADAPTER ./c\nREQUIRES 0.30\nPARSER qwen3\n"
        b'TEMPLATE """{{ .System }}\n{{ .Prompt }}"""\nSYSTEM "a \\ b"\nPARAMETER stop "<|im_end|>"\n'
        b"PARAMETER temperature 0.5\nPARAMETER num_ctx 4096\nPARAMETER use_mmap true\n",
        b'from x\r\nmessage user hi\r\nlicense """a\n"""\n',
    ]


RECORDS = (
    Target(
        "data-json",
        _named(("data.jsonl", "data.json"), _load),
        lambda: [
            *(b"\0" + _lines(row, row) for row in ROWS),
            b"\1" + dumped(list(ROWS[:1])),
            b"\1" + dumped({"data": [ROWS[1]]}),
        ],
        "lines",
        chosen=True,
    ),
    Target("data-table", _named(_TABLES, _load), _table_texts, "text", chosen=True),
    _table("parquet", _write_parquet),
    _table("arrow", _write_arrow),
    Target("data-archive", _named(_ARCHIVES, _load), _archive_seeds, chosen=True, made=archives(_TEXTS)),
    Target("data-packed", _named(_PACKED, _load), _packed_seeds, chosen=True, made=packed_texts(_TEXTS)),
    Target(
        "prompts",
        _named(("q.txt", "q.jsonl", "q.json", "q.csv"), _ask),
        lambda: [b"\0Who?\nWhat?\n", b"\1" + _lines(*ROWS[:4]), b"\2" + dumped(["a", "b"]), b"\3prompt\nq\n"],
        "lines",
        chosen=True,
    ),
    Target(
        "tools", one_file("tools.json", _tools_of), lambda: [dumped(_TOOLS["tools"]), dumped(_TOOLS)], "json"
    ),
    Target("session", _session, _session_seeds, "json"),
    Target("journal", _journal, _journal_seeds, "lines"),
    Target("recipe", one_file("recipe.yaml", _recipe), _recipe_seeds, "yaml"),
    Target("recipe-flags", _recipe_flags, _recipe_seeds, "yaml", slow=True),
    Target("modelfile", _modelfile, _modelfile_seeds, "modelfile"),
)
