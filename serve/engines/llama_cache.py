"""The KV cache of one conversation in llama.cpp: it keeps what was read, and grows with the conversation.

A cache of the full context would take more memory than the weights of a small model, for every model side by
side; most conversations need a fraction of it. Growing moves the state and reads nothing again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorafold.chat.layout import shared_prefix
from lorafold.errors import NumericError, SystemFault
from lorafold.libraries.llama import FLASH_ATTENTION_OFF, complaint
from lorafold.serve.engines.llama_model import LlamaModel
from lorafold.serve.engines.local_answer import BATCH, OUTPUTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GGML_F32 = 0  # ggml_type
UBATCH = 128  # tokens computed at once: as fast as BATCH, with half the memory for attention scores
# llama_flash_attn_type. On processors the plain kernels are faster, the more so the longer the conversation,
# and do not round to float16; the fused ones are for accelerators.
FIRST_CELLS = 512  # tokens that a new KV cache holds


class KeyValueCache:
    """One conversation in llama.cpp's memory, grown as needed (see `Cache` in `local_answer`).

    Args:
        model: the weights.
        adapters: pointers of loaded adapters, applied at full strength.
        limit: tokens it may hold at most.
        threads: to compute with at first.
        exact: keys and values in float32, in twice the memory; the usual cache rounds them to float16.
    """

    def __init__(
        self, model: LlamaModel, adapters: Sequence[Any], limit: int, threads: int, exact: bool = False
    ) -> None:
        self.c = model.c
        self.model = model
        self.adapters = adapters
        self.limit = limit
        self.threads = threads
        self.exact = exact
        self.cells = 0
        self.context: Any = None
        self.held: list[int] = []  # the tokens in the cache, from position 0
        self.batch = self.c.llama_batch_init(BATCH, 0, 1)
        self._grow(min(limit, FIRST_CELLS))

    def _grow(self, cells: int) -> None:
        """Make a cache of `cells` tokens and move what the old one held."""
        parameters = self.c.llama_context_default_params()
        parameters.n_ctx = cells
        parameters.n_batch, parameters.n_ubatch = BATCH, UBATCH
        parameters.n_outputs_max = parameters.n_outputs_max_per_seq = OUTPUTS
        parameters.n_threads = parameters.n_threads_batch = self.threads
        if self.exact:
            parameters.type_k = parameters.type_v = GGML_F32
        if self.exact or not self.c.llama_supports_gpu_offload():
            parameters.flash_attn_type = FLASH_ATTENTION_OFF
        context = self.c.llama_init_from_model(self.model.pointer, parameters)
        if not context:
            raise SystemFault(
                f"no memory for a context of {cells:,} tokens ({complaint()})",
                at=self.model.path,
                fix="pass a smaller --context, or close other models",
            )
        if self.adapters:
            pointers = (self.c.llama_adapter_lora_p_ctypes * len(self.adapters))(*self.adapters)
            scales = (ctypes.c_float * len(self.adapters))(*[1.0] * len(self.adapters))
            self.c.llama_set_adapters_lora(context, pointers, len(self.adapters), scales)
        if self.context:
            if self.held and not self._move_into(context):
                raise SystemFault(
                    "llama.cpp could not move the conversation to a larger context",
                    at=self.model.path,
                    fix="/reset the conversation, or start with a smaller --context",
                )
            self.c.llama_free(self.context)
        # llama.cpp may round the size up.
        self.context, self.cells = context, min(self.limit, int(self.c.llama_n_ctx(context)))

    def _move_into(self, context: Any) -> bool:
        size = self.c.llama_state_seq_get_size(self.context, 0)
        state = (ctypes.c_uint8 * size)()
        written = self.c.llama_state_seq_get_data(self.context, state, size, 0)
        return bool(written) and bool(self.c.llama_state_seq_set_data(context, state, written, 0))

    def use(self, threads: int) -> None:
        """Compute on so many threads from now on."""
        if threads != self.threads:
            self.threads = threads
            self.c.llama_set_n_threads(self.context, threads, threads)

    def keep(self, ids: Sequence[int], at_most: int) -> int:
        """Forget all but the common beginning with `ids`, of `at_most` tokens; returns its length."""
        shared = shared_prefix(self.held, ids[:at_most])
        if shared < len(self.held):
            memory = self.c.llama_get_memory(self.context)
            if not self.c.llama_memory_seq_rm(memory, 0, shared, -1):
                # Recurrent models and sliding windows cannot forget a part.
                self.c.llama_memory_clear(memory, True)
                shared = 0
            del self.held[shared:]
        return shared

    def read(self, ids: Sequence[int], outputs: int = 1) -> None:
        """Read at most BATCH tokens after those held; logits are kept for the last `outputs` of them."""
        needed = len(self.held) + len(ids)
        if needed > self.cells:
            self._grow(min(self.limit, max(2 * self.cells, -(-needed // FIRST_CELLS) * FIRST_CELLS)))
        batch, start = self.batch, len(self.held)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= len(ids) - outputs
        code = self.c.llama_decode(self.context, batch)
        if code:
            self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
            self.held.clear()
            raise SystemFault(
                f"llama.cpp failed with code {code} ({complaint()})",
                at=self.model.path,
                fix="pass a smaller --context, or close other models",
            )
        self.held.extend(ids)

    def score(self, ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """Read at most OUTPUTS tokens; log-probabilities (vocabulary,) after each of them."""
        self.read(ids, outputs=len(ids))
        rows = map(self._logits, range(len(ids)))
        return [logits - self._log_sum(logits) for logits in rows]

    def log_probability(self, token: int) -> float:
        """The log-probability of one token after the last one read."""
        logits = self._logits(-1)
        return float(logits[token] - self._log_sum(logits))

    def _logits(self, output: int) -> NDArray[np.float32]:
        """llama.cpp's own array, valid until the next read."""
        import numpy as np

        pointer = self.c.llama_get_logits_ith(self.context, output)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self.model.size,))
        return logits

    def _log_sum(self, logits: NDArray[np.float32]) -> np.float32:
        """The logarithm of the sum of exp(logits)."""
        import numpy as np

        highest: np.float32 = logits.max()
        total = np.float32(highest + np.log(np.exp(logits - highest).sum()))
        if not np.isfinite(total):
            raise NumericError(
                "the model's logits are not numbers (NaN)",
                at=self.model.path,
                fix="check the export with `lorafold verify`",
            )
        return total

    def close(self) -> None:
        """Free the memory."""
        if self.context:
            self.c.llama_free(self.context)
            self.c.llama_batch_free(self.batch)
            self.context = None
