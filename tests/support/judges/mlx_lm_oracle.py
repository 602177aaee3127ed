"""mlx-lm itself, on the CPU and in its own process: it makes an adapter and fuses it.

It is installed into a cache folder outside the repository, once for each machine. A test that needs it is
skipped, with the reason, if it cannot be installed or does not run here.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

VERSIONS = ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2")

_MAKE = """
import json, sys
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

base, out, kind, rank, scale = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
weights = mx.load(base + "/model.safetensors")
mx.random.seed(0)
adapter, fused = {}, dict(weights)
stacks = {}
for name, weight in sorted(weights.items()):  # a map without an order
    module = name.removesuffix(".weight")
    if ".experts." in name:
        before, _, after = module.partition(".experts.")
        stacks.setdefault(before + ".switch_mlp." + after.partition(".")[2], []).append(name)
    elif module.endswith(("q_proj", "v_proj")):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = weight
        lora = (DoRALinear if kind == "dora" else LoRALinear).from_base(layer, r=rank, scale=scale)
        lora.lora_b = mx.random.normal(lora.lora_b.shape)
        if kind == "dora":
            lora.m = lora.m * mx.random.uniform(0.5, 1.5, lora.m.shape)
        for part, value in tree_flatten(lora.parameters()):
            if not part.startswith("linear"):
                adapter[module + "." + part] = value
        fused[name] = lora.fuse().weight
for module, names in stacks.items() if kind == "lora" else ():
    weight = mx.stack([weights[name] for name in names])
    layer = SwitchLinear(weight.shape[2], weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    lora = LoRASwitchLinear.from_base(layer, r=rank, scale=scale)
    lora.lora_b = mx.random.normal(lora.lora_b.shape)
    adapter[module + ".lora_a"], adapter[module + ".lora_b"] = lora.lora_a, lora.lora_b
    for name, value in zip(names, lora.fuse().weight):
        fused[name] = value
mx.save_safetensors(out + "/adapter/adapters.safetensors", adapter)
mx.save_safetensors(out + "/fused/model.safetensors", fused)
"""


@functools.cache
def _installed() -> Path | str:
    """The folder that holds mlx and mlx-lm, or the reason why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafold-tests"
    target = cache / VERSIONS[1].replace("==", "-")
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"no cache folder for mlx-lm: {error}"
    with tempfile.TemporaryDirectory(dir=cache, prefix=".installing-") as scratch:
        into = Path(scratch) / "mlx"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(into)]
        for package, more in zip(VERSIONS, ((), ("--no-deps",)), strict=True):
            asked = subprocess.run([*command, *more, package], capture_output=True, text=True)
            if asked.returncode != 0:
                return f"{package} cannot be installed: {asked.stderr.strip()[-200:]}"
        try:
            into.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another run was faster; its copy is the same
                raise
    return target


def made_by_mlx_lm(base: Path, folder: Path, kind: str, rank: int, scale: float) -> tuple[Path, Path]:
    """An adapter with random numbers of q_proj, v_proj and, for "lora", all experts; and the fused weights.

    Args:
        base: a folder with model.safetensors, experts one by one.
        folder: where both go.
        kind: "lora" or "dora".
        rank: of the adapter.
        scale: what mlx-lm multiplies its product with.

    Returns:
        The adapter's folder, without a configuration, and the fused model's.
    """
    found = _installed()
    if isinstance(found, str):
        pytest.skip(found)
    for name in ("adapter", "fused"):
        (folder / name).mkdir(parents=True)
    environment = os.environ | {"PYTHONPATH": str(found)}
    ready = subprocess.run([sys.executable, "-c", "import mlx.core"], env=environment, capture_output=True)
    if ready.returncode != 0:
        pytest.skip(f"mlx does not run here: {ready.stderr.decode()[-200:]}")
    command = [sys.executable, "-c", _MAKE, str(base), str(folder), kind, str(rank), str(scale)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "adapter", folder / "fused"
