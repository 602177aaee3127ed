"""tokenizer.model -> tokenizer.json, for bases that bring SentencePiece's file alone (Index, older models).

Such models often bring Python code for their tokenizer. It is not run: the file itself says what the tokens
are (sentencepiece_model.proto). A space is put before each piece of text where SentencePiece puts one. The
result must give SentencePiece's own ids, or it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorafold.errors import InputError, LorafoldError
from lorafold.files.signatures import another_file, head_of
from lorafold.tokenizer.charsmap import check_charsmap
from lorafold.tokenizer.protobuf import fields

SPACE = "\u2581"
_NEVER = -1e6  # a score that any other way to cut a text beats
_UNIGRAM = 1  # TrainerSpec { 3: model_type }, and its default
# Awkward enough to tell the usual ways of conversion apart.
_PROBES = (
    "hello world",
    " leading and  double  spaces ",
    "现在你要扮演皇帝身边的女人--甄嬛",
    "line\nbreak\ttab, 1234567890 3.14",
    "émoji 🐚🌙, ｆｕｌｌ ｗｉｄｔｈ, ﬁ, ½",
    "𓂀 בּ <unk> </s> \u200b\u3000.",
    "def f(x):\n    return x ** 2  # code",
)


def from_pieces(source: Path) -> str:
    """The text of the tokenizer.json for a tokenizer.model.

    Raises:
        InputError: tokenizer.model is damaged, or of a kind that tokenizer.json cannot express.
    """
    # Its bytes may pass SentencePiece, and still name no text, no number or no table of characters.
    try:
        text = _convert(source)
    except LorafoldError:
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        raise InputError(
            f"a damaged SentencePiece model ({' '.join(str(error).split())})",
            at=source,
            fix="download it again",
        ) from error
    _check(source, text)
    return text


def _convert(source: Path) -> str:
    """The text of a tokenizer.json with the pieces of a tokenizer.model."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers

    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=source.read_bytes())
    except RuntimeError as error:
        raise another_file(source, head_of(source)) or InputError(
            "not a readable SentencePiece model", at=source, fix="download it again"
        ) from error
    ids = list(range(processor.get_piece_size()))
    texts: list[str] = processor.id_to_piece(ids)
    special = [index for index in ids if processor.is_control(index) or processor.is_unknown(index)]
    proto = processor.serialized_model_proto()
    unigram = _setting(proto, 2, 3, _UNIGRAM) == _UNIGRAM
    tokenizer = Tokenizer(_unigram(processor, texts) if unigram else _bpe(processor, texts, special))
    prefixed = processor.encode("a", out_type=str)[0].startswith(SPACE)
    # ModelProto { 3: normalizer_spec { 2: precompiled_charsmap } }
    charsmap = _setting(proto, 3, 2, b"") if unigram else b""
    check_charsmap(charsmap, source)
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            *([normalizers.Prepend(SPACE)] if prefixed else []),
            normalizers.Replace(" ", SPACE),
        ]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    # User-defined symbols are found in any text, as SentencePiece finds them.
    symbols = _user_defined(proto)
    tokenizer.add_special_tokens([AddedToken(texts[index], normalized=False) for index in special])
    tokenizer.add_tokens([AddedToken(texts[index], normalized=False) for index in symbols])
    text: str = tokenizer.to_str()
    return text


def _bpe(processor: Any, texts: list[str], special: list[int]) -> Any:
    """SentencePiece joins the pair with the highest score, so the merges of a piece rank as it does."""
    from tokenizers import models

    vocab = {text: index for index, text in enumerate(texts)}
    ranked = sorted(
        set(range(len(texts))) - set(special), key=lambda index: (-processor.get_score(index), index)
    )
    merges = [
        (text[:cut], text[cut:])
        for text in (texts[index] for index in ranked)
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    unknown = texts[processor.unk_id()]
    return models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _unigram(processor: Any, texts: list[str]) -> Any:
    from tokenizers import models

    def never(index: int) -> bool:
        """Whether a text that writes the piece out does not mean it."""
        return bool(processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index))

    scored = [
        (text, _NEVER if never(index) else processor.get_score(index)) for index, text in enumerate(texts)
    ]
    bytes_too = any(processor.is_byte(index) for index in range(len(texts)))
    return models.Unigram(scored, processor.unk_id(), bytes_too)


def _setting(proto: bytes, part: int, number: int, default: Any) -> Any:
    """A setting of a part of the ModelProto; the part or the setting may be absent."""
    inner = next((value for key, value in fields(proto) if key == part), b"")
    if isinstance(inner, int):
        raise ValueError(f"field {part} is a number")
    value = next((value for key, value in fields(inner) if key == number), default)
    return bytes(value) if isinstance(value, memoryview) else value


def _user_defined(proto: bytes) -> list[int]:
    """Ids of the pieces that are found in any text, which the library keeps to itself.

    ModelProto { 1: pieces (repeated) }, SentencePiece { 1: piece  2: score  3: type (4: user-defined) }
    """
    pieces = [value for number, value in fields(proto) if number == 1]
    return [
        index
        for index, piece in enumerate(pieces)
        if isinstance(piece, memoryview) and (3, 4) in ((number, value) for number, value in fields(piece))
    ]


def _check(source: Path, text: str) -> None:
    """The tokenizer.json must cut every probe as SentencePiece does."""
    import sentencepiece
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    processor = sentencepiece.SentencePieceProcessor(model_proto=source.read_bytes())
    for probe in _PROBES:
        wanted, got = processor.encode(probe), tokenizer.encode(probe, add_special_tokens=False).ids
        if got != wanted:
            problem = (
                f"this SentencePiece model cannot become a tokenizer.json: {probe!r} would get other tokens"
            )
            raise InputError(problem, at=source, fix="give the base's folder a tokenizer.json of its own")
