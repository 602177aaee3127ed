"""Proof of the answers: logits of base + adapter in transformers against every written file in llama.cpp.

In: the base folder, the adapters, held-out chats, the written files. Out: per file the mean Kullback-Leibler
divergence from the reference, how often both would choose the same token, the perplexity of each, and the
first token where greedy decoding would part. The yardstick is the adapter's own effect, KL(tuned || base): an
export whose error is not small beside it has lost the fine-tune.

Figures are taken over the answers' tokens only. An answer that a chat does not bring is the greedy one of the
first file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.export.inputs import Inputs
from lorafold.export.proof.check import Check
from lorafold.export.proof.llama import runner
from lorafold.export.proof.reference import load_base, why_no_reference, with_adapter
from lorafold.progress import Progress, silent

ANSWER_TOKENS = 32
CONTEXT = 512
# The error of an export may be half of what the fine-tune changed; 8 bit stays near a hundredth, 4 bit near a
# tenth. Below the second figure the adapter changes nothing that could be lost.
LOST = 0.5
NO_EFFECT = 1e-3
# Without an adapter to measure by: nats that 16-bit files and quantized ones may be off.
EXACT_KL = {"F32": 1e-3, "F16": 1e-2, "BF16": 1e-2, "Q8_0": 0.05}
BROKEN_KL = 2.0

LogProbabilities = NDArray[np.float32]  # (tokens, vocabulary)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as tokens.

    Attributes:
        ids: prompt and answer.
        start: the index of the answer's first token.
    """

    ids: list[int]
    start: int


def check_logits(
    files: Sequence[tuple[str, Path]],
    inputs: Inputs,
    tokenizer: ChatTokenizer,
    chats: Sequence[list[dict[str, str]]],
    progress: Progress = silent,
) -> list[Check]:
    """Compare every file's logits with the reference's.

    Args:
        files: recipe and path of each written model.
        inputs: base and adapters.
        tokenizer: how conversations become tokens.
        chats: held-out conversations.
    """
    if reason := why_no_reference(inputs):
        return [Check(f"logits {path.name}", "not checked", reason) for _, path in files]
    progress("prove the answers", 0, len(files) + 2)
    with runner(files[0][1], CONTEXT) as model:
        sequences = [s for chat in chats if (s := _sequence(chat, tokenizer, model)) is not None]
        width = model.width
    if not sequences:
        reason = f"no held-out chat fits in {CONTEXT} tokens"
        return [Check(f"logits {path.name}", "not checked", reason) for _, path in files]
    progress("prove the answers", 1, len(files) + 2)
    try:
        tuned, base = _reference(inputs, sequences, width)
    except InputError as error:
        return [Check(f"logits {path.name}", "not checked", error.problem) for _, path in files]
    progress("prove the answers", 2, len(files) + 2)
    effect = None if base is None else _mean_kl(tuned, base)
    checks = []
    for number, (recipe, path) in enumerate(files):
        with runner(path, CONTEXT) as model:
            ours = [_log_softmax(model.logits(s.ids)[s.start - 1 : -1, :width]) for s in sequences]
        checks.append(_verdict(path.name, recipe, sequences, tuned, ours, effect))
        progress("prove the answers", number + 3, len(files) + 2)
    return checks


def _sequence(chat: list[dict[str, str]], tokenizer: ChatTokenizer, model: Any) -> Conversation | None:
    """Prompt and answer as tokens; None where they do not fit."""
    asked = chat[:-1] if chat[-1]["role"] == "assistant" else chat
    prompt = tokenizer.encode_chat(asked, add_generation_prompt=True).ids
    if len(prompt) + ANSWER_TOKENS > CONTEXT:
        return None
    if asked is chat:
        answer = model.answer(prompt, ANSWER_TOKENS, frozenset(tokenizer.eos_ids))
    else:
        # Cut at the answer's own tokens: what follows the prompt in the whole conversation.
        answer = tokenizer.encode_chat(chat).ids[len(prompt) :][:ANSWER_TOKENS]
    return Conversation([*prompt, *answer], len(prompt)) if answer else None


def _reference(
    inputs: Inputs, sequences: Sequence[Conversation], width: int
) -> tuple[list[LogProbabilities], list[LogProbabilities] | None]:
    """The answers by transformers: tuned, and by the base alone where there is an adapter.

    Args:
        inputs: base and adapters.
        sequences: prompts with their answers.
        width: tokens that the files know; an embedding may have more rows.

    Raises:
        InputError: transformers or PEFT cannot load it.
    """
    import torch

    def run(model: torch.nn.Module) -> list[LogProbabilities]:
        with torch.inference_mode():
            logits = (model(input_ids=torch.tensor([s.ids])).logits[0, s.start - 1 : -1] for s in sequences)
            return [_log_softmax(each[:, :width].float().numpy()) for each in logits]

    model = load_base(inputs)
    base = run(model) if inputs.adapters else None
    return run(with_adapter(model, inputs)), base


def _verdict(
    name: str,
    recipe: str,
    sequences: Sequence[Conversation],
    tuned: list[LogProbabilities],
    ours: list[LogProbabilities],
    effect: float | None,
) -> Check:
    kl = _mean_kl(tuned, ours)
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
        "KL of the adapter": effect,
    }
    check = f"logits {name}"
    share = f"{same.mean():.1%} over {len(same)} tokens"
    told = f"mean KL {kl:.4f} nats from base + adapter, top-1 agreement {share}"
    if not np.isfinite(kl):
        return Check(check, "failed", "the file's logits are not finite", figures)
    if effect is None:
        limit = EXACT_KL.get(recipe, BROKEN_KL)
        told = told.replace("base + adapter", "the base")
        verdict = "passed" if kl <= limit else "failed"
        return Check(check, verdict, f"{told} (limit {limit:g} for {recipe})", figures)  # type: ignore[arg-type]
    if effect < NO_EFFECT:
        verdict = "passed" if kl <= EXACT_KL.get(recipe, BROKEN_KL) else "failed"
        note = f"the adapter itself hardly changes the answers (KL {effect:.1e})"
        return Check(check, verdict, f"{told}; {note}", figures)  # type: ignore[arg-type]
    figures["share of the adapter's effect"] = kl / effect
    told = f"{told}; the adapter's own effect is {effect:.4f}, so {kl / effect:.1%} of it is noise"
    return Check(check, "passed" if kl <= LOST * effect else "failed", told, figures)


def _log_softmax(logits: NDArray[np.float32]) -> LogProbabilities:
    """In float32, as the logits are: with a vocabulary of 150,000 these arrays take much of the proof's time.

    numpy's sums are pairwise: the error stays near the last bit.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities: LogProbabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def _mean_kl(reference: list[LogProbabilities], other: list[LogProbabilities]) -> float:
    """Mean over positions of sum p (log p - log q), in nats."""
    pairs = list(zip(reference, other, strict=True))
    total = sum(float((np.exp(p) * (p - q)).sum()) for p, q in pairs)
    return total / sum(len(p) for p, _ in pairs)


def _perplexity(answered: list[LogProbabilities], answers: Sequence[NDArray[np.int64]]) -> float:
    nats = np.concatenate([-p[np.arange(len(ids)), ids] for p, ids in zip(answered, answers, strict=True)])
    return float(np.exp(nats.mean()))
