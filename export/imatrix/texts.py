"""The texts of an importance matrix as tokens: what is summed up, and what is held out to judge it with.

Chats are rendered and tokenized as in training, so that the matrix weighs what the model will see in use; a
plain text is cut into chunks of `CHUNK_TOKENS` tokens, as llama-imatrix does. Nothing is drawn at random:
what is held out is spread evenly over the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafold.chat.sandbox import Message
from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export.imatrix.calibration import GENERAL_TEXTS, LONGEST_ANSWER, alike, longest_prompt
from lorafold.export.inputs import Inputs
from lorafold.export.proof.sample import FEWEST, AskedChat, evenly
from lorafold.export.proof.tokens import plain_tokenizer
from lorafold.records.chats import read_chats

CHUNK_TOKENS = 512  # tokens; llama-imatrix's default
MOST_CHUNKS = 1000  # more texts hardly move the means any more
_HELD_OUT = 12  # texts of the user's
_OF = 4  # and at most one of so many


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts in parts that share none.

    Attributes:
        name: of the user's file.
        own: the user's, token ids, each from position 0.
        general: general ones.
        held_out: of the user's, to be judged by; empty if there are too few.
        guard: of the general ones, the same.
        why: if none is held out, why.
    """

    name: str
    own: list[list[int]]
    general: list[list[int]]
    held_out: list[AskedChat]
    guard: list[AskedChat]
    why: str = ""


def read_texts(inputs: Inputs, data: Path, *, hold_out: bool) -> Texts:
    """Read the user's texts and the general ones.

    Args:
        inputs: the model.
        data: the user's texts.
        hold_out: whether some are held out.

    Raises:
        InputError: the file is missing or malformed, or holds no text; it holds chats, and the model has no
            template.
    """
    reader = _Reader(inputs)
    own = list(_first_chunks(reader, data))
    general = list(reader.general())
    held = _held_out(reader, own) if hold_out else []
    kept = {id(text) for text, _ in held}
    guard = [asked for text in general[1::2] if (asked := reader.asked(text)) is not None]
    return Texts(
        data.name,
        [chunk for text in own if id(text) not in kept for chunk in text.chunks()],
        [chunk for text in general[::2] for chunk in text.chunks()],
        [asked for _, asked in held],
        guard,
        "" if held and guard else _why_none(len(own)),
    )


def check_text(inputs: Inputs, data: Path) -> None:
    """See whether there is a text in a file.

    Raises:
        InputError: as `read_texts`.
    """
    next(_first_chunks(_Reader(inputs), data))


@dataclass(frozen=True, slots=True)
class _Text:
    """A chat, or a chunk of a plain text (without messages)."""

    ids: list[int]
    messages: Sequence[Message] = ()

    def chunks(self) -> list[list[int]]:
        return [self.ids[start : start + CHUNK_TOKENS] for start in range(0, len(self.ids), CHUNK_TOKENS)]


class _Reader:
    """Makes tokens of texts; a tokenizer is opened when the first text needs it.

    Args:
        inputs: the model.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._chats: ChatTokenizer | None = None
        self._longest = 0

    def read(self, data: Path) -> Iterator[_Text]:
        """Every text of a file that has a token."""
        plain = None
        for example in read_chats(data, text="whole"):
            if example.text is None:
                text = _Text(list(self._tokenizer().encode_chat(example.messages).ids), example.messages)
                if text.ids:
                    yield text
                continue
            plain = plain or plain_tokenizer(self._inputs.tokenizer)
            ids: list[int] = plain.encode(example.text, add_special_tokens=False).ids
            yield from (_Text(chunk) for chunk in _Text(ids).chunks())

    def general(self) -> Iterator[_Text]:
        """The general chats; as plain texts for a model without a template."""
        try:
            self._tokenizer()
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # it has one that cannot be read
                raise
            plain = plain_tokenizer(self._inputs.tokenizer)
            for example in read_chats(GENERAL_TEXTS, text="whole"):
                text = "\n\n".join(str(message["content"]) for message in example.messages)
                yield _Text(plain.encode(text, add_special_tokens=False).ids)
            return
        yield from self.read(GENERAL_TEXTS)

    def asked(self, text: _Text) -> AskedChat | None:
        """A text as it is asked; None if there is nothing to ask, or it is too long before it."""
        answered = bool(text.messages) and text.messages[-1]["role"] == "assistant"
        start = len(self._tokenizer().encode_prompt(text.messages[:-1])) if answered else 1
        if (answered and start > self._longest_prompt()) or len(text.ids) <= start:
            return None
        return AskedChat(text.ids[: start + LONGEST_ANSWER], start)

    def _longest_prompt(self) -> int:
        self._longest = self._longest or longest_prompt(self._tokenizer())
        return self._longest

    def _tokenizer(self) -> ChatTokenizer:
        self._chats = self._chats or ChatTokenizer.from_folder(self._inputs.tokenizer, self._inputs.template)
        return self._chats


def _first_chunks(reader: _Reader, data: Path) -> Iterator[_Text]:
    """Its texts, the last one cut, until there are as many chunks as are read."""
    found = 0
    for text in reader.read(data):
        chunks = text.chunks()[: MOST_CHUNKS - found]
        found += len(chunks)
        yield _Text([token for chunk in chunks for token in chunk], text.messages)
        if found == MOST_CHUNKS:
            return
    if not found:
        raise InputError("there is no text in it", at=data, fix="pass plain text, or chats as JSON lines")


def _held_out(reader: _Reader, texts: Sequence[_Text]) -> list[tuple[_Text, AskedChat]]:
    """Some of the texts, and what is asked of each; none if there are too few."""
    picked = evenly(alike(texts), min(len(texts) // _OF, _HELD_OUT))
    found = [(text, asked) for text in picked if (asked := reader.asked(text)) is not None]
    return found if len(found) >= FEWEST else []


def _why_none(count: int) -> str:
    """Why none of so many texts are held out."""
    if count // _OF >= FEWEST:
        return f"too few of the {count} texts are short enough before their answer to be held out"
    return f"{count} text{'s are' if count != 1 else ' is'} too few to hold some out"
