"""A conversation as a comparison, for `/export`: each turn a row, with votes and lenses."""

from __future__ import annotations

from dataclasses import asdict

from lorafold.serve.comparison.result import CompareResult
from lorafold.serve.conversation import TIE, Turn
from lorafold.serve.lens import lens_of
from lorafold.serve.rows import AnswerRow, QuestionRow, card_of
from lorafold.serve.terminal.talk import Talk


def as_result(talk: Talk) -> CompareResult:
    """The turns of a conversation as rows.

    Args:
        talk: the conversation; its engines score the answers for the lens.
    """
    rows = [_row(talk, number, turn) for number, turn in enumerate(talk.conversation.turns)]
    cards = [card_of(engine) for engine in talk.engines]
    settings = asdict(talk.conversation.sampling)
    return CompareResult(cards, rows, settings, "a conversation", 0.0, 0, [])


def _row(talk: Talk, number: int, turn: Turn) -> QuestionRow:
    answers = []
    for index in range(len(talk.engines)):
        answer, lens = turn.answers.get(index), None
        if answer is not None:
            lens = lens_of(talk.engines, index, talk.conversation.messages(index, number), answer)
        answers.append(AnswerRow.of(answer, lens))
    return QuestionRow(
        turn.user,
        talk.conversation.messages(next(iter(turn.asked), 0), number),
        None,
        answers,
        vote="tie" if turn.vote == TIE else turn.vote,
        blind=turn.blind,
        tools=talk.conversation.tools,
    )
