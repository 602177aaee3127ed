"""Which examples each optimizer step sees, and the batches that they are laid in.

A step sees `per_device_train_batch_size · gradient_accumulation_steps` examples for each worker. Padded, they
are batches of that size; packed, they are as few packs as hold them. Every worker makes the same plan and
takes its share of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lorafold.chat.tokenizer import Encoded
from lorafold.train.config import TrainConfig
from lorafold.train.tokens.collate import (
    IGNORED,
    Batch,
    make_batch,
    plain_batches,
    plan_epoch,
    trained_tokens,
)
from lorafold.train.tokens.packing import make_pack, pack_step
from lorafold.train.workers import Workers


@dataclass(frozen=True, slots=True)
class Step:
    """A worker's share of a step.

    Attributes:
        batches: to go through the model, as many on every worker.
        trained: trained tokens of the step on all workers together.
        tokens: the same of all tokens.
    """

    batches: Iterable[Batch]
    trained: int
    tokens: int


@dataclass(slots=True)
class StepPlan:
    """Which examples each step of a run sees.

    Attributes:
        config: resolved.
        sequences: to train on.
        evaluation: held out, may be empty.
        pad_id: id for padded positions; they are masked, so any will do.
        capacity: maximum tokens per pack; 0 if batches are padded.
        workers: the place of this worker.
    """

    config: TrainConfig
    sequences: Sequence[Encoded]
    evaluation: Sequence[Encoded]
    pad_id: int
    capacity: int = 0
    workers: Workers = field(default_factory=Workers)
    _epoch: int = field(default=-1, init=False)
    _batches: list[list[int]] = field(default_factory=list, init=False)
    # Counted once: data sets have hundreds of thousands of examples, and every step asks.
    _lengths: list[int] = field(init=False)
    _evaluation_lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._lengths = [len(sequence.ids) for sequence in self.sequences]
        self._evaluation_lengths = [len(sequence.ids) for sequence in self.evaluation]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a pass over the data; the last one of a pass may be smaller."""
        batches = math.ceil(len(self.sequences) / self.config.per_device_train_batch_size)
        return math.ceil(batches / (self.config.gradient_accumulation_steps * self.workers.count))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.max_steps or math.ceil(self.config.num_train_epochs * self.steps_per_epoch)

    def indices(self, step: int) -> list[list[int]]:
        """The examples of a step (from 0), in padded batches, for all workers."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches = plan_epoch(
                self._lengths,
                self.config.per_device_train_batch_size,
                seed=self.config.seed,
                epoch=epoch,
                group=self.config.group_by_length,
            )
            self._epoch = epoch
        count = self.config.gradient_accumulation_steps * self.workers.count
        return self._batches[index * count : (index + 1) * count]

    def step(self, number: int) -> Step:
        """This worker's share of a step, counted from 0."""
        return self._lay(self.sequences, self._lengths, self.indices(number))

    def evaluation_step(self) -> Step:
        """This worker's share of the evaluation set: longest first, no randomness."""
        lengths = self._evaluation_lengths
        groups = plain_batches(lengths, self.config.per_device_train_batch_size)
        return self._lay(self.evaluation, lengths, groups)

    def _lay(self, sequences: Sequence[Encoded], lengths: Sequence[int], groups: list[list[int]]) -> Step:
        workers = self.workers
        seen = [index for group in groups for index in group]
        if self.capacity:
            groups = pack_step(seen, lengths, self.capacity, workers.count)
        missing = -len(groups) % workers.count
        shortest = min(seen, key=lambda index: lengths[index])
        groups = [*groups, *([[]] * missing)][workers.rank :: workers.count]
        chosen = [sequences[index] for index in seen]
        return Step(
            batches=(self._batch([sequences[i] for i in group], sequences[shortest]) for group in groups),
            trained=trained_tokens(chosen),
            tokens=sum(lengths[index] for index in seen),
        )

    def _batch(self, sequences: Sequence[Encoded], idle: Encoded) -> Batch:
        """A batch; a worker without examples gets one that counts nothing, to stay in step."""
        chosen = sequences or [idle]
        batch = make_pack(chosen) if self.capacity else make_batch(chosen, self.pad_id)
        if not sequences:
            batch.targets.fill_(IGNORED)
        return batch
