"""llama.cpp's quantization mixtures as tables: what each name of `--quant` means.

A recipe is a default type and, for some roles of tensors, choices of (type, condition) tried in order. The
facts are those of `llama_model_quantize` (llama.cpp, src/llama-quant.cpp), tested against dry runs of the
installed library; `quant.mixture` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import gguf
from gguf import GGMLQuantizationType as Type

from lorafold.errors import UsageError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that decide types.

    Args:
        arch: GGUF's `general.architecture` ("llama", "qwen2").
        layers: number of blocks.
        heads: attention heads of the first layer.
        kv_heads: key-value heads of the first layer.
        experts: experts in a block, 0 in a dense model.
    """

    arch: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> ModelShape:
        """Read the sizes from GGUF keys and values; a per-layer list counts with its first entry."""
        arch = str(metadata["general.architecture"])

        def first(key: str, default: int) -> int:
            value = metadata.get(f"{arch}.{key}", default)
            return int(value[0]) if isinstance(value, Sequence) else int(str(value))

        heads = first("attention.head_count", 0)
        return cls(
            arch=arch,
            layers=first("block_count", 0),
            heads=heads,
            kv_heads=first("attention.head_count_kv", heads),
            experts=first("expert_count", 0),
        )

    @property
    def grouping(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes the model for one of the 70B class, by its layers alone."""
        if self.arch == "llama" and (self.experts == 8 or self.heads == self.kv_heads):
            return False
        return self.layers == _LAYERS_OF_70B.get(self.arch)


_LAYERS_OF_70B = {"llama": 80, "qwen2": 80}


@dataclass(frozen=True, slots=True)
class Site:
    """Where a tensor stands when its type is decided."""

    shape: ModelShape
    layer: int  # the how-manieth of its role, or the layer its name says
    layers: int
    imatrix: bool  # whether there is one at all


SiteTest = Callable[[Site], bool]
TypeChoice = tuple[Type, SiteTest]
TypeRule = tuple[TypeChoice, ...]  # the first choice whose condition holds; none: the recipe's default


def _always(site: Site) -> bool:
    return True


def _grouped(site: Site) -> bool:
    return site.shape.grouping >= 4


def _grouped_or_experts(site: Site) -> bool:
    return site.shape.grouping >= 4 or site.shape.experts >= 4


def _no_imatrix(site: Site) -> bool:
    return not site.imatrix


def _more_bits(site: Site) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = site.layers // 8
    return site.layer < eighth or site.layer >= 7 * site.layers // 8 or (site.layer - eighth) % 3 == 2


def _more_bits_of_eight(site: Site) -> bool:
    return site.shape.experts == 8 and _more_bits(site)


def _eighth(site: Site) -> bool:
    return site.layer < site.layers // 8


def _eighth_with_imatrix(site: Site) -> bool:
    return site.imatrix and _eighth(site)


def _eighth_without_imatrix(site: Site) -> bool:
    return not site.imatrix and _eighth(site)


def _sixteenth(site: Site) -> bool:
    return site.layer < site.layers // 16


def _middle(site: Site) -> bool:
    return site.layers // 8 <= site.layer < 7 * site.layers // 8


def _first_two(site: Site) -> bool:
    return site.layer < 2


def _first_four(site: Site) -> bool:
    return site.layer < 4


# Models of exactly eight experts afford more for what all experts share.
EIGHT = {"v": Type.Q8_0, "k": Type.Q8_0}
EIGHT_AND_OUTPUT = {**EIGHT, "attn_output": Type.Q5_K}


# Types that come out as garbage without importance weights; of these ggml itself aborts on three.
NEEDS_WEIGHTS = frozenset({Type.IQ3_XXS, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ1_M, Type.IQ1_S})
ABORTS_WITHOUT_WEIGHTS = frozenset({Type.IQ2_XXS, Type.IQ2_XS, Type.IQ1_S})


@dataclass(frozen=True, slots=True)
class Recipe:
    """One mixture: what `--quant` names.

    Args:
        name: as llama.cpp's tools spell it.
        file_type: GGUF's `general.file_type`, llama.cpp's `enum llama_ftype`.
        default: the type of every matrix that no rule names.
        rules: by role.
        output: the type of the output matrix (of the token embedding if both are one).
        eight_experts: by role, in models of exactly eight experts; comes before the rules.
        below_3_bits: the family under three bits a weight, which llama.cpp decides apart: it counts
            feed-forward tensors instead of reading their layer, and knows no 70B class.
    """

    name: str
    file_type: int
    default: Type
    rules: Mapping[str, TypeRule] = field(default_factory=dict)
    output: Type = Type.Q6_K
    eight_experts: Mapping[str, Type] = field(default_factory=lambda: EIGHT)
    below_3_bits: bool = False

    @property
    def quantized(self) -> bool:
        """Whether the default type stores blocks."""
        return block_width(self.default) > 1

    @property
    def weighted_types(self) -> frozenset[Type]:
        """Types that this recipe never writes without importance weights."""
        # Q2_K does without weights in other recipes, but not throughout a whole model.
        return NEEDS_WEIGHTS | {Type.Q2_K} if self.name == "Q2_K_S" else NEEDS_WEIGHTS


def _low(name: str, file_type: int, default: Type, few: Type, attn_output: TypeRule = ()) -> Recipe:
    """A recipe of the family below three bits; `few` is what its important matrices get."""
    rules = {
        "v": ((Type.Q4_K, _grouped_or_experts), (few, _always)),
        "down": ((few, _eighth),),
        "attn_output": attn_output,
        "token_embd": ((few, _always),),
    }
    eight = {"k": Type.Q4_K, "attn_output": Type.Q5_K}
    return Recipe(name, file_type, default, rules, Type.Q5_K, eight, below_3_bits=True)


_IQ4_RULES: dict[str, TypeRule] = {
    "v": ((Type.Q5_K, _grouped),),
    "down": ((Type.Q5_K, _eighth_without_imatrix),),
}
_MORE_BITS: dict[str, TypeRule] = {"v": ((Type.Q6_K, _more_bits),), "down": ((Type.Q6_K, _more_bits),)}
_TO_IQ3_S: TypeRule = ((Type.IQ3_S, _always),)
_TO_IQ2_XXS: TypeRule = ((Type.IQ2_XXS, _always),)

_ALL = (
    Recipe("F32", 0, Type.F32),
    Recipe("F16", 1, Type.F16),
    Recipe("BF16", 32, Type.BF16),
    Recipe("Q8_0", 7, Type.Q8_0, output=Type.Q8_0),
    Recipe("Q6_K", 18, Type.Q6_K),
    Recipe("Q5_K_M", 17, Type.Q5_K, _MORE_BITS),
    Recipe("Q5_K_S", 16, Type.Q5_K),
    Recipe("Q5_1", 9, Type.Q5_1),
    Recipe("Q5_0", 8, Type.Q5_0, {"down": ((Type.Q5_1, _eighth_with_imatrix),)}),
    Recipe("Q4_K_M", 15, Type.Q4_K, _MORE_BITS, eight_experts=EIGHT_AND_OUTPUT),
    Recipe(
        "Q4_K_S",
        14,
        Type.Q4_K,
        {"v": ((Type.Q5_K, _first_four),), "down": ((Type.Q5_K, _eighth),)},
        eight_experts=EIGHT_AND_OUTPUT,
    ),
    Recipe("Q4_1", 3, Type.Q4_1),
    Recipe("Q4_0", 2, Type.Q4_0, {"down": ((Type.Q4_1, _eighth_with_imatrix),)}),
    Recipe("IQ4_NL", 25, Type.IQ4_NL, _IQ4_RULES, eight_experts=EIGHT_AND_OUTPUT),
    Recipe("IQ4_XS", 30, Type.IQ4_XS, _IQ4_RULES, eight_experts=EIGHT_AND_OUTPUT),
    Recipe(
        "Q3_K_L",
        13,
        Type.Q3_K,
        {
            "v": ((Type.Q5_K, _always),),
            "down": ((Type.Q5_K, _always),),
            "attn_output": ((Type.Q5_K, _always),),
        },
        # llama.cpp leaves the attention output of eight experts at Q3_K in this mixture only.
        eight_experts={**EIGHT, "attn_output": Type.Q3_K},
    ),
    Recipe(
        "Q3_K_M",
        12,
        Type.Q3_K,
        {
            "v": ((Type.Q5_K, _first_two), (Type.Q4_K, _always)),
            "down": ((Type.Q5_K, _sixteenth), (Type.Q4_K, _always)),
            "attn_output": ((Type.Q4_K, _always),),
        },
        eight_experts=EIGHT_AND_OUTPUT,
    ),
    Recipe("Q3_K_S", 11, Type.Q3_K, eight_experts=EIGHT_AND_OUTPUT),
    Recipe(
        "IQ3_M",
        27,
        Type.IQ3_S,
        {
            "v": ((Type.Q4_K, _always),),
            "down": ((Type.Q4_K, _eighth), (Type.Q4_K, _more_bits_of_eight)),
            "attn_output": ((Type.Q4_K, _always),),
        },
        eight_experts=EIGHT_AND_OUTPUT,
    ),
    Recipe("IQ3_S", 26, Type.IQ3_S, {"v": ((Type.Q4_K, _grouped),)}, eight_experts=EIGHT_AND_OUTPUT),
    Recipe(
        "IQ3_XS",
        22,
        Type.IQ3_S,
        {
            "v": ((Type.Q4_K, _grouped),),
            "k": ((Type.IQ3_XXS, _always),),
            "q": ((Type.IQ3_XXS, _always),),
            "up": ((Type.IQ3_XXS, _middle),),
            "gate": ((Type.IQ3_XXS, _middle),),
        },
        eight_experts=EIGHT_AND_OUTPUT,
    ),
    Recipe(
        "IQ3_XXS",
        23,
        Type.IQ3_XXS,
        {
            "v": ((Type.Q4_K, _grouped), (Type.IQ3_S, _no_imatrix)),
            "k": ((Type.IQ2_S, _always),),
            "q": ((Type.IQ2_S, _always),),
            "down": ((Type.Q4_K, _eighth_without_imatrix), (Type.Q3_K, _no_imatrix)),
            "attn_output": ((Type.IQ3_S, _always),),
            "token_embd": ((Type.IQ3_S, _always),),
        },
        output=Type.Q5_K,
        eight_experts=EIGHT_AND_OUTPUT,
    ),
    Recipe(
        "Q2_K",
        10,
        Type.Q2_K,
        {
            "v": ((Type.Q4_K, _grouped), (Type.Q3_K, _always)),
            "down": ((Type.Q3_K, _always),),
            "attn_output": ((Type.Q3_K, _always),),
        },
        eight_experts=EIGHT_AND_OUTPUT,
    ),
    Recipe("Q2_K_S", 21, Type.Q2_K, {"v": ((Type.Q4_K, _grouped),), "down": ((Type.Q4_K, _eighth),)}),
    _low("IQ2_M", 29, Type.IQ2_S, Type.IQ3_S, _TO_IQ3_S),
    _low("IQ2_S", 28, Type.IQ2_XS, Type.IQ3_S, _TO_IQ3_S),
    _low("IQ2_XS", 20, Type.IQ2_XS, Type.Q2_K),
    _low("IQ2_XXS", 19, Type.IQ2_XXS, Type.Q2_K),
    _low("IQ1_M", 31, Type.IQ1_M, Type.Q2_K, _TO_IQ2_XXS),
    _low("IQ1_S", 24, Type.IQ1_S, Type.Q2_K, _TO_IQ2_XXS),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}

# The short names that llama.cpp's tools accept too.
SHORT_NAMES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def find_recipe(name: str) -> Recipe:
    """The recipe of a name, in any case of letters.

    Raises:
        UsageError: there is none; the message lists those that begin so, or all.
    """
    upper = name.strip().upper()
    try:
        return RECIPES[SHORT_NAMES.get(upper, upper)]
    except KeyError:
        begun = [known for known in RECIPES if upper and known.startswith(upper)]
        fix = f"choose one of {', '.join(begun or RECIPES)}"
        raise UsageError(f"unknown quantization type {name!r}", at="--quant", fix=fix) from None


def block_width(kind: Type) -> int:
    """Values in a block of the type, 1 for plain floats."""
    return int(gguf.GGML_QUANT_SIZES[kind][0])


# What Falcon has in place of a recipe's rules; its attention output has none else, its head is always Q8_0.
FALCON_RULES: dict[str, dict[str, TypeRule]] = {
    "Q3_K_M": {"down": ((Type.Q5_K, _sixteenth), (Type.Q4_K, _more_bits))},
    "Q3_K_L": {"down": ((Type.Q4_K, _always),), "attn_output": ((Type.Q4_K, _always),)},
    "Q4_K_S": {"down": ()},
    "Q4_K_M": {"down": ((Type.Q6_K, _sixteenth), (Type.Q5_K, _more_bits))},
}
