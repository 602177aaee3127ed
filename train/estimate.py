"""What a run is and takes, said before its first step: examples, steps, trained weights, memory.

The memory is an estimate: what is held already, the state of the optimizer, and the activations of the
largest forward pass, counted from the model's shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lorafold.train.fast.forward import causal_model
from lorafold.train.fast.speed import Speed
from lorafold.train.loop import Trainer
from lorafold.train.model.adapter import trainable
from lorafold.train.model.room import device_room
from lorafold.train.tokens.tokenize import Tokenized
from lorafold.train.workers import Workers

_STATE = 12  # bytes a trained weight: gradient and two moments in float32
_CLOSE = 0.9  # share of the room from which it may turn out too small


@dataclass(frozen=True, slots=True)
class Estimate:
    """The size of a run.

    Attributes:
        examples: to train on.
        tokens: of them together.
        cut: how many of them lost their end.
        steps: of the optimizer.
        per_step: examples in a step, over all workers.
        epochs: passes over the data.
        trained: weights that are trained.
        weights: all weights.
        place: what it is computed on: "cpu", "cuda", "2 × cuda".
        needed: bytes of memory, about.
        room: bytes that this machine has for it; 0 if the system does not say.
    """

    examples: int
    tokens: int
    cut: int
    steps: int
    per_step: int
    epochs: float
    trained: int
    weights: int
    place: str
    needed: int
    room: int

    def data(self) -> str:
        """What is trained on."""
        return f"{self.examples:,} examples, {self.tokens:,} tokens, {self.cut:,} cut at the end"

    def course(self) -> str:
        """How long the run is."""
        return f"{self.steps:,} steps of {self.per_step:,} examples, {self.epochs:.2g} epochs"

    def model(self) -> str:
        """What is trained."""
        return f"{self.trained:,} trained weights of {self.weights:,}"

    def begin(self) -> tuple[str, str]:
        """The two lines with which every run begins."""
        return (
            f"data: {self.data()}; {self.course()}",
            f"model: {self.model()}; memory: {memory_line(self.needed, self.room, self.place)}",
        )


def memory_line(needed: int, room: int, place: str, *, measured: bool = False) -> str:
    """How much memory is needed, how much there is, and whether it fits."""
    about = "" if measured else "about "
    if not room:
        return f"{about}{needed / 2**30:.1f} GiB on {place}"
    verdict = "fits" if needed <= _CLOSE * room else "may not fit" if needed <= room else "does not fit"
    return f"{about}{needed / 2**30:.1f} of {room / 2**30:.1f} GiB on {place}: {verdict}"


def estimate(trainer: Trainer, tokens: Tokenized, speed: Speed, workers: Workers) -> Estimate:
    """The size of a run that is ready for its first step."""
    plan, device = trainer.plan, trainer.forward.device
    config = plan.config
    parameters = {parameter.data_ptr(): parameter for parameter in trainer.model.parameters()}
    trained = sum(value.numel() for value in trainable(trainer.model).values())
    held, room = device_room(device)
    longest = max(len(sequence.ids) for sequence in tokens.sequences)
    passed = speed.capacity if speed.packing else longest * config.per_device_train_batch_size
    return Estimate(
        examples=len(tokens.sequences),
        tokens=tokens.tokens,
        cut=tokens.cut,
        steps=plan.total_steps,
        per_step=config.per_device_train_batch_size * config.gradient_accumulation_steps * workers.count,
        epochs=plan.total_steps / plan.steps_per_epoch,
        trained=trained,
        weights=sum(map(_weights, parameters.values())),
        place=device.type if workers.count == 1 else f"{workers.count} × {device.type}",
        needed=held + _STATE * trained + passed * _token_bytes(trainer, speed),
        room=room,
    )


def _weights(parameter: Any) -> int:
    """The weights that a parameter stands for; in 4 bits two of them share a byte."""
    packed = getattr(parameter, "quant_state", None)
    shape = getattr(packed, "shape", None)
    return math.prod(shape) if shape else int(parameter.numel())


def _token_bytes(trainer: Trainer, speed: Speed) -> int:
    """Bytes of activations that a token leaves behind for the backward pass.

    A layer keeps, in the type it computes in, the inputs of its products (two norms, queries, keys, values,
    attention, three of the feed-forward part), and twice the hidden state in float32, in which norms are
    computed. With gradient checkpointing only one layer at a time does. The head keeps logits, their
    logarithms and a gradient in float32, of half of the tokens, unless the loss is computed in parts.
    """
    causal = causal_model(trainer.model)
    config = causal.config.get_text_config()
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    size = next(causal.parameters()).element_size() if speed.dtype == "float32" else 2
    layer = size * (8 * hidden + 4 * inner) + 8 * hidden
    kept = layer + layers * size * hidden if speed.checkpointing else layers * layer
    logits = 0 if speed.direct else 6 * int(config.vocab_size)
    return kept + logits
