"""Builds what the loop works with: the base with its adapter, computed in the fastest way that is right."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.chat.tokenizer import Encoded
from lorafold.errors import UsageError
from lorafold.libraries.causal_lm import is_memory_fault, quiet_transformers
from lorafold.models import Base
from lorafold.train.config import TrainConfig
from lorafold.train.fast import memory
from lorafold.train.fast.allocator import free_bytes, growing_segments, spare_some
from lorafold.train.fast.check import difference, leaks, measure, sample
from lorafold.train.fast.forward import Forward, causal_model
from lorafold.train.fast.sharded import choose_sharing, shard
from lorafold.train.fast.speed import (
    Speed,
    apply,
    choose,
    graphs_possible,
    tell_of_bounds,
    unpacked,
)
from lorafold.train.loop import Trainer
from lorafold.train.methods import METHODS, PASSED_BY, Method, expert_names, linear_names
from lorafold.train.model.adapter import initial_adapter, keep_in_float32, trainable
from lorafold.train.model.base import load_model, pick_device, pick_dtype
from lorafold.train.model.new_tokens import make_room
from lorafold.train.model.room import least_memory
from lorafold.train.optimizers import build_optimizer, build_schedule, resolve_optimizer
from lorafold.train.tokens.batches import StepPlan
from lorafold.train.tokens.collate import Batch, make_batch
from lorafold.train.tokens.packing import make_pack
from lorafold.train.workers import Workers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Built:
    """A run that is ready for its first step.

    Attributes:
        trainer: for the loop.
        initial: the adapter before the first step, for methods that start from a part of the base.
        speed: what the run computes with.
        notes: what the user should know.
    """

    trainer: Trainer
    initial: dict[str, Any]
    speed: Speed
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Lessons:
    """The tokens of a run.

    Attributes:
        sequences: to train on.
        held_out: to evaluate on, may be empty.
        pad_id: id for padded positions; they are masked, so any will do.
        vocabulary: size of the extended vocabulary; 0 if no tokens were added.
    """

    sequences: Sequence[Encoded]
    held_out: Sequence[Encoded] = ()
    pad_id: int = 0
    vocabulary: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest example to train on."""
        return max(len(sequence.ids) for sequence in self.sequences)


def build(config: TrainConfig, base: Base, lessons: Lessons, metrics: Path, workers: Workers) -> Built:
    """Load the base, put the adapter on it, choose how to compute, and set up the optimizer.

    Args:
        config: of the run.
        base: the model to train.
        lessons: what it is trained on.
        metrics: file that gets a line of JSON per logged step.
        workers: the place of this one.

    Raises:
        UsageError: this base or machine does not allow the method.
    """
    import torch

    method, device = METHODS[config.method], pick_device()
    if config.method == "dora" and config.load_in_8bit and device.type != "cuda":
        problem = "DoRA on an 8-bit base needs a CUDA GPU"
        raise UsageError(problem, at="--load-in-8bit", fix="choose --load-in-4bit")
    notes: list[str] = []
    if workers.count > 1 and device.type == "cuda":
        needed, room, _ = least_memory(config, base)
        shared, why = choose_sharing(config, needed, workers.least(room), workers.count)
        config = dataclasses.replace(config, fsdp=shared)
        notes.append(why)
    initial: dict[str, Any] = {}

    def load() -> Any:
        torch.manual_seed(config.seed)
        with growing_segments(rounded=False):  # weights are for once, and take what they need
            model = load_model(base, config, method, device)
        adapted = make_room(model, lessons.vocabulary, config) if lessons.vocabulary else config
        if method.peft is not None:
            model = _add_adapter(model, adapted, method)
            if method.mutates_base:
                initial.update(initial_adapter(model))
        if config.fsdp:
            shard(model, workers, device)
        return model

    model = load()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.current_blas_handle()  # its memory is not torch's: now there is some
        spare_some(device)
    if config.device_map:
        device = next(model.parameters()).device
    notes += _left_out(config, model)
    forward, speed, why = _forward(config, model, device, lessons, load, workers)
    notes += [why] if why else []
    dtype = pick_dtype(config.dtype, device)
    speed = dataclasses.replace(speed, graphs=graphs_possible(config, speed, forward.model, dtype))
    speed = _fit(config, speed, forward, lessons, workers)
    if speed.graphs:
        forward.graphs = _graphs(config, speed, forward, lessons, workers)
    if config.torch_compile:
        for layer in causal_model(forward.model).base_model.layers:
            layer.compile(dynamic=True)
    optimizer_name, note = resolve_optimizer(config.optim, device)
    notes += [note] if note else []
    speed = dataclasses.replace(speed, dtype=str(dtype).removeprefix("torch."), optimizer=optimizer_name)
    optimizer = build_optimizer(forward.model, config, device)
    capacity = speed.capacity if speed.packing else 0
    plan = StepPlan(config, lessons.sequences, lessons.held_out, lessons.pad_id, capacity, workers)
    schedule = build_schedule(optimizer, config, plan.total_steps)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return Built(Trainer(forward, plan, optimizer, schedule, scaler, metrics), initial, speed, notes)


def _add_adapter(model: Any, config: TrainConfig, method: Method) -> Any:
    from peft import get_peft_model

    assert method.peft is not None
    named = config.layers_to_transform or model.config.model_type in PASSED_BY
    if named and config.target_modules == ("all-linear",):
        config = dataclasses.replace(config, target_modules=linear_names(model))
    if config.target_parameters == ("experts",):
        config = dataclasses.replace(config, target_parameters=expert_names(model))
        if not config.target_parameters:
            raise UsageError(
                f"{type(model).__name__} has no stacked weights of experts",
                at="--target-parameters",
                fix="leave it out; --target-modules all-linear takes experts that are linear layers",
            )
    try:
        with quiet_transformers():
            adapted = get_peft_model(model, method.peft(config))
    except ValueError as error:
        reason = str(error).strip().splitlines()[0][:300]
        problem = f"peft refuses this adapter ({reason})"
        raise UsageError(problem, at="--target-modules", fix="choose modules that the base has") from error
    keep_in_float32(adapted)
    return adapted


def _left_out(config: TrainConfig, model: Any) -> list[str]:
    """What of the targets gets no adapter, in words: layers that peft refuses, names that no layer has."""
    passed = PASSED_BY.get(causal_model(model).config.model_type)
    if passed and config.target_modules == ("all-linear",):
        return [
            f"all-linear without {passed}: the kernels of this model's layers would ignore an adapter there"
        ]
    found: list[str] = getattr(getattr(model, "base_model", None), "targeted_module_names", [])
    # peft has turned names of experts that transformers stacks into names of parameters.
    wanted = model.peft_config["default"].target_modules if found else ()
    if isinstance(wanted, str):
        return []
    nowhere = [name for name in wanted if not any(f".{one}".endswith(f".{name}") for one in found)]
    return [f"no layer is called {', '.join(sorted(nowhere))}: they get no adapter"] if nowhere else []


def _forward(
    config: TrainConfig,
    model: Any,
    device: torch.device,
    lessons: Lessons,
    load: Callable[[], Any],
    workers: Workers,
) -> tuple[Forward, Speed, str]:
    """The fastest forward pass that gives what the plain one gives, and why it is the plain one, if it is.

    Args:
        config: of the run.
        model: with the adapter in place.
        device: of the model.
        lessons: a few of them are computed both ways.
        load: makes the model once more, if the fast way has changed it and is wrong.
        workers: all of them take the same way.
    """
    import torch

    method = METHODS[config.method]
    dtype = pick_dtype(config.dtype, device)
    wide = method.peft is None and device.type == "cuda" and dtype != torch.float32
    slow = Forward(model, device, method.prompt, dtype if wide else None)
    speed = _checkpointed(config, choose(config, method, model, device), model)
    if not speed.fast:
        return slow, speed, ""
    if speed.bounded:
        tell_of_bounds(model)
    examples = sample(lessons.sequences)
    expected = None
    # Without an adapter all weights are trained: there is no room for a second gradient of them.
    if method.peft is not None:
        padded = make_batch(examples, lessons.pad_id)
        try:
            expected = measure(slow, padded)
        except RuntimeError as error:
            if not is_memory_fault(error):
                raise
            # The plain way takes the most memory. What needs checkpointing here needs it in the run, too.
            if config.gradient_checkpointing is not None or config.fsdp:
                raise
            model.zero_grad(set_to_none=True)
            config = dataclasses.replace(config, gradient_checkpointing=True)
            speed = _checkpointed(config, speed, model)
            expected = measure(slow, padded)
    own = causal_model(model).config._attn_implementation
    speed = apply(speed, model, device)
    fast = dataclasses.replace(slow, attention=speed.attention, direct=speed.direct, bounded=speed.bounded)
    if speed.packing and not workers.least(0 if leaks(fast, examples) else 1):
        speed = unpacked(speed, model, own)
        fast.attention, fast.bounded = own, False
    if expected is None:
        return fast, speed, ""
    batch = make_pack(examples) if speed.packing else make_batch(examples, lessons.pad_id)
    found = measure(fast, batch)
    off = difference(expected, found)
    # All go the same way: with `--fsdp` they compute each layer together.
    if workers.least(0 if off else 1):
        return fast, speed, _slowed(fast, batch) if speed.slowed and device.type == "cuda" else ""
    off = off or "as another worker found"
    plain = Speed(attention=config.attn_implementation or "sdpa")
    slow = dataclasses.replace(slow, model=load())
    why = f"padded and unfused: the fast way is wrong for this model, {off}"
    return slow, _checkpointed(config, plain, slow.model), why


def _slowed(forward: Forward, batch: Batch) -> str:
    """What it costs that a model's layers keep it from being packed, by a pass that was computed before."""
    began = time.perf_counter()
    measure(forward, batch)
    seconds = time.perf_counter() - began
    rows, tokens = batch.input_ids.shape[0], int(batch.tokens)
    return (
        f"one example a row, which is slow: a pass of {rows} examples, {tokens} tokens, takes {seconds:.2f} s"
    )


def _graphs(config: TrainConfig, speed: Speed, forward: Forward, lessons: Lessons, workers: Workers) -> Any:
    import torch

    from lorafold.train.fast import graphs

    shortest = sorted(len(sequence.ids) for sequence in lessons.sequences)
    sums = list(itertools.accumulate(shortest[: _examples(config) * workers.count]))
    decoder = causal_model(forward.model).base_model
    # A graph's gradients lie in memory of its own, which only adding to what is there copies.
    for parameter in trainable(forward.model).values():
        parameter.grad = torch.zeros_like(parameter)
    budget = int(graphs.share(speed.capacity) * free_bytes(forward.device))
    return graphs.DecoderGraphs(
        decoder,
        forward.device,
        forward.attention,
        sums,
        lessons.longest,
        budget,
        graphs.launched_slower(decoder),
    )


def _examples(config: TrainConfig) -> int:
    """Examples of a step for each worker."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps


def _checkpointed(config: TrainConfig, speed: Speed, model: Any) -> Speed:
    """Switch gradient checkpointing on if the user asks for it, and what else saves memory on a GPU."""
    if not config.gradient_checkpointing:
        return speed
    causal = causal_model(model)
    causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    moved_out = False
    if speed.direct and next(model.parameters()).is_cuda and not (config.fsdp or config.device_map):
        from lorafold.train.fast.embedding_kernels import move_out

        moved_out = move_out(causal)
    return dataclasses.replace(speed, checkpointing=True, moved_out=moved_out)


def _fit(config: TrainConfig, speed: Speed, forward: Forward, lessons: Lessons, workers: Workers) -> Speed:
    """Choose the length of packs, and gradient checkpointing if memory is short."""
    from lorafold.train.fast import graphs

    longest = lessons.longest
    if not speed.packing:
        return speed
    if config.packing_length or forward.device.type != "cuda":
        capacity = max(config.packing_length or memory.ON_CPU, longest)
        replayed = _replayed(config, speed, forward, lessons, capacity)
        return dataclasses.replace(speed, capacity=capacity, graphs=replayed)
    fits = memory.tokens_that_fit(forward, lessons.sequences, workers)
    asked = config.gradient_checkpointing is not None or speed.checkpointing
    if fits < max(longest, memory.LEAST) and not asked:
        short = dataclasses.replace(config, gradient_checkpointing=True)
        speed = _checkpointed(short, speed, forward.model)
        fits = memory.tokens_that_fit(forward, lessons.sequences, workers)
    speed = dataclasses.replace(speed, graphs=_replayed(config, speed, forward, lessons, fits))
    if speed.graphs:
        few = min(int(fits * graphs.share(graphs.FEW)), graphs.FEW)
        fits = max(int(fits * graphs.share(fits)), few)
    return dataclasses.replace(speed, capacity=max(min(fits, memory.MOST_PACKED), longest))


def _replayed(config: TrainConfig, speed: Speed, forward: Forward, lessons: Lessons, capacity: int) -> bool:
    """Whether packs are captured: they can be, and the user says so or launching them would be waited for."""
    from lorafold.train.fast import graphs

    if not speed.graphs or config.cuda_graphs is not None:
        return speed.graphs and bool(config.cuda_graphs)
    mean = sum(len(sequence.ids) for sequence in lessons.sequences) / len(lessons.sequences)
    pack = min(mean * _examples(config), capacity, memory.MOST_PACKED)
    return pack <= graphs.launched_slower(causal_model(forward.model).base_model)
