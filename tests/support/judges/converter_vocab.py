"""The tokenizer part of llama.cpp's converter, on many folders in one process.

A model folder needs a config.json and tokenizer files, no weights. The result is what the converter's own
`set_vocab` gives to its writer, the `tokenizer.*` entries. As a script it takes the folders as JSON on
standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def convert_vocabularies(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The converter's `tokenizer.*` entries: for each folder, value by key, in the order written."""
    from oracles import llama_cpp_source

    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | offline | {"PYTHONPATH": str(llama_cpp_source())},
        input=json.dumps([str(folder) for folder in folders]),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    answers = json.loads(ran.stdout.splitlines()[-1])
    assert len(answers) == len(folders)
    return list(answers)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.decode("utf-8") if isinstance(value, bytes | bytearray) else value


def _main() -> None:
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from conversion.base import gguf

    answers = []
    for folder in map(Path, json.load(sys.stdin)):
        hparams = ModelBase.load_hparams(folder, False)
        model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        model = model_class(folder, gguf.LlamaFileType.ALL_F32, folder / "unwritten.gguf")
        model.set_vocab()
        entries = model.gguf_writer.kv_data[0]
        answers.append(
            {key: _plain(entry.value) for key, entry in entries.items() if key.startswith("tokenizer.")}
        )
    print(json.dumps(answers))  # noqa: T201


if __name__ == "__main__":
    _main()
