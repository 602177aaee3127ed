"""What the files of an HF folder say about its chat: the templates, the special and the control tokens.

The sources of templates, in transformers' order: `chat_template.jinja` with the named ones in
`additional_chat_templates/`, then `chat_template` in `tokenizer_config.json` (a text, or a list of named
ones), then `chat_template.json` of older processors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lorafold.chat.control_forms import is_turn_marker
from lorafold.errors import InputError
from lorafold.files.jsonfile import read_if_there
from lorafold.files.signatures import another_file, head_of

# transformers' names: the file of the default template, the folder of the others, the default's own name.
TOOL_USE = "tool_use"  # transformers' and llama.cpp's name of the template for conversations with tools
JINJA_FILE, MORE_TEMPLATES, DEFAULT = "chat_template.jinja", "additional_chat_templates", "default"

TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# What a tokenizer class of transformers assumes for tokens its folder does not name.
CLASS_TOKENS: Mapping[str, Mapping[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "CodeLlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    "Qwen2Tokenizer": {
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
    "GPT2Tokenizer": {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    },
}


class TemplateSource(NamedTuple):
    """The text of a template, and the place it was found in."""

    text: str
    origin: str


def read_text(path: Path) -> str:
    """A template's file.

    Raises:
        InputError: it cannot be read, is not UTF-8, or something else under its name.
    """
    # Any text is a template: a page or a pointer would be put before every prompt.
    if (wrong := another_file(path, head_of(path), "a chat template")) is not None:
        raise wrong
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start})", at=path, fix="save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", at=path, fix="check the path") from error
    if not text.strip():
        raise InputError(
            "the chat template is empty", at=path, fix="download it again, or choose one with --chat-template"
        )
    return text


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an empty one if there is no file.

    Raises:
        InputError: as `read_object`.
    """
    return read_if_there(path) or {}


def folder_source(folder: Path) -> TemplateSource | None:
    """The default template of an HF folder or an adapter's; None if it has none.

    Raises:
        InputError: files that cannot be read.
    """
    return folder_templates(folder).get(DEFAULT)


def folder_templates(folder: Path) -> dict[str, TemplateSource]:
    """The templates of an HF folder by name, of the source that its default comes from; {} if it has none.

    Raises:
        InputError: files that cannot be read.
    """
    return next((found for found in template_sources(folder) if DEFAULT in found), {})


def template_sources(folder: Path) -> list[dict[str, TemplateSource]]:
    """The templates of an HF folder by name, one entry for each source that has some.

    transformers reads the first source alone; llama.cpp's converter prefers the second.

    Raises:
        InputError: files that cannot be read.
    """
    files = {DEFAULT: folder / JINJA_FILE} if (folder / JINJA_FILE).is_file() else {}
    files |= {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    sources = [{name: TemplateSource(read_text(path), str(path)) for name, path in files.items()}]
    for file in ("tokenizer_config.json", "chat_template.json"):
        found = read_json(folder / file).get("chat_template")
        if isinstance(found, str):
            found = {DEFAULT: found}
        elif isinstance(found, list):
            found = {row.get("name"): row.get("template") for row in found if isinstance(row, dict)}
        elif not isinstance(found, dict):
            continue
        sources.append(
            {
                name: TemplateSource(text, f"{folder / file}: chat_template")
                for name, text in found.items()
                if isinstance(name, str) and isinstance(text, str)
            }
        )
    return [source for source in sources if source]


def _content(value: Any) -> str | None:
    """The text of a token as tokenizer files write it: a string, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def folder_tokens(
    folder: Path, tokenizer: dict[str, Any] | None = None
) -> tuple[dict[str, str], frozenset[str]]:
    """Special tokens of an HF folder by name, and all its control tokens.

    Args:
        folder: with tokenizer_config.json, and tokenizer.json if the control tokens are wanted.
        tokenizer: the contents of tokenizer.json, if the caller has read them already.

    Returns:
        The map that transformers gives to templates, and the control tokens.
    """
    settings = read_json(folder / "tokenizer_config.json")
    older = read_json(folder / "special_tokens_map.json")
    class_name = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    tokens = dict(CLASS_TOKENS.get(class_name, {}))
    for name in TOKEN_NAMES:
        for source in (older, settings):
            if name in source:
                text = _content(source[name])
                tokens.pop(name, None)
                if text is not None:
                    tokens[name] = text
    data = read_json(folder / "tokenizer.json") if tokenizer is None else tokenizer
    added = data.get("added_tokens") or list((settings.get("added_tokens_decoder") or {}).values())
    controls = {row["content"] for row in added if row.get("special") or is_turn_marker(row["content"])}
    return tokens, frozenset(controls | set(tokens.values()))


def find_template(adapters: Sequence[Path]) -> tuple[str, str, str] | None:
    """The chat template that was saved with an adapter: export and chat must use no other.

    transformers writes chat_template.jinja today, and wrote tokenizer_config.json before 4.52.

    Returns:
        What `ChatTemplate.chosen` finds it by, its Jinja source, and the place it was found in; None if no
        adapter has one.
    """
    for folder in adapters:
        if (found := folder_source(folder)) is not None:
            path = folder / "chat_template.jinja"
            # The folder stands for what lies in its JSON; absolute, so that it is no template's name.
            return str(path if path.is_file() else folder.absolute()), *found
    return None
