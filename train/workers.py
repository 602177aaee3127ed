"""Several processes that train one adapter, one per GPU, started by `torchrun` or `accelerate launch`.

Both tell each process its place in the same environment variables. Every worker reads the same data and plans
the same steps, so what is exchanged is little: the gradients of the adapter, summed, and a few figures. Only
the first worker shows progress, writes files, and answers for the run.

The base's weights are copied to every GPU, or with `--fsdp` sharded: a layer's weights are collected when
they are needed (`fast/sharded.py`). The adapter is small and stays whole on every worker, so checkpoints and
resuming are the same in all cases.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lorafold.errors import BusyError, InputError, NumericError, SystemFault, UnsafeInputError, UsageError

if TYPE_CHECKING:
    import torch

# The first worker may read and tokenize for long before the others hear of it.
_PATIENCE = timedelta(hours=2)
_HEAD_START = 20.0  # seconds that the first has to say an error that all have met
# Errors that every worker meets in the same way; the first one says them.
_SHARED = (UsageError, InputError, UnsafeInputError, NumericError, BusyError, SystemFault)


@dataclass(frozen=True, slots=True)
class Workers:
    """This process's place among those that train together.

    Attributes:
        rank: number of this worker, from 0.
        count: number of workers; 1 if training is not distributed.
        local_rank: number of this worker on its machine: its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this worker shows progress and writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all workers are here; leave quietly if the first has given up, since it says why."""
        if self.count > 1:
            import torch

            try:
                torch.distributed.barrier()
            except RuntimeError as error:
                if self.first:
                    raise
                raise SystemExit(1) from error

    def total(self, figures: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all workers."""
        if self.count > 1:
            import torch

            torch.distributed.all_reduce(figures)
        return figures

    def least(self, number: int) -> int:
        """The smallest of the workers' numbers."""
        if self.count == 1:
            return number
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        figure = torch.tensor(number, device=device)
        torch.distributed.all_reduce(figure, op=torch.distributed.ReduceOp.MIN)
        return int(figure)

    def sum_gradients(self, parameters: list[Any]) -> None:
        """Add up the gradients of all workers, in one message.

        Args:
            parameters: those that are trained, in the same order everywhere; one without a gradient counts
                as zero.
        """
        if self.count == 1:
            return
        import torch

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        flat = torch.cat([gradient.flatten().float() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        sums = [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, sums)  # in their places, which CUDA graphs add to


def place() -> Workers:
    """This process's place, as torchrun and accelerate tell it."""
    rank, count, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    return Workers(rank, count, local)


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextlib.contextmanager
def join() -> Iterator[Workers]:
    """Meet the other workers for the length of the block.

    They stay together until the process ends, since torch cannot bring them together twice; an error parts
    them, which tells the others. What all meet alike is said once, by the first, whose end is the launcher's
    sign to end the others. It has a head start: what only another worker has met is said by that one.
    """
    workers = place()
    if workers.count == 1:
        yield workers
        return
    import torch

    if torch.cuda.is_available():
        _take_gpu(workers)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own = not torch.distributed.is_initialized()
    if own:
        torch.distributed.init_process_group(backend, timeout=_PATIENCE)
        atexit.register(_part)
    try:
        yield workers
    except BaseException as error:
        if isinstance(error, _SHARED) and not workers.first and not _own_memory(error):
            time.sleep(_HEAD_START)
        if own:
            _part(at_once=True)
        raise


def _take_gpu(workers: Workers) -> None:
    """Make the GPU of this worker's number the current one.

    Raises:
        UsageError: there is none; the first worker without one says so.
    """
    import torch

    count = torch.cuda.device_count()
    if workers.local_rank >= count:
        if workers.local_rank > count:
            time.sleep(_HEAD_START)
        problem = f"worker {workers.local_rank} has no GPU, this machine has {count}"
        raise UsageError(problem, at="--nproc-per-node", fix=f"pass {count}, one worker for each GPU")
    torch.cuda.set_device(workers.local_rank)
    # NCCL would register the buffers of a captured collective, for which all workers meet. They do not: each
    # captures a size when it comes to one.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")


def _own_memory(error: BaseException) -> bool:
    """Whether this worker's own GPU is full; the others may not know of it."""
    import torch

    return isinstance(error.__cause__, MemoryError | torch.OutOfMemoryError)


def _part(at_once: bool = False) -> None:
    """Leave the others; at once, since NCCL would wait for those who wait until an error has been said."""
    import torch

    if torch.distributed.is_initialized():
        if at_once and torch.cuda.is_available():
            torch.distributed.group.WORLD._get_backend(torch.device("cuda")).abort()
        torch.distributed.destroy_process_group()
