"""A conversation as a comparison, for `/export`: each turn a row, with votes and lenses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lorafold.serve.answer_row import NOT_ASKED, answer_row, card_of, lens_of
from lorafold.serve.comparison.result import CompareResult
from lorafold.serve.session import TIE
from lorafold.serve.terminal.talk import Talk


def as_result(talk: Talk) -> CompareResult:
    """The turns of a conversation as rows.

    Args:
        talk: the conversation; its engines score the answers for the lens.
    """
    session = talk.session
    rows: list[dict[str, Any]] = []
    for number, turn in enumerate(session.turns):
        answers = []
        for index in range(len(talk.engines)):
            answer = turn.answers.get(index)
            if answer is None:
                answers.append({"text": "", "reason": NOT_ASKED, "tokens": 0, "seconds": 0.0})
                continue
            lens = lens_of(talk.engines, index, session.messages(index, number), answer)
            answers.append(answer_row(answer, lens))
        rows.append(
            {
                "question": turn.user,
                "messages": session.messages(turn.order[0] if turn.order else 0, number),
                "expected": None,
                "answers": answers,
                "vote": "tie" if turn.vote == TIE else turn.vote,
                "blind": turn.blind,
            }
        )
    cards = [card_of(engine) for engine in talk.engines]
    settings = asdict(session.sampling)
    return CompareResult(cards, rows, settings, "a conversation", 0.0, 0, [])
