"""Which tensor of a GGUF gets which ggml type.

The types are those that `llama_model_quantize` decides (llama.cpp, src/llama-quant.cpp). Its facts are rows
of `quant.recipes`, and tests compare with dry runs of the installed library.

Where llama.cpp has no answer, this module has one: a width that 32 does not divide falls back to F16 from
every type (llama.cpp refuses Q8_0, Q4_0 and their like there), and overrides also hold for the recipes F32,
F16 and BF16 (llama.cpp ignores them).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import InputError, UsageError
from lorafold.export.quant.recipes import (
    ABORTS_WITHOUT_WEIGHTS,
    FALCON_RULES,
    RECIPES,
    ModelShape,
    Recipe,
    Site,
    block_width,
)

Importance = Mapping[str, NDArray[np.float32]]
"""How much each column of a tensor matters, (cols,), by the tensor's name in the GGUF."""

# What a tensor is to the mixtures: the first name part that its name holds. Fused q-k-v counts as v.
TENSOR_ROLES: tuple[tuple[str, str], ...] = (
    ("attn_qkv.weight", "v"),
    ("attn_kv_b.weight", "v"),
    ("attn_v.weight", "v"),
    ("attn_k.weight", "k"),
    ("attn_q.weight", "q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)

# Matrices that stay in float32: too small to gain from fewer bits, or read element by element.
KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "per_layer_model_proj",
    "altup",
    "laurel",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
)
KEPT_NAMES = ("position_embd.weight", "token_types.weight")
# Of these the recipes of 16 bits narrow all the same, as the converter does; llama.cpp's quantizer leaves
# them as it finds them.
_NARROWED = re.compile(r"per_layer_model_proj|altup_(proj|router|unembd_proj)\.|laurel_[lr]\.")

# Where the type's blocks do not divide the width.
FALLBACKS: dict[Type, Type] = {
    **dict.fromkeys((Type.IQ1_S, Type.IQ1_M, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S), Type.IQ4_NL),
    **dict.fromkeys((Type.IQ3_XXS, Type.IQ3_S, Type.IQ4_XS), Type.IQ4_NL),
    **dict.fromkeys((Type.Q2_K, Type.Q3_K), Type.Q4_0),
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}

# An importance matrix does not cover these: they are looked up, or (output) not always collected.
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
UNWEIGHTED_NAMES = frozenset({*_EMBEDDINGS, "output.weight"})

# What an override may name: every type that some recipe or fallback writes.
TYPE_CHOICES: dict[str, Type] = {
    kind.name: kind
    for kind in sorted(
        {recipe.default for recipe in RECIPES.values()}
        | {kind for recipe in RECIPES.values() for rule in recipe.rules.values() for kind, _ in rule}
        | set(FALLBACKS.values())
    )
}

_BLOCK = re.compile(r"blk\.(\d+)\.")


def parse_override(text: str) -> tuple[str, Type]:
    """Read `REGEX=TYPE`, one `--tensor-type`.

    Returns:
        The regular expression, searched for in GGUF tensor names, and the type.

    Raises:
        UsageError: no "=", a regular expression that does not compile, an unknown type.
    """
    pattern, equals, name = text.rpartition("=")
    kind = TYPE_CHOICES.get(name.strip().upper())
    if not equals or not pattern:
        raise UsageError(
            f"expected REGEX=TYPE, got {text!r}", at="--tensor-type", fix="for example ffn_down=Q6_K"
        )
    if kind is None:
        raise UsageError(
            f"unknown tensor type {name!r} in {text!r}",
            at="--tensor-type",
            fix=f"choose one of {', '.join(TYPE_CHOICES)}",
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{pattern!r} is not a regular expression: {error}",
            at="--tensor-type",
            fix="escape it, or name part of the tensor",
        ) from None
    return pattern, kind


def plan_types(
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    recipe: Recipe,
    shape: ModelShape,
    imatrix: Collection[str] | None = None,
    overrides: Sequence[tuple[str, Type]] = (),
    kept: Mapping[str, Type] = MappingProxyType({}),
) -> dict[str, Type]:
    """Decide the type of every tensor.

    Args:
        tensors: GGUF names and numpy shapes (rows first, cols last) of the whole model.
        recipe: the mixture.
        shape: the model's sizes.
        imatrix: names of the tensors with importance weights, or None if there is no matrix.
        overrides: (regular expression, type); the first that is found in a name decides.
        kept: types of tensors that lose nothing in them; an override goes first.

    Returns:
        Type by name, in the order of `tensors`.

    Raises:
        UsageError: the recipe needs an importance matrix and there is none, or an override matches nothing.
        InputError: the importance matrix lacks a tensor that needs it.
    """
    patterns = [(re.compile(pattern), kind) for pattern, kind in overrides]
    tied = all(name != "output.weight" for name, _ in tensors)
    fused = sum(_role(name) == "v" for name, _ in tensors)
    seen: Counter[str] = Counter()
    used: set[str] = set()
    types: dict[str, Type] = {}
    for name, dims in sorted(tensors, key=lambda tensor: (_layer(tensor[0]), tensor[0])):
        if not is_quantizable(name, dims):
            narrow = not recipe.quantized and _NARROWED.search(name) is not None
            types[name] = recipe.default if narrow else Type.F32
            continue
        found = next(((p, kind) for p, kind in patterns if p.search(name)), None)
        if found is not None:
            used.add(found[0].pattern)
            kind = found[1]
        elif name in kept:
            kind = kept[name]
        elif not recipe.quantized:
            kind = recipe.default
        else:
            role = "output" if tied and _role(name) == "token_embd" else _role(name)
            by_name = role in ("up", "gate", "down") and shape.experts > 1 and not recipe.below_3_bits
            site = Site(
                shape=shape,
                layer=_layer(name) if by_name else seen[role],
                layers=fused if role == "v" else shape.layers,
                imatrix=imatrix is not None,
            )
            kind = _decide(recipe, role, site, width=dims[-1])
            seen[role] += 1
        types[name] = _fit(kind, dims[-1])
    _check_overrides(overrides, used)
    _check_weights(types, recipe, imatrix)
    return {name: types[name] for name, _ in tensors}


def is_quantizable(name: str, dims: tuple[int, ...]) -> bool:
    """Whether a tensor takes the recipe's types: a matrix `….weight` that is no norm, router or position.

    Args:
        name: GGUF name.
        dims: numpy shape; leading ones do not count, as ggml drops them.
    """
    # math.prod of all but the last: a (1, 1, n) tensor is one row, which ggml calls one-dimensional.
    matrix = len(dims) >= 2 and math.prod(dims[:-1]) > 1
    kept = name in KEPT_NAMES or any(part in name for part in KEPT_PARTS)
    return matrix and name.endswith("weight") and not kept


def _decide(recipe: Recipe, role: str, site: Site, width: int) -> Type:
    """The mixture's type of one tensor, before its width is looked at."""
    falcon = site.shape.arch == "falcon"
    if role == "output" and falcon:
        return Type.Q8_0
    if role == "output":
        return recipe.output if width % block_width(recipe.default) == 0 else Type.Q8_0
    if site.shape.experts == 8 and role in recipe.eight_experts:
        return recipe.eight_experts[role]
    rule = recipe.rules.get(role, ())
    if falcon:
        rule = FALCON_RULES.get(recipe.name, {}).get(role, () if role == "attn_output" else rule)
    kind = next((kind for kind, condition in rule if condition(site)), recipe.default)
    # One v matrix serves eight query heads there: more bits cost next to nothing.
    if role == "v" and site.shape.is_70b and not recipe.below_3_bits and kind in (Type.Q3_K, Type.Q4_K):
        return Type.Q5_K
    return kind


def _fit(kind: Type, width: int) -> Type:
    """The type, or the nearest whose blocks divide the width."""
    for candidate in (kind, FALLBACKS.get(kind, Type.F16)):
        if width % block_width(candidate) == 0:
            return candidate
    return Type.F16


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "token_embd"
    return next((role for part, role in TENSOR_ROLES if part in name), "other")


def _layer(name: str) -> int:
    """The block a tensor belongs to; -1 before all blocks, as llama.cpp sorts."""
    found = _BLOCK.match(name)
    return int(found.group(1)) if found else -1


def _check_overrides(overrides: Sequence[tuple[str, Type]], used: set[str]) -> None:
    for pattern, kind in overrides:
        if pattern not in used:
            raise UsageError(
                f"{pattern}={kind.name} decides no tensor's type",
                at="--tensor-type",
                fix="choose GGUF names such as blk.0.ffn_down.weight (see --plan); an earlier pattern wins,"
                " and norms, biases and routers always stay F32",
            )


def _check_weights(types: Mapping[str, Type], recipe: Recipe, imatrix: Collection[str] | None) -> None:
    """Refuse a plan that cannot be carried out well without weights that are not there."""
    lacking = [
        name
        for name, kind in types.items()
        if kind in (ABORTS_WITHOUT_WEIGHTS if name in UNWEIGHTED_NAMES else recipe.weighted_types)
        and (imatrix is None or name not in imatrix)
    ]
    if not lacking:
        return
    first = f"{lacking[0]} as {types[lacking[0]].name}"
    if imatrix is None:
        raise UsageError(
            f"{recipe.name} needs an importance matrix for {len(lacking)} tensors (first: {first})",
            at="--quant",
            fix="pass one with --imatrix, or choose Q2_K, IQ3_S or larger",
        )
    raise InputError(
        f"the importance matrix lacks {len(lacking)} tensors that need it (first: {first})",
        at="--imatrix",
        fix="collect it from this model on more text, or choose Q2_K, IQ3_S or larger",
    )
