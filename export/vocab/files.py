"""The files of a model folder that describe its tokenizer.

They are tokenizer.json, the file of SentencePiece and the settings beside them. The added tokens of all of
them are joined; the rest is given as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafold.chat.control_forms import is_converter_special
from lorafold.errors import InputError
from lorafold.files.jsonfile import read_if_there
from lorafold.files.signatures import no_file
from lorafold.tokenizer.folder import PIECES, sentencepiece_file

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text before it is tokenised, and never split.

    Attributes:
        content: its text.
        special: it steers the model and is not text: marked so, named so by the settings, or of such a form.
        marked: tokenizer.json itself marks it as special.
        rstrip: white space after it belongs to it.
        lstrip: white space before it belongs to it.
        single_word: it is found only where no letter, digit or underscore stands beside it.
        normalized: it is looked for as the normalizer writes it, in text that went through the normalizer.
    """

    content: str
    special: bool = False
    marked: bool = True
    rstrip: bool = False
    lstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder says about its tokenizer.

    Attributes:
        folder: the model folder.
        tokenizer: the parsed tokenizer.json, or None.
        model_file: SentencePiece's tokenizer.model, or None.
        settings: tokenizer_config.json, overlaid on special_tokens_map.json.
        generation: generation_config.json.
        added: added tokens by id; tokenizer.json comes before tokenizer_config.json and added_tokens.json.
    """

    folder: Path
    tokenizer: Json | None
    model_file: Path | None
    settings: Json
    generation: Json
    added: Mapping[int, AddedToken] = field(default_factory=dict)

    @property
    def origin(self) -> Path:
        """The file that decides: tokenizer.json if there is one."""
        return (
            self.folder / "tokenizer.json" if self.model_file is None or self.tokenizer else self.model_file
        )


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read all tokenizer files of a folder.

    Args:
        folder: a model folder.

    Returns:
        Their content.

    Raises:
        InputError: there is no tokenizer, or a file is not valid JSON of the expected form.
    """
    tokenizer = read_if_there(folder / "tokenizer.json")
    model_file = sentencepiece_file(folder)
    if tokenizer is None and model_file is None:
        raise _no_tokenizer(folder)
    if tokenizer is not None and not isinstance(tokenizer.get("model"), dict):
        raise InputError(
            'there is no object "model"',
            at=folder / "tokenizer.json",
            fix="download the file again; it is incomplete",
        )
    settings = _settings(folder)
    return TokenizerFiles(
        folder=folder,
        tokenizer=tokenizer,
        model_file=model_file,
        settings=settings,
        generation=read_if_there(folder / "generation_config.json") or {},
        added=_added_tokens(folder, tokenizer or {}, settings),
    )


def read_added_tokens(folder: Path) -> Mapping[int, AddedToken]:
    """The added tokens by id, of a folder that may hold no whole tokenizer.

    Raises:
        InputError: a file is not valid JSON of the expected form.
    """
    return _added_tokens(folder, read_if_there(folder / "tokenizer.json") or {}, _settings(folder))


def _settings(folder: Path) -> Json:
    """tokenizer_config.json, overlaid on special_tokens_map.json."""
    named = read_if_there(folder / "special_tokens_map.json") or {}
    return named | {
        key: value
        for key, value in (read_if_there(folder / "tokenizer_config.json") or {}).items()
        if value is not None or key not in named
    }


def content_of(entry: Any) -> str | None:
    """The text of a special token, which configs write as a string or as an object with "content"."""
    text = entry.get("content") if isinstance(entry, Mapping) else entry
    return text if isinstance(text, str) and text else None


def named_special_texts(settings: Mapping[str, Any]) -> set[str]:
    """All texts that the settings call special: `*_token` entries and the lists of additional ones."""
    entries = [
        value for key, value in settings.items() if key.endswith("_token") and not isinstance(value, bool)
    ]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key) or ()
        entries.extend(more.values() if isinstance(more, Mapping) else more)
    return {text for text in map(content_of, entries) if text is not None}


def _added_tokens(folder: Path, tokenizer: Json, settings: Json) -> dict[int, AddedToken]:
    special = named_special_texts(settings)
    added: dict[int, AddedToken] = {}

    def add(token_id: Any, entry: Any, where: Path) -> None:
        text = content_of(entry)
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0 or text is None:
            raise InputError(
                f"an added token is {entry!r} with id {token_id!r}; expected a text and a number from 0 on",
                at=where,
                fix="download the tokenizer again, or save it again with save_pretrained",
            )
        flags = entry if isinstance(entry, Mapping) else {}
        added.setdefault(
            token_id,
            AddedToken(
                content=text,
                special=bool(flags.get("special")) or text in special or is_converter_special(text),
                marked=bool(flags.get("special")),
                rstrip=bool(flags.get("rstrip")),
                lstrip=bool(flags.get("lstrip")),
                single_word=bool(flags.get("single_word")),
                normalized=bool(flags.get("normalized")),
            ),
        )

    for entry in _list_of_objects(tokenizer.get("added_tokens"), folder / "tokenizer.json"):
        add(entry.get("id"), entry, folder / "tokenizer.json")
    where = folder / "tokenizer_config.json"
    for key, entry in (settings.get("added_tokens_decoder") or {}).items():
        add(int(key) if str(key).isdecimal() else key, entry, where)
    for text, token_id in (read_if_there(folder / "added_tokens.json") or {}).items():
        add(token_id, text, folder / "added_tokens.json")
    return added


def _list_of_objects(value: Any, at: Path) -> list[Json]:
    if not isinstance(value or [], list) or not all(isinstance(entry, dict) for entry in value or []):
        raise InputError('"added_tokens" is not a list of objects', at=at, fix="download the file again")
    return value or []


def _no_tokenizer(folder: Path) -> InputError:
    for name in ("tokenizer.json", *PIECES):
        if (folder / name).is_symlink():
            return no_file(folder / name)
    others = [name for name in ("vocab.json", "merges.txt", "tekken.json") if (folder / name).is_file()]
    others += sorted(path.name for path in folder.glob("*.tiktoken"))
    found = f"; found only {', '.join(others)}" if others else ""
    return InputError(
        f"there is no tokenizer: neither tokenizer.json nor tokenizer.model{found}",
        at=folder,
        fix="copy the base's tokenizer files into the folder, or let transformers write a tokenizer.json: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )
