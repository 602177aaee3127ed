"""Proof of the answers: base + adapter in transformers against every written file in llama.cpp.

Two questions, kept apart. Is the file right? It is judged by what its own types cost this model: the
reference is rounded as the file is (`rounding`), and the file must answer as that rounded reference does. Its
distance may be as large as what the rounding of activations does, since two programs that add up in another
order round some of them to the other side; that noise is measured on this model too. So the bound is as
strict for F32 (nothing is rounded) as rounding allows, and no type has a limit of its own.

Is the fine-tune worth it? The adapter's effect is KL(base + adapter || base). If a file's rounding changes
more than that, the file is still right, and the user is told.

An older rule failed a file whose loss was more than half of the adapter's effect. It called right files of a
weak adapter wrong, and wrong F32 files of a strong adapter right.

Conversations are asked in rounds (`sample`, `asking`). Figures are taken over the answers' tokens only.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorafold.chat.sandbox import Message
from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.export.inputs import Inputs
from lorafold.export.proof.asking import Asking, Figures, FileFigures, WrittenModel
from lorafold.export.proof.check import Check
from lorafold.export.proof.kept import KeptReference
from lorafold.export.proof.llama import Vocabulary, vocabulary
from lorafold.export.proof.measured import PerToken
from lorafold.export.proof.reference.answers import WAYS, LayeredReference, ReferenceWay
from lorafold.export.proof.reference.whole import own_reading
from lorafold.export.proof.sample import CONTEXT, ChatTokens, Questions, ends_in_time, rounds, tokens_for
from lorafold.export.quant.mixture import Importance
from lorafold.progress import Progress, silent

__all__ = ["Effort", "WrittenModel", "check_answers", "check_effect", "check_logits"]

_STEP = "prove the answers"
# How many times the noise of rounded activations a file may be away from the rounded reference. Two programs
# that round independently are about 2 apart; seen on nine types and five models: 0.01 to 1.5.
_TIMES = 4.0
# Nats that float32 sums in another order may cost; seen: 2e-8.
_ARITHMETIC = 1e-5
_NOTHING = 1e-6  # an effect, in nats, that no arithmetic can tell from none


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is asked, and how the reference is computed.

    Attributes:
        minutes: how long the answers may be asked for; 0: as many tokens as take about the export's own time.
        way: how base + adapter is computed.
        tokens: of one round; 0: by the size of the model.
    """

    minutes: float = 0.0
    way: ReferenceWay = "auto"
    tokens: int = 0


def check_logits(
    models: Sequence[WrittenModel],
    inputs: Inputs,
    tokenizer: ChatTokenizer,
    chats: Sequence[Sequence[Message]],
    imatrix: Importance | None = None,
    progress: Progress = silent,
    effort: Effort = Effort(),
) -> list[Check]:
    """`check_answers` to held-out conversations.

    Args:
        models: what was written.
        inputs: base and adapters.
        tokenizer: how conversations become tokens.
        chats: the conversations.
        imatrix: the importance weights of the export.
        progress: told how far it is.
        effort: how much is asked.
    """
    return check_answers(models, inputs, Questions.of(tokenizer, chats), imatrix, progress, effort)


def check_answers(
    models: Sequence[WrittenModel],
    inputs: Inputs,
    questions: Questions,
    imatrix: Importance | None = None,
    progress: Progress = silent,
    effort: Effort = Effort(),
) -> list[Check]:
    """Compare every file's logits with the reference's.

    Args:
        models: what was written.
        inputs: base and adapters.
        questions: held-out conversations.
        imatrix: the importance weights of the export.
        progress: told how far it is.
        effort: how much is asked.

    Returns:
        A check for each file, and one on the adapter's effect if there is an adapter; notes on what was left
        out, and if PEFT itself would read the adapter in another way.
    """
    prompts = questions.chats
    obstacles = {way: way.obstacle(inputs) for way in WAYS[effort.way]}
    ways = [way for way, obstacle in obstacles.items() if obstacle is None]
    reasons = [obstacle for obstacle in obstacles.values() if obstacle is not None]
    figures: Figures | None = None
    if not prompts:
        reasons = [f"no held-out chat fits in {CONTEXT} tokens"]
    elif ways:
        tokens = effort.tokens or tokens_for(inputs.parameters)
        planned = rounds([prompt.tokens for prompt in prompts], tokens)
        kept = KeptReference(inputs) if ways[0] is LayeredReference else None
        asking = Asking(models, inputs, imatrix, questions.stops, ways, kept)
        chosen = [[prompts[number] for number in part] for part in planned]
        figures = _all_rounds(asking, chosen, effort.minutes, progress)
        reasons += asking.reasons
    if figures is None:
        progress(_STEP, 1, 1)
        return [Check(f"logits {model.path.name}", "not checked", "; ".join(reasons)) for model in models]
    tuned = "base + adapter" if inputs.adapters else "the base"
    about = {"reference": asking.words, "answers of an earlier proof": asking.reused}
    with vocabulary(models[0].path) as words:
        checks = [
            _judge(model, file, figures, tuned, about | _side_by_side(file, figures, words))
            for model, file in zip(models, figures.files, strict=True)
        ]
    if inputs.adapters:
        losses = {model.recipe: file.kl.mean for model, file in zip(models, figures.files, strict=True)}
        checks.append(check_effect(figures.effect.mean, losses))
    return [*checks, *_notes(inputs, figures, len(prompts), _origin(asking, effort.way, reasons))]


def _all_rounds(
    asking: Asking, planned: Sequence[Sequence[ChatTokens]], minutes: float, progress: Progress
) -> Figures | None:
    """Ask round after round, as long as the next one still ends in time; the first one always."""
    began, done = time.monotonic(), list[Figures]()
    total = len(planned) if minutes else 1
    for prompts in planned:
        if not ends_in_time(time.monotonic() - began, len(done), minutes):
            break
        found = asking.round(prompts, lambda share: progress(_STEP, len(done) + share, total))
        if found is None:
            return None
        done.append(found)
    progress(_STEP, total, total)
    return functools.reduce(Figures.joined, done)


def _judge(
    model: WrittenModel, file: FileFigures, figures: Figures, tuned: str, about: Mapping[str, Any]
) -> Check:
    """Whether a file answers as the reference does that was rounded as the file is.

    Args:
        model: the file.
        file: what was measured on it.
        figures: what was measured on all.
        tuned: what it is held against, in words.
        about: what else is to be known: of the reference, and the greedy answers of both.
    """
    kl, cost, away = file.kl.mean, file.cost.mean, file.away.mean
    limit = _TIMES * file.noise.mean + _ARITHMETIC
    parted = [each.same for each in file.partings if each.file is not None]
    found: dict[str, Any] = {
        "chats": len(file.kl.values),
        "tokens": len(file.kl.all),
        "mean KL": kl,
        "mean KL, 95% interval": file.kl.interval,
        "median KL": file.kl.quantile(0.5),
        "99th percentile KL": file.kl.quantile(0.99),
        "largest KL": file.kl.quantile(1.0),
        "KL by position": file.kl.by_position,
        "top-1 agreement": file.same.mean,
        "top-1 agreement, 95% interval": file.same.interval,
        "perplexity": float(np.exp(file.surprise.mean)),
        "perplexity of the reference": float(np.exp(figures.surprise.mean)),
        "chats that part": len(parted),
        "earliest differing token": min(parted) + 1 if parted else None,
        "mean KL of the type itself": cost,
        "KL from the rounded reference": away,
        "limit of that": limit,
        **about,
    }
    if figures.effect.values:
        found["KL of the adapter"] = figures.effect.mean
    name = f"logits {model.path.name}"
    told = (
        f"mean KL {kl:.4f} nats{_between(file.kl, '.4f')} from {tuned}, "
        f"top-1 agreement {file.same.mean:.1%}{_between(file.same, '.0%')} over {len(file.kl.all)} tokens; "
        + _parted(about["greedy answers"])
    )
    if not np.isfinite(kl):
        return Check(name, "failed", "the file's logits are not finite", found, fix=_WORSE)
    if file.missing:
        why = f"transformers keeps {file.missing:.0%} of the weights under other names"
        return Check(
            name, "not checked", f"{told}; what {model.recipe} itself costs is unknown: {why}", found
        )
    own = f"{model.recipe} by itself costs this model {cost:.4f}"
    if away <= limit:
        return Check(name, "passed", f"{told}; {own}, so the file is as good as its type", found)
    worse = f"but the file's answers are {away:.2g} nats away from that (limit {limit:.2g})"
    return Check(name, "failed", f"{told}; {own}, {worse}", found, fix=_WORSE)


def _parted(answers: Sequence[Mapping[str, Any]]) -> str:
    """How many greedy answers differ, and the one that differs first, in words."""
    apart = [answer for answer in answers if answer["the file goes on"] is not None]
    if not apart:
        return f"no greedy answer of {len(answers)} differs"
    first = min(apart, key=lambda answer: answer["tokens"])
    place = f"behind {first['both say'][-_SHOWN:]!r}" if first["both say"] else "at the start"
    return (
        f"{len(apart)} of {len(answers)} greedy answers differ, the first at token {first['tokens'] + 1}: "
        f"{place} the file says {first['the file goes on']!r} instead of {first['the reference goes on']!r}"
    )


def _side_by_side(file: FileFigures, figures: Figures, words: Vocabulary) -> dict[str, Any]:
    """Greedy answers of file and reference as texts."""

    def told(token: int | None) -> str | None:
        return None if token is None else words.text([token])

    found = [
        {
            "both say": words.text(answer[: parting.same].tolist()),
            "tokens": parting.same,
            "the reference goes on": told(parting.reference),
            "the file goes on": told(parting.file),
        }
        for parting, answer in zip(file.partings, figures.answers, strict=True)
    ]
    return {"greedy answers": found}


_SHOWN = 24  # letters of what both say that are printed
_WORSE = "export with --quant F32: if that fails too, the conversion of this model is wrong, please report it"


def _between(figure: PerToken, form: str) -> str:
    """The interval of a mean, in brackets."""
    if figure.interval is None:
        return ""
    low, high = figure.interval
    return f" ({low:{form}} to {high:{form}})"


def _origin(asking: Asking, way: ReferenceWay, reasons: Sequence[str]) -> str:
    """Where the reference comes from, if it was not computed in the usual way; else nothing."""
    if asking.words == WAYS[way][0].words:
        return ""
    return f"computed by {asking.words}, since the usual way does not work: {'; '.join(reasons)}"


def _notes(inputs: Inputs, figures: Figures, chats: int, origin: str) -> Iterator[Check]:
    """What was left out, and what the reference is if it is not what one would take it for."""
    asked = len(figures.surprise.values)
    if asked < chats:
        told = f"{asked} of {chats} held-out chats were asked, which take about as long as the export itself"
        yield Check("sample", "note", f"{told}; --proof-minutes asks more", {"chats": chats, "asked": asked})
    if origin:
        yield Check("reference", "note", origin)
    if (difference := own_reading(inputs)) is not None:
        said = (
            f"PEFT would read another adapter from this folder ({difference}), so the reference is what "
            "lorafold reads in it: the logits prove the conversion, and PEFT does not confirm the reading"
        )
        yield Check("reading", "note", said)


def check_effect(effect: float, losses: Mapping[str, float]) -> Check:
    """What the adapter does to the answers, beside what rounding does to them.

    Args:
        effect: KL(base + adapter || base), in nats.
        losses: mean KL of each file, by its type.
    """
    figures = {"KL of the adapter": effect, "share that is rounding": {}}
    told = f"the adapter changes the answers by {effect:.4f} nats"
    if effect < _NOTHING:
        advice = "it has not learnt anything yet, so train longer or with a larger --learning-rate"
        return Check("effect", "note", f"{told}, which is nothing: {advice}", figures)
    shares = {recipe: max(loss, 0.0) / effect for recipe, loss in losses.items()}
    figures["share that is rounding"] = shares
    weak = [recipe for recipe, share in shares.items() if share > 1]
    if weak:
        less = ", ".join(f"{recipe} ({losses[recipe]:.4f})" for recipe in weak)
        return Check(
            "effect",
            "note",
            f"{told}, less than the rounding of {less} does, so it will hardly be seen: "
            "train longer, or choose a larger type (--quant)",
            figures,
        )
    beside = ", ".join(f"{share:.1%} ({recipe})" for recipe, share in shares.items())
    return Check("effect", "passed", f"{told}; beside that the rounding is {beside}", figures)
