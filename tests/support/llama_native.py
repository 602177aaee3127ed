"""A subprocess of the tests: jobs for the installed llama.cpp library, as JSON on standard input.

A job is an object with "op" ("quantize", "logits" or "imatrix") and its arguments; `oracles.py` builds the
list of them. The answers, a list on standard output, each have "status" (0 is success) and "log".
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
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

    def keep(model: Any, context: Any) -> None:
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (vocabulary,)).copy()
            for i in range(len(job["ids"]))
        ]
        np.save(job["out"], np.stack(rows))

    return decode(job, keep)


def decode(job: dict[str, Any], then: Callable[[Any, Any], None], watch: Any = None) -> dict[str, Any]:
    """Run one sequence, and look at the result.

    Args:
        job: "gguf", "ids" and "adapter".
        then: what is done with (model, context) afterwards.
        watch: called for each node of the graph.
    """
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
    if watch is not None:
        params.cb_eval = watch
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
    then(model, context)
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return {"status": 0, "log": ""}


class Node(ctypes.Structure):
    """The beginning of ggml.h's `struct ggml_tensor`."""


Node._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Node) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def numbers(node: Node, kind: str) -> Any:
    """A node's numbers in numpy's order of dimensions, where they lie."""
    last = sum((count - 1) * step for count, step in zip(node.ne, node.nb, strict=True))
    pointer = ctypes.cast(node.data, ctypes.POINTER(ctypes.c_uint8))
    raw = np.ctypeslib.as_array(pointer, (last + np.dtype(kind).itemsize,))
    return np.ndarray(tuple(node.ne)[::-1], kind, raw, strides=tuple(node.nb)[::-1])


def imatrix(job: dict[str, Any]) -> dict[str, Any]:
    """What llama-imatrix sums up for one sequence, written to a .npz file as NAME.in_sum2 and NAME.counts.

    llama.cpp calls back for each node of the graph; what is looked at, and how it is counted, follows
    IMatrixCollector::collect_imatrix of its tools/imatrix/imatrix.cpp.
    """
    found: dict[str, Any] = {}
    ggml = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    ggml.ggml_op_desc.restype = ctypes.c_char_p
    ggml.ggml_op_desc.argtypes = [ctypes.c_void_p]

    def watch(pointer: int, ask: bool, _: Any) -> bool:
        kind = ggml.ggml_op_desc(pointer)
        if kind not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return False
        node = ctypes.cast(pointer, ctypes.POINTER(Node)).contents
        weight, inputs = node.src[0].contents, node.src[1].contents
        name = weight.name.decode()
        by_expert = kind == b"MUL_MAT_ID"
        counts = inputs.type == GGML_TYPE_F32 and (by_expert or inputs.ne[1] >= 16)
        if not (name.startswith("blk.") and counts) or ask:
            return name.startswith("blk.") and counts
        squares = np.square(numbers(inputs, "f4").astype(np.float64))  # (outer, planes, rows, cols)
        matrices = weight.ne[2] * weight.ne[3]
        sums = found.setdefault(f"{name}.in_sum2", np.zeros((matrices, squares.shape[-1])))
        counted = found.setdefault(f"{name}.counts", np.zeros(matrices if by_expert else 1))
        if by_expert:
            chosen = numbers(node.src[2].contents, "i4")[0, 0]  # (tokens, experts of each)
            for slot in range(chosen.shape[1]):
                np.add.at(sums, chosen[:, slot], squares[0, :, slot % squares.shape[2]])
                np.add.at(counted, chosen[:, slot], 1)
            return True
        for outer in range(squares.shape[0]):
            for plane in range(squares.shape[1]):
                at = (outer % weight.ne[3]) * weight.ne[2] + plane % weight.ne[2]
                sums[at] += squares[outer, plane].sum(0)
        counted += squares[..., 0].size // matrices
        return True

    callback = llama_cpp.ggml_backend_sched_eval_callback(watch)
    return decode(job, lambda model, context: np.savez(job["out"], **found), callback)


def main() -> None:
    # What the library itself prints must not reach the answers.
    answers_fd = os.dup(1)
    os.dup2(2, 1)
    llama_cpp.llama_log_set(keep_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    operations = {"quantize": quantize, "logits": logits, "imatrix": imatrix}
    answers = []
    for job in json.load(sys.stdin):
        LOG.clear()
        answers.append(operations[job["op"]](job))
    with os.fdopen(answers_fd, "w") as out:
        json.dump(answers, out)


if __name__ == "__main__":
    main()
