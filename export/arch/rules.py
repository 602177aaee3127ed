"""The words in which `arch.table` describes an architecture, and the rules that several of them share.

A `TensorRule` says which Hugging Face tensor becomes which GGUF tensor. An `Architecture` is one row of the
table; what it demands of a config is in `conditions`. Names of GGUF tensors are those of gguf-py's
TENSOR_NAMES; shapes are spelled with the names of `hyperparameters.dimensions`, rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gguf import GGUFValueType

from lorafold.export.arch.conditions import TIED, Condition
from lorafold.export.arch.hyperparameters import (
    Hyperparameter,
    ModelConfig,
    array,
    f32,
    head_dim,
    kv_heads,
    u32,
)
from lorafold.export.arch.rope import (
    FREQUENCY_BASE,
    SCALING,
    SECTIONS,
    SLIDING_FREQUENCY_BASE,
)
from lorafold.export.gguf.parts import ColumnRange

Sizes = Mapping[str, int]
# Placeholders in a source's name: the sources with the numbers from 0 up are stacked in that order.
STACKS = {
    "{expert}": "experts",
    "{head}": "heads",
    "{kv_head}": "kv_heads",
    "{plane}": "planes",
}


@dataclass(frozen=True, slots=True)
class TensorRule:
    """Which Hugging Face tensor becomes which GGUF tensor.

    Attributes:
        name: the GGUF name; "{layer}" stands for each layer's number.
        source: the Hugging Face name; "{expert}" stands for each expert, whose tensors are stacked, and so
            do the other placeholders of `STACKS`.
        shape: the source's shape, in names of sizes.
        becomes: the GGUF tensor's shape if it is not the source's (stacked and transposed ones need none);
            rows beyond the source's are zeros.
        rows: (start, stop) ranges of the source's rows that are taken; None takes all.
        columns: (start, stop, step) ranges of its columns that are taken; None takes all. See
            `gguf.parts.MappedTensor`.
        scales: what each of the ranges of `rows` is multiplied by, one after the other; None leaves them as
            they are. A rule without `rows` has one range.
        op: key in `gguf.rows.ROW_OPS`.
        group: the size that blocks of rows are multiples of; it is the op's parameter too.
        transpose: the source is stored transposed; in a stack (three dimensions), each of its matrices, or
            of the matrices that are `rows`.
        flat: the source is a vector that fills the rows of `becomes`.
        layers: whether a layer has the tensor, by its number from 0; None: all but those that predict further
            tokens.
        when: a config switch without which the rule does not count, or "not SWITCH".
        unless: a config switch with which the source may be absent.
        instead: the source to take if `unless` is on and the source is absent, for a tensor that llama.cpp
            insists on.
    """

    name: str
    source: str
    shape: tuple[str, ...]
    becomes: tuple[str, ...] | None = None
    rows: Callable[[Sizes], Sequence[tuple[int, int]]] | None = None
    columns: Callable[[Sizes], Sequence[ColumnRange]] | None = None
    scales: Callable[[ModelConfig], Sequence[float]] | None = None
    op: str | None = None
    group: str = "one"
    transpose: bool = False
    flat: bool = False
    when: str | None = None
    unless: str | None = None
    instead: str | None = None
    layers: Callable[[ModelConfig, int], bool] | None = None

    @property
    def stacked(self) -> str | None:
        """The size that counts the sources which are stacked, or None if there is one source."""
        return next((size for mark, size in STACKS.items() if mark in self.source), None)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the table: how models of one Hugging Face class become GGUF.

    Attributes:
        classes: names in config.json's `architectures`.
        model_types: names in config.json's `model_type`, for files without `architectures`.
        gguf: llama.cpp's name, general.architecture.
        tensors: rules for tensors outside and inside layers.
        chosen: whether a model is this row's, by its config.json; for classes with several rows.
        variants: alternative rules for the same tensors (experts one by one, or fused); the first of which
            any tensor is present counts.
        hyperparameters: entries of the header before general.file_type, as the converter orders them.
        extensions: entries after it.
        first: entries before all of these.
        generated: tensors that come from the config, by their GGUF name.
        numbers: tensors of one number in each layer which become a list in the header: the tensor's name
            with "{layer}", by the name under which `hyperparameters` read the list.
        defaults: what transformers' config class takes for a missing field: a value, or a function of the
            config.
        aliases: canonical field -> this family's name.
        spellings: (prefix in the file, canonical prefix) of tensor names.
        skipped: (regular expression, reason) of tensors that llama.cpp has no use for.
        canonical: a tensor's name as the rules spell it, if prefixes are not all.
        sizes: sizes beyond those of `hyperparameters.dimensions` that shapes are spelled in.
        further: what becomes of layers behind the last one that the config counts, which predict further
            tokens: "kept" as blocks of their own, "left out", or "" if there can be none.
        required: what must hold, or the result would compute something else.
        caveats: what llama.cpp leaves out; the result is right within these limits.
    """

    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    gguf: str
    tensors: tuple[TensorRule, ...]
    hyperparameters: tuple[Hyperparameter, ...]
    extensions: tuple[Hyperparameter, ...] = ()
    first: tuple[Hyperparameter, ...] = ()
    chosen: Callable[[ModelConfig], bool] | None = None
    variants: tuple[tuple[TensorRule, ...], ...] = ()
    generated: Callable[[ModelConfig], dict[str, tuple[float, ...]]] | None = None
    numbers: Mapping[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    spellings: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    canonical: Callable[[str, ModelConfig], str] | None = None
    sizes: Callable[[ModelConfig], dict[str, int]] | None = None
    further: str = ""
    required: tuple[Condition, ...] = ()
    caveats: tuple[Condition, ...] = ()


# transformers' defaults that most families share.
DEFAULTS: dict[str, Any] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, TIED: False}
LAYER = "model.layers.{layer}."

EMBEDDING = TensorRule("token_embd.weight", "model.embed_tokens.weight", ("vocab", "width"))
OUTPUT_NORM = TensorRule("output_norm.weight", "model.norm.weight", ("width",))
OUTPUT = TensorRule("output.weight", "lm_head.weight", ("vocab", "width"), unless=TIED)
# llama.cpp loads some architectures only with a head of their own.
OUTPUT_ALWAYS = replace(OUTPUT, instead=EMBEDDING.source)
MODEL = (EMBEDDING, OUTPUT_NORM, OUTPUT)


def layer(name: str, source: str, *shape: str, **rest: Any) -> TensorRule:
    """A rule for a tensor of each layer: `name` below "blk.N.", `source` below "model.layers.N."."""
    return TensorRule("blk.{layer}." + name, LAYER + source, shape, **rest)


def with_bias(rule: TensorRule, when: str | None = None, **changes: Any) -> tuple[TensorRule, TensorRule]:
    """A linear layer's weight and its bias, the latter under a config switch if one is given."""
    name, source = (text.removesuffix("weight") + "bias" for text in (rule.name, rule.source))
    bias = replace(rule, name=name, source=source, shape=rule.shape[:1], when=when, **changes)
    return rule, bias


def respelled(old: str, new: str, *rules: TensorRule) -> tuple[TensorRule, ...]:
    """The same rules for sources that are spelled otherwise."""
    return tuple(replace(rule, source=rule.source.replace(old, new)) for rule in rules)


def normed(*rules: TensorRule) -> tuple[TensorRule, ...]:
    """Gemma's rules: every norm is stored less one."""
    return tuple(replace(rule, op="add_one") if rule.name.endswith("norm.weight") else rule for rule in rules)


NORMS = (
    layer("attn_norm.weight", "input_layernorm.weight", "width"),
    layer("ffn_norm.weight", "post_attention_layernorm.weight", "width"),
)
QUERY = layer("attn_q.weight", "self_attn.q_proj.weight", "query", "width")
KEY = layer("attn_k.weight", "self_attn.k_proj.weight", "key", "width")
VALUE = layer("attn_v.weight", "self_attn.v_proj.weight", "key", "width")
ATTENTION_OUTPUT = layer("attn_output.weight", "self_attn.o_proj.weight", "width", "query")
ATTENTION = (QUERY, KEY, VALUE, ATTENTION_OUTPUT)
# llama.cpp's llama graph rotates adjacent pairs, Hugging Face's halves.
INTERLEAVED_QUERY = replace(QUERY, op="interleave_rows", group="head_dim")
INTERLEAVED_KEY = replace(KEY, op="interleave_rows", group="head_dim")
INTERLEAVED_ATTENTION = (INTERLEAVED_QUERY, INTERLEAVED_KEY, VALUE, ATTENTION_OUTPUT)
HEAD_NORMS = (
    layer("attn_q_norm.weight", "self_attn.q_norm.weight", "head_dim"),
    layer("attn_k_norm.weight", "self_attn.k_norm.weight", "head_dim"),
)
GATE = layer("ffn_gate.weight", "mlp.gate_proj.weight", "ff", "width")
UP = layer("ffn_up.weight", "mlp.up_proj.weight", "ff", "width")
DOWN = layer("ffn_down.weight", "mlp.down_proj.weight", "width", "ff")
MLP = (GATE, UP, DOWN)
GATE_UP = layer("ffn_up.weight", "mlp.gate_up_proj.weight", "2_ff", "width")


def expert_rules(prefix: str, down: str, gate: str, up: str, ff: str, order: str) -> tuple[TensorRule, ...]:
    """Rules for experts that are stored one by one.

    Args:
        prefix: of an expert's tensors within a layer, with "{expert}".
        down: the down projection's name.
        gate: the gate's name.
        up: the up projection's name.
        ff: the size that is an expert's inner width.
        order: the order in which the converter emits the three, e.g. "down gate up".
    """
    rules = {
        "down": layer("ffn_down_exps.weight", f"{prefix}.{down}.weight", "width", ff),
        "gate": layer("ffn_gate_exps.weight", f"{prefix}.{gate}.weight", ff, "width"),
        "up": layer("ffn_up_exps.weight", f"{prefix}.{up}.weight", ff, "width"),
    }
    return tuple(rules[name] for name in order.split())


def half_rows(part: int, ff: str, count: str = "experts") -> Callable[[Sizes], Sequence[tuple[int, int]]]:
    """The upper (0) or lower (1) half of the rows of each of `count` matrices of 2 `ff` rows."""

    def rows(sizes: Sizes) -> list[tuple[int, int]]:
        inner = sizes[ff]
        starts = ((2 * number + part) * inner for number in range(sizes[count]))
        return [(start, start + inner) for start in starts]

    return rows


def fused_experts(
    ff: str, gate_up: str = "mlp.experts.gate_up_proj", down: str = "mlp.experts.down_proj"
) -> tuple[TensorRule, ...]:
    """Rules for transformers 5's fused experts: gate above up in one (experts, 2 ff, width), and down."""
    fused: dict[str, Any] = {"becomes": ("experts", ff, "width")}
    shape = ("experts", f"2_{ff}", "width")
    return (
        layer("ffn_gate_exps.weight", gate_up, *shape, rows=half_rows(0, ff), **fused),
        layer("ffn_up_exps.weight", gate_up, *shape, rows=half_rows(1, ff), **fused),
        layer("ffn_down_exps.weight", down, "experts", "width", ff),
    )


def expert_variants(
    which: Callable[[ModelConfig, int], bool] | None = None,
    ff: str = "expert_ff",
    order: str = "down gate up",
) -> tuple[tuple[TensorRule, ...], ...]:
    """Experts below `mlp.experts`: one by one, as released, or fused, as transformers 5 may save them.

    Args:
        which: the layers that have them; all by default.
        ff: the size that is an expert's inner width.
        order: as for `expert_rules`.
    """
    one_by_one = expert_rules("mlp.experts.{expert}", "down_proj", "gate_proj", "up_proj", ff, order)
    both = (one_by_one, fused_experts(ff))
    return both if which is None else tuple(in_layers(which, *rules) for rules in both)


def shared_expert_rules(prefix: str) -> tuple[TensorRule, ...]:
    """Rules for the expert that sees every token; `prefix` is that of its tensors within a layer."""
    return (
        layer("ffn_gate_shexp.weight", f"{prefix}.gate_proj.weight", "shared_ff", "width"),
        layer("ffn_up_shexp.weight", f"{prefix}.up_proj.weight", "shared_ff", "width"),
        layer("ffn_down_shexp.weight", f"{prefix}.down_proj.weight", "width", "shared_ff"),
    )


ROUTER = layer("ffn_gate_inp.weight", "mlp.gate.weight", "experts", "width")
ROUTER_BIAS = layer("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", "experts")
SHARED = shared_expert_rules("mlp.shared_experts")


def in_layers(which: Callable[[ModelConfig, int], bool], *rules: TensorRule) -> tuple[TensorRule, ...]:
    """The same rules for some layers only."""
    return tuple(replace(rule, layers=which) for rule in rules)


def everywhere(config: ModelConfig, layer: int) -> bool:
    """In every layer, and in those that predict further tokens."""
    return True


def predicts_further(config: ModelConfig, layer: int) -> bool:
    """Whether a layer lies behind the last one that the config counts."""
    return layer >= config.integer("num_hidden_layers")


# What a layer has that predicts a further token, beside those of an ordinary layer.
PREDICTION = in_layers(
    predicts_further,
    layer("nextn.eh_proj.weight", "eh_proj.weight", "width", "2_width"),
    layer("nextn.enorm.weight", "enorm.weight", "width"),
    layer("nextn.hnorm.weight", "hnorm.weight", "width"),
    layer("nextn.shared_head_norm.weight", "shared_head.norm.weight", "width"),
)


def is_dense(config: ModelConfig, layer: int) -> bool:
    """Whether a layer is one of the first `first_k_dense_replace`, which have no experts."""
    return layer < config.integer("first_k_dense_replace", least=0)


def has_experts(config: ModelConfig, layer: int) -> bool:
    """Whether a layer lies behind those of `is_dense`."""
    return not is_dense(config, layer)


def dense_first(otherwise: int = 1) -> Callable[[ModelConfig], int]:
    """A default for `first_k_dense_replace` by `mlp_layer_types`, transformers 5's spelling of it.

    Args:
        otherwise: the number if neither is given.
    """

    def count(config: ModelConfig) -> int:
        given = config.get("mlp_layer_types")
        if not isinstance(given, list):
            return otherwise
        return next((at for at, kind in enumerate(given) if kind != "dense"), len(given))

    return count


DENSE_FIRST = Condition(
    "mlp_layer_types",
    lambda config: (
        config.get("mlp_layer_types") is None
        or config.get("mlp_layer_types")
        == [
            "dense" if is_dense(config, at) else "sparse" for at in range(config.integer("num_hidden_layers"))
        ]
    ),
    "dense layers first and experts in all others",
)


def layer_kinds(config: ModelConfig) -> list[str]:
    """`layer_types`, or its default.

    Raises:
        InputError: it is not one word for each layer.
    """
    kinds, layers = config.get("layer_types"), config.integer("num_hidden_layers")
    if not (isinstance(kinds, list) and len(kinds) == layers and all(isinstance(k, str) for k in kinds)):
        raise config.wrong("layer_types", kinds, f"a list of {layers} kinds, one for each layer")
    return kinds


def every_fourth_full(config: ModelConfig) -> list[str]:
    """A default for `layer_types`: windows, but for every fourth layer."""
    layers = range(1, config.integer("num_hidden_layers") + 1)
    return ["sliding_attention" if number % 4 else "full_attention" for number in layers]


BLOCK_COUNT = u32("block_count", lambda config: config.integer("num_hidden_layers") + config.further_layers)
# Which layers have a window.
WINDOW = u32("attention.sliding_window", "sliding_window")
WINDOW_PATTERN = array(
    "attention.sliding_window_pattern",
    GGUFValueType.BOOL,
    lambda config: [kind == "sliding_attention" for kind in layer_kinds(config)],
)
# What every header has, in the converter's order.
SIZES = (
    BLOCK_COUNT,
    u32("context_length", "max_position_embeddings"),
    u32("embedding_length", "hidden_size"),
    u32("feed_forward_length", "intermediate_size"),
    u32("attention.head_count", "num_attention_heads"),
    u32("attention.head_count_kv", kv_heads),
)
ROPE = (*SCALING, SECTIONS, FREQUENCY_BASE, SLIDING_FREQUENCY_BASE)
RMS_EPSILON = f32("attention.layer_norm_rms_epsilon", "rms_norm_eps")
EXPERTS = (
    u32("expert_count", "num_experts"),
    u32("expert_used_count", "num_experts_per_tok"),
)
LAYER_NORM_EPSILON = f32("attention.layer_norm_epsilon", "layer_norm_eps")
# The width of a head, if the config gives it or has a default.
HEAD = (u32("attention.key_length", "head_dim"), u32("attention.value_length", "head_dim"))
COMMON = (*SIZES, *ROPE, RMS_EPSILON, *EXPERTS, *HEAD)
# The same for models that normalise with LayerNorm.
LAYER_NORM_COMMON = (*SIZES, *ROPE, LAYER_NORM_EPSILON, *EXPERTS, *HEAD)
# How a router's scores become weights, as `expert_gating_func` numbers it.
SOFTMAX, SIGMOID = 1, 2
GATED_BY_SIGMOID = u32("expert_gating_func", lambda _: SIGMOID)
EXPERT_WIDTH = u32("expert_feed_forward_length", "moe_intermediate_size")
EXPERT_GROUPS = (u32("expert_group_count", "n_group"), u32("expert_group_used_count", "topk_group"))
EXPERT_SCALE = f32("expert_weights_scale", "routed_scaling_factor")
EXPERTS_NORMED = Hyperparameter("expert_weights_norm", GGUFValueType.BOOL, "norm_topk_prob")
DENSE_BLOCKS = u32("leading_dense_block_count", "first_k_dense_replace")
VOCABULARY = u32("vocab_size", "vocab_size")
ROTATED = u32("rope.dimension_count", head_dim)


HEAD_COPY = ((r"^lm_head\.weight$", "a copy of the embedding, which llama.cpp uses as the head"),)
