"""Small tokenizers, trained in the test, with the structures of the large ones.

`byte_level` gives a tokenizer.json with any pre-tokenizer; `sentencepiece_model` trains a real
tokenizer.model, and `json_of_sentencepiece` makes the tokenizer.json that Hugging Face derives from such a
file: every pair that gives a piece is a merge, in the order of the pieces' scores.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafold.export.vocab.probe import probe_texts

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """A Split of a tokenizer.json."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    """A pre-tokenizer that is a Sequence."""
    return {"type": "Sequence", "pretokenizers": list(parts)}


def byte_level(
    pre_tokenizer: dict[str, Any],
    *,
    size: int = 900,
    specials: Sequence[str] = CHATML,
    normalizer: dict[str, Any] | None = None,
    ignore_merges: bool = False,
    whole_words: Sequence[str] = (),
    corpus: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a byte-level BPE on a battery of awkward texts.

    Args:
        pre_tokenizer: as in a tokenizer.json.
        size: tokens without specials.
        specials: special added tokens.
        normalizer: as in a tokenizer.json.
        ignore_merges: as in a tokenizer.json.
        whole_words: further tokens, which no merge makes.
        corpus: further texts to train on.

    Returns:
        The parsed tokenizer.json.
    """
    from tokenizers import Tokenizer, models, trainers

    untrained = _json(pre_tokenizer, normalizer, {"type": "BPE", "vocab": {}, "merges": []})
    tokenizer = Tokenizer.from_str(json.dumps(untrained))
    assert isinstance(tokenizer.model, models.BPE)
    alphabet = _byte_alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*probe_texts(500, seed=77), *corpus], trainer)
    trained = json.loads(tokenizer.to_str())
    vocab = trained["model"]["vocab"]
    for word in whole_words:
        vocab.setdefault(word, len(vocab))
    trained["model"]["ignore_merges"] = ignore_merges
    trained["decoder"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    trained["added_tokens"] = [added(len(vocab) + index, text) for index, text in enumerate(specials)]
    return dict(trained)


def added(token_id: int, text: str, special: bool = True, **flags: bool) -> dict[str, Any]:
    """An entry of "added_tokens"."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": text, "special": special} | plain | flags


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _json(pre_tokenizer: Any, normalizer: Any, model: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def write_folder(folder: Path, tokenizer: dict[str, Any] | None, **settings: Any) -> Path:
    """Write a tokenizer.json and a tokenizer_config.json with `settings`."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@functools.cache
def sentencepiece_model(
    *,
    size: int = 1200,
    model_type: str = "bpe",
    dummy_prefix: bool = True,
    symbols: tuple[str, ...] = (),
    normalization: str = "identity",
    collapse: bool = False,
    byte_fallback: bool = True,
    texts: tuple[str, ...] = (),
) -> bytes:
    """Train a tokenizer.model, with byte fallback or not; `symbols` become user-defined pieces,
    `texts` are learned from instead of the probe's."""
    import sentencepiece

    ours = [text for text in probe_texts(1500, seed=78) if "\n" not in text and "\0" not in text]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts or ours),
        model_writer=written,
        vocab_size=size,
        model_type=model_type,
        byte_fallback=byte_fallback,
        character_coverage=0.98,
        normalization_rule_name=normalization,
        remove_extra_whitespaces=collapse,
        add_dummy_prefix=dummy_prefix,
        user_defined_symbols=list(symbols),
        minloglevel=2,
        num_threads=1,
    )
    return written.getvalue()


def json_of_sentencepiece(model: bytes, normalizer: Any, pre_tokenizer: Any = None) -> dict[str, Any]:
    """The tokenizer.json of a tokenizer.model: as Hugging Face's conversion makes it.

    Args:
        model: a tokenizer.model of type BPE.
        normalizer: as in a tokenizer.json.
        pre_tokenizer: as in a tokenizer.json.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = list(range(processor.GetPieceSize()))
    texts = processor.IdToPiece(ids)
    vocab = {text: index for index, text in enumerate(texts)}
    control = {index for index in ids if processor.IsControl(index) or processor.IsUnknown(index)}
    order = sorted(set(ids) - control, key=lambda index: (-processor.GetScore(index), index))
    merges = [
        [texts[index][:cut], texts[index][cut:]]
        for index in order
        for cut in range(1, len(texts[index]))
        if texts[index][:cut] in vocab and texts[index][cut:] in vocab
    ]
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": texts[0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }
    made = _json(pre_tokenizer, normalizer, bpe)
    made["added_tokens"] = [added(index, texts[index]) for index in sorted(control)]
    return made


def in_own_order(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A BPE that was trained on its own, as Gemma 4's: one way to make each token, in another order.

    Args:
        tokenizer: of `json_of_sentencepiece`; changed, and given tokens for one to four line ends.
    """
    model, seen = tokenizer["model"], set[str]()
    kept = [pair for pair in model["merges"] if not ("".join(pair) in seen or seen.add("".join(pair)))]
    for count in range(1, 5):
        model["vocab"]["\n" * count] = len(model["vocab"])
    line_ends = [["\n" * (count - 1), "\n"] for count in (4, 3, 2)]
    model["merges"] = [*line_ends, *kept[::2], *kept[1::2]]
    return tokenizer


def json_of_unigram(
    model: bytes, scheme: str, *, split: bool = True, collapse: bool = False
) -> dict[str, Any]:
    """The tokenizer.json of a Unigram tokenizer.model: as Hugging Face's conversion makes it.

    Args:
        model: a tokenizer.model of type UNIGRAM.
        scheme: where a space is put: "always", "first" or "never".
        split: whether words are cut apart first.
        collapse: several spaces become one.
    """
    import base64

    import sentencepiece

    from lorafold.export.vocab.model_file import read_model_spec

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = list(range(processor.GetPieceSize()))
    charsmap = read_model_spec(model).charsmap
    table = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    runs = [
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"},
    ]
    steps = [*([table] if charsmap else []), *(runs if collapse else [])]
    unigram = {
        "type": "Unigram",
        "unk_id": processor.unk_id(),
        "vocab": [[processor.IdToPiece(index), processor.GetScore(index)] for index in ids],
        "byte_fallback": any(map(processor.IsByte, ids)),
    }
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}
    made = _json(metaspace, {"type": "Sequence", "normalizers": steps} if steps else None, unigram)
    control = [index for index in ids if processor.IsControl(index) or processor.IsUnknown(index)]
    made["added_tokens"] = [added(index, processor.IdToPiece(index)) for index in control]
    return made


LLAMA2_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ],
}
GEMMA_NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
