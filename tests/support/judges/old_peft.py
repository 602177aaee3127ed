"""PEFT as it was: other versions beside today's, each in its own process, write adapters and merge them.

A version is installed without its dependencies into a cache folder outside the repository, once for each
machine. A test that needs one is skipped, with the reason, if it cannot be installed.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

TODAY = "today"

_WRITE = """
import json, sys
base, out, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
import torch
torch.set_num_threads(1)
import peft, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = peft.get_peft_model(model, peft.LoraConfig(**settings))
generator = torch.Generator().manual_seed(0)
for name, parameter in model.named_parameters():
    if "lora_" in name:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
model.save_pretrained(out + "/adapter")
model.merge_and_unload().save_pretrained(out + "/merged")
"""


@functools.cache
def _installed(version: str) -> Path | str:
    """The folder that holds a version of PEFT, or the reason why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafold-tests"
    target = cache / f"peft-{version}"
    if target.is_dir():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"no cache folder for PEFT {version}: {error}"
    with tempfile.TemporaryDirectory(dir=cache, prefix=".installing-") as scratch:
        into = Path(scratch) / "peft"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(into)]
        asked = subprocess.run([*command, f"peft=={version}"], capture_output=True, text=True)
        if asked.returncode != 0:
            return f"PEFT {version} cannot be installed: {asked.stderr.strip()[-200:]}"
        try:
            into.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another run was faster; its copy is the same
                raise
    return target


def written_by_peft(version: str, base: Path, folder: Path, **config: Any) -> tuple[Path, Path]:
    """An adapter with random numbers, made by one version of PEFT, and that version's own merge of it.

    Args:
        version: of PEFT, or `TODAY`.
        base: the base's folder.
        folder: where both go.
        config: arguments of its `LoraConfig`.

    Returns:
        The adapter's folder and the merged model's.
    """
    path = [str(Path(__file__).parent)]
    if version != TODAY:
        found = _installed(version)
        if isinstance(found, str):
            pytest.skip(found)
        path = [str(found)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", _WRITE, str(base), str(folder), json.dumps(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text()).get("peft_version")
    assert version == TODAY or written in (None, version)
    return folder / "adapter", folder / "merged"
