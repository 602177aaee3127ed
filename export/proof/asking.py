"""A round of conversations through the written files in llama.cpp and the reference in transformers.

Each model is read once in a round, by all conversations. llama.cpp comes first, so that its model is given
back before torch takes memory. Of the log-probabilities, 600 kB a token with a vocabulary of 150,000, nothing
stays but the figures at each token.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lorafold.errors import InputError
from lorafold.export.gguf.header import TypedTensor
from lorafold.export.inputs import Inputs
from lorafold.export.proof.kept import KeptAnswers, KeptReference
from lorafold.export.proof.llama import Runner, runner
from lorafold.export.proof.measured import Answers, Parting, PerToken, agreement, kl, parting, surprise
from lorafold.export.proof.reference.answers import OpensReference, ProofReference
from lorafold.export.proof.sample import ANSWER_TOKENS, AskedChat, ChatTokens
from lorafold.export.quant.mixture import Importance
from lorafold.machine import idle_cores, return_free_memory
from lorafold.probabilities import log_softmax

_BESIDE = 500_000_000  # bytes of a file beside which torch and transformers may be in memory, about 300 MB
_SWITCH = 0.0005  # seconds after which a thread that computes in Python lets another one go on


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


@dataclass(slots=True)
class FileFigures:
    """What was measured on one file, at each token of the answers.

    Attributes:
        kl: KL(reference || file).
        cost: KL(reference || rounded reference), what the type itself costs.
        away: KL(rounded reference || file).
        noise: KL(only the weights rounded || also the activations rounded).
        same: 1 where file and reference choose the same token.
        surprise: -log p of the answer's token in the file.
        partings: for each answer where file and reference part if both are greedy.
        missing: the share of the file's weights that have no place in transformers' model.
    """

    kl: PerToken
    cost: PerToken
    away: PerToken
    noise: PerToken
    same: PerToken
    surprise: PerToken
    partings: list[Parting]
    missing: float

    def joined(self, other: FileFigures) -> FileFigures:
        """With those of further conversations."""
        names = [each.name for each in fields(self) if each.name not in ("missing", "partings")]
        values = {name: getattr(self, name).joined(getattr(other, name)) for name in names}
        return FileFigures(**values, partings=[*self.partings, *other.partings], missing=self.missing)


@dataclass(slots=True)
class Figures:
    """What was measured on all files.

    Attributes:
        files: by file, in their order.
        effect: KL(base + adapter || base); without values if there is no adapter.
        surprise: -log p of the answer's token in the reference.
        answers: the tokens of the answers that were read.
    """

    files: list[FileFigures]
    effect: PerToken
    surprise: PerToken
    answers: list[NDArray[np.int64]]

    def joined(self, other: Figures) -> Figures:
        """With those of further conversations."""
        files = [mine.joined(its) for mine, its in zip(self.files, other.files, strict=True)]
        return Figures(
            files,
            self.effect.joined(other.effect),
            self.surprise.joined(other.surprise),
            [*self.answers, *other.answers],
        )


class Asking:
    """Asks files and reference.

    Args:
        models: what was written.
        inputs: base and adapters.
        imatrix: the importance weights of the export.
        stops: tokens that end an answer.
        ways: how the reference may be computed, the best one first.
        kept: what the first of these ways gave in earlier proofs; None to compute it anyway.

    Attributes:
        reasons: why ways were given up.
        reused: whether answers of an earlier proof were taken.
    """

    def __init__(
        self,
        models: Sequence[WrittenModel],
        inputs: Inputs,
        imatrix: Importance | None,
        stops: frozenset[int],
        ways: Sequence[OpensReference],
        kept: KeptReference | None = None,
    ) -> None:
        self.reasons: list[str] = []
        self.reused = False
        self._models = models
        self._inputs = inputs
        self._imatrix = imatrix
        self._stops = stops
        self._ways = list(ways)
        self._kept = kept
        self._reference: ProofReference | None = None
        self._width = 0

    @property
    def words(self) -> str:
        """What computed the reference."""
        return self._reference.words if self._reference else "nothing"

    def round(self, prompts: Sequence[ChatTokens], progress: Callable[[float], None]) -> Figures | None:
        """Ask some prompts.

        Args:
            prompts: what is asked.
            progress: told the share that is done.

        Returns:
            The figures; None if no way to compute the reference is left.

        Raises:
            InputError, SystemFault: llama.cpp cannot load or run a file.
        """
        steps, done = 2 * len(self._models) + 1, 0
        progress(0.0)

        def step() -> None:
            nonlocal done
            done += 1
            progress(min(done / steps, 1.0))

        return_free_memory()  # of the tokenizers that were compared before
        kept = self._kept.find(prompts) if self._kept else None
        with self._importing() as threads:
            conversations, ours = self._files(prompts if kept is None else kept.asked, threads, step)
        if kept is not None and kept.tuned[0].shape[1] != self._width:
            kept = None
        self.reused |= kept is not None
        return_free_memory()
        while self._ways:
            try:
                if self._reference is None:
                    self._reference = self._ways[0](self._inputs, self._width, self._imatrix)
                if kept is None:
                    kept = KeptAnswers(conversations, *self._reference.answers(conversations))
                    if self._kept is not None:
                        self._kept.keep(prompts, kept)
                step()
                return self._figures(self._reference, kept, ours, step)
            except InputError as error:
                self.reasons.append(error.problem)
                self._ways.pop(0)
                self._reference, self._kept, kept = None, None, None
        return None

    @contextmanager
    def _importing(self) -> Iterator[Callable[[], int]]:
        """Meanwhile import what computes the reference: seconds of one core, while llama.cpp has the others.

        Not beside a large file, so that memory is not taken by both.

        Yields:
            How many threads that leaves free.
        """
        idle = idle_cores()
        largest = max(sum(tensor.nbytes for tensor in model.tensors) for model in self._models)
        if self._reference is not None or not self._ways or largest > _BESIDE:
            yield lambda: idle
            return
        thread = threading.Thread(target=self._prepare)
        interval = sys.getswitchinterval()
        # An import holds the interpreter; the few lines between two tokens should not wait 5 ms for each.
        sys.setswitchinterval(_SWITCH)
        thread.start()
        try:
            yield lambda: max(1, idle - thread.is_alive())
        finally:
            thread.join()
            sys.setswitchinterval(interval)

    def _prepare(self) -> None:
        """Import ahead of time. What fails fails again where the reference is needed, and is told there."""
        with suppress(Exception):
            self._ways[0].prepare(self._inputs)

    def _files(
        self, prompts: Sequence[ChatTokens], threads: Callable[[], int], step: Callable[[], None]
    ) -> tuple[list[AskedChat], list[Answers]]:
        """The conversations with their answers, and what each file says to them.

        Args:
            prompts: what is asked.
            threads: says how many threads are free.
            step: called after each file.
        """
        context = max(prompt.tokens for prompt in prompts)
        first, *others = self._models
        with runner(first.path, context, threads()) as judge:
            self._width = judge.width
            conversations, said = self._answered(prompts, judge, threads)
        step()
        ours = [said]
        for model in others:
            answers = []
            with runner(model.path, context, threads()) as judge:
                for each in conversations:
                    judge.use(threads())
                    logits = judge.logits(each.ids[:-1], each.start - 1)
                    answers.append(log_softmax(logits[:, : self._width]))
            ours.append(answers)
            step()
        return conversations, ours

    def _answered(
        self, prompts: Sequence[ChatTokens], judge: Runner, threads: Callable[[], int]
    ) -> tuple[list[AskedChat], Answers]:
        """Answer what has no answer yet; what the file says to all of it."""
        conversations, said = [], []
        for prompt in prompts:
            judge.use(threads())
            answer = prompt.answer
            if answer:
                logits = judge.logits([*prompt.ids, *answer[:-1]], len(prompt.ids) - 1)
            else:
                answer, logits = judge.answer(prompt.ids, ANSWER_TOKENS, self._stops)
            conversations.append(AskedChat([*prompt.ids, *answer], len(prompt.ids)))
            said.append(log_softmax(logits))
        return conversations, said

    def _figures(
        self,
        reference: ProofReference,
        answers: KeptAnswers,
        ours: Sequence[Answers],
        step: Callable[[], None],
    ) -> Figures:
        """Compare what the files say with the reference."""
        conversations, tuned = answers.chats, answers.tuned
        ids = [np.array(each.ids[each.start :]) for each in conversations]
        effect = PerToken([] if answers.base is None else kl(tuned, answers.base))
        answers.base = None  # so that its memory is free
        files = []
        for model, file in zip(self._models, ours, strict=True):
            rounded = reference.rounded(model.tensors, conversations, tuned)
            noise = rounded.weights_only
            files.append(
                FileFigures(
                    kl=PerToken(kl(tuned, file)),
                    cost=PerToken(kl(tuned, rounded.both)),
                    away=PerToken(kl(rounded.both, file)),
                    noise=PerToken(kl(rounded.both if noise is None else noise, rounded.both)),
                    same=PerToken(agreement(tuned, file)),
                    surprise=PerToken(surprise(file, ids)),
                    partings=[parting(*each) for each in zip(tuned, file, ids, strict=True)],
                    missing=rounded.missing,
                )
            )
            step()
        return Figures(files, effect, PerToken(surprise(tuned, ids)), ids)
