"""What a run learns from: the examples, the tokenizer and template that they go through, and their tokens."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.progress import Progress
from lorafold.tokenizer.folder import with_tokenizer_json
from lorafold.train.config import TrainConfig
from lorafold.train.data.load import DataSet, load_splits
from lorafold.train.data.thinking import settle_thinking
from lorafold.train.data.written import written_controls
from lorafold.train.model.new_tokens import extend_tokenizer
from lorafold.train.tokens.tokenize import Tokenized, tokenize


@dataclass(frozen=True, slots=True)
class Material:
    """What came of reading the data.

    Attributes:
        data: to train on.
        held_out: to evaluate on, or None.
        tokens: of `data`.
        held_out_tokens: of `held_out`.
        tokenizer: with the template that was trained with.
        folder: the tokenizer's files.
        rows: size of the extended vocabulary; 0 if no tokens were added.
        own_template: the template is not the base's own, so it goes with the adapter.
        notes: what the user should know.
    """

    data: DataSet
    held_out: DataSet | None
    tokens: Tokenized
    held_out_tokens: Tokenized | None
    tokenizer: ChatTokenizer
    folder: Path
    rows: int
    own_template: bool
    notes: tuple[str, ...]


def read_material(config: TrainConfig, base: Path, work: Path, progress: Progress) -> Material:
    """Read, check and tokenize the data.

    Args:
        config: of the run.
        base: the base's folder.
        work: folder for a tokenizer that has to be made; no other process uses it.
        progress: told if it lasts.

    Raises:
        InputError: the data, the tokenizer or the template are wrong.
        UnsafeInputError: a source or the template would run code.
        UsageError: a new token is none.
    """
    progress("read the data", 0, 1)
    data, held_out = load_splits(config)
    folder, rows = with_tokenizer_json(base), 0
    if config.new_tokens:
        extended = work / "extended"
        rows = extend_tokenizer(folder, extended, config.new_tokens)
        folder = extended
    tokenizer, settled, said = choose_tokenizer(
        folder, data, config.chat_template, parse_contents=config.control_tokens == "parse"
    )
    tokens = tokenize(data.examples, tokenizer, config.max_length, progress)
    found = ", ".join(f"{count} {name}" for name, count in data.layouts.items())
    notes = [f"data: {found}; {tokens.summary()}", *data.notes, *said, *tokens.notes]
    held_out_tokens = None
    if held_out is not None:
        held_out_tokens = tokenize(
            held_out.examples, tokenizer, config.max_length, progress, may_be_empty=True
        )
        drawn = "" if config.eval_data else "; not trained on, because of --eval-split (0 trains on all)"
        notes += [f"evaluation: {held_out_tokens.summary()}{drawn}", *held_out.notes]
        nothing = () if held_out_tokens.sequences else (_no_evaluation(config, held_out_tokens),)
        notes += nothing or held_out_tokens.notes
    progress("read the data", 1, 1, note=tokens.summary())
    return Material(
        data=data,
        held_out=held_out,
        tokens=tokens,
        held_out_tokens=held_out_tokens,
        tokenizer=tokenizer,
        folder=folder,
        rows=rows,
        own_template=config.chat_template is not None or settled,
        notes=tuple(notes),
    )


def _no_evaluation(config: TrainConfig, tokens: Tokenized) -> str:
    """What is said if nothing of the evaluation set is left.

    Raises:
        InputError: the run goes by evaluations.
    """
    problem = "of the evaluation set no example has a trained token left"
    for name in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(config, name):
            flag = "--" + name.replace("_", "-")
            fix = f"raise --max-length ({config.max_length}), give other --eval-data, or leave out {flag}"
            raise InputError(problem, at=tokens.dropped[0], fix=fix)
    return f"{problem}: nothing is evaluated"


def choose_tokenizer(
    folder: Path, data: DataSet, chat_template: str | None, *, parse_contents: bool = False
) -> tuple[ChatTokenizer, bool, tuple[str, ...]]:
    """The tokenizer with the template that training uses.

    Args:
        folder: with tokenizer.json.
        data: to train on; plain texts need no chat template, so a base without one will do.
        chat_template: the user's choice.
        parse_contents: control tokens that the data write out count as such.

    Returns:
        The tokenizer, whether its template was changed to fit the data, and what the user should know of it.

    Raises:
        InputError: no tokenizer, no template.
    """
    if chat_template is None and set(data.layouts) == {"text"}:
        with contextlib.suppress(InputError):
            plain = ChatTokenizer.from_folder(folder)
            plain.parse_contents = parse_contents
            return plain, False, written_controls(data.examples, plain.template, parsed=parse_contents)
        chat_template = "chatml"
    plain = ChatTokenizer.from_folder(folder, chat_template)
    plain.parse_contents = parse_contents
    settled, notes = settle_thinking(plain, data.examples)
    said = written_controls(data.examples, settled.template, parsed=parse_contents)
    return settled, settled is not plain, (*notes, *said)
