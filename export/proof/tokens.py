"""Proof of the vocabulary: the same texts through Hugging Face's tokenizer and through llama.cpp's.

llama.cpp loads the file's vocabulary alone, so this is fast for a model of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorafold.chat.sandbox import Message
from lorafold.chat.sources import read_json
from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.export.proof.check import Check
from lorafold.export.proof.llama import vocabulary
from lorafold.export.vocab.vocab import Vocab
from lorafold.libraries.llama import library, load_weights


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
    meaning = f"{len(texts):,} edge-case texts get the same token ids in llama.cpp"
    if aside:
        meaning += f"; {aside.total()} were set aside: " + "; ".join(aside)
    return Check("tokenizer", "passed", meaning, figures)


def check_special_tokens(ggufs: Sequence[Path], vocab: Vocab, tokenizer: Path) -> Check:
    """Compare llama.cpp's BOS and EOS, and whether it puts BOS first, with the tokenizer's files.

    Args:
        ggufs: the written models.
        vocab: what the files' vocabulary was made from.
        tokenizer: the folder of the Hugging Face tokenizer, whose files may name an EOS.
    """
    named = _named_eos(tokenizer)
    c = library()
    wrong: list[str] = []
    for path in ggufs:
        model = load_weights(path, vocab_only=True)
        try:
            judge = c.llama_model_get_vocab(model)
            eos, bos = int(c.llama_vocab_eos(judge)), int(c.llama_vocab_bos(judge))
            adds = bool(c.llama_vocab_get_add_bos(judge))
            last = int(c.llama_vocab_n_tokens(judge))
            ends = [token for token in named if token < last and not c.llama_vocab_is_eog(judge, token)]
        finally:
            c.llama_model_free(model)
        if eos != vocab.special["eos"] or (named and eos not in named):
            wrong.append(f"{path.name} ends an answer with token {eos}, not {named or vocab.special['eos']}")
        if ends == named and named:
            wrong.append(f"{path.name} does not stop at token {named[0]}")
        if adds != vocab.add_bos or (adds and bos != vocab.special["bos"]):
            wrong.append(f"{path.name} {'puts token ' + str(bos) if adds else 'puts no token'} first")
    figures = {"eos": vocab.special["eos"], "named as eos": named, "add_bos": vocab.add_bos}
    if wrong:
        return Check("special tokens", "failed", "; ".join(wrong), figures)
    first = "BOS" if vocab.add_bos else "nothing"
    meaning = (
        f"llama.cpp ends an answer at token {vocab.special['eos']} and puts {first} before a prompt, "
        "as the tokenizer's files say"
    )
    return Check("special tokens", "passed", meaning, figures)


def _named_eos(folder: Path) -> list[int]:
    """The ids that the folder's files themselves call EOS."""
    path = folder / "tokenizer.json"
    ids: list[int] = []
    name = read_json(folder / "tokenizer_config.json").get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    if isinstance(name, str) and path.is_file():
        from tokenizers import Tokenizer

        found = Tokenizer.from_file(str(path)).token_to_id(name)
        ids += [] if found is None else [found]
    for file in ("generation_config.json", "config.json"):
        value = read_json(folder / file).get("eos_token_id")
        ids += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)]
    return list(dict.fromkeys(ids))


def check_prompt_tokens(
    gguf: Path, tokenizer: ChatTokenizer, vocab: Vocab, chats: Sequence[Sequence[Message]]
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
    meaning = (
        f"{compared} of {compared} rendered prompts are the same tokens in training, here and in llama.cpp"
    )
    return Check("prompt tokens", "passed", meaning, figures)
