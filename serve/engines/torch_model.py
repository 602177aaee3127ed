"""A causal model of transformers with its adapters, and the cache of one conversation in it.

PEFT's prompt methods (https://huggingface.co/docs/peft/conceptual_guides/prompting) learn vectors that stand
before the conversation: as embeddings (prompt tuning, P-tuning) or as keys and values (prefix tuning). Both
are put into the cache once and stay there; the model itself then reads tokens as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafold.adapters.config import CONFIG
from lorafold.adapters.patterns import try_patterns
from lorafold.chat.layout import shared_prefix
from lorafold.errors import InputError, NumericError, SystemFault
from lorafold.files.jsonfile import read_if_there
from lorafold.libraries.causal_lm import (
    REFUSALS,
    check_headers,
    is_memory_fault,
    load_causal_lm,
    quiet_transformers,
    told,
)
from lorafold.models import require
from lorafold.probabilities import log_softmax

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LoadedModel:
    """A model ready to compute.

    Attributes:
        inner: transformers' model, adapters injected.
        peft: PEFT's wrapper if the method learns a prompt, else None.
        quantization: the weights' type, for headings.
        limit: tokens of its context, or None if the config does not say.
        folder: for messages.
    """

    def __init__(self, inner: Any, peft: Any, quantization: str, limit: int | None, folder: Path) -> None:
        self.inner = inner
        self.peft = peft
        self.quantization = quantization
        self.limit = limit
        self.folder = folder

    def close(self) -> None:
        """Let go of the weights."""
        self.inner = self.peft = None


def load(
    folder: Path,
    adapters: Sequence[Path],
    *,
    in_4bit: bool,
    trust_remote_code: bool,
    threads: int,
    vocabulary: int,
) -> LoadedModel:
    """Load a base and its adapters.

    Args:
        folder: the base.
        adapters: PEFT folders, all applied.
        in_4bit: NF4 with bitsandbytes.
        trust_remote_code: run the folder's own code.
        threads: for torch on the CPU.
        vocabulary: of the tokenizer; the embedding is enlarged if an adapter was trained with more tokens.

    Raises:
        InputError: the folder or an adapter cannot be loaded.
        SystemFault: memory or a package is missing.
    """
    import torch

    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": "auto" if on_gpu else torch.float32}
    if in_4bit:
        require("bitsandbytes", extra="train")
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else torch.float32,
        )
    try:
        model = load_causal_lm(
            folder, trust_remote_code=trust_remote_code, device_map="auto" if on_gpu else None, **options
        )
        with quiet_transformers():
            peft = _with_adapters(model, adapters, vocabulary)
    except REFUSALS as error:
        if is_memory_fault(error):
            problem, fix = "not enough memory for the model", "pass --load-in-4bit"
            raise SystemFault(problem, at=folder, fix=fix) from error
        place = adapters[0] if adapters else folder
        for adapter in adapters:
            check_headers(adapter)
        raise InputError(
            f"transformers cannot load it: {told(error)}", at=place, fix="download or save it again"
        ) from error
    model.eval()
    learns_prompt = peft is not None and peft.active_peft_config.is_prompt_learning
    limit = getattr(model.config, "max_position_embeddings", None)
    quantization = "NF4" if in_4bit else str(model.dtype).removeprefix("torch.")
    return LoadedModel(model, peft if learns_prompt else None, quantization, limit, folder)


def _with_adapters(model: Any, adapters: Sequence[Path], vocabulary: int) -> Any:
    """PEFT's wrapper with all adapters active; None if there is none."""
    if not adapters:
        return None
    require("peft", extra="train")
    from peft import PeftModel

    for adapter in adapters:
        path = adapter / CONFIG
        try_patterns(read_if_there(path) or {}, (name for name, _ in model.named_modules()), path)
    if vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary)
    peft = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
    for number, adapter in enumerate(adapters[1:], start=1):
        peft.load_adapter(adapter, adapter_name=str(number))
    if len(adapters) > 1:
        peft.base_model.set_adapter([str(number) for number in range(len(adapters))])
    return peft


class TorchCache:
    """One conversation in a model's memory (see `Cache` in `local_answer`)."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.held: list[int] = []
        self._cache: Any = None
        self._virtual = 0  # places taken by a learned prompt
        self._logits: NDArray[np.float32] | None = None
        self._begin()

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits after the last token read (vocabulary,)."""
        assert self._logits is not None
        return self._logits

    def _begin(self) -> None:
        """An empty cache, or one with the learned prompt."""
        import torch
        from transformers import DynamicCache

        self.held.clear()
        self._virtual = 0
        self._cache = DynamicCache(config=self.model.inner.config)
        if self.model.peft is None:
            return
        with torch.inference_mode():
            prompt = self.model.peft.get_prompt(batch_size=1)
            if torch.is_tensor(prompt):
                self._forward(1, inputs_embeds=prompt.to(self.model.inner.dtype))
            else:
                self._cache = prompt
        self._virtual = int(self._cache.get_seq_length())

    def use(self, threads: int) -> None:
        """torch computes on as many threads as it was loaded with."""

    def keep(self, ids: Sequence[int], at_most: int) -> int:
        """Forget all but the common beginning with `ids`, of `at_most` tokens; returns its length."""
        shared = shared_prefix(self.held, ids[:at_most])
        if shared == len(self.held):
            return shared
        # Sliding windows and recurrent layers have forgotten what a cut would need.
        if all(type(layer).__name__ == "DynamicLayer" for layer in self._cache.layers):
            self._cache.crop(shared - len(self.held))  # a negative number of tokens is taken off the end
            del self.held[shared:]
            return shared
        self._begin()
        return 0

    def read(self, ids: Sequence[int]) -> None:
        """Read tokens after those held."""
        self._logits = self._rows(ids, 1)[-1]

    def score(self, ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """Read tokens; log-probabilities (vocabulary,) after each of them."""
        return list(map(log_softmax, self._rows(ids, len(ids))))

    def _rows(self, ids: Sequence[int], outputs: int) -> NDArray[np.float32]:
        import numpy as np
        import torch

        with torch.inference_mode():
            tokens = torch.tensor([list(ids)], device=self.model.inner.device)
            logits = self._forward(outputs, input_ids=tokens)
            rows: NDArray[np.float32] = logits[0, -outputs:].float().cpu().numpy()
        if not np.isfinite(rows).all():
            raise NumericError(
                "the model's logits are not numbers (NaN)",
                at=self.model.folder,
                fix="check its weights: a training run that diverged leaves NaN behind",
            )
        self.held.extend(ids)
        return rows

    def _forward(self, outputs: int, **inputs: Any) -> Any:
        answer = self.model.inner(
            past_key_values=self._cache, use_cache=True, logits_to_keep=outputs, **inputs
        )
        self._cache = answer.past_key_values
        return answer.logits

    def close(self) -> None:
        """Free the memory."""
        self._cache = self._logits = None
