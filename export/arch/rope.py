"""Rotary position embeddings: what config.json says, what the header says, and the factor tensors.

transformers 4 has `rope_theta` beside `rope_scaling` (with `type` or `rope_type`); transformers 5 has one
`rope_parameters`, which for Gemma 3 holds one entry for each kind of layer. The factor tensors are
`rope_freqs.weight` and `rope_factors_*.weight`.

Formulas: transformers' `modeling_rope_utils` (llama3, longrope) and llama.cpp's `ggml_rope_ext`, which
divides each frequency by its factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    ModelConfig,
    array,
    f32,
    head_dim,
    is_finite,
    is_whole,
)

# Kinds that llama.cpp names in the header; "llama3" and Gemma 4's "proportional" are a factor tensor instead,
# "default" is nothing.
SCALING_NAMES = {"linear": "linear", "yarn": "yarn", "longrope": "longrope", "su": "longrope"}
PLAIN_KINDS = ("default", "llama3", "dynamic", "proportional")
# Parameters that must be numbers above 0 if they are given.
NUMBERS = (
    "attention_factor",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "high_freq_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rope's parameters in one spelling, transformers 5's.

    Attributes:
        full: of all layers, or of those with full attention.
        sliding: of the layers with a sliding window, if they differ.
    """

    full: Mapping[str, Any]
    sliding: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The kind of scaling in lower case; "default" if there is none.

        "mrope" was the name for none in models that see images.
        """
        kind = str(self.full.get("rope_type") or "default").lower()
        return "default" if kind == "mrope" else kind


def read_rope(config: ModelConfig) -> Rope:
    """Rope's parameters, whichever way config.json spells them.

    Raises:
        InputError: the parameters are no object, or of a kind that llama.cpp cannot compute.
    """
    field = "rope_scaling"
    given = _object(config, field, config.get(field))
    layered = "full_attention" in given or "sliding_attention" in given
    full = _object(config, f"{field}.full_attention", given.get("full_attention")) if layered else given
    sliding = _object(config, f"{field}.sliding_attention", given.get("sliding_attention")) if layered else {}
    if "rope_type" not in full and "type" in full:
        full["rope_type"] = full["type"]
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if full.get(name) is None and config.get(name) is not None:
            full[name] = config.get(name)
    if config.raw.get("original_max_position_embeddings") is not None:  # transformers lets the outer one win
        full["original_max_position_embeddings"] = config.raw["original_max_position_embeddings"]
    if not sliding and config.get("rope_local_base_freq") is not None:
        sliding["rope_theta"] = config.get("rope_local_base_freq")
    for name in NUMBERS:
        for part in (full, sliding):
            if part.get(name) is not None and not (is_finite(part[name]) and part[name] > 0):
                raise config.wrong(f"{field}.{name}", part[name], "a number above 0")
    rope = Rope(full, sliding)
    if rope.kind not in SCALING_NAMES and rope.kind not in PLAIN_KINDS:
        known = ", ".join((*SCALING_NAMES, *PLAIN_KINDS))
        raise config.wrong(field, rope.kind, f"a rope_type that llama.cpp knows ({known})")
    if rope.kind in ("linear", "yarn") and full.get("factor") is None:
        raise config.wrong(f"{field}.factor", None, "a number above 0")
    return rope


def _object(config: ModelConfig, field: str, value: object) -> dict[str, Any]:
    """A copy of a JSON object; null is an empty one.

    Raises:
        InputError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise config.wrong(field, value, "an object")
    return dict(value)


def rotary_dim(config: ModelConfig) -> int:
    """How many of a head's columns are rotated."""
    return int(head_dim(config) * float(read_rope(config).full.get("partial_rotary_factor") or 1.0))


def scaling_name(config: ModelConfig) -> str | None:
    """The header's name of the scaling, if it has one."""
    return SCALING_NAMES.get(read_rope(config).kind)


def _scaled(name: str, *kinds: str) -> Any:
    """A getter of one rope parameter that is written for some kinds of scaling only."""

    def get(config: ModelConfig) -> Any:
        return read_rope(config).full.get(name) if scaling_name(config) in kinds else None

    return get


def _original_context(config: ModelConfig) -> int | None:
    """YaRN's context before scaling; transformers takes the model's own if it is not given."""
    if scaling_name(config) != "yarn":
        return None
    given = read_rope(config).full.get("original_max_position_embeddings")
    return config.integer("max_position_embeddings") if given is None else int(given)


def _attention_factor(config: ModelConfig) -> Any:
    """YaRN's factor on the attention scores, under either name."""
    if scaling_name(config) != "yarn":
        return None
    full = read_rope(config).full
    return full.get("attention_factor", full.get("attn_factor"))


def _yarn_magnitude(stretch: float, weight: float = 1.0) -> float:
    """YaRN's factor on sine and cosine for a stretched context (https://arxiv.org/abs/2309.00071, 3.4)."""
    return 1.0 if stretch <= 1.0 else 0.1 * weight * math.log(stretch) + 1.0


def _yarn_correction(config: ModelConfig) -> float | None:
    """What llama.cpp must multiply its own YaRN magnitude by; None if it is right by itself.

    llama.cpp reads none of the yarn_* entries in these architectures' graphs and always takes the paper's
    magnitude, but multiplies it by rope.scaling.attn_factor.
    """
    if scaling_name(config) != "yarn":
        return None
    full = read_rope(config).full
    stretch = float(full["factor"])
    wanted = full.get("attention_factor")
    if wanted is None and full.get("mscale") and full.get("mscale_all_dim"):
        wanted = _yarn_magnitude(stretch, full["mscale"]) / _yarn_magnitude(stretch, full["mscale_all_dim"])
    return None if wanted is None else float(wanted) / _yarn_magnitude(stretch)


def usual_yarn(config: ModelConfig) -> bool:
    """Whether YaRN's ramp, if there is one, is the one that llama.cpp computes."""
    full = read_rope(config).full
    return scaling_name(config) != "yarn" or (
        (full.get("beta_fast") or 32) == 32
        and (full.get("beta_slow") or 1) == 1
        and full.get("truncate", True) is not False
    )


SCALING = (
    Hyperparameter("rope.scaling.type", GGUFValueType.STRING, scaling_name),
    f32("rope.scaling.factor", _scaled("factor", "linear", "yarn")),
    Hyperparameter("rope.scaling.original_context_length", GGUFValueType.UINT32, _original_context),
    f32("rope.scaling.yarn_ext_factor", _scaled("extrapolation_factor", "yarn")),
    f32("rope.scaling.yarn_attn_factor", _attention_factor),
    f32("rope.scaling.yarn_beta_fast", _scaled("beta_fast", "yarn")),
    f32("rope.scaling.yarn_beta_slow", _scaled("beta_slow", "yarn")),
    f32("rope.scaling.attn_factor", _yarn_correction),
)


def _sections(config: ModelConfig) -> list[int] | None:
    """How many pairs of a head turn with time, height and width, padded to four; None without such."""
    given = read_rope(config).full.get("mrope_section")
    if given is None:
        return None
    if not (isinstance(given, list) and len(given) <= 4 and all(map(is_whole, given))):
        raise config.wrong("rope_scaling.mrope_section", given, "at most four whole numbers")
    return [*given, *[0] * (4 - len(given))]


SECTIONS = array("rope.dimension_sections", GGUFValueType.INT32, _sections)
FREQUENCY_BASE = f32("rope.freq_base", lambda config: read_rope(config).full.get("rope_theta"))
SLIDING_FREQUENCY_BASE = f32("rope.freq_base_swa", lambda config: read_rope(config).sliding.get("rope_theta"))


def llama3_factors(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """Llama 3's factors, which slow the low frequencies down and blend in between.

    Returns:
        {"rope_freqs.weight": rotary_dim/2 factors}, or nothing for other kinds of scaling.
    """
    rope = read_rope(config)
    if rope.kind != "llama3":
        return {}
    size, single = head_dim(config), np.float32
    factor, low, high = (
        float(rope.full.get(name, default))
        for name, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0))
    )
    context = float(rope.full.get("original_max_position_embeddings", 8192))
    theta = single(rope.full.get("rope_theta", 10000.0))
    # In float32 throughout, as transformers and llama.cpp's converter compute it.
    frequencies = single(1.0) / theta ** (np.arange(0, size, 2, dtype=single) / single(size))
    factors: list[float] = []
    for wavelength in single(2 * math.pi) / frequencies:
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (single(context) / wavelength - single(low)) / single(high - low)
            factors.append(float(single(1.0) / ((single(1.0) - smooth) / single(factor) + smooth)))
    return {"rope_freqs.weight": tuple(factors)}


def longrope_factors(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """Phi's factors for prompts beyond and within the original context.

    Returns:
        {"rope_factors_long.weight": …, "rope_factors_short.weight": …}, or nothing if there are none.

    Raises:
        InputError: the lists are incomplete or of the wrong length.
    """
    full = read_rope(config).full
    if not full.get("long_factor"):
        return {}
    half = rotary_dim(config) // 2
    found: dict[str, tuple[float, ...]] = {}
    for field, name in (("long_factor", "long"), ("short_factor", "short")):
        values = full.get(field)
        if not isinstance(values, list) or len(values) != half or not all(map(is_finite, values)):
            got = f"{len(values)} values" if isinstance(values, list) else values
            raise config.wrong(f"rope_scaling.{field}", got, f"{half} numbers (half the rotated columns)")
        found[f"rope_factors_{name}.weight"] = tuple(float(np.float32(value)) for value in values)
    return found


def longrope_attention_factor(config: ModelConfig) -> float | None:
    """Phi's factor on sine and cosine, from how far the context was stretched; None without factors.

    Formula: sqrt(1 + ln(stretch) / ln(original context)) (https://arxiv.org/abs/2402.13753).
    """
    full = read_rope(config).full
    if not full.get("long_factor"):
        return None
    if full.get("attention_factor") is not None:
        return float(full["attention_factor"])
    original = full["original_max_position_embeddings"]
    stretch = full.get("factor") or config.integer("max_position_embeddings") / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1.0 else 1.0
