"""A chat template: where it comes from, and its rendering as transformers would do it.

It comes from an HF folder (`sources`), from a GGUF's `tokenizer.chat_template`, from a Jinja file, or from
the table `named.NAMED`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.chat.calls import TOOL_PARTS, CallForm, as_wanted, call_form, listed
from lorafold.chat.dialogue import but, calls_of, tools_of
from lorafold.chat.named import NAMED
from lorafold.chat.sandbox import Job, Message, Refusal, render_many
from lorafold.chat.sources import DEFAULT, JINJA_FILE, TOOL_USE, folder_templates, folder_tokens, read_text
from lorafold.errors import InputError

if TYPE_CHECKING:
    from lorafold.gguf_file.header import GgufHeader

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # one thing under three names in the wild


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja chat template with the tokens it is rendered with.

    Args:
        source: the Jinja text.
        tokens: special tokens by transformers' names: bos_token, eos_token and so on.
        controls: control tokens of the tokenizer (all of them, in any order); empty if they are not known.
        origin: where the template came from, for messages.
        clock: None for the present, or an ISO 8601 moment that `strftime_now` shall show.
        tool_use: the Jinja text for conversations with tools, where a model has another one for them.
        dialect: "llama": rendered as llama.cpp does; "": as transformers does.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    controls: frozenset[str] = frozenset()
    origin: str = "chat template"
    clock: str | None = None
    tool_use: str = ""
    dialect: str = ""
    _layouts: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # of `layout.layout_of`

    @classmethod
    def from_folder(
        cls, folder: Path, chat_template: str | None = None, tokenizer: dict[str, Any] | None = None
    ) -> ChatTemplate:
        """Read the template of an HF folder.

        Args:
            folder: a model or tokenizer folder.
            chat_template: a name of `NAMED` or a Jinja file to use instead of the folder's own.
            tokenizer: the contents of tokenizer.json, if the caller has read them already.

        Returns:
            The template with the folder's special tokens.

        Raises:
            InputError: no template, or files that cannot be read.
        """
        tokens, controls = folder_tokens(folder, tokenizer)
        if chat_template is not None:
            given = cls.chosen(chat_template)
            return replace(given, tokens={**given.tokens, **tokens}, controls=controls)
        found = cls._of_folder(folder)
        if found is None:
            raise _no_template(str(folder))
        return replace(found, tokens=tokens, controls=controls)

    @classmethod
    def _of_folder(cls, folder: Path) -> ChatTemplate | None:
        """The templates of a folder, without its tokens."""
        found = folder_templates(folder)
        if DEFAULT not in found:
            return None
        other = found.get(TOOL_USE)
        tool_use = other.text if other is not None else ""
        return cls(found[DEFAULT].text, origin=found[DEFAULT].origin, tool_use=tool_use)

    @classmethod
    def from_gguf(cls, source: Path | GgufHeader, chat_template: str | None = None) -> ChatTemplate:
        """Read the template of a GGUF file.

        Args:
            source: the file, or its header if the caller has read it already.
            chat_template: a name of `NAMED` or a Jinja file to use instead of the file's own.

        Returns:
            The template with the file's special tokens.

        Raises:
            InputError: not a GGUF, or one without `tokenizer.chat_template`.
        """
        from lorafold.gguf_file.tokens import read_gguf_tokens

        found = read_gguf_tokens(source)
        if chat_template is not None:
            given = cls.chosen(chat_template)
            return replace(given, tokens={**given.tokens, **found.tokens}, controls=found.controls)
        place = f"{source if isinstance(source, Path) else source.path}: tokenizer.chat_template"
        if found.chat_template is None:
            raise _no_template(place)
        return cls(found.chat_template, found.tokens, found.controls, place, tool_use=found.tool_use or "")

    @classmethod
    def named(cls, name: str) -> ChatTemplate:
        """A template of ours by its name.

        Raises:
            InputError: no such name; the message lists them.
        """
        if name not in NAMED:
            raise InputError(
                f"no chat template has the name {name!r}",
                fix=f"choose one of {', '.join(NAMED)}, or give a Jinja file",
            )
        row = NAMED[name]
        return cls(row.source, row.tokens, frozenset(row.tokens.values()), f"chat template {name!r}")

    @classmethod
    def from_file(cls, path: Path) -> ChatTemplate:
        """A template from a Jinja file; it knows no tokens until a tokenizer gives them.

        Raises:
            InputError: the file is missing or not UTF-8.
        """
        return cls(read_text(path), origin=str(path))

    @classmethod
    def chosen(cls, name_or_file: str) -> ChatTemplate:
        """What `--chat-template` means: a name of ours, else a file, else a folder with a template.

        Raises:
            InputError: none of these.
        """
        if name_or_file in NAMED:
            return cls.named(name_or_file)
        path = Path(name_or_file)
        # The file of a folder stands for the folder: another one for tools may lie beside it.
        folder = path.parent if path.name == JINJA_FILE and path.is_file() else path
        if (found := cls._of_folder(folder)) is not None:
            return found
        if not Path(name_or_file).is_file():
            raise InputError(
                f"{name_or_file!r} is neither a file nor the name of a chat template",
                fix=f"give a Jinja file, or one of {', '.join(NAMED)}",
            )
        return cls.from_file(Path(name_or_file))

    def fixed(self, **values: bool) -> ChatTemplate:
        """The same template with switches set for good, in its source, so that every engine agrees.

        Args:
            values: `enable_thinking=False` and the like.

        Returns:
            A template whose first lines set them; trim_blocks, which all engines set, takes those lines away.
        """
        lines = "".join(f"{{% set {name} = {str(value).lower()} %}}\n" for name, value in values.items())
        tool_use = lines + self.tool_use if self.tool_use else ""
        return replace(self, source=lines + self.source, tool_use=tool_use, _layouts={})

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """Render a conversation exactly as transformers' `apply_chat_template(tokenize=False)` does.

        Messages whose content is a text are given to templates that only understand content parts as such
        parts, and calls in the form that the template reads (see `calls`).

        Args:
            messages: dicts with "role" and "content"; a `Dialogue` brings its tools.
            add_generation_prompt: end with the head of an assistant's turn.
            variables: the template's switches, `enable_thinking` and the like.

        Returns:
            The prompt text.

        Raises:
            InputError: the template has a syntax error, or refuses this conversation.
            UnsafeInputError: the template left its sandbox or its limits.
        """
        (answer,) = self.render_all([messages], add_generation_prompt=add_generation_prompt, **variables)
        if isinstance(answer, Refusal):
            raise self.refused(answer)
        return answer

    def render_all(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> list[str | Refusal]:
        """Render many conversations at once; refusals are returned, not raised."""
        tokens = tuple(sorted(self.tokens.items()))
        style, parts = _style(self.source, tokens, self.origin)
        shared = {**self.tokens, **style, "add_generation_prompt": add_generation_prompt}
        wanted = [self._with_tools(messages) for messages in conversations]
        jobs = [
            Job(prepared(said, parts), {**shared, **_defined(said), **variables}, self.clock)
            for said in wanted
            if not isinstance(said, Refusal)
        ]
        rendered = iter(self._rendered(jobs))
        return [said if isinstance(said, Refusal) else next(rendered) for said in wanted]

    def _rendered(self, jobs: Sequence[Job]) -> list[str | Refusal]:
        """Renderings, each by the template that transformers takes for it."""
        if not self.tool_use:
            return render_many(self.source, jobs, self.origin, self.dialect)
        answers: dict[int, str | Refusal] = {}
        for source in (self.source, self.tool_use):
            chosen = [at for at, job in enumerate(jobs) if self._source_of(job) == source]
            found = render_many(source, [jobs[at] for at in chosen], self.origin, self.dialect)
            answers.update(zip(chosen, found, strict=True))
        return [answers[at] for at in range(len(jobs))]

    def _source_of(self, job: Job) -> str:
        return self.tool_use if job.variables.get("tools") else self.source

    def _with_tools(self, messages: Sequence[Message]) -> Sequence[Message] | Refusal:
        """A conversation with its calls as the template reads them, or why it would lose some."""
        results = any(message.get("role") == "tool" for message in messages)
        asked = (bool(tools_of(messages)), any(map(calls_of, messages)), results)
        if not any(asked):
            return messages
        form = self.call_form()
        written = (form.definitions, form.calls, form.results)
        lost = tuple(
            name for name, there, kept in zip(TOOL_PARTS, asked, written, strict=True) if there and not kept
        )
        if lost:
            return Refusal(False, f"{listed(lost)} would be lost", None, lost)
        return but(messages, as_wanted(messages, form))

    def call_form(self) -> CallForm:
        """The form in which it reads calls, and what it writes of tools.

        Raises:
            InputError: it has a syntax error.
            UnsafeInputError: it passed its limits.
        """
        tokens = tuple(sorted(self.tokens.items()))
        style, parts = _style(self.source, tokens, self.origin)
        return call_form(self.tool_use or self.source, tokens, json.dumps(style), parts, self.origin)

    def refused(self, refusal: Refusal) -> InputError:
        """The error for a conversation that the template did not render."""
        verb = "refuses" if refusal.raised else "fails on"
        place = self.origin if refusal.line is None else f"{self.origin}:{refusal.line}"
        if refusal.lost:
            return InputError(
                f"the chat template does not write {listed(refusal.lost)}: they would be lost",
                at=place,
                fix="take a base or a --chat-template that calls tools, or take the tools out of the data",
            )
        return InputError(
            f"the chat template {verb} this conversation: {refusal.problem}",
            at=place,
            fix="give the conversation the order and roles that it expects, or another --chat-template",
        )


def _defined(messages: Sequence[Message]) -> dict[str, Any]:
    """The variable with a conversation's tools, if it has some."""
    tools = tools_of(messages)
    return {"tools": list(tools)} if tools else {}


def reasoning_of(message: Message) -> str | None:
    """The name under which a message tells what was thought before it; None if nothing was."""
    return next((key for key in REASONING_KEYS if str(message.get(key) or "").strip()), None)


def prepared(messages: Sequence[Message], parts: bool) -> list[Message]:
    """Messages as the template sees them: reasoning under all its names, text as content parts if
    asked."""
    ready = []
    for message in messages:
        reasoning = next((message[key] for key in REASONING_KEYS if message.get(key) is not None), None)
        if reasoning is not None:
            names = dict.fromkeys(REASONING_KEYS, reasoning)
            message = {**names, **message, "reasoning_content": reasoning}
        if parts and isinstance(message.get("content"), str):
            message = {**message, "content": [{"type": "text", "text": message["content"]}]}
        ready.append(message)
    return ready


_STYLES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({}, False),
    ({"tools": []}, False),
    ({}, True),
    ({"tools": []}, True),
)


@lru_cache(maxsize=256)
def _style(source: str, tokens: tuple[tuple[str, str], ...], origin: str) -> tuple[dict[str, Any], bool]:
    """How the template wants to be called: extra variables, and whether content comes as parts.

    The plain call is right unless it raises or loses what was said; some templates test `tools` without
    asking whether it is there, and some only read content that is a list of parts.
    """
    said = ("Zq1aQz", "Zq2bQz", "Zq3cQz")
    chat = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), said, strict=True)
    ]
    for style, parts in _STYLES:
        variables = {**dict(tokens), **style, "add_generation_prompt": True}
        (answer,) = render_many(
            source, [Job(prepared(chat, parts), variables, "2026-01-02T03:04:05")], origin
        )
        if isinstance(answer, str) and all(text in answer for text in said):
            return style, parts
    return {}, False


def _no_template(at: str) -> InputError:
    return InputError(
        "there is no chat template",
        at=at,
        fix=f"give one with --chat-template FILE or a name: {', '.join(NAMED)}",
    )
