"""Hugging Face folders answered by transformers: a model, a model with PEFT adapters, and in 4 bit.

A base (folder, hub id, `demo`) with adapter folders, or an adapter folder that names its base. Every PEFT
method loads, also those that cannot be folded into weights: the learned part of prompt tuning becomes the
beginning of the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorafold.adapters.peft_reading import why_misread
from lorafold.chat.dialogue import tools_of
from lorafold.chat.sources import find_template
from lorafold.chat.tokenizer import ChatTokenizer, Message
from lorafold.errors import InputError
from lorafold.files.home import expanded
from lorafold.files.jsonfile import read_object
from lorafold.models import require, resolve_base
from lorafold.probabilities import log_softmax
from lorafold.progress import Progress
from lorafold.serve.config import ChatConfig, CompareConfig, Sampling
from lorafold.serve.engines.digests import weights_sha256
from lorafold.serve.engines.fit import PromptFitter
from lorafold.serve.engines.local_answer import Decoder, Reader, score_answer, stream_answer
from lorafold.serve.engines.sampling import draw
from lorafold.serve.engines.threads import ModelThread
from lorafold.serve.engines.torch_model import LoadedModel, TorchCache, load
from lorafold.serve.protocol import About, Cancel, Event, context_of
from lorafold.sources.adapter_base import base_of, check_base
from lorafold.tokenizer.folder import JSON, with_tokenizer_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def open_transformers(
    model: str, pieces: Sequence[str], config: ChatConfig | CompareConfig, progress: Progress
) -> TransformersEngine:
    """Open a base with adapters.

    Args:
        model: as the user spelled it.
        pieces: the base and its adapter folders; an adapter folder alone brings its base.
        config: context, threads, 4 bit, template.
        progress: told about downloads.

    Raises:
        InputError: a folder is missing or not what it should be.
        UnsafeInputError: the model brings code, and that was not allowed.
        SystemFault: transformers, peft or memory is missing.
    """
    require("torch", "transformers", extra="train")
    first = expanded(pieces[0])
    adapters = [expanded(piece) for piece in pieces[1:]]
    spec = pieces[0]
    if (first / "adapter_config.json").is_file():
        spec, adapters = base_of(first, f"write BASE+{first}").spec, [first, *adapters]
    base = resolve_base(
        spec,
        offline=config.offline,
        trust_remote_code=config.trust_remote_code,
        progress=progress,
        expected="a GGUF file, a Hugging Face folder or hub id, `demo`, ollama:NAME, or http://…",
    )
    tokenizer_folder, template = with_tokenizer_json(base.folder), config.chat_template
    for adapter in adapters:
        if not (adapter / "adapter_config.json").is_file():
            fix = "give a folder that PEFT saved"
            raise InputError("no adapter_config.json in it", at=adapter, fix=fix)
        read_object(adapter / "adapter_config.json")  # PEFT would say less of one that is no JSON
        check_base(adapter, base)
        if (reason := why_misread(adapter, base.config())) is not None:
            raise InputError(
                f"PEFT would read another adapter from it: {reason}",
                at=adapter,
                fix=f"export it, which reads it as it was saved, and chat with the GGUF: "
                f"lorafold export {adapter} --base {spec} --out DIR",
            )
        own = with_tokenizer_json(adapter)
        if (own / JSON).is_file():
            tokenizer_folder = own  # it may have tokens that the base lacks
    if template is None and (trained := find_template(adapters)) is not None:
        template = trained[0]  # the one it was trained with
    tokenizer = ChatTokenizer.from_folder(tokenizer_folder, template)
    thread = ModelThread(config.threads, shares=False)  # torch's results depend on the number of threads
    loaded = thread.run(
        lambda threads: load(
            base.folder,
            adapters,
            in_4bit=config.load_in_4bit,
            trust_remote_code=config.trust_remote_code,
            threads=threads,
            vocabulary=tokenizer.tokenizer.get_vocab_size(),
        )
    )
    names = [first.name if first.is_dir() else spec.rpartition("/")[2], *(a.name for a in adapters)]
    if adapters and first == adapters[0]:
        names = [a.name for a in adapters]
    folders = [base.folder, *adapters]
    context, notes = context_of(config.context, loaded.limit)
    about = About(
        name="+".join(names),
        source=model,
        kind="transformers",
        quantization=loaded.quantization,
        digest=lambda: "+".join(map(_folder_digest, folders)),
        notes=notes,
    )
    return TransformersEngine(loaded, tokenizer, about, thread, context)


def _folder_digest(folder: Path) -> str:
    """sha256 over the weights of a folder, file by file; of the file alone if there is only one."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return weights_sha256(files[0])
    return hashlib.sha256("".join(map(weights_sha256, files)).encode()).hexdigest()


class TransformersEngine:
    """The engine of a Hugging Face folder (see `lorafold.serve.protocol.Engine`).

    Args:
        model: loaded.
        tokenizer: with its chat template.
        about: which weights answer.
        thread: where it computes.
        context: tokens that a conversation may hold.
    """

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: ChatTokenizer,
        about: About,
        thread: ModelThread,
        context: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.about = about
        self._context = context
        self._cache = thread.run(lambda _: TorchCache(model))
        self._reader = Reader(self._cache, thread, PromptFitter(self._tokenizer.encode_prompt, self._context))
        self._vocabulary = ""

    @property
    def context(self) -> int:
        """Tokens that a conversation may hold."""
        return self._context

    @property
    def scorer(self) -> TransformersEngine:
        """Itself: transformers gives all probabilities."""
        return self

    @property
    def controls(self) -> frozenset[str]:
        """The tokenizer's control tokens: typed, they stay text."""
        return self._tokenizer.template.controls

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Answer a conversation (see `Engine.stream`)."""
        import numpy as np

        said: list[int] = []
        dice = np.random.default_rng(sampling.seed)
        text = self._texts(spelled=bool(tools_of(messages)))  # many calls begin with a control token

        def following(previous: int | None) -> tuple[int, float]:
            if previous is not None:
                said.append(previous)
                self._cache.read([previous])
            token = draw(self._cache.logits, sampling, said, dice)
            return token, float(log_softmax(self._cache.logits)[token])

        decoder = Decoder(
            draw=following,
            ends=lambda token: token in self._tokenizer.eos_ids,
            text=text,
            rest=lambda: "",
        )
        yield from stream_answer(self._reader, decoder, messages, sampling, cancel)

    def _texts(self, *, spelled: bool = False) -> Callable[[int], str]:
        """A function that tells what each further token adds; control tokens nothing, unless spelled out."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=not spelled)
        return lambda token: stream.step(self._tokenizer.tokenizer, token) or ""

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt that the model reads (see `Engine.prompt`)."""
        ids = self._reader.fitter.fit_again(messages, Sampling().max_tokens)
        text: str = self._tokenizer.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokenize(text))

    @property
    def vocabulary(self) -> str:
        """A digest of the vocabulary, equal to that of a GGUF of the same tokens."""
        if not self._vocabulary:
            known = {index: name for name, index in self._tokenizer.tokenizer.get_vocab().items()}
            names = [known.get(index, f"[PAD{index}]") for index in range(max(known) + 1)]
            self._vocabulary = hashlib.sha256(b"\0".join(name.encode() for name in names)).hexdigest()
        return self._vocabulary

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, control tokens in it taken as text."""
        return self._tokenizer.tokenize(text, False, first=False)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; a character's bytes count with the token that completes it."""
        text = self._texts()
        return [text(token).encode() for token in ids]

    def log_probabilities(
        self, messages: Sequence[Message], answer: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """The vocabulary's log-probabilities at each token of an answer (see `Scorer.log_probabilities`)."""
        return score_answer(self._reader, messages, answer)

    def close(self) -> None:
        """Free the model."""
        self._cache.close()
        self._model.close()
