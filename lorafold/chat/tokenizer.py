"""The one place where a conversation becomes tokens: for training, for the proof of an export, and for chat.

Text in a content that looks like a control token stays text: only what the template itself writes is parsed
as one (see `fragments.py`), unless data that are trusted are to be parsed too. For ordinary contents the ids
are those of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.chat.control_forms import is_turn_marker
from lorafold.chat.controls import control_text, split_controls
from lorafold.chat.fragments import Fragment, cut_conversation, fragments, prompt_fragments
from lorafold.chat.layout import end_of_turn
from lorafold.chat.sandbox import Message
from lorafold.chat.sources import folder_tokens, read_json
from lorafold.chat.template import ChatTemplate
from lorafold.errors import InputError
from lorafold.tokenizer.loading import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "ChatTemplate",
    "ChatTokenizer",
    "Encoded",
    "Fragment",
    "Message",
    "control_text",
    "encode",
    "end_of_turn",
    "folder_tokens",
    "fragments",
    "prompt_fragments",
]

SHORT, SHORT_KEPT = 64, 4096  # characters of a text whose ids are remembered, and how many


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as the model sees it.

    Attributes:
        ids: token ids.
        mask: for each id whether the model is trained on it.
        left_out: tokens of what was said that the template does not write.
    """

    ids: list[int]
    mask: list[bool]
    left_out: int = 0


def encode(pieces: Iterable[Fragment], tokenize: Callable[[str, bool], list[int]]) -> Encoded:
    """Encode fragments.

    Args:
        pieces: what `fragments` returned.
        tokenize: (text, parse_special) to ids, without adding BOS or EOS.

    Returns:
        Ids and mask. A text in which training starts or stops is encoded as one, and a token that crosses the
        border counts with what follows it.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for run in _runs(pieces):
        whole = tokenize("".join(piece.text for piece in run), run[0].special)
        ids += whole
        counted, text = 0, ""
        for piece in run[:-1]:
            text += piece.text
            border = max(counted, _shared(whole, tokenize(text, False)))
            mask += [piece.trained] * (border - counted)
            counted = border
        mask += [run[-1].trained] * (len(whole) - counted)
    return Encoded(ids, mask)


def _runs(pieces: Iterable[Fragment]) -> list[list[Fragment]]:
    runs: list[list[Fragment]] = []
    for piece in pieces:
        if piece.joined and runs:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


class ChatTokenizer:
    """A tokenizer with its chat template.

    Args:
        tokenizer: of the `tokenizers` package, set to leave special tokens in text alone.
        inner: the same for text that does not begin the prompt; another object only if a prefix space is
            put before the very first text alone (Metaspace with `prepend_scheme: first`).
        template: the chat template with the tokenizer's control tokens.
        eos_ids: ids that end an answer.
        strips: control tokens that swallow whitespace: token -> (to the left, to the right).
        pad_id: id for padding, or None.
        parse_contents: control tokens that contents write out count as such. Only for trusted data.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        inner: Tokenizer,
        template: ChatTemplate,
        eos_ids: tuple[int, ...],
        strips: dict[str, tuple[bool, bool]],
        pad_id: int | None,
        parse_contents: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.inner = inner
        self.template = template
        self.eos_ids = eos_ids
        self.pad_id = pad_id
        self.parse_contents = parse_contents
        self._strips = strips
        # A template's own literals come again and again; they are half of all pieces.
        self._short: dict[tuple[str, bool], list[int]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle: the `tokenizers` package forgets that control tokens in text are to be left alone."""
        self.__dict__.update(state)
        self.tokenizer.encode_special_tokens = self.inner.encode_special_tokens = True

    @classmethod
    def from_folder(cls, folder: Path, chat_template: str | None = None) -> ChatTokenizer:
        """Read an HF folder.

        Args:
            folder: with tokenizer.json, tokenizer_config.json and, if they are there, config.json and
                generation_config.json (for the ids that end an answer).
            chat_template: a name or a Jinja file to use instead of the folder's template.

        Returns:
            The tokenizer.

        Raises:
            InputError: no tokenizer.json, no template, or no end of sequence token.
        """
        path = folder / "tokenizer.json"
        data = read_json(path)
        if not data:
            raise InputError(
                "there is no tokenizer.json",
                at=folder,
                fix="save it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            )
        template = ChatTemplate.from_folder(folder, chat_template, data)
        added = data.get("added_tokens", ())
        strips = {
            row["content"]: (bool(row.get("lstrip")), bool(row.get("rstrip")))
            for row in added
            if row.get("lstrip") or row.get("rstrip")
        }
        unmarked = [row for row in added if is_turn_marker(row["content"]) and not row.get("special")]
        for row in unmarked:
            row["special"] = True
        tokenizer = _load(json.dumps(data) if unmarked else path.read_text(encoding="utf-8"), path, data)
        first_only = _never_prefixed(data)
        inner = tokenizer if first_only is None else _load(json.dumps(first_only), path, first_only)
        eos_ids = _eos_ids(folder, template, tokenizer)
        if not eos_ids:
            raise InputError(
                "the tokenizer has no end of sequence token",
                at=folder / "tokenizer_config.json",
                fix='name one as "eos_token", or as "eos_token_id" in generation_config.json',
            )
        pad = template.tokens.get("pad_token")
        return cls(
            tokenizer, inner, template, eos_ids, strips, None if pad is None else tokenizer.token_to_id(pad)
        )

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        trained: Sequence[bool] | None = None,
        **variables: Any,
    ) -> Encoded:
        """Encode a conversation.

        Args:
            messages: dicts with "role" and "content" (str).
            add_generation_prompt: end with the head of an assistant's turn.
            trained: for each message whether it is trained; None for every assistant's turn.
            variables: the template's switches.

        Returns:
            Ids and mask, the mask True over every trained turn with the token that ends it.

        Raises:
            InputError: the template refuses the conversation or drops one of its messages.
            UnsafeInputError: the template left its sandbox or its limits.
        """
        cut = cut_conversation(
            self.template,
            messages,
            add_generation_prompt=add_generation_prompt,
            trained=trained,
            parse_contents=self.parse_contents,
            **variables,
        )
        lost = sum(len(self.tokenize(part, False)) for part in cut.left_out)
        return replace(self._encoded(cut.fragments), left_out=lost)

    def encode_written(self, *parts: tuple[str, bool]) -> Encoded:
        """Encode a text that already carries its control tokens.

        Args:
            parts: the text in order, cut where training begins or ends; (text, trained).

        Returns:
            Ids and mask, with every control token that is written out parsed as such, and nothing added.
        """
        pieces: list[Fragment] = []
        for text, trained in parts:
            for piece, special in split_controls(text, self.template.controls):
                joined = bool(pieces) and not special and not pieces[-1].special
                pieces.append(Fragment(piece, special, trained, joined))
        return self._encoded(pieces)

    def encode_prompt(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """The ids of `encode_chat(..., add_generation_prompt=True)` without the mask, which takes longer.

        Args:
            messages: dicts with "role" and "content" (str).
            variables: the template's switches.

        Raises:
            InputError: the template refuses the conversation or drops one of its messages.
            UnsafeInputError: the template left its sandbox or its limits.
        """
        return self._encoded(prompt_fragments(self.template, messages, **variables)).ids

    def _encoded(self, pieces: Sequence[Fragment]) -> Encoded:
        begun = False

        def tokenize(text: str, parse_special: bool) -> list[int]:
            return self.tokenize(text, parse_special, first=not begun)

        ids: list[int] = []
        mask: list[bool] = []
        for run in _runs(self._stripped(pieces)):
            part = encode(run, tokenize)
            begun = True
            ids += part.ids
            mask += part.mask
        return Encoded(ids, mask)

    def tokenize(self, text: str, parse_special: bool, *, first: bool = True) -> list[int]:
        """Encode a text without adding BOS or EOS.

        Args:
            text: the text.
            parse_special: recognise control tokens in it; otherwise they are ordinary characters.
            first: it begins the prompt.

        Returns:
            Token ids.
        """
        if not parse_special:
            return self._text_ids(text, first)
        ids: list[int] = []
        for piece, special in split_controls(text, self.template.controls):
            token = self.tokenizer.token_to_id(piece) if special else None
            ids += [token] if token is not None else self.tokenize(piece, False, first=first and not ids)
        return ids

    def _text_ids(self, text: str, first: bool) -> list[int]:
        found = self._short.get((text, first))
        if found is not None:
            return list(found)
        cut = (self.tokenizer if first else self.inner).encode
        try:
            ids: list[int] = cut(text, add_special_tokens=False).ids
        # The library raises Exception itself: an unknown token that it does not have.
        except Exception as error:
            problem = f"the tokenizer cannot cut {text[:60]!r} ({error})"
            raise InputError(problem, at="tokenizer.json", fix="download the tokenizer again") from error
        if len(text) <= SHORT and len(self._short) < SHORT_KEPT:
            self._short[text, first] = list(ids)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids, without control tokens unless they are asked for."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def _stripped(self, pieces: Sequence[Fragment]) -> list[Fragment]:
        """Whitespace beside control tokens that swallow it, taken away (Phi-3's `<|end|>` does that)."""
        if not self._strips:
            return list(pieces)
        kept: list[Fragment] = []
        swallow = False
        for index, piece in enumerate(pieces):
            text = piece.text
            if not piece.special:
                text = text.lstrip() if swallow else text
                following = pieces[index + 1] if index + 1 < len(pieces) else None
                if (
                    following is not None
                    and following.special
                    and self._strips.get(following.text, (False,))[0]
                ):
                    text = text.rstrip()
                swallow = swallow and not text
            else:
                swallow = self._strips.get(text, (False, False))[1]
            if text:
                kept.append(
                    replace(piece, text=text, joined=piece.joined and bool(kept) and not kept[-1].special)
                )
        return kept


def _load(text: str, path: Path, data: Mapping[str, Any]) -> Tokenizer:
    tokenizer = load_tokenizer(path, text, data)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _never_prefixed(data: dict[str, Any]) -> dict[str, Any] | None:
    """The tokenizer with Metaspace's first-text prefix switched off, or None if it has none."""
    found = False

    def walk(node: Any) -> Any:
        nonlocal found
        if isinstance(node, dict):
            if node.get("type") == "Metaspace" and node.get("prepend_scheme") == "first":
                found = True
                return {**node, "prepend_scheme": "never"}
            return {key: walk(value) for key, value in node.items()}
        return [walk(item) for item in node] if isinstance(node, list) else node

    changed = {**data, "pre_tokenizer": walk(data.get("pre_tokenizer"))}
    return changed if found else None


def _eos_ids(folder: Path, template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer: the template's end of turn first, then what the folder's files name."""
    ids: list[int] = []
    ending = [piece for piece, special in split_controls(end_of_turn(template), template.controls) if special]
    names = [*ending[-1:], template.tokens.get("eos_token")]
    ids += [found for name in names if name and (found := tokenizer.token_to_id(name)) is not None]
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        ids += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)]
    return tuple(dict.fromkeys(ids))
