"""What training holds of a CUDA GPU: logits, a table moved out, and torch's allocator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_base import tiny_base
from tiny_gpu import random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


def test_an_evaluation_holds_its_logits_once_and_in_16_bit() -> None:
    from lorafold.train.fast.head_loss import head_loss

    head = torch.nn.Linear(256, 100_000, bias=False, device="cuda", dtype=torch.bfloat16)
    hidden, targets = random(1, 300, 256), torch.randint(100_000, (1, 300))
    wanted = torch.nn.functional.cross_entropy(head(hidden[0]).double(), targets[0].cuda(), reduction="sum")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        found = head_loss(hidden, head, targets)
    assert torch.cuda.max_memory_allocated() - before < 1.2 * 300 * 100_000 * 2
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_rows_of_a_table_in_the_cpus_memory(tmp_path: Path) -> None:
    """The embedding that was moved out gives the same rows, also to `generate`, and its memory is free."""
    from transformers import AutoModelForCausalLM

    from lorafold.train.fast.embedding_kernels import move_out

    folder = tiny_base(tmp_path / "base", hidden_size=1100 // 4 * 4, head_dim=64)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda()
    ids = torch.randint(200, (3, 17), device="cuda")
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    wanted = model.get_input_embeddings()(ids).detach()
    answer = model.generate(ids, **settings)
    assert not move_out(model), "weights that are trained stay"
    model.requires_grad_(False)
    held = torch.cuda.memory_allocated()
    assert move_out(model) and not move_out(model)
    assert torch.cuda.memory_allocated() <= held - 200 * 1100 * 2
    assert torch.equal(model.get_input_embeddings()(ids), wanted)
    assert model.device.type == "cuda" and torch.equal(model.generate(ids, **settings), answer)


def test_a_tied_embedding_is_not_moved_out(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from lorafold.train.fast.embedding_kernels import move_out

    folder = tiny_base(tmp_path / "base", tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(folder).cuda().requires_grad_(False)
    assert not move_out(model)


def test_what_goes_of_a_loaded_model_is_given_back() -> None:
    """A table in the middle of the weights: torch holds no more than what stays, but for a page of 20 MiB."""
    code = """
import torch
from lorafold.train.fast.allocator import growing_segments
with growing_segments(rounded=False):
    whole = torch.empty(400 << 20, dtype=torch.uint8, device="cuda")
    del whole
    parts = [torch.empty(size << 20, dtype=torch.uint8, device="cuda") for size in (100, 200, 100)]
del parts[1]
torch.cuda.empty_cache()
print(torch.cuda.memory_reserved() >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 260


def test_torch_leaves_the_last_of_the_gpu_to_cuda() -> None:
    """Memory that torch holds and does not use is given back at its limit, before the GPU is full."""
    code = """
import torch
from lorafold.train.fast.allocator import free_bytes, spare_some
torch.zeros(1, device="cuda")
device = torch.device("cuda", 0)
spare_some(device)
block = torch.empty(free_bytes(device) - (512 << 20), dtype=torch.uint8, device="cuda")
size = block.numel() + (256 << 20)
del block
block = torch.empty(size, dtype=torch.uint8, device="cuda")
try:
    torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    print(torch.cuda.mem_get_info()[0] >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 256


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "33 36"), ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "34 34")]
)
def test_blocks_are_rounded_for_the_next_pack(own: dict[str, str], expected: str) -> None:
    """33 MiB of weights take 33, later ones 36, in eighths of 32; 34 both if a user has said how."""
    code = """
import torch
from lorafold.train.fast.allocator import growing_segments
with growing_segments(rounded=False):
    before = torch.empty(33 << 20, dtype=torch.uint8, device="cuda")
    weights = torch.cuda.memory_allocated()
block = torch.empty(33 << 20, dtype=torch.uint8, device="cuda")
print(weights >> 20, torch.cuda.memory_allocated() - weights >> 20)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected}\n"
