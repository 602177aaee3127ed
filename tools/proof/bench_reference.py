"""The proof's reference model on a GPU beside the CPU: time of a sweep, and how far apart the answers are.

    python tools/proof/bench_reference.py FOLDER

FOLDER is a Hugging Face folder. Four conversations of random tokens, of which the last 32 are the answer, go
through the model layer by layer (`export/proof/reference`), as in the proof of an export; each weight is read
once. A GPU's first sweep has loaded its libraries.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from lorafold.export.proof.measured import Answers
from lorafold.export.proof.reference.layers import LayeredModel
from lorafold.export.proof.sample import AskedChat
from lorafold.machine import cores
from lorafold.weights import Checkpoint

CHATS, TOKENS, ANSWER = 4, 67, 32  # what a proof asks of a small model: 268 tokens


def main() -> None:
    import torch

    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    checkpoint = Checkpoint.open(folder)
    width = config["vocab_size"]
    draw = np.random.default_rng(0)
    chats = [
        AskedChat(draw.integers(0, min(width, 100_000), TOKENS).tolist(), TOKENS - ANSWER)
        for _ in range(CHATS)
    ]
    found: dict[str, Answers] = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        began = time.monotonic()
        model = LayeredModel(config, checkpoint.tensors, device)
        print(f"{device}: model without weights {time.monotonic() - began:.2f} s", flush=True)
        for sweep in ("first", "second"):
            began = time.monotonic()
            (found[device],) = model.answers(checkpoint, chats, width)
            print(f"{device}: {sweep} sweep {time.monotonic() - began:.2f} s, {cores()} threads", flush=True)
    if "cuda" in found:
        pairs = list(zip(found["cpu"], found["cuda"], strict=True))
        apart = max(float(np.abs(one - other).max()) for one, other in pairs)
        same = all(bool((one.argmax(-1) == other.argmax(-1)).all()) for one, other in pairs)
        print(
            f"{torch.cuda.get_device_name()}: log-probabilities at most {apart:.1e} apart, likeliest tokens "
            f"{'the same' if same else 'differ'}"
        )


if __name__ == "__main__":
    main()
