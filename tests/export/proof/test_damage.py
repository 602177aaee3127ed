"""Damaged exports: each is caught by the check that is meant for it, in F32 and in Q4_K_M, and nothing else.

A whole export is taken, its file is damaged, and the manifest is made to fit, as if the export itself had
gone wrong. `verify` must see it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_base import tiny_base

from lorafold.export import ExportConfig, export, verify

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

QUANTS = ("F32", "Q4_K_M")
File = np.memmap[Any, np.dtype[np.uint8]]


class Home:
    """A base with an adapter, and what is exported of both.

    Attributes:
        whole: the export that is right.
        base: the same base without the adapter.
        twice: the adapter with twice its weight.
    """

    def __init__(self, folder: Path, scale: float) -> None:
        self.source = tiny_base(
            folder / "base", hidden_size=256, intermediate_size=512, initializer_range=0.1
        )
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_pretrained(self.source)
        settings = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        tuned = peft.get_peft_model(model, settings)
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "lora_" in name:
                    weight.copy_(scale * torch.randn(weight.shape))
        tuned.save_pretrained(folder / "adapter")
        adapter = str(folder / "adapter")
        self.whole = self._export(adapter, folder / "whole", verify=True)
        self.base = self._export(str(self.source), folder / "plain", base=None)
        self.twice = self._export(f"{adapter}=2", folder / "twice")

    def _export(self, source: str, out: Path, **changes: Any) -> Path:
        options = {"base": str(self.source), "verify": False, "name": "tiny", "quant": QUANTS, **changes}
        export(ExportConfig(source, out=out, **options))
        return out


# At these scales the adapter's effect is 2.5 nats, and 0.08: a quarter of what Q4_K_M itself costs the model.
@pytest.fixture(scope="module", params=[0.1, 0.02], ids=["strong", "weak"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("damage"), request.param)


def tensor(path: Path, name: str) -> tuple[int, Any]:
    """Where a tensor's data begins, and gguf-py's entry of it."""
    found = next(each for each in gguf.GGUFReader(path).tensors if each.name == name)
    return int(found.data_offset), found


def copy_tensor(path: Path, data: File, other: Path, name: str) -> None:
    (start, found), (begin, _) = tensor(path, name), tensor(other, name)
    source = np.memmap(other, np.uint8, mode="r")
    data[start : start + found.n_bytes] = source[begin : begin + found.n_bytes]


def set_value(path: Path, data: File, key: str, value: bytes) -> None:
    """Overwrite a number of the metadata."""
    field = gguf.GGUFReader(path).fields[key]
    start = int(field.offset) + sum(len(part.tobytes()) for part in field.parts[:-1])
    assert field.parts[-1].tobytes() != value and len(field.parts[-1].tobytes()) == len(value)
    data[start : start + len(value)] = np.frombuffer(value, np.uint8)


def permuted_head(home: Home, path: Path, data: File) -> None:
    """The rows of one attention head in another order, as a wrong rope permutation leaves them."""
    start, found = tensor(path, "blk.0.attn_q.weight")
    rows = data[start : start + found.n_bytes].reshape(256, -1)  # (4 heads of 64 rows, bytes of a row)
    rows[64:128] = np.roll(rows[64:128].copy(), 1, axis=0)


def wrong_rope_base(home: Home, path: Path, data: File) -> None:
    set_value(path, data, "llama.rope.freq_base", np.float32(500_000.0).tobytes())


def without_adapter(home: Home, path: Path, data: File) -> None:
    for each in gguf.GGUFReader(path).tensors:
        copy_tensor(path, data, home.base / path.name, each.name)


def adapter_twice(home: Home, path: Path, data: File) -> None:
    for each in gguf.GGUFReader(path).tensors:
        copy_tensor(path, data, home.twice / path.name, each.name)


def layer_of_the_base(home: Home, path: Path, data: File) -> None:
    for each in gguf.GGUFReader(path).tensors:
        if each.name.startswith("blk.1."):
            copy_tensor(path, data, home.base / path.name, each.name)


def other_eos(home: Home, path: Path, data: File) -> None:
    set_value(path, data, "tokenizer.ggml.eos_token_id", np.uint32(65).tobytes())


def other_template(home: Home, path: Path, data: File) -> None:
    """ChatML's turns with another word in front, in the GGUF."""
    field = gguf.GGUFReader(path).fields["tokenizer.chat_template"]
    text = field.contents().encode()
    start = int(field.offset) + sum(len(part.tobytes()) for part in field.parts[:-1])
    assert data[start : start + len(text)].tobytes() == text
    data[start : start + len(text)] = np.frombuffer(text.replace(b"assistant", b"assistent"), np.uint8)


def other_modelfile(home: Home, path: Path, data: File) -> None:
    name = "Modelfile" if path.name.endswith("F32.gguf") else "Modelfile-Q4_K_M"
    file = path.parent / name
    file.write_text(file.read_text().replace("assistant", "assistent"))


@pytest.mark.parametrize(
    ("damage", "caught_by", "also"),
    [
        (permuted_head, "tensors", "logits"),
        (wrong_rope_base, "logits", None),
        (without_adapter, "tensors", "logits"),
        (adapter_twice, "tensors", "logits"),
        (layer_of_the_base, "tensors", "logits"),
        (other_eos, "special tokens", None),
        (other_template, "prompt", None),
        (other_modelfile, "prompt", None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("quant", QUANTS)
def test_damage_is_caught(
    home: Home,
    damage: Callable[[Home, Path, File], None],
    caught_by: str,
    also: str | None,
    quant: str,
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(home.whole, tmp_path / "copy")
    path = copy / f"tiny-{quant}.gguf"
    data = np.memmap(path, np.uint8, mode="r+")
    damage(home, path, data)
    data.flush()
    manifest = json.loads((copy / "lorafold.json").read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
        entry["size"] = (copy / name).stat().st_size
    (copy / "lorafold.json").write_text(json.dumps(manifest))
    proof = verify(copy)
    failed = {check.name for check in proof.checks if check.verdict == "failed"}
    about_file = {f"{kind} {path.name}" for kind in (caught_by, also) if kind in ("tensors", "logits")}
    assert failed == (about_file or {caught_by}), [check for check in proof.checks if check.name in failed]
    assert proof.passed is False


def test_what_is_whole_passes(home: Home) -> None:
    proof = verify(home.whole)
    assert proof.passed is True, proof.summary()
    # Computed layer by layer, by the export before this; never as a whole.
    for check in proof.checks:
        if check.name.startswith("logits"):
            assert check.figures["reference"].startswith("transformers, layer by layer")
            assert check.figures["answers of an earlier proof"] is True
    (effect,) = (check for check in proof.checks if check.name == "effect")
    weak = effect.figures["KL of the adapter"] < 0.2
    # The rule of before, an error below half of the effect, refused the weak adapter's file, which is right.
    assert (effect.figures["share that is rounding"]["Q4_K_M"] > 0.5) == weak
    assert effect.verdict == ("note" if weak else "passed")
    assert ("train longer, or choose a larger type" in effect.meaning) == weak
