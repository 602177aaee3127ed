"""Sample answers while a model is trained: a few held-out questions, asked again at each evaluation.

A falling loss does not show what a model says. The same questions with the likeliest token each time show it
for the reader's eye; nothing is drawn at random, so training goes on as if nobody had asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from lorafold.chat.sandbox import Message
from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.libraries.causal_lm import quiet_transformers
from lorafold.progress import in_one_line
from lorafold.records.layouts import Example

EMPTY = "(an empty answer)"  # shown where the model ends at once
MOST_TOKENS = 40  # of an answer
_SHOWN = 60  # characters of a question or an answer in one line


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out question.

    Attributes:
        text: the last turn of the user.
        expected: the answer in the data.
        ids: the prompt.
    """

    text: str
    expected: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """What the model says to a question now, beside what the data says."""

    question: str
    expected: str
    answer: str

    def line(self) -> str:
        """Question and answer, shortened to one line."""
        question, answer = (in_one_line(text, _SHOWN) for text in (self.question, self.answer))
        return f"{question} → {answer or EMPTY}"


def choose_questions(
    examples: Sequence[Example], tokenizer: ChatTokenizer, count: int, max_length: int
) -> tuple[Question, ...]:
    """Take questions evenly from an evaluation set; plain texts ask nothing.

    Args:
        examples: of the evaluation set.
        tokenizer: with the template that is trained with.
        count: most questions.
        max_length: tokens that a prompt may have.
    """
    asked: dict[str, Sequence[Message]] = {}  # a question that stands there twice is asked once
    for example in examples:
        roles = [message["role"] for message in example.messages[-2:]]
        if roles == ["user", "assistant"]:
            asked.setdefault(example.messages[-2]["content"], example.messages)
    chats = list(asked.values())
    step = max(len(chats) / max(count, 1), 1.0)
    chosen: list[Question] = []
    for messages in (chats[int(index * step)] for index in range(min(len(chats), count))):
        try:
            ids = tokenizer.encode_prompt(messages[:-1])
        except InputError:  # a template may refuse a conversation without its answer
            continue
        if len(ids) <= max_length:
            chosen.append(Question(messages[-2]["content"], messages[-1]["content"], tuple(ids)))
    return tuple(chosen)


def answer_all(
    model: Any, tokenizer: ChatTokenizer, questions: Sequence[Question], *, together: bool = False
) -> list[SampleAnswer]:
    """Let the model answer, always by its likeliest token.

    Args:
        model: with the adapter in place; it is in training mode again afterwards.
        tokenizer: of the model.
        questions: at least one; they are answered side by side.
        together: other workers answer at the same time, since the weights are cut up among all.
    """
    import torch
    from transformers import GenerationConfig

    longest = max(len(question.ids) for question in questions)
    pad = tokenizer.eos_ids[0] if tokenizer.pad_id is None else tokenizer.pad_id
    ids = torch.full((len(questions), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, question in enumerate(questions):
        ids[row, longest - len(question.ids) :] = torch.tensor(question.ids)
        mask[row, longest - len(question.ids) :] = 1
    device = next(model.parameters()).device
    settings = GenerationConfig(
        max_new_tokens=MOST_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=list(tokenizer.eos_ids),
        pad_token_id=pad,
    )
    model.eval()
    try:
        with torch.no_grad(), quiet_transformers(), _as_written(model):
            found = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                use_cache=True,
                synced_gpus=together,
            )
    finally:
        model.train()
    said = (_until_end(row, tokenizer.eos_ids) for row in found[:, longest:].tolist())
    return [
        SampleAnswer(question.text, question.expected, tokenizer.decode(row).strip())
        for question, row in zip(questions, said, strict=True)
    ]


def _as_written(model: Any) -> AbstractContextManager[Any]:
    """Let layers that torch has compiled run as they are written for a while.

    With a cache that grows they would be compiled again and again: five times a run, half a minute each on a
    GPU, until torch takes no more and training itself could not be.
    """
    import torch

    if any(getattr(module, "_compiled_call_impl", None) for module in model.modules()):
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return eager
    return nullcontext()


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    return list(takewhile(lambda token: token not in ends, ids))
