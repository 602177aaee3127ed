"""How far two bases with an adapter are from base + adapter as trained, once their weights are rounded.

All of it is computed layer by layer as the proof computes its reference, and nothing is written. The weights
alone are rounded: what ggml does to activations is the same for both.
"""

from __future__ import annotations

import filecmp
import time
from collections.abc import Sequence
from dataclasses import replace

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export import arch
from lorafold.export.config import ExportConfig
from lorafold.export.fold.folded import vocabulary_size
from lorafold.export.gguf.header import TypedTensor, place_tensors
from lorafold.export.imatrix.calibration import GENERAL_ALONE, calibration
from lorafold.export.imatrix.data import weights_of
from lorafold.export.imatrix.file import read_imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.judge.choice import FEWEST_CHATS, BaseDistances
from lorafold.export.judge.types import asked_types
from lorafold.export.outputs.prompt.planning import held_out
from lorafold.export.proof.measured import Answers, PerToken, kl
from lorafold.export.proof.reference.answers import LayeredReference
from lorafold.export.proof.sample import (
    ANSWER_TOKENS,
    HELD_LOGITS,
    AskedChat,
    Questions,
    ends_in_time,
    rounds,
    tokens_for,
)
from lorafold.export.proof.tokens import plain_tokenizer
from lorafold.export.quant.mixture import Importance
from lorafold.export.quant.recipes import find_recipe
from lorafold.progress import Progress

_STEP = "compare the bases"
_TOKENS = 1024  # of a round at most, prompts and answers together
_AS_A_PROOF = 2  # times the tokens of a proof's round, which goes through the model more often


def measure(trained: Inputs, other: Inputs, config: ExportConfig, progress: Progress) -> BaseDistances:
    """Compare two bases.

    One round of conversations is asked, or as many as have six of them. With `--proof-minutes` others follow,
    until one base is better beyond the uncertainty or the next round would not end in time.

    Args:
        trained: adapters on the base that they were trained on.
        other: the same adapters on the other one.
        config: what is asked for.
        progress: told how far it is.

    Raises:
        LorafoldError: they cannot be compared; the message says why.
    """
    width = check_comparable(trained, other, config)
    first, second = (_Candidate(each, config, width) for each in (trained, other))
    chats, words = conversations(trained, config)
    _check_tokens(trained, other, chats)
    lengths = [len(each.ids) for each in chats]
    tokens = min(_AS_A_PROOF * tokens_for(trained.parameters), _TOKENS)
    at_once = max(HELD_LOGITS // width // ANSWER_TOKENS, FEWEST_CHATS)
    planned = rounds(lengths, min(tokens, at_once * max(lengths)))
    began, found = time.monotonic(), BaseDistances(PerToken([]), PerToken([]), first.name, words)
    for number, part in enumerate(planned):
        more = ends_in_time(time.monotonic() - began, number, config.proof_minutes)
        if len(found.trained.values) >= FEWEST_CHATS and (found.better or not more):
            break
        near, far = _asked(first, second, [chats[index] for index in part], progress)
        found = replace(found, trained=found.trained.joined(near), other=found.other.joined(far))
    return replace(found, chats=f"{len(found.apart.values)} {words}")


class _Candidate:
    """A base with adapters in the types that are asked for."""

    def __init__(self, inputs: Inputs, config: ExportConfig, width: int) -> None:
        if (obstacle := LayeredReference.obstacle(inputs)) is not None:
            raise InputError(obstacle, fix="choose with --fold-into")
        imatrix = _importance(inputs, config)
        self.name, model = asked_types(inputs, config, imatrix)
        self._tensors: Sequence[TypedTensor] = place_tensors(list(model))
        self.reference = LayeredReference(inputs, width, imatrix)

    def answers(self, chats: Sequence[AskedChat]) -> Answers:
        """What it answers once it is rounded."""
        return self.reference.in_types(self._tensors, chats)


def _asked(
    trained: _Candidate, other: _Candidate, chats: Sequence[AskedChat], progress: Progress
) -> tuple[PerToken, PerToken]:
    """KL of both from base + adapter as trained; no more than two answers are held at once."""
    progress(_STEP, 0, 3)
    exact = trained.reference.tuned(chats)
    found = []
    for number, each in enumerate((trained, other)):
        progress(_STEP, number + 1, 3)
        found.append(PerToken(kl(exact, each.answers(chats))))
    progress(_STEP, 3, 3)
    return found[0], found[1]


def conversations(inputs: Inputs, config: ExportConfig) -> tuple[list[AskedChat], str]:
    """What is asked, and what it is called: the proof's chats if they bring answers, else calibration's.

    Raises:
        InputError: there is no tokenizer, or no chat template.
    """
    tokenizer = ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
    own = Questions.of(tokenizer, held_out(inputs, config)).chats
    answered = [AskedChat([*each.ids, *each.answer], len(each.ids)) for each in own if each.answer]
    if len(answered) >= FEWEST_CHATS:
        return answered, "held-out chats"
    texts = calibration(inputs, None, _TOKENS)
    where = texts.words
    if answered:
        where = f"held-out ones and {where}"
    elif where == GENERAL_ALONE and config.chats is None:
        where += ", --chats takes your own"
    if len(texts.checked) < FEWEST_CHATS:  # a template may write hundreds of tokens before each question
        longest = max(len(each.ids) for each in (*texts.measured, *texts.checked))
        texts = calibration(inputs, None, 2 * FEWEST_CHATS * longest)
    cut = (AskedChat(each.ids[: each.start + ANSWER_TOKENS], each.start) for each in texts.checked)
    return [*answered, *cut], f"chats ({where})"


def check_comparable(trained: Inputs, other: Inputs, config: ExportConfig) -> int:
    """See from headers alone whether two bases can be compared; `measure` sees the rest.

    Returns:
        How many tokens both know.

    Raises:
        InputError: the models differ in a size, or what they would be rounded with is not there yet.
    """
    recipes = map(find_recipe, config.quant)
    late = [recipe.name for recipe in recipes if recipe.default in recipe.weighted_types]
    if config.imatrix_data is not None and late:
        problem = f"the importance matrix that {late[0]} needs is only collected afterwards"
        raise InputError(problem, fix="choose with --fold-into")
    there = other.source.tensors
    for name, info in trained.source.tensors.items():
        if name in there and there[name].shape != info.shape:
            raise InputError(
                f"{name} is {info.shape} in {trained.base.id} and {there[name].shape} in {other.base.id}, so "
                "they are not one model",
                fix="choose with --fold-into",
            )
    width = vocabulary_size(trained.config)
    if width is None:
        problem = f"config.json of {trained.base.id} does not say how many tokens there are"
        raise InputError(problem, fix="choose with --fold-into")
    return width


def _check_tokens(trained: Inputs, other: Inputs, chats: Sequence[AskedChat]) -> None:
    """See that both write the chats as the same tokens: a file has the tokenizer of its base.

    Raises:
        InputError: they do not, or the other one has no tokenizer.
    """
    ours, theirs = (each.tokenizer / "tokenizer.json" for each in (trained, other))
    if not theirs.is_file():
        raise InputError(f"{other.base.id} has no tokenizer that can be read", fix="choose with --fold-into")
    if filecmp.cmp(ours, theirs, shallow=False):
        return
    first, second = (plain_tokenizer(each.tokenizer) for each in (trained, other))
    for chat in chats:
        text = first.decode(chat.ids, skip_special_tokens=False)
        if (
            first.encode(text, add_special_tokens=False).ids
            != second.encode(text, add_special_tokens=False).ids
        ):
            raise InputError("their tokenizers make other tokens of a text", fix="choose with --fold-into")


def _importance(inputs: Inputs, config: ExportConfig) -> Importance | None:
    if config.imatrix is None:
        return None
    tensors = arch.map_tensors(inputs.config, inputs.source.tensors)
    return weights_of(read_imatrix(config.imatrix), tensors)
