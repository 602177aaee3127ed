"""The lens at a terminal: the command, and an answer in colours with its most surprising tokens."""

from __future__ import annotations

from lorafold.console import Row
from lorafold.errors import UsageError
from lorafold.serve.lens import Lens, answer_seen
from lorafold.serve.terminal.chat_state import ChatState, last_turn, stood_at
from lorafold.serve.terminal.panes import Wrapper, fitted, wrapped

# Ratio in nats from which a style applies. Where colours are off, bold, underline and dim still show.
SCALE = (
    (4.0, "bold underline bright_red"),
    (2.0, "bold bright_red"),
    (1.0, "bold yellow"),
    (0.4, "yellow"),
    (-0.4, ""),
    (-2.0, "cyan"),
)
BELOW = "dim cyan"
TOP = 6  # tokens named below the answer


def style_of(ratio: float) -> str:
    """The style of a log-probability ratio."""
    return next((style for least, style in SCALE if ratio >= least), BELOW)


def lens_rows(lens: Lens, own: str, other: str, width: int) -> list[Row]:
    """Rows that show a lens.

    Args:
        lens: what was seen.
        own: name of the model that wrote the answer.
        other: name of the model that looks at it.
        width: columns of the screen.
    """
    rows = wrapped(f"{fitted(own, width // 2)} seen by {fitted(other, width // 2)}", width, "bold")
    wrapper = Wrapper(width)
    for token in lens.tokens:
        word = token.text.lstrip(" ") or token.text
        wrapper.feed(token.text[: len(token.text) - len(word)])  # not underlined with its word
        wrapper.feed(word, style_of(token.ratio))
    rows += [*wrapper.all_lines(), []]
    legend = Wrapper(width)
    legend.feed("surprise of the other model in nats: ", "dim")
    legend.feed("-0.4", style_of(-0.5))
    for least, style in reversed(SCALE[:4]):
        legend.feed(" ")
        legend.feed(f"+{least:g}", style)
    rows += legend.all_lines()
    top = sorted(lens.tokens, key=lambda token: -token.ratio)[:TOP]
    named = "  ".join(f"{token.text.strip() or '⏎'} {token.ratio:+.1f}" for token in top if token.ratio > 0)
    if named:
        rows += wrapped(f"most surprising: {named}", width, "dim")
    figures = f"mean log-probability ratio {lens.mean_ratio:.3f} nats per token"
    if lens.kl is not None:
        figures += f"; mean KL divergence {lens.kl:.3f} nats"
    return rows + wrapped(figures, width, "dim")


def lens(state: ChatState, argument: str) -> None:
    """Colour an answer's tokens by how surprised another model is."""
    turn, talk = last_turn(state), state.talk
    letters = argument.split()
    # The tuned model stands last: its answer, seen by the first one. Hidden ones are taken by their places.
    line = turn.asked if turn.hidden else sorted(talk.columns)
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
    names = dict(enumerate(talk.conversation.models))
    if turn.hidden and any(talk.engines[index].scorer is None for index in line):
        # Whose answer it works on, and what it says of the others, would tell the server.
        raise UsageError("the lens waits for the vote if a server answers", fix="/vote first")
    if turn.hidden:
        names = {model: f"answer {turn.letter(model)}" for model in turn.asked}
    messages = talk.conversation.messages(own)
    seen = answer_seen(talk.engines[own], talk.engines[other], messages, turn.answers[own])
    state.say(lens_rows(seen, names[own], names[other], state.width()))
