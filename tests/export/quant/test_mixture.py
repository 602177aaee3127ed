"""The types of a plan: against dry runs of llama.cpp's quantizer, by hand, and the errors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as Type
from gguf_skeletons import NEED_IMATRIX, Skeleton
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import plan_with_llama

from lorafold.errors import InputError, UsageError
from lorafold.export.quant.mixture import is_quantizable, parse_override, plan_types
from lorafold.export.quant.recipes import RECIPES, ModelShape, Recipe, block_width, find_recipe

SMALL = {
    "llama": Skeleton("llama", 9, 256, 512, 4, 4),
    "llama grouped": Skeleton("llama", 17, 512, 768, 8, 2),
    "qwen2 tied": Skeleton("qwen2", 8, 512, 1280, 4, 1, tied=True),
    "eight experts": Skeleton("llama", 16, 256, 512, 8, 2, experts=8),
    "phi3 fused": Skeleton("phi3", 16, 256, 512, 4, 4, style="fused"),
    "width 96": Skeleton("qwen2", 9, 96, 160, 4, 2, tied=True),
    "width 48": Skeleton("llama", 9, 48, 80, 4, 4),
}
REAL = {
    "llama 1B": Skeleton("llama", 16, 2048, 8192, 32, 8, 128256, tied=True),
    "llama 7B": Skeleton("llama", 32, 4096, 11008, 32, 32, 32000),
    "llama 8B": Skeleton("llama", 32, 4096, 14336, 32, 8, 128256),
    "llama 65B": Skeleton("llama", 80, 8192, 22016, 64, 64, 32000),
    "llama 70B": Skeleton("llama", 80, 8192, 28672, 64, 8, 128256),
    "smollm2 135M": Skeleton("llama", 30, 576, 1536, 9, 3, 49152, tied=True),
    "mixtral 8x7B": Skeleton("llama", 32, 4096, 14336, 32, 8, 32000, experts=8),
    "80 layers of 8 experts": Skeleton("llama", 80, 1024, 512, 16, 2, experts=8),
    "4 experts": Skeleton("llama", 24, 1024, 512, 16, 8, experts=4),
    "2 experts": Skeleton("llama", 24, 1024, 512, 16, 8, experts=2),
    "qwen2 0.5B": Skeleton("qwen2", 24, 896, 4864, 14, 2, 151936, tied=True),
    "qwen2 1.5B": Skeleton("qwen2", 28, 1536, 8960, 12, 2, 151936, tied=True),
    "qwen2 7B": Skeleton("qwen2", 28, 3584, 18944, 28, 4, 152064),
    "qwen2 72B": Skeleton("qwen2", 80, 8192, 29568, 64, 8, 152064),
    "qwen2 72B ungrouped": Skeleton("qwen2", 80, 8192, 24576, 64, 64, 152064),
    "qwen2moe A2.7B": Skeleton("qwen2moe", 24, 2048, 1408, 16, 16, 151936, experts=60, style="shared"),
    "qwen3moe 30B": Skeleton("qwen3moe", 48, 2048, 768, 32, 4, 151936, experts=128),
    "gemma2 2B": Skeleton("gemma2", 26, 2304, 9216, 8, 4, 256000, tied=True),
    "phi3 mini": Skeleton("phi3", 32, 3072, 8192, 32, 32, 32064, style="fused"),
    "gpt2": Skeleton("gpt2", 12, 768, 3072, 12, 12, 50257, tied=True, style="gpt2"),
}
OVERRIDES: list[tuple[str, Type]] = [
    (r"blk\.[0-3]\.attn_(v|qkv)", Type.Q8_0),
    ("ffn_down", Type.Q6_K),
    ("attn_output", Type.F16),
]


def random_skeleton(generator: random.Random) -> Skeleton:
    """A model of random depth, widths and grouping; some widths are not divisible by 256 or by 32."""
    arch, style = generator.choice([("llama", "separate"), ("qwen2", "separate"), ("phi3", "fused")])
    experts = generator.choice([0, 0, 2, 4, 8, 16]) if arch == "llama" else 0
    heads = generator.choice([4, 8, 16])
    return Skeleton(
        arch=arch,
        layers=generator.choice([1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 40, 80, 81]),
        width=heads * generator.choice([4, 16, 20, 32, 64]),
        inner=generator.choice([256, 384, 272, 1024]),
        heads=heads,
        kv_heads=heads // generator.choice([1, 2, 4]),
        experts=experts,
        tied=generator.random() < 0.5,
        style=style,
    )


def compare_with_llama(skeletons: dict[str, Skeleton], folder: Path) -> int:
    """Plan every recipe for every model, with imatrix, without and with overrides; return the decisions."""
    cases = []
    for number, (label, skeleton) in enumerate(skeletons.items()):
        path = skeleton.write(folder / f"{number}.gguf")
        for recipe in RECIPES.values():
            variants: list[tuple[bool, list[tuple[str, Type]]]] = [(False, []), (True, [])]
            if recipe.quantized:  # llama.cpp ignores overrides in the plain recipes
                variants.append((True, OVERRIDES))
            cases += [(label, path, recipe, imatrix, rules) for imatrix, rules in variants]
    natives = plan_with_llama(
        [(path, recipe.file_type, imatrix, rules) for _, path, recipe, imatrix, rules in cases]
    )
    decisions = 0
    for (label, _, recipe, imatrix, rules), native in zip(cases, natives, strict=True):
        where = f"{label}, {recipe.name}, imatrix {imatrix}, overrides {bool(rules)}"
        skeleton = skeletons[label]
        tensors = skeleton.tensors()
        names = {name for name, _ in tensors} if imatrix else None
        shape = ModelShape.from_metadata(skeleton.metadata())
        if native.needs_imatrix:
            with pytest.raises(UsageError, match="needs an importance matrix"):
                plan_types(tensors, recipe, shape, names, rules)
            continue
        planned = {n: t.name.lower() for n, t in plan_types(tensors, recipe, shape, names, rules).items()}
        if native.refusal is not None:
            # llama.cpp has no answer for these widths; ours is F16.
            assert "no tensor type fallback is defined" in native.refusal, where
            widths = {name: dims[-1] for name, dims in tensors}
            odd = {n for n, width in widths.items() if width % 32 and is_quantizable(n, dict(tensors)[n])}
            assert odd and {planned[name] for name in odd} == {"f16"}, where
            continue
        wrong = {n: (planned[n], t) for n, t in native.types.items() if planned[n] != t}
        assert not wrong and len(planned) == len(native.types), (where, wrong)
        decisions += len(planned)
    return decisions


def test_small_models_agree_with_llama_cpp(tmp_path: Path) -> None:
    assert compare_with_llama(SMALL, tmp_path) > 40_000


@pytest.mark.slow
def test_real_models_agree_with_llama_cpp(tmp_path: Path) -> None:
    decisions = compare_with_llama(REAL, tmp_path)
    assert decisions > 600_000


@pytest.mark.slow
def test_random_models_agree_with_llama_cpp(tmp_path: Path) -> None:
    generator = random.Random(20)
    decisions = compare_with_llama({str(i): random_skeleton(generator) for i in range(32)}, tmp_path)
    assert decisions > 600_000


LLAMA = Skeleton("llama", 8, 256, 512, 4, 1)


def shape_of(skeleton: Skeleton) -> ModelShape:
    return ModelShape.from_metadata(skeleton.metadata())


def plan(skeleton: Skeleton, recipe: str, **arguments: Any) -> dict[str, Type]:
    return plan_types(skeleton.tensors(), find_recipe(recipe), shape_of(skeleton), **arguments)


def test_q4_k_m_by_hand() -> None:
    """Eight layers: the first (8/8 = 1), every third after it, and the last get more bits for v and down."""
    types = plan(LLAMA, "Q4_K_M")
    more = [layer for layer in range(8) if types[f"blk.{layer}.ffn_down.weight"] == Type.Q6_K]
    assert more == [0, 3, 6, 7]
    assert [i for i in range(8) if types[f"blk.{i}.attn_v.weight"] == Type.Q6_K] == more
    assert types["output.weight"] == Type.Q6_K
    assert types["token_embd.weight"] == types["blk.1.ffn_down.weight"] == Type.Q4_K
    assert types["blk.0.attn_norm.weight"] == Type.F32
    assert list(types) == [name for name, _ in LLAMA.tensors()]


def test_imatrix_changes_the_plan_where_llama_cpp_says_so() -> None:
    names = {name for name, _ in LLAMA.tensors()}
    assert plan(LLAMA, "Q4_0")["blk.0.ffn_down.weight"] == Type.Q4_0
    assert plan(LLAMA, "Q4_0", imatrix=names)["blk.0.ffn_down.weight"] == Type.Q4_1
    assert plan(LLAMA, "IQ4_XS")["blk.0.ffn_down.weight"] == Type.Q5_K
    assert plan(LLAMA, "IQ4_XS", imatrix=names)["blk.0.ffn_down.weight"] == Type.IQ4_XS


def test_overrides_hold_for_plain_recipes_and_the_first_match_decides() -> None:
    rules = [parse_override("ffn_down=q8_0"), parse_override(r"blk\.1\.=Q6_K")]
    types = plan(LLAMA, "F16", overrides=rules)
    assert types["blk.1.ffn_down.weight"] == Type.Q8_0
    assert types["blk.1.attn_q.weight"] == Type.Q6_K
    assert types["blk.2.attn_q.weight"] == Type.F16
    assert types["blk.1.attn_norm.weight"] == Type.F32


@settings(deadline=None)
@given(
    cols=st.integers(1, 1024),
    rows=st.integers(1, 8),
    recipe=st.sampled_from([r for r in RECIPES.values() if r.name not in NEED_IMATRIX]),
    name=st.sampled_from(["output.weight", "token_embd.weight", "blk.0.attn_v.weight", "blk.1.ffn_up.bias"]),
)
def test_every_type_fits_its_width(cols: int, rows: int, recipe: Recipe, name: str) -> None:
    kind = plan_types([(name, (rows, cols))], recipe, shape_of(LLAMA))[name]
    assert cols % block_width(kind) == 0
    if rows == 1 or name.endswith("bias"):
        assert kind == Type.F32


def test_unknown_recipe_lists_all() -> None:
    with pytest.raises(UsageError) as error:
        find_recipe("Q4_K_X")
    assert error.value.exit_code == 2
    assert all(name in str(error.value) for name in RECIPES)
    assert find_recipe(" q4_k_m ").name == find_recipe("Q4_K").name == "Q4_K_M"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ffn_down", "expected REGEX=TYPE"),
        ("=Q8_0", "expected REGEX=TYPE"),
        ("ffn_down=Q9_K", "unknown tensor type 'Q9_K'.*choose one of.*Q8_0"),
        ("ffn_(down=Q8_0", "is not a regular expression"),
    ],
)
def test_bad_overrides(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_override(text)


@pytest.mark.parametrize("pattern", ["ffn_dwon", "attn_norm", "output_norm.weight"])
def test_override_that_decides_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="decides no tensor's type"):
        plan(LLAMA, "Q4_K_M", overrides=[(pattern, Type.Q8_0)])


@pytest.mark.parametrize("name", NEED_IMATRIX)
def test_recipes_that_need_an_imatrix(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} needs an importance matrix.*--imatrix"):
        plan(LLAMA, name)


def test_imatrix_that_lacks_a_tensor_names_it() -> None:
    names = {name for name, _ in LLAMA.tensors()} - {"blk.5.ffn_up.weight"}
    with pytest.raises(InputError, match=r"lacks 1 tensors.*blk\.5\.ffn_up\.weight as IQ2_XXS"):
        plan(LLAMA, "IQ2_XXS", imatrix=names)


def test_token_embedding_is_never_sent_to_a_type_that_ggml_aborts_on() -> None:
    names = {name for name, _ in LLAMA.tensors()} - {"token_embd.weight"}
    for kind in (Type.IQ2_XXS, Type.IQ2_XS, Type.IQ1_S):
        with pytest.raises(InputError, match=r"token_embd\.weight"):
            plan(LLAMA, "IQ2_M", imatrix=names, overrides=[("token_embd", kind)])


def test_per_layer_head_counts_count_with_their_first_entry() -> None:
    keys = {**LLAMA.metadata(), "llama.attention.head_count_kv": [2, 4, 4, 4]}
    assert ModelShape.from_metadata(keys).grouping == 2
