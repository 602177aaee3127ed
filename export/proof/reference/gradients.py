"""How much the answers depend on each weight: one pass back through the model that is read layer by layer.

A layer keeps nothing on the way forward but what enters it; on the way back it is computed once more, so that
memory is taken for one layer. Whoever watches is shown what enters and what comes back at each product, and
makes of it what it needs of the gradient x ⊗ g of its weights.

The function that is differentiated is log p(y) of tokens y that are drawn from the model's own probabilities
at each place. The mean square of its change is the Fisher information, and half of that is KL to second
order (Kullback, Information Theory and Statistics, 2.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorafold.export.proof.reference.layers import LayeredModel, product
from lorafold.export.proof.sample import AskedChat
from lorafold.libraries.causal_lm import quiet_transformers
from lorafold.machine import return_free_memory
from lorafold.weights import TensorInfo, TensorSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Product:
    """What went through a matrix at some tokens, so that its gradient is `back`ᵀ · `entering`.

    Attributes:
        tensor: the matrix's name in the checkpoint.
        rows: the numbers of its rows that stand in `back`, rising.
        entering: (tokens, cols).
        back: (tokens, len(rows)).
        owners: the conversation of each token.
    """

    tensor: str
    rows: NDArray[np.int64]
    entering: NDArray[np.float32]
    back: NDArray[np.float32]
    owners: NDArray[np.int64]


Watch = Callable[[Product], None]
_TOKENS_AT_ONCE = 64  # whose probabilities are made at once


class GradientModel(LayeredModel):
    """A `LayeredModel` that can be gone through backwards.

    Args:
        config: its config.json.
        tensors: what the checkpoint holds.
        device: where it is computed.
    """

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], device: str = "cpu"
    ) -> None:
        import torch

        super().__init__(config, tensors, device)
        self._watch: Watch | None = None
        self._owners: torch.Tensor | None = None  # the conversation of each token, -1 where it was filled up
        self._entered: tuple[torch.Tensor, torch.Tensor] | None = None  # what enters the head, and its logits
        for path, module in self._model.named_modules():
            if type(module) is torch.nn.Linear and module is not self._head:
                module.forward = partial(self._linear, path, module, module.forward)
        for layer in _layers(self._model):
            layer.forward = partial(self._layer, layer, layer.forward)

    @property
    def largest_layer(self) -> int:
        """Bytes of the largest layer's weights, which are in place together on the way back."""
        layers = [[each.numel() for each in layer.parameters()] for layer in _layers(self._model)]
        return 4 * max(map(sum, layers), default=0)

    def gradients(
        self, source: TensorSource, conversations: Sequence[AskedChat], watch: Watch, seed: int = 0
    ) -> int:
        """Go forward and back.

        Args:
            source: the weights.
            conversations: what is read; only the tokens of the answers count.
            watch: shown each product, from the last to the first.
            seed: of the tokens that are drawn.

        Returns:
            How many tokens were drawn.

        Raises:
            RuntimeError, ValueError, …: the model cannot be computed in this way (`causal_lm.REFUSALS`).
        """
        import torch
        from torch.utils.checkpoint import set_checkpoint_early_stop

        ids, places = self.batch(conversations)
        owners = torch.full(ids.shape, -1)
        for row, each in enumerate(conversations):
            owners[row, : len(each.ids)] = row
        self._watch, self._owners = watch, owners.flatten()
        dice = torch.Generator().manual_seed(seed)
        looked = [module.register_forward_hook(self._looked_up) for module in self._embeddings()]
        with torch.enable_grad(), quiet_transformers(), set_checkpoint_early_stop(False):
            try:
                with self.reading(source, places):
                    logits = self._model(input_ids=ids.to(self.blank.device), use_cache=False).logits
                    if self._head is None:
                        logits = logits.flatten(0, 1)[self._asked]
                    self._go_back(logits.reshape(len(places), -1), dice)
            finally:
                self._watch = self._owners = self._entered = None
                for hook in looked:
                    hook.remove()
        return len(places)

    def _go_back(self, logits: torch.Tensor, dice: torch.Generator) -> None:
        """From the logits (tokens, vocabulary) to where the tokens come in."""
        import torch

        entered = self._entered
        if entered is None:
            logits.backward(_drawn(logits.detach().float().clone(), dice).to(logits.dtype))
            return
        hidden, own = entered
        # What a model does to its head's product (Gemma's bound, Granite's scale) is autograd's business.
        with torch.no_grad():
            untouched = logits.data_ptr() == own.data_ptr() and logits.numel() == own.numel()
            back = _drawn(logits.detach() if untouched else logits.detach().float().clone(), dice)
        if not untouched:
            logits.backward(back.to(logits.dtype))
            assert own.grad is not None
            back = own.grad.reshape(back.shape[0], -1)
        coming = self._back_through_head(hidden.detach(), back)
        self._entered = None
        del logits, own, back, entered
        hidden.backward(coming)

    def _back_through_head(self, hidden: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """The gradient at what enters the head, block by block of its rows; the product is shown."""
        import torch

        assert self._head is not None
        self._seen(self._tensor_of(self._head), hidden, back)
        coming = torch.zeros_like(hidden)
        for (start, stop), weights in self.head_blocks():
            coming += product(back[:, start:stop], weights.t())
        return coming

    def _layer(self, layer: torch.nn.Module, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """A layer's `forward`: nothing is kept of it, and its weights come once more on the way back."""
        from torch.utils.checkpoint import checkpoint

        if self._watch is None:
            return forward(*args, **named)
        own = next((gate for gate in self.gates if gate.module is layer), None)

        def computed(*args: Any, **named: Any) -> Any:
            assert self._source is not None
            if own is None:  # its parts are gates
                return forward(*args, **named)
            if self.blank.lacks(own.names):  # it is the way back, where nobody calls the layer itself
                self.blank.fill(own.names, self._source)
            try:
                return forward(*args, **named)
            finally:
                self.blank.empty(own.names)
                return_free_memory()

        return checkpoint(computed, *args, use_reentrant=False, preserve_rng_state=False, **named)

    def _linear(
        self, path: str, module: torch.nn.Linear, forward: Callable[..., Any], entering: torch.Tensor
    ) -> torch.Tensor:
        """A linear layer's `forward`."""
        import torch

        name = self.blank.tensor_of(f"{path}.weight")
        if self._watch is None or name is None or not torch.is_grad_enabled():
            found: torch.Tensor = forward(entering)
            return found
        result: torch.Tensor = _watched().apply(entering, module.weight, partial(self._seen, name))
        return result if module.bias is None else result + module.bias

    def _multiply_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head's `forward`: autograd sees its result as something new, since nothing of the size of the
        vocabulary is to be kept twice.
        """
        import torch

        if self._watch is None:
            return super()._multiply_head(hidden)
        with torch.no_grad():
            logits = super()._multiply_head(hidden)
        logits.requires_grad_()
        self._entered = hidden.reshape(-1, hidden.shape[-1])[self._asked], logits
        return logits

    def _seen(self, name: str, entering: torch.Tensor, back: torch.Tensor) -> None:
        """Show a product, without the tokens that only fill up."""
        assert self._watch is not None and self._owners is not None
        entering, back = entering.flatten(0, -2), back.flatten(0, -2)
        owners = self._owners
        if len(entering) != len(owners):
            if self._asked is None or len(entering) != len(self._asked):
                return  # an expert, which sees some of the tokens
            owners = owners[self._asked.cpu()]
        real = owners >= 0
        if not bool(real.all()):
            entering, back, owners = entering[real], back[real], owners[real]
        self._watch(
            Product(
                name,
                np.arange(back.shape[-1]),
                entering.float().cpu().numpy(),
                back.float().cpu().numpy(),
                owners.numpy(),
            )
        )

    def _looked_up(
        self, module: torch.nn.Module, arguments: tuple[Any, ...], result: torch.Tensor
    ) -> torch.Tensor:
        """Let the way back reach the embedding's output, and show what comes there."""
        found = result.detach().requires_grad_()
        scale = float(getattr(module, "scalar_embed_scale", 1.0))  # Gemma's embeddings multiply
        found.register_hook(partial(self._seen_rows, module, arguments[0] if arguments else None, scale))
        return found

    def _seen_rows(
        self, module: torch.nn.Module, ids: torch.Tensor | None, scale: float, back: torch.Tensor
    ) -> None:
        """Show an embedding: its rows were multiplied with one or nothing."""
        assert self._watch is not None and self._owners is not None
        if ids is None or ids.numel() != len(self._owners):
            return
        real = self._owners >= 0
        rows, places = np.unique(ids.flatten().cpu()[real].numpy(), return_inverse=True)
        chosen = np.zeros((len(places), len(rows)), np.float32)
        chosen[np.arange(len(places)), places] = scale
        coming = back.flatten(0, -2).cpu()[real].float().numpy()
        self._watch(Product(self._tensor_of(module), rows, coming, chosen, self._owners[real].numpy()))


def _drawn(logits: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """The gradient of Σ log p(y) of drawn tokens y at the logits, in their place: 1 at y, less p everywhere.

    Args:
        logits: float32 (tokens, vocabulary).
        dice: draws the tokens, on the CPU.
    """
    import torch

    for part in logits.split(_TOKENS_AT_ONCE):
        part.sub_(part.amax(-1, keepdim=True)).exp_()
        part.div_(part.sum(-1, keepdim=True))
        drawn = torch.multinomial(part.cpu(), 1, generator=dice).to(part.device)
        part.neg_().scatter_add_(1, drawn, torch.ones_like(drawn, dtype=part.dtype))
    return logits


def _layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules of outermost lists."""
    import torch

    for module in model.children():
        if isinstance(module, torch.nn.ModuleList):
            yield from module
        else:
            yield from _layers(module)


@cache
def _watched() -> Any:
    """The product of a linear layer as a function of autograd that shows what it is given."""
    import torch

    class Watched(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, entering: Any, weight: Any, seen: Any) -> Any:
            ctx.save_for_backward(entering, weight)
            ctx.seen = seen
            return product(entering, weight)

        @staticmethod
        def backward(ctx: Any, back: Any) -> Any:
            entering, weight = ctx.saved_tensors
            ctx.seen(entering, back)
            return product(back, weight.t()), None, None

    return Watched
