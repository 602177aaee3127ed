"""Commands that judge answers: votes, blind votes and their score, the lens."""

from __future__ import annotations

from lorafold.errors import UsageError
from lorafold.serve.answer_row import answer_seen
from lorafold.serve.session import TIE, share_interval
from lorafold.serve.terminal.lens_rows import lens_rows
from lorafold.serve.terminal.shell import Shell, answer_at, last_turn, stood_at
from lorafold.serve.terminal.views import STYLES


def vote(shell: Shell, argument: str) -> None:
    """Say which answer to the last question is better."""
    turn = last_turn(shell)
    if not argument:
        raise UsageError("no vote given", fix="/vote a, /vote b or /vote tie")
    if turn.blind and turn.vote is not None:
        raise UsageError("the blind vote is given, and the names are known now", fix="ask the next question")
    if len(turn.standing()) < 2:
        raise UsageError("fewer than two answers stand: nothing can be compared", fix="let two models answer")
    turn.vote = TIE if argument.lower() in ("tie", "=") else answer_at(shell, turn, argument)
    if turn.blind:
        shell.tell(", ".join(f"{a} was {shell.talk.session.models[i]}" for a, i in shell.talk.places(turn)))
    tell_score(shell)


def tell_score(shell: Shell) -> None:
    """Show the running score with the 95% interval of each model's share; nothing where nobody voted."""
    session = shell.talk.session
    wins, ties = session.votes()
    total = sum(wins.values()) + ties
    if not total:
        return
    shell.tell(f"{total} vote{'s' * (total != 1)}, {ties} tie{'s' * (ties != 1)}")
    for index in sorted(wins, key=lambda i: -wins[i]):
        share, low, high = share_interval(wins[index], ties, total - ties - wins[index])
        shell.tell(
            f"   {session.models[index]}: {wins[index]} won, preferred {share:.0%} "
            f"(95% interval {low:.0%} to {high:.0%})",
            STYLES[index],
        )


def blind(shell: Shell, argument: str) -> None:
    """Hide the names and shuffle the sides, or stop doing so."""
    if argument not in ("", "on", "off"):
        raise UsageError(f"expected on or off, got {argument!r}", fix="/blind on")
    if len(shell.talk.engines) < 2:
        raise UsageError("one model alone cannot be compared", fix="start with two models")
    shell.talk.blind = not shell.talk.blind if not argument else argument == "on"
    state = "names are hidden; /vote a, b or tie" if shell.talk.blind else "names are shown"
    shell.tell(state)


def lens(shell: Shell, argument: str) -> None:
    """Colour an answer's tokens by how surprised another model is."""
    turn, talk = last_turn(shell), shell.talk
    letters = argument.split()
    # The tuned model stands last: its answer, seen by the first one. Hidden ones are taken by their places.
    line = turn.order if turn.hidden else sorted(talk.order)
    answered = [index for index in line if index in turn.answers and turn.answers[index].text]
    own = stood_at(turn, letters[0]) if letters else next(reversed(answered), -1)
    if own not in answered:
        raise UsageError("this model gave no answer in the last turn", fix="/lens with another letter")
    other = next((index for index in line if index != own), None)
    if len(letters) > 1:
        other = stood_at(turn, letters[1])
    if other is None:
        raise UsageError("the lens needs two models", fix="start with two models")
    if other == own:
        raise UsageError("a model is never surprised by itself", fix="/lens with two letters")
    names = dict(enumerate(talk.session.models))
    if turn.hidden and any(talk.engines[index].scorer is None for index in line):
        # Whose answer it works on, and what it says of the others, would tell the server.
        raise UsageError("the lens waits for the vote where a server answers", fix="/vote first")
    if turn.hidden:
        names = {index: f"answer {letter}" for letter, index in talk.places(turn)}
    messages = talk.session.messages(own)
    seen = answer_seen(talk.engines[own], talk.engines[other], messages, turn.answers[own])
    shell.say(lens_rows(seen, names[own], names[other], shell.width()))
