"""Adds tokens to a vocabulary: to the tokenizer's files, and as new rows to the model.

To train the new rows, embedding and head are trained and saved in full (peft's `modules_to_save`). Every tool
that reads PEFT's folders understands that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafold.errors import UsageError
from lorafold.tokenizer.loading import load_tokenizer
from lorafold.train.config import TrainConfig
from lorafold.train.methods import METHODS
from lorafold.train.model.adapter import copy_tokenizer


def extend_tokenizer(base: Path, folder: Path, tokens: Sequence[str]) -> int:
    """Write a base's tokenizer with new tokens into a folder.

    Returns:
        The number of rows that an embedding needs for it.

    Raises:
        UsageError: a token is in the vocabulary already.
    """
    from tokenizers import AddedToken

    folder.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(base, folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    for token in tokens:
        if tokenizer.token_to_id(token) is not None:
            problem = f"the vocabulary has the token {token!r} already"
            raise UsageError(problem, at="--new-tokens", fix="leave it out")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def make_room(model: Any, rows: int, config: TrainConfig) -> TrainConfig:
    """Give the model rows for the new tokens, and let embedding and head be trained in full.

    Args:
        model: transformers' causal language model, changed in place.
        rows: size of the extended vocabulary.
        config: of the run.

    Returns:
        The config, with embedding and head among its `modules_to_save`.

    Raises:
        UsageError: the method trains a prompt, which cannot hold new rows.
    """
    method = METHODS[config.method]
    if method.prompt:
        problem = f"{config.method} cannot train the embeddings of new tokens"
        raise UsageError(problem, at="--new-tokens", fix="choose --method lora")
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    if method.peft is None:
        return config
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = (
        name.rpartition(".")[2] for name, module in model.named_modules() if any(module is e for e in ends)
    )
    chosen = dict.fromkeys((*config.modules_to_save, *names))
    return dataclasses.replace(config, modules_to_save=tuple(chosen))
