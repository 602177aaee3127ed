"""Proof of the vocabulary: the same texts through Hugging Face's tokenizer and through llama.cpp's.

In: the tokenizer's folder and a written GGUF. llama.cpp loads the file's vocabulary alone, so this is fast
for a model of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.export.proof.check import Check
from lorafold.export.proof.llama import vocabulary
from lorafold.export.vocab.vocab import Vocab


def check_tokenizer(gguf: Path, tokenizer: Path, vocab: Vocab, probes: Sequence[str]) -> Check:
    """Compare token ids, special tokens not parsed.

    Args:
        gguf: the written file.
        tokenizer: the folder of the Hugging Face tokenizer.
        vocab: what the file's vocabulary was made from; it knows where llama.cpp itself differs.
        probes: awkward strings.
    """
    path = tokenizer / "tokenizer.json"
    if not path.is_file():
        return Check("tokenizer", "not checked", "the base has no tokenizer.json to compare with")
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(path))
    reference.encode_special_tokens = True
    texts, aside = vocab.comparable(probes, parse_special=False)
    with vocabulary(gguf) as tokenize:
        wrong = [
            text
            for text in texts
            if reference.encode(text, add_special_tokens=False).ids != tokenize(text, False)
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
    meaning = f"{len(texts):,} awkward texts get the same token ids in llama.cpp"
    if aside:
        meaning += f"; {aside.total()} were set aside: " + "; ".join(aside)
    return Check("tokenizer", "passed", meaning, figures)


def check_prompt_tokens(
    gguf: Path, tokenizer: ChatTokenizer, vocab: Vocab, chats: Sequence[list[dict[str, str]]]
) -> Check:
    """Compare token ids of whole prompts: ours, fragment by fragment, against llama.cpp's of the flat text.

    Args:
        gguf: the written file.
        tokenizer: the tokenizer with its chat template.
        vocab: as for `check_tokenizer`.
        chats: conversations that end with a user's turn.
    """
    wrong = compared = 0
    with vocabulary(gguf) as tokenize:
        for chat in chats:
            text = tokenizer.template.render(chat, add_generation_prompt=True)
            if vocab.known_difference(text) is None:
                compared += 1
                ours = tokenizer.encode_chat(chat, add_generation_prompt=True).ids
                wrong += ours != tokenize(text, True)
    figures = {"prompts": compared, "different": wrong, "set aside": len(chats) - compared}
    if wrong:
        meaning = f"{wrong} of {compared} prompts get other token ids in llama.cpp than in training"
        return Check("prompt tokens", "failed", meaning, figures)
    meaning = f"{compared} rendered prompts are the same tokens in training, here and in llama.cpp"
    return Check("prompt tokens", "passed", meaning, figures)
