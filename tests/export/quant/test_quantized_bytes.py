"""One streaming pass against the usual way, byte for byte.

The usual way: PEFT merges and saves, llama.cpp's converter writes 16 bits, llama_model_quantize quantizes.
Ours, with PEFT's rounding: fold, convert and quantize at once. Every recipe, with and without an importance
matrix, on a small llama and on a qwen2 whose widths are no multiple of 256.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from converter import convert
from gguf_skeletons import NEED_IMATRIX
from numpy.typing import NDArray
from oracles import native, quantize_job
from tiny_families import tiny_family

from lorafold.adapters.folder import Adapter
from lorafold.export import arch
from lorafold.export.fold.folded import Folded
from lorafold.export.gguf.plan import GgufModel, plan_files
from lorafold.export.gguf.writer import BYTES_IN_FLIGHT, block_rows, write_gguf_files
from lorafold.export.imatrix.file import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from lorafold.export.quant.mixture import plan_types
from lorafold.export.quant.recipes import RECIPES, ModelShape, Recipe
from lorafold.weights import Checkpoint

pytestmark = pytest.mark.slow

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2},
    "qwen2": {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3},
}
MEMORY = 200_000  # so little that matrices are written in several blocks
Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Usual:
    """A model that went the usual way up to 16 bits, and what ours starts from."""

    folder: Path
    converted: Path
    importance: Weights

    def source(self) -> Folded:
        pair = (Adapter.open(self.folder / "adapter"), 1.0)
        return Folded(Checkpoint.open(self.folder / "base"), [pair], rounding="peft")


@pytest.fixture(scope="module", params=MODELS)
def usual(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Usual]:
    """Train nothing: a base in bfloat16, an adapter with random A and B, PEFT's merge, the converter."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    family = request.param
    folder = tmp_path_factory.mktemp(family)
    base = tiny_family(family, folder / "base", "bfloat16", seed=2, **MODELS[family])
    lora = LoraConfig(r=8, lora_alpha=12, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    peft = get_peft_model(network, lora)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in peft.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    peft.save_pretrained(folder / "adapter")
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(network, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "merged")
    (folder / "merged/tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    convert([{"folder": str(folder / "merged"), "out": str(folder / "bf16.gguf"), "outtype": "bf16"}])
    yield Usual(folder, folder / "bf16.gguf", random_importance(folder))


def random_importance(folder: Path) -> Weights:
    """An importance matrix through its file, for every matrix of the blocks."""
    generator = np.random.default_rng(4)
    config = json.loads((folder / "base/config.json").read_text())
    tensors = arch.map_tensors(config, Checkpoint.open(folder / "base").tensors)
    entries = {
        tensor.name: ImatrixEntry(
            generator.gamma(0.5, 100.0, tensor.cols).astype(np.float32), np.array([700], np.float32)
        )
        for tensor in tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2
    }
    write_imatrix(Imatrix(entries), folder / "imatrix.gguf")
    shapes = [(tensor.name, tensor.shape) for tensor in tensors]
    return read_imatrix(folder / "imatrix.gguf").weights(shapes)


def ours(usual: Usual, recipes: list[Recipe], importance: Weights | None) -> dict[str, Path]:
    """All recipes from one read, by the product's own plan and writer."""
    source = usual.source()
    tensors = arch.map_tensors(source.config, source.tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    outputs = []
    for recipe in recipes:
        metadata = arch.metadata(source.config, tensors, usual.folder / "base", recipe.file_type)
        shape = ModelShape.from_metadata({entry.key: entry.value for entry in metadata})
        types = plan_types([(t.name, t.shape) for t in tensors], recipe, shape, importance)
        ordered = tuple((by_name[name], types[name]) for name in arch.quantize_order(by_name))
        outputs.append(GgufModel(recipe.name, tuple(metadata), ordered))
    out = usual.folder / f"ours-{importance is not None}"
    out.mkdir()
    plan = plan_files(outputs, "m", threads=2, max_memory=MEMORY)
    write_gguf_files(plan.files, source, out, threads=2, max_memory=MEMORY, imatrix=importance)
    blocks = [len(list(block_rows(tensor, MEMORY // (BYTES_IN_FLIGHT * 2)))) for tensor in tensors]
    assert sum(count > 1 for count in blocks) > len(blocks) // 3  # most matrices; vectors are one row
    return {file.recipe: out / file.name for file in plan.files}


@pytest.mark.parametrize("weighted", [False, True], ids=["without imatrix", "with imatrix"])
def test_every_recipe_has_the_bytes_of_the_usual_way(usual: Usual, weighted: bool) -> None:
    importance = usual.importance if weighted else None
    recipes = [recipe for recipe in RECIPES.values() if weighted or recipe.name not in NEED_IMATRIX]
    theirs = {recipe.name: usual.folder / f"theirs-{weighted}-{recipe.name}.gguf" for recipe in recipes}
    answers = native(
        [
            quantize_job(usual.converted, theirs[recipe.name], recipe.file_type, importance)
            for recipe in recipes
        ]
    )
    assert all(answer["status"] == 0 for answer in answers)
    compared = 0
    for name, path in ours(usual, recipes, importance).items():
        mine, other = gguf.GGUFReader(path), gguf.GGUFReader(theirs[name])
        for key in ("general.file_type", "general.quantization_version"):
            assert mine.fields[key].contents() == other.fields[key].contents(), (name, key)
        assert [t.name for t in mine.tensors] == [t.name for t in other.tensors], name
        for a, b in zip(mine.tensors, other.tensors, strict=True):
            assert (a.tensor_type, list(a.shape)) == (b.tensor_type, list(b.shape)), (name, a.name)
            assert a.data.tobytes() == b.data.tobytes(), (name, a.name)
            compared += 1
    assert compared == len(recipes) * len(mine.tensors)
