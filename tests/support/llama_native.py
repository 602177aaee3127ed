"""A subprocess of the tests: jobs for the installed llama.cpp library, as JSON on standard input.

A job is an object with "op" ("quantize" or "logits") and its arguments; `oracles.py` builds the list of them.
The answers, a list on standard output, each have "status" (0 is success) and "log".
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from typing import Any

import llama_cpp
import numpy as np

GGML_TYPE_F32 = 0
# "[   3/  12]        blk.0.attn_k.weight - [   64,    64,     1,     1], type =    f32, size = ... (q4_K)"
TENSOR_LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[[^]]*\], type = +(\w+), size = (.*)$", re.M)
NEW_TYPE = re.compile(r"-> .*\((\w+)\)\s*$")

LOG: list[str] = []


@llama_cpp.llama_log_callback
def keep_log(level: int, text: bytes, user_data: Any) -> None:
    LOG.append(text.decode("utf-8", "replace"))


def quantize(job: dict[str, Any]) -> dict[str, Any]:
    """llama_model_quantize; a dry run also answers "types": the decided type of each tensor."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = job["ftype"]
    params.nthread = 1
    params.dry_run = job["dry_run"]
    if job["imatrix"] is not None:
        entries = [(name.encode(), np.array(row, np.float32)) for name, row in job["imatrix"].items()]
        table = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()  # ended by a row without a name
        for row, (name, values) in zip(table, entries, strict=False):
            row.name, row.size = name, values.size
            row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = table
    rules = [(pattern.encode(), kind) for pattern, kind in job["overrides"]]
    overrides = (llama_cpp.llama_model_tensor_override * (len(rules) + 1))()
    for rule, (pattern, kind) in zip(overrides, rules, strict=False):
        rule.pattern, rule.type = pattern, kind
    params.tt_overrides = overrides
    status = llama_cpp.llama_model_quantize(
        job["gguf_in"].encode(), job["gguf_out"].encode(), ctypes.byref(params)
    )
    answer = {"status": status, "log": "".join(LOG)}
    if job["dry_run"]:
        answer["types"] = {}
        for name, old, rest in TENSOR_LINE.findall(answer["log"]):
            new = NEW_TYPE.search(rest)
            answer["types"][name] = (new.group(1) if new else old).lower()
        answer["needs_imatrix"] = "will require an imatrix" in answer["log"]
        answer["log"] = answer["log"] if status else ""
    return answer


def logits(job: dict[str, Any]) -> dict[str, Any]:
    """The logits of one sequence, written to a .npy file."""
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = False  # no repacked kernels: the plain ones are the reference
    model = llama_cpp.llama_model_load_from_file(job["gguf"].encode(), model_params)
    if not model:
        return {"status": 1, "log": "".join(LOG)}
    ids = job["ids"]
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(64, len(ids))
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        return {"status": 2, "log": "".join(LOG)}
    if job["adapter"] is not None:
        adapter = llama_cpp.llama_adapter_lora_init(model, job["adapter"].encode())
        if not adapter:
            return {"status": 3, "log": "".join(LOG)}
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        if llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) != 0:
            return {"status": 4, "log": "".join(LOG)}
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for position, token in enumerate(ids):
        batch.token[position], batch.pos[position] = token, position
        batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
        batch.logits[position] = True
    if llama_cpp.llama_decode(context, batch) != 0:
        return {"status": 5, "log": "".join(LOG)}
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [
        np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocabulary,)).copy()
        for i in range(len(ids))
    ]
    np.save(job["out"], np.stack(rows))
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return {"status": 0, "log": ""}


def main() -> None:
    # What the library itself prints must not reach the answers.
    answers_fd = os.dup(1)
    os.dup2(2, 1)
    llama_cpp.llama_log_set(keep_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    operations = {"quantize": quantize, "logits": logits}
    answers = []
    for job in json.load(sys.stdin):
        LOG.clear()
        answers.append(operations[job["op"]](job))
    with os.fdopen(answers_fd, "w") as out:
        json.dump(answers, out)


if __name__ == "__main__":
    main()
