"""Proof of the vocabulary: the same texts through Hugging Face's tokenizer and through llama.cpp's.

llama.cpp loads the file's vocabulary alone, so this is fast for a model of any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorafold.chat.sandbox import Message
from lorafold.chat.sources import read_json
from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export.proof.check import Check
from lorafold.export.proof.llama import Vocabulary, vocabulary
from lorafold.export.vocab.vocab import Vocab
from lorafold.tokenizer.loading import load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def reference_of(folder: Path) -> Tokenizer | None:
    """Hugging Face's own tokenizer of a folder, which takes special tokens in texts as text; None without."""
    if not (folder / "tokenizer.json").is_file():
        return None
    reference = plain_tokenizer(folder)
    reference.encode_special_tokens = True
    return reference


def plain_tokenizer(folder: Path) -> Tokenizer:
    """A folder's tokenizer for whole texts.

    A training may have saved the length that it cut or filled texts to, which no GGUF has; it is left out.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError("there is no tokenizer.json to cut the text with", at=folder, fix="add one")
    tokenizer = load_tokenizer(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_tokenizer(
    judge: Vocabulary, reference: Tokenizer | None, vocab: Vocab, probes: Sequence[str]
) -> Check:
    """Compare token ids, special tokens not parsed.

    Args:
        judge: the written file's vocabulary.
        reference: what `reference_of` gave.
        vocab: what the file's vocabulary was made from; it knows where llama.cpp itself differs.
        probes: awkward strings.
    """
    if reference is None:
        return Check("tokenizer", "not checked", "the base has no tokenizer.json to compare with")
    texts, aside = vocab.comparable(probes, parse_special=False)
    wrong = [
        text
        for text in texts
        if reference.encode(text, add_special_tokens=False).ids != judge.tokenize(text, False)
    ]
    figures = {"texts": len(texts), "different": len(wrong), "set aside": dict(aside)}
    if wrong:
        shortest = min(wrong, key=len)
        return Check(
            "tokenizer",
            "failed",
            f"{len(wrong)} of {len(texts)} texts get other token ids in llama.cpp, {shortest!r} for one",
            {**figures, "example": shortest},
        )
    meaning = f"{len(texts):,} edge-case texts get the same token ids in llama.cpp"
    if aside:
        meaning += f"; {aside.total()} were set aside: " + "; ".join(aside)
    return Check("tokenizer", "passed", meaning, figures)


def check_special_tokens(
    judge: Vocabulary, others: Sequence[Path], vocab: Vocab, folder: Path, reference: Tokenizer | None
) -> Check:
    """Compare llama.cpp's BOS and EOS, and whether it puts BOS first, with the tokenizer's files.

    Args:
        judge: the vocabulary of the first written model.
        others: the other ones.
        vocab: what the files' vocabulary was made from.
        folder: that of the Hugging Face tokenizer, whose files may name an EOS.
        reference: what `reference_of` gave for it.
    """
    named = _named_eos(folder, reference)
    wrong = list(_wrong_specials(judge, vocab, named))
    for path in others:
        with vocabulary(path) as other:
            wrong += _wrong_specials(other, vocab, named)
    figures = {"eos": vocab.special["eos"], "named as eos": named, "add_bos": vocab.add_bos}
    if wrong:
        return Check("special tokens", "failed", "; ".join(wrong), figures)
    first = "BOS" if vocab.add_bos else "nothing"
    meaning = (
        f"llama.cpp ends an answer at token {vocab.special['eos']} and puts {first} before a prompt, "
        "as the tokenizer's files say"
    )
    return Check("special tokens", "passed", meaning, figures)


def _wrong_specials(judge: Vocabulary, vocab: Vocab, named: Sequence[int]) -> Iterator[str]:
    """What is wrong with the special tokens of one file."""
    name, eos = judge.path.name, judge.eos
    if eos != vocab.special["eos"] or (named and eos not in named):
        yield f"{name} ends an answer with token {eos}, not {named or vocab.special['eos']}"
    if named and not any(judge.ends(token) for token in named):
        yield f"{name} does not stop at token {named[0]}"
    if judge.adds_bos != vocab.add_bos or (judge.adds_bos and judge.bos != vocab.special["bos"]):
        yield f"{name} {f'puts token {judge.bos}' if judge.adds_bos else 'puts no token'} first"


def _named_eos(folder: Path, reference: Tokenizer | None) -> list[int]:
    """The ids that the folder's files themselves call EOS."""
    ids: list[int] = []
    name = read_json(folder / "tokenizer_config.json").get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    if isinstance(name, str) and reference is not None:
        found = reference.token_to_id(name)
        ids += [] if found is None else [found]
    for file in ("generation_config.json", "config.json"):
        value = read_json(folder / file).get("eos_token_id")
        ids += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]
    return list(dict.fromkeys(ids))


def check_prompt_tokens(
    judge: Vocabulary, tokenizer: ChatTokenizer, vocab: Vocab, chats: Sequence[Sequence[Message]]
) -> Check:
    """Compare token ids of whole prompts: ours, fragment by fragment, against llama.cpp's of the flat text.

    Args:
        judge: the written file's vocabulary.
        tokenizer: the tokenizer with its chat template.
        vocab: as for `check_tokenizer`.
        chats: conversations that end with a user's turn.
    """
    wrong = compared = 0
    for chat in chats:
        text = tokenizer.template.render(chat, add_generation_prompt=True)
        if vocab.known_difference(text) is None:
            compared += 1
            ours = tokenizer.encode_chat(chat, add_generation_prompt=True).ids
            wrong += ours != judge.tokenize(text, True)
    figures = {"prompts": compared, "different": wrong, "set aside": len(chats) - compared}
    if wrong:
        meaning = f"{wrong} of {compared} prompts get other token ids in llama.cpp than in training"
        return Check("prompt tokens", "failed", meaning, figures)
    meaning = (
        f"{compared} of {compared} rendered prompts are the same tokens in training, here and in llama.cpp"
    )
    return Check("prompt tokens", "passed", meaning, figures)
