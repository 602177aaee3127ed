"""Commands about votes: giving one, blind votes, the score."""

from __future__ import annotations

from lorafold.errors import UsageError
from lorafold.serve.conversation import TIE, share_interval
from lorafold.serve.terminal.chat_state import ChatState, answer_at, last_turn
from lorafold.serve.terminal.views import STYLES


def vote(state: ChatState, argument: str) -> None:
    """Say which answer to the last question is better."""
    turn = last_turn(state)
    if not argument:
        raise UsageError("no vote given", fix="/vote a, /vote b or /vote tie")
    if turn.blind and turn.vote is not None:
        raise UsageError("the blind vote is given, and the names are known now", fix="ask the next question")
    if len(turn.standing()) < 2:
        raise UsageError("fewer than two answers stand: nothing can be compared", fix="let two models answer")
    turn.vote = TIE if argument.lower() in ("tie", "=") else answer_at(turn, argument)
    if turn.blind:
        names = state.talk.conversation.models
        state.tell(", ".join(f"{turn.letter(model)} was {names[model]}" for model in turn.asked))
    tell_score(state)


def tell_score(state: ChatState) -> None:
    """Show the running score with the 95% interval of each model's share; nothing if nobody voted."""
    conversation = state.talk.conversation
    wins, ties = conversation.votes()
    total = sum(wins.values()) + ties
    if not total:
        return
    state.tell(f"{total} vote{'s' * (total != 1)}, {ties} tie{'s' * (ties != 1)}")
    for index in sorted(wins, key=lambda i: -wins[i]):
        share, low, high = share_interval(wins[index], ties, total - ties - wins[index])
        state.tell(
            f"   {conversation.models[index]}: {wins[index]} won, preferred {share:.0%} "
            f"(95% interval {low:.0%} to {high:.0%})",
            STYLES[index],
        )


def blind(state: ChatState, argument: str) -> None:
    """Hide the names and shuffle the sides, or stop doing so."""
    if argument not in ("", "on", "off"):
        raise UsageError(f"expected on or off, got {argument!r}", fix="/blind on")
    if len(state.talk.engines) < 2:
        raise UsageError("one model alone cannot be compared", fix="start with two models")
    state.talk.blind = not state.talk.blind if not argument else argument == "on"
    said = "names are hidden; /vote a, b or tie" if state.talk.blind else "names are shown"
    state.tell(said)
