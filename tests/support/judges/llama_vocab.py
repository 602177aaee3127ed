"""llama.cpp's tokenizer on vocabularies of ours, in a subprocess: an abort of the library fails one test.

`write_header` puts a `Vocab` into a GGUF without tensors, by gguf-py and not by the product's own writer;
`tokenize` loads such files with `vocab_only` in the installed llama.cpp. As a script it answers jobs, one
line of JSON on standard output for each line on standard input; all tests of a run share one such process.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """Texts to tokenise with one vocabulary.

    Attributes:
        gguf: the file.
        texts: the texts.
        parse_special: whether control tokens in the texts are recognised.
        add_special: whether BOS and EOS are added as the file says.
    """

    gguf: str
    texts: list[str]
    parse_special: bool = True
    add_special: bool = False


def write_header(path: Path, entries: Sequence[Any], name: str = "a model") -> Path:
    """Write metadata entries as a GGUF without tensors.

    Args:
        path: the file to write.
        entries: `KeyValue` objects.
        name: `general.name`.

    Returns:
        `path`.
    """
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    for entry in entries:
        value = entry.value.tolist() if isinstance(entry.value, np.ndarray) else entry.value
        if entry.subtype == gguf.GGUFValueType.UINT8:
            value = bytes(value)
        if entry.type == gguf.GGUFValueType.ARRAY:
            writer.add_array(entry.key, value)
        else:
            writer.add_key_value(entry.key, value, entry.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def tokenize(jobs: Sequence[Job]) -> list[list[list[int]]]:
    """Token ids for each text of each job."""
    return [_answer(job)["ids"] for job in jobs]


def end_ids(gguf: Path) -> set[int]:
    """The ids at which llama.cpp ends a generation."""
    return set(_answer(Job(str(gguf), []))["ends"])


def _answer(job: Job) -> dict[str, Any]:
    worker = _worker()
    assert worker.stdin is not None and worker.stdout is not None and worker.stderr is not None
    try:
        worker.stdin.write(json.dumps(asdict(job)) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        _worker.cache_clear()
        raise AssertionError(f"llama.cpp failed with {worker.wait()}: {worker.stderr.read()[-3000:]}")
    return dict(json.loads(answer))


@functools.cache
def _worker() -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    atexit.register(worker.stdin.close)  # at the end of its input the worker exits
    return worker


def _main() -> None:
    import llama_cpp

    log: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(level: int, text: bytes, user_data: Any) -> None:
        log.append(text.decode("utf-8", "replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p())
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model, ends, loaded = None, [], None
    for line in sys.stdin:
        log.clear()
        job = Job(**json.loads(line))
        # A vocabulary takes a second to load: it stays for the jobs that follow with the same file.
        if loaded != (wanted := (job.gguf, os.stat(job.gguf).st_mtime_ns)):
            if model is not None:
                llama_cpp.llama_model_free(model)
            loaded, model = wanted, llama_cpp.llama_model_load_from_file(job.gguf.encode(), params)
            assert model, "".join(log)[-3000:]
            vocab = llama_cpp.llama_model_get_vocab(model)
            size = llama_cpp.llama_vocab_n_tokens(vocab)
            ends = [token for token in range(size) if llama_cpp.llama_vocab_is_eog(vocab, token)]
        ids = []
        for text in job.texts:
            data = text.encode()
            room = (llama_cpp.llama_token * (len(data) + 16))()
            count = llama_cpp.llama_tokenize(
                vocab, data, len(data), room, len(room), job.add_special, job.parse_special
            )
            assert count >= 0, f"no room for {text!r}"
            ids.append(room[:count])
        sys.stdout.write(json.dumps({"ids": ids, "ends": ends}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
