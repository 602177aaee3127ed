"""What an adapter brings for the prompt: a tokenizer with more tokens than the base's, and a chat template.

Tokens that were trained are never lost in silence: if an adapter names tokens that the base lacks, and its
tokenizer cannot be read, that is an error.
"""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

from lorafold.errors import InputError
from lorafold.export.vocab.files import AddedToken, read_added_tokens, read_tokenizer_files
from lorafold.export.vocab.model_file import read_model_file
from lorafold.files.jsonfile import read_object
from lorafold.tokenizer.folder import sentencepiece_file, with_tokenizer_json

TOKENIZER = "tokenizer.json"


def find_tokenizer(base: Path, adapters: Sequence[Path]) -> Path:
    """The first adapter's folder whose tokenizer has other tokens than the base's, else the base's.

    Args:
        base: the base's folder, with a tokenizer.json if one can be made.
        adapters: the adapters' folders.

    Returns:
        A folder with a tokenizer.json or a tokenizer.model; a temporary one for vocab.json and merges.txt.

    Raises:
        InputError: an adapter names tokens that the base lacks, and has no tokenizer that can be read.
    """
    ours = base / TOKENIZER
    for folder in adapters:
        made = with_tokenizer_json(folder, pieces=False)
        own = made / TOKENIZER
        if own.is_file():
            # A tokenizer is megabytes of JSON: mostly there is none, or a copy of the base's.
            same = ours.is_file() and filecmp.cmp(own, ours, shallow=False)
            if not same and _tokens(own) != _tokens(ours):
                return made
        elif (own_pieces := sentencepiece_file(folder)) is not None:
            pieces = sentencepiece_file(base)
            other = pieces is not None and not filecmp.cmp(own_pieces, pieces, shallow=False)
            if other or not has_tokenizer(base) or _new_tokens(folder, base):
                return folder
        elif lost := _new_tokens(folder, base):
            words = ", ".join(repr(token.content) for token in lost[:4])
            raise InputError(
                f"the adapter has {len(lost)} tokens that the base lacks ({words}), and no tokenizer with "
                f"them: neither {TOKENIZER} nor tokenizer.model",
                at=folder,
                fix="save it there: AutoTokenizer.from_pretrained(TRAINED).save_pretrained(ADAPTER)",
            )
    return base


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that `find_tokenizer` can compare."""
    made = with_tokenizer_json(folder, pieces=False)
    return (made / TOKENIZER).is_file() or sentencepiece_file(made) is not None


def _tokens(path: Path) -> tuple[int, tuple[tuple[int, str], ...]] | None:
    """What tells vocabularies apart: the number of tokens and the added ones."""
    if not path.is_file():
        return None
    tokenizer = read_object(path)
    added = tuple(sorted((item["id"], item["content"]) for item in tokenizer.get("added_tokens") or ()))
    return len((tokenizer.get("model") or {}).get("vocab") or ()), added


def _new_tokens(folder: Path, base: Path) -> list[AddedToken]:
    """The added tokens of an adapter that the base does not know, in the order of their ids."""
    added = sorted(read_added_tokens(folder).items())
    if not added or not has_tokenizer(base):
        return [token for _, token in added]
    files = read_tokenizer_files(base)
    known = {token.content for token in files.added.values()}
    if files.tokenizer is not None:
        vocabulary = files.tokenizer["model"].get("vocab") or ()
        # A Unigram's vocabulary is a list of pieces with their scores.
        known |= {entry if isinstance(entry, str) else entry[0] for entry in vocabulary}
    elif files.model_file is not None:
        known |= set(read_model_file(files.model_file)[0].texts)
    return [token for _, token in added if token.content not in known]
