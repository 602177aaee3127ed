"""A GGUF's weights and vocabulary in llama.cpp, shared by the engines that use them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from lorafold.chat.controls import split_controls
from lorafold.chat.sandbox import start_worker
from lorafold.chat.tokenizer import ChatTemplate, Message, encode, end_of_turn, prompt_fragments
from lorafold.gguf_file.header import GgufArray
from lorafold.libraries.llama import library, load_weights, look, piece_of, tokenize

_PADDING = re.compile(rb"\[PAD\d+\]")  # what converters call rows that no token uses
_REMEMBERED = 1_000_000  # characters of text whose ids are remembered


class LlamaModel:
    """Weights and vocabulary of one GGUF, shared by the engines that use them.

    Args:
        path: the file.
        chat_template: a name or Jinja file instead of the file's own template.

    Raises:
        InputError: the file is damaged, or llama.cpp refuses it.
        SystemFault: llama.cpp is missing or out of memory.
    """

    def __init__(self, path: Path, chat_template: str | None = None) -> None:
        self.path = path
        self.header = look(path, "model")
        start_worker()  # it imports Jinja while the weights are loaded
        self.template = ChatTemplate.from_gguf(self.header, chat_template)
        self.c = library()
        self.pointer = load_weights(path)
        self.vocab = self.c.llama_model_get_vocab(self.pointer)
        self.size = int(self.c.llama_vocab_n_tokens(self.vocab))
        self.users = 0
        # A conversation is encoded again in every turn, all of it but the end as before.
        self._ids: dict[tuple[str, bool], list[int]] = {}
        self._remembered = 0
        bos = int(self.c.llama_vocab_bos(self.vocab))
        self._bos = [bos] if self.c.llama_vocab_get_add_bos(self.vocab) and bos >= 0 else []
        pieces = split_controls(end_of_turn(self.template), self.template.controls)
        endings = [piece for piece, special in pieces if special][-1:]
        self._endings = {token for ending in endings for token in self.tokenize(ending, special=True)}

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text, nothing added; control tokens in it recognised only if `special`."""
        return tokenize(self.vocab, text, special)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation up to where the model's answer begins."""
        ids = encode(prompt_fragments(self.template, messages), self._ids_of).ids
        return ids if ids[: len(self._bos)] == self._bos else self._bos + ids

    def _ids_of(self, text: str, special: bool) -> list[int]:
        ids = self._ids.get((text, special))
        if ids is None:
            ids = self.tokenize(text, special)
            self._remembered += len(text)
            if self._remembered > _REMEMBERED:
                self._ids.clear()
                self._remembered = len(text)
            self._ids[text, special] = ids
        return ids

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token; a control token has its name only if `special`, else none."""
        return piece_of(self.vocab, token, special)

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return token in self._endings or bool(self.c.llama_vocab_is_eog(self.vocab, token))

    def vocabulary_digest(self) -> str:
        """sha256 over the tokens in order, padding left out."""
        tokens = self.header.metadata.get("tokenizer.ggml.tokens")
        names = tokens.strings() if isinstance(tokens, GgufArray) else []
        while names and _PADDING.fullmatch(names[-1]):
            names.pop()
        return hashlib.sha256(b"\0".join(names)).hexdigest()

    def release(self) -> None:
        """Free the weights when the last engine lets go."""
        self.users -= 1
        if self.users <= 0 and self.pointer:
            pointer, self.pointer = self.pointer, None
            self.c.llama_model_free(pointer)
