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

Figures are taken over the answers' tokens only. An answer that a chat does not bring is the greedy one of the
first file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.header import TypedTensor
from lorafold.export.inputs import Inputs
from lorafold.export.proof.check import Check
from lorafold.export.proof.llama import Runner, runner
from lorafold.export.proof.reference import load_base, own_reading, why_no_reference, with_adapter
from lorafold.export.proof.rounding import parameters_of, round_weights
from lorafold.probabilities import log_softmax
from lorafold.progress import Progress, silent

if TYPE_CHECKING:
    import torch

_ANSWER_TOKENS = 32
CONTEXT = 512
# How many times the noise of rounded activations a file may be away from the rounded reference. Two programs
# that round independently are about 2 apart; seen on nine types and five models: 0.01 to 1.5.
TIMES = 4.0
# Nats that float32 sums in another order may cost; seen: 2e-8.
ARITHMETIC = 1e-5
NOTHING = 1e-6  # an effect, in nats, that no arithmetic can tell from none

LogProbabilities = NDArray[np.float32]  # (tokens, vocabulary)
Answers = list[LogProbabilities]  # one for each conversation


@dataclass(frozen=True, slots=True)
class WrittenModel:
    """A written model that is to be judged.

    Attributes:
        recipe: the quantization's name.
        path: the file, of a split model the first.
        tensors: the tensors of all its files.
    """

    recipe: str
    path: Path
    tensors: tuple[TypedTensor, ...]


@dataclass(frozen=True, slots=True)
class _Conversation:
    """A conversation as tokens.

    Attributes:
        ids: prompt and answer.
        start: the index of the answer's first token.
    """

    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class _Reference:
    """What transformers answers.

    Attributes:
        tuned: base + adapter; the base if there is no adapter.
        base: the base alone, or None if there is no adapter.
        rounded: for each file, base + adapter rounded as the file is.
        noise: for each file, KL(only the weights rounded || also the activations rounded), in nats.
        missing: for each file, the share of its weights that have no place in transformers' model.
    """

    tuned: Answers
    base: Answers | None
    rounded: list[Answers]
    noise: list[float]
    missing: list[float]


def check_logits(
    models: Sequence[WrittenModel],
    inputs: Inputs,
    tokenizer: ChatTokenizer,
    chats: Sequence[list[dict[str, str]]],
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
    progress: Progress = silent,
) -> list[Check]:
    """Compare every file's logits with the reference's.

    Args:
        models: what was written.
        inputs: base and adapters.
        tokenizer: how conversations become tokens.
        chats: held-out conversations.
        imatrix: the importance weights of the export.
        progress: told how far it is.

    Returns:
        A check for each file, and one on the adapter's effect if there is an adapter; a note if PEFT itself
        would read the adapter in another way.
    """
    steps = 2 * len(models) + 2

    def unchecked(reason: str) -> list[Check]:
        progress("prove the answers", steps, steps)
        return [Check(f"logits {model.path.name}", "not checked", reason) for model in models]

    progress("prove the answers", 0, steps)
    if reason := why_no_reference(inputs):
        return unchecked(reason)
    with runner(models[0].path, CONTEXT) as first:
        sequences = [s for chat in chats if (s := _sequence(chat, tokenizer, first)) is not None]
        width = first.width
    if not sequences:
        return unchecked(f"no held-out chat fits in {CONTEXT} tokens")
    try:
        reference = _reference(models, inputs, sequences, width, imatrix, progress)
    except InputError as error:
        return unchecked(error.problem)
    checks, losses = [], {}
    for number, model in enumerate(models):
        with runner(model.path, CONTEXT) as judge:
            ours = [log_softmax(judge.logits(s.ids)[s.start - 1 : -1, :width]) for s in sequences]
        checks.append(_judge(model, number, sequences, reference, ours))
        losses[model.recipe] = checks[-1].figures["mean KL"]
        progress("prove the answers", steps - len(models) + number + 1, steps)
    if reference.base is not None:
        checks.append(check_effect(mean_kl(reference.tuned, reference.base), losses))
    if (difference := own_reading(inputs)) is not None:
        said = (
            f"PEFT would read another adapter from this folder ({difference}), so the reference is what "
            "lorafold reads in it: the logits prove the conversion, and PEFT does not confirm the reading"
        )
        checks.append(Check("reading", "note", said))
    return checks


def _sequence(chat: list[dict[str, str]], tokenizer: ChatTokenizer, model: Runner) -> _Conversation | None:
    """Prompt and answer as tokens; None if they do not fit."""
    asked = chat[:-1] if chat[-1]["role"] == "assistant" else chat
    prompt = tokenizer.encode_chat(asked, add_generation_prompt=True).ids
    if len(prompt) + _ANSWER_TOKENS > CONTEXT:
        return None
    if asked is chat:
        answer = model.answer(prompt, _ANSWER_TOKENS, frozenset(tokenizer.eos_ids))
    else:
        # Cut at the answer's own tokens: what follows the prompt in the whole conversation.
        answer = tokenizer.encode_chat(chat).ids[len(prompt) :][:_ANSWER_TOKENS]
    return _Conversation([*prompt, *answer], len(prompt)) if answer else None


def _reference(
    models: Sequence[WrittenModel],
    inputs: Inputs,
    sequences: Sequence[_Conversation],
    width: int,
    imatrix: Mapping[str, NDArray[np.float32]] | None,
    progress: Progress,
) -> _Reference:
    """The answers by transformers: tuned, by the base alone, and rounded as each file is.

    Args:
        models: what was written.
        inputs: base and adapters.
        sequences: prompts with their answers.
        width: tokens that the files know; an embedding may have more rows.
        imatrix: the importance weights of the export.
        progress: told how far it is.

    Raises:
        InputError: transformers or PEFT cannot load it.
    """
    import torch

    def run(model: torch.nn.Module) -> Answers:
        with torch.inference_mode():
            logits = (model(input_ids=torch.tensor([s.ids])).logits[0, s.start - 1 : -1] for s in sequences)
            return [log_softmax(each[:, :width].float().numpy()) for each in logits]

    steps = 2 * len(models) + 2
    tuned: Answers | None = None
    base: Answers | None = None
    rounded, noise, missing = [], [], []
    source = inputs.source
    exact = source if source.rounding == "exact" else Folded(source.base, inputs.adapters)
    for number, model in enumerate(models):
        plain = load_base(inputs)  # once for each file: rounding changes it for good
        parameters = parameters_of(plain)
        if tuned is None and inputs.adapters:
            base = run(plain)
            progress("prove the answers", 1, steps)
        whole = with_adapter(plain, inputs)
        if tuned is None:
            tuned = run(whole)
            progress("prove the answers", 2, steps)
        change = round_weights(whole, parameters, model.tensors, source, exact, imatrix)
        missing.append(change.missing)
        if change.weights:
            weights_only = run(whole)
            change.round_activations()
            rounded.append(run(whole))
            noise.append(mean_kl(weights_only, rounded[-1]))
        else:
            rounded.append(tuned)
            noise.append(0.0)
        progress("prove the answers", number + 3, steps)
    assert tuned is not None
    return _Reference(tuned, base, rounded, noise, missing)


def _judge(
    model: WrittenModel, number: int, sequences: Sequence[_Conversation], reference: _Reference, ours: Answers
) -> Check:
    """Whether a file answers as the reference does that was rounded as the file is."""
    tuned, rounded = reference.tuned, reference.rounded[number]
    kl, cost, away = (mean_kl(*pair) for pair in ((tuned, ours), (tuned, rounded), (rounded, ours)))
    limit = TIMES * reference.noise[number] + ARITHMETIC
    choices = [a.argmax(1) == b.argmax(1) for a, b in zip(tuned, ours, strict=True)]
    parted = [int(np.argmin(agree)) for agree in choices if not agree.all()]
    same = np.concatenate(choices)
    answers = [np.array(s.ids[s.start :]) for s in sequences]
    figures: dict[str, Any] = {
        "chats": len(sequences),
        "tokens": len(same),
        "mean KL": kl,
        "top-1 agreement": float(same.mean()),
        "perplexity": _perplexity(ours, answers),
        "perplexity of the reference": _perplexity(tuned, answers),
        "chats that part": len(parted),
        "earliest differing token": min(parted) + 1 if parted else None,
        "mean KL of the type itself": cost,
        "KL from the rounded reference": away,
        "limit of that": limit,
    }
    if reference.base is not None:
        figures["KL of the adapter"] = mean_kl(tuned, reference.base)
    name = f"logits {model.path.name}"
    told = (
        f"mean KL {kl:.4f} nats from {'the base' if reference.base is None else 'base + adapter'}, "
        f"top-1 agreement {same.mean():.1%} over {len(same)} tokens"
    )
    if not np.isfinite(kl):
        return Check(name, "failed", "the file's logits are not finite", figures, fix=WORSE)
    if reference.missing[number]:
        why = f"transformers keeps {reference.missing[number]:.0%} of the weights under other names"
        return Check(
            name, "not checked", f"{told}; what {model.recipe} itself costs is unknown: {why}", figures
        )
    own = f"{model.recipe} by itself costs this model {cost:.4f}"
    if away <= limit:
        return Check(name, "passed", f"{told}; {own}, so the file is as good as its type", figures)
    worse = f"but the file's answers are {away:.2g} nats away from that (limit {limit:.2g})"
    return Check(name, "failed", f"{told}; {own}, {worse}", figures, fix=WORSE)


WORSE = "export with --quant F32: if that fails too, the conversion of this model is wrong, please report it"


def check_effect(effect: float, losses: Mapping[str, float]) -> Check:
    """What the adapter does to the answers, beside what rounding does to them.

    Args:
        effect: KL(base + adapter || base), in nats.
        losses: mean KL of each file, by its type.
    """
    figures = {"KL of the adapter": effect, "share that is rounding": {}}
    told = f"the adapter changes the answers by {effect:.4f} nats"
    if effect < NOTHING:
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


def mean_kl(reference: Answers, other: Answers) -> float:
    """Mean over positions of sum p (log p - log q), in nats; not below zero by a rounding error."""
    pairs = list(zip(reference, other, strict=True))
    total = sum(float((np.exp(p) * (p - q)).sum()) for p, q in pairs)
    mean = total / sum(len(p) for p, _ in pairs)
    return mean if np.isnan(mean) else max(mean, 0.0)


def _perplexity(answered: Answers, answers: Sequence[NDArray[np.int64]]) -> float:
    nats = np.concatenate([-p[np.arange(len(ids)), ids] for p, ids in zip(answered, answers, strict=True)])
    return float(np.exp(nats.mean()))
