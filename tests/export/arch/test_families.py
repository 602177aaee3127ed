"""Architectures: header, order, shapes, bytes against llama.cpp's converter, logits against transformers."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from converter import convert
from numpy.typing import NDArray
from oracles import llama_logits, plan_with_llama, quantize_with_llama
from own_gguf import our_gguf
from tiny_families import FAMILIES, FURTHER, HEADLESS, NEWER, RESAVED, TWINS, tiny_family
from tiny_models import load_model

from lorafold.export.arch import map_tensors, metadata, quantize_order
from lorafold.export.quant.mixture import plan_types
from lorafold.export.quant.recipes import ModelShape, find_recipe
from lorafold.weights import Checkpoint

QUICK = ("llama-tied", "qwen2")
SLOW = tuple(
    family for family in (*FAMILIES, *NEWER, *RESAVED, *FURTHER, *HEADLESS, *TWINS) if family not in QUICK
)
# What the converter does not know or writes so that llama.cpp computes something else (`arch` lists the
# differences); their logits are compared.
NO_ORACLE = (
    "gpt2-narrow",
    "index",
    "llama-yarn-factor",
    "nemotron-h",  # the converter takes it for one with experts, since transformers 5 gives them a number
    "mixtral-fused",
    "olmo2-tied",
    "olmo2-yarn-mscale",
    "phi3-longrope-factor",
    "stablelm-parallel",  # the converter never writes the norms of heads that it has collected
)
# Families with tensors of their own kind: state spaces, delta nets, gates, sinks, latent attention.
MIXED = (
    *("qwen3-next", "qwen35", "gemma4", "gpt-oss", "deepseek-v3", "granite-hybrid"),
    *("falcon", "falcon-h1", "gemma3n", "jamba", "nemotron-h-moe"),
)
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
Header = list[tuple[str, list[int], Any]]


def families(*left_out: str) -> list[Any]:
    """Every family, the quick ones unmarked."""
    slow = [family for family in SLOW if family not in left_out]
    return [*QUICK, *(pytest.param(family, marks=pytest.mark.slow) for family in slow)]


@functools.cache
def scratch() -> Path:
    """A folder for this run's models, removed with it."""
    holder = tempfile.TemporaryDirectory(prefix="lorafold-arch-")
    _KEPT.append(holder)
    return Path(holder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def converted(names: tuple[str, ...]) -> Path:
    """Models of some families in float32 and bfloat16, with the converter's GGUF beside them."""
    jobs = []
    for family in names:
        for dtype, outtypes in (("float32", ("f32", "f16")), ("bfloat16", ("bf16",))):
            if family in NEWER and dtype == "bfloat16":
                continue
            folder = tiny_family(family, scratch() / dtype / f"Tiny-{family}-0.1B-Instruct", dtype)
            jobs += [
                {"folder": str(folder), "out": str(folder / f"{outtype}.gguf"), "outtype": outtype}
                for outtype in outtypes
                if family not in NO_ORACLE
            ]
    convert(jobs)
    return scratch()


def model(family: str, dtype: str) -> Path:
    """The folder of a converted family."""
    root = converted(QUICK if family in QUICK else SLOW)
    return root / dtype / f"Tiny-{family}-0.1B-Instruct"


def header_of(path: Path) -> tuple[Header, gguf.GGUFReader]:
    """The entries of a GGUF that are not the tokenizer's: (key, types, value)."""
    reader = gguf.GGUFReader(path)
    fields = [field for key, field in reader.fields.items() if not key.startswith(("GGUF.", "tokenizer."))]
    return [(field.name, [int(kind) for kind in field.types], field.contents()) for field in fields], reader


def our_types(folder: Path, outtype: str) -> dict[str, gguf.GGMLQuantizationType]:
    """The types that the product's own recipe gives the tensors of a model."""
    config = json.loads((folder / "config.json").read_text())
    tensors = map_tensors(config, Checkpoint.open(folder).tensors)
    recipe = find_recipe(outtype)
    entries = metadata(config, tensors, folder, recipe.file_type)
    assert recipe.file_type == FILE_TYPES[outtype]
    shape = ModelShape.from_metadata({entry.key: entry.value for entry in entries})
    return plan_types([(tensor.name, tensor.shape) for tensor in tensors], recipe, shape)


# Entries in which a header departs from the converter's, for the reasons that `arch.header` gives.
DEPARTS: dict[str, set[str]] = {
    "glm": {"chatglm.context_length", "chatglm.attention.layer_norm_rms_epsilon"},
    "gpt-neox": {"general.file_type"},
    "mpt": {"general.file_type"},
}
# Families with generated tensors in their layers, which the converter writes among the others.
REORDERED = ("muse-glimmer",)
# Families that are younger than transformers 5 and have two ropes, which transformers 4 had no words for.
LATER_ROPE = ("laguna", "mellum")
# Families for which llama.cpp computes something else than the model, as their caveats say.
APPROXIMATE = ("phi-moe",)
# Families whose rows are multiplied by constants: by one here, by several one after the other there.
MULTIPLIED = ("falcon-h1",)


def scaled(folder: Path) -> set[str]:
    """The tensors of a model whose rows are multiplied by a constant."""
    config = json.loads((folder / "config.json").read_text())
    return {
        tensor.name
        for tensor in map_tensors(config, Checkpoint.open(folder).tensors)
        if any(part.scale != 1 for part in tensor.sources)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "outtype"),
    [
        (family, outtype)
        for family in (*QUICK, *SLOW)
        for outtype in ("f32", "f16", "bf16")
        # Of the newest, the other two show what BF16 would.
        if family not in NO_ORACLE and not (outtype == "bf16" and family in NEWER)
    ],
)
def test_equals_converter(family: str, outtype: str) -> None:
    """Header, names, order, shapes and bytes are the converter's."""
    folder = model(family, "bfloat16" if outtype == "bf16" else "float32")
    theirs, their_reader = header_of(folder / f"{outtype}.gguf")
    types = {tensor.name: tensor.tensor_type for tensor in their_reader.tensors}
    assert our_types(folder, outtype) == types
    ours, our_reader = header_of(
        our_gguf(folder, folder / f"{outtype}-ours.gguf", types, FILE_TYPES[outtype])
    )
    departing = DEPARTS.get(family, set())
    mine_of, its_of = ({key: entry for key, *entry in some} for some in (ours, theirs))
    assert {key for key in mine_of | its_of if mine_of.get(key) != its_of.get(key)} == departing
    assert [entry for entry in ours if entry[0] not in departing] == [
        entry for entry in theirs if entry[0] not in departing
    ]
    mines, others = our_reader.tensors, their_reader.tensors
    if family in REORDERED:
        mines, others = (sorted(some, key=lambda tensor: tensor.name) for some in (mines, others))
    assert [tensor.name for tensor in mines] == [tensor.name for tensor in others]
    multiplied = scaled(folder) if family in MULTIPLIED else set()
    for mine, other in zip(mines, others, strict=True):
        assert list(mine.shape) == list(other.shape), mine.name
        if mine.name in multiplied:
            np.testing.assert_allclose(mine.data, other.data, rtol=2e-3 if outtype == "f16" else 3e-7)
        elif mine.name.endswith("ssm_a"):  # torch's exponential may be wrong in the last bit
            np.testing.assert_array_max_ulp(mine.data, other.data, 1)
        else:
            assert np.array_equal(mine.data.view(np.uint8), other.data.view(np.uint8)), mine.name


@pytest.mark.slow
def test_phi_moe_differs_by_what_the_caveat_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With llama.cpp's norms (no mean) and its plain routing transformers computes llama.cpp's logits."""
    import torch
    from transformers.models.phimoe import modeling_phimoe

    def without_mean(norm: Any, values: Any) -> Any:
        return torch.nn.functional.rms_norm(values, values.shape[-1:], norm.weight, norm.eps) + norm.bias

    def plain(scores: Any, jitter_eps: float, training: bool, top_k: int) -> Any:
        weights, chosen = scores.softmax(-1).topk(top_k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), chosen

    folder = model("phi-moe", "float32")
    path = our_gguf(folder, folder / "logits.gguf", {}, 0)
    ids = [int(number) for number in np.random.default_rng(7).integers(3, 300, size=24)]
    as_trained = transformers_logits(folder, ids)
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", without_mean)
    monkeypatch.setattr(modeling_phimoe, "sparsemixer", plain)
    as_llama_cpp = transformers_logits(folder, ids)
    found = llama_logits(path, ids)
    assert np.abs(found - as_llama_cpp).max() < 1e-3 * np.abs(as_llama_cpp).max()
    assert np.abs(found - as_trained).max() > 0.1 * np.abs(as_trained).max()


@pytest.mark.parametrize("family", families(*APPROXIMATE))
def test_logits_equal_transformers(family: str) -> None:
    """The F32 GGUF computes in llama.cpp what the model computes in transformers."""
    folder = model(family, "float32")
    path = our_gguf(folder, folder / "logits.gguf", {}, 0)
    ids = [int(number) for number in np.random.default_rng(7).integers(3, 300, size=24)]
    reference = folder / "twin" if family in TWINS else folder
    expected = transformers_logits(reference, ids)
    difference = np.abs(llama_logits(path, ids) - expected).max()
    assert difference < 1e-3 * np.abs(expected).max()


def transformers_logits(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    """Logits of every position, computed by transformers in float32 on the CPU."""
    import torch

    network = load_model(folder)
    with torch.inference_mode():
        logits: NDArray[np.float32] = network(torch.tensor([ids])).logits[0].numpy()
    return logits


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXED)
def test_types_are_those_of_llama_cpp(family: str) -> None:
    """Every mixture gives tensors of these layers the types that llama_model_quantize gives them."""
    folder = model(family, "float32")
    path = our_gguf(folder, folder / "types.gguf", {}, 0)
    config = json.loads((folder / "config.json").read_text())
    tensors = map_tensors(config, Checkpoint.open(folder).tensors)
    entries = metadata(config, tensors, folder, 0)
    shape = ModelShape.from_metadata({entry.key: entry.value for entry in entries})
    recipes = [find_recipe(name) for name in ("Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS")]
    plans = plan_with_llama([(path, recipe.file_type, True, ()) for recipe in recipes])
    for recipe, plan in zip(recipes, plans, strict=True):
        names = [(tensor.name, tensor.shape) for tensor in tensors]
        ours = plan_types(names, recipe, shape, [name for name, _ in names])
        assert {name: kind.name.lower() for name, kind in ours.items()} == plan.types, recipe.name


@pytest.mark.parametrize("family", ["llama-tied", pytest.param("qwen2-moe", marks=pytest.mark.slow)])
def test_quantize_order(family: str) -> None:
    """llama_model_quantize writes tensors in the order that is said of it."""
    folder = model(family, "float32")
    quantized = folder / "quantized.gguf"
    quantize_with_llama(folder / "f32.gguf", quantized, ftype=2)
    names = [tensor.name for tensor in gguf.GGUFReader(quantized).tensors]
    assert names == quantize_order(sorted(names, reverse=True))


@pytest.mark.parametrize("family", families(*LATER_ROPE))
def test_spelling_of_transformers_4(family: str) -> None:
    """A config.json as transformers 4 wrote it gives the same tensors and the same header."""
    folder = model(family, "float32")
    new = json.loads((folder / "config.json").read_text())
    tensors = Checkpoint.open(folder).tensors
    results = [
        (map_tensors(config, tensors), metadata(config, map_tensors(config, tensors), folder, 0))
        for config in (new, spelled_as_before(new))
    ]
    assert results[0] == results[1]


def spelled_as_before(new: dict[str, Any]) -> dict[str, Any]:
    """transformers 5's config.json in transformers 4's spelling."""
    old = dict(new)
    if "text_config" in old:
        old["text_config"] = spelled_as_before(old["text_config"])
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    rope = dict(old.pop("rope_parameters", {}))
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            old[name] = rope.pop(name)
    kind = rope.pop("rope_type", "default")
    if kind == "default" and "mrope_section" in rope:
        kind = "mrope"
    if kind != "default":
        old["rope_scaling"] = rope | {"type": kind}
    return old
