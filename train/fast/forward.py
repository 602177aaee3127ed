"""The forward pass: the summed loss of a batch, in the way that the run has chosen."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorafold.train.fast.attention import packed_inputs
from lorafold.train.tokens.collate import IGNORED, Batch

if TYPE_CHECKING:
    import torch

    from lorafold.train.fast.graphs import DecoderGraphs


def causal_model(model: Any) -> Any:
    """transformers' causal language model inside peft's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def seed_pass(seed: int, step: int, number: int, worker: int) -> None:
    """Seed torch's generators for one forward pass, the only place that draws from them (dropout).

    So a run that goes on draws what it would have drawn, without any state to keep, and no two workers drop
    the same.

    Args:
        seed: of the run.
        step: of the optimizer, from 0.
        number: of the pass within the step, from 0.
        worker: its rank.
    """
    import torch

    place = f"{seed} {step} {number} {worker}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little") >> 1)


@dataclass(slots=True)
class Forward:
    """How a model is called.

    Attributes:
        model: with the adapter in place.
        device: where batches go.
        prompt: the method trains a prompt, so logits begin with columns of its own.
        autocast: type to compute in if the weights have another, or None.
        attention: name of the attention implementation, for packed batches.
        direct: go from the decoder's hidden states to the loss without logits in between.
        bounded: layers that keep a state are told of the bounds of a pack.
        graphs: of the decoder, for packs in training; None launches its kernels one by one.
    """

    model: Any
    device: torch.device
    prompt: bool = False
    autocast: torch.dtype | None = None
    attention: str = "sdpa"
    direct: bool = False
    bounded: bool = False
    graphs: DecoderGraphs | None = None
    positions: bool = field(init=False)

    def __post_init__(self) -> None:
        # Whether logits can be had at chosen positions only.
        names = inspect.signature(causal_model(self.model).forward).parameters
        self.positions = "logits_to_keep" in names and not self.prompt

    def loss(self, batch: Batch) -> torch.Tensor:
        """Sum of the cross entropy over a batch's targets, a float32 scalar."""
        with self._precision():
            return self._direct(batch) if self.direct else self._by_logits(batch)

    def _direct(self, batch: Batch) -> torch.Tensor:
        import torch

        from lorafold.train.fast.head_loss import head_loss

        causal = causal_model(self.model)
        hidden = None
        if self.graphs is not None and self.model.training and torch.is_grad_enabled():
            hidden = self.graphs.hidden(batch)
        if hidden is None:
            hidden = causal.base_model(**self._inputs(batch)).last_hidden_state
        return head_loss(hidden, causal.get_output_embeddings(), batch.targets)

    def _by_logits(self, batch: Batch) -> torch.Tensor:
        """By the model's own logits, if the model allows it only at positions that a row trains.

        With a large vocabulary logits are most of the memory.
        """
        import torch

        inputs, targets = self._inputs(batch), batch.targets
        if self.positions:
            kept = (targets != IGNORED).any(dim=0).nonzero().flatten()  # (kept,)
            targets = targets[:, kept]
            inputs["logits_to_keep"] = kept.to(self.device)
        output = self.model(**inputs)
        logits = output.logits[:, -targets.shape[1] :].float()  # (rows, cols, vocabulary)
        flat = targets.flatten().to(self.device)
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), flat, ignore_index=IGNORED, reduction="sum"
        )

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        ids = batch.input_ids.to(self.device)
        if batch.position_ids is None or batch.bounds is None:
            assert batch.attention_mask is not None, "a padded batch"
            return {"input_ids": ids, "attention_mask": batch.attention_mask.to(self.device)}
        positions, bounds = batch.position_ids.to(self.device), batch.bounds.to(self.device)
        return {"input_ids": ids} | packed_inputs(
            positions, bounds, batch.longest, self.attention, self.bounded
        )

    def _precision(self) -> Any:
        """16-bit arithmetic on float32 weights: full fine-tuning on a GPU."""
        import torch

        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)
