"""What llama.cpp computes without reading it from the file, so that a config has to agree.

A `Condition` is one such thing. As `required` of an architecture it refuses a config that says otherwise, as
`caveats` it becomes a note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorafold.export.arch.hyperparameters import ModelConfig, divided_width, head_dim
from lorafold.export.arch.rope import read_rope, usual_yarn

TIED = "tie_word_embeddings"


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that llama.cpp takes for granted.

    Attributes:
        field: the config field it is about.
        holds: whether a config agrees.
        expected: what llama.cpp computes, to complete "…, expected".
    """

    field: str
    holds: Callable[[ModelConfig], bool]
    expected: str


def fixed(field: str, value: Any) -> Condition:
    """A config field that is built into llama.cpp's graph."""
    return Condition(
        field,
        lambda config: bool(config.get(field) == value),
        f"{value!r}: llama.cpp computes no other here",
    )


def activation(name: str, *same: str, of: str = "hidden_act") -> Condition:
    """The activation function is built into llama.cpp's graph."""
    allowed = (None, name, *same)
    return Condition(
        of, lambda config: config.get(of) in allowed, f"{name!r}: llama.cpp computes no other here"
    )


def switched_off(field: str) -> Condition:
    """A config switch whose tensors or computation llama.cpp lacks here."""
    return Condition(field, lambda config: not config.get(field), "false: llama.cpp has no such part here")


def undivided_heads(config: ModelConfig) -> bool:
    """Whether heads times head width is the model's width."""
    return config.get("head_dim") is None or config.integer("head_dim") == divided_width(config)


SILU = activation("silu", "swish")


EVEN_HEADS = Condition(
    "head_dim", lambda config: head_dim(config) % 2 == 0, "an even number: rope rotates pairs of columns"
)


PLAIN_HEADS = Condition(
    "head_dim",
    undivided_heads,
    "hidden_size / num_attention_heads: llama.cpp takes no other here",
)


def _all_full(kinds: Any) -> bool:
    """Whether `layer_types` gives no layer a window."""
    return isinstance(kinds, list) and bool(kinds) and set(kinds) == {"full_attention"}


FULL_ATTENTION = Condition(
    "sliding_window",
    lambda config: (
        config.get("sliding_window") is None
        or config.get("use_sliding_window") is False
        or _all_full(config.get("layer_types"))
        or config.integer("sliding_window", least=0) >= config.integer("max_position_embeddings")
    ),
    "none: llama.cpp lets this architecture see the whole context, so texts longer than the window differ",
)


def rope_kinds(*kinds: str, partial: bool = False) -> tuple[Condition, ...]:
    """What kinds of rope there are in llama.cpp's graph of an architecture; dynamic scaling is a caveat.

    Args:
        kinds: scaling besides none and dynamic.
        partial: whether a part of each head may go unrotated.
    """
    allowed = ("default", "dynamic", *kinds)
    expected = " or ".join(repr(kind) for kind in allowed)
    known = Condition(
        "rope_scaling",
        lambda config: read_rope(config).kind in allowed,
        f"rope_type {expected}: llama.cpp computes no other here",
    )
    ramp = Condition(
        "rope_scaling",
        usual_yarn,
        "beta_fast 32, beta_slow 1 and truncate: llama.cpp computes no other YaRN here",
    )
    whole = Condition(
        "partial_rotary_factor",
        lambda config: (read_rope(config).full.get("partial_rotary_factor") or 1.0) == 1.0,
        "1: llama.cpp rotates whole heads here",
    )
    return (known, ramp) if partial else (known, ramp, whole)


def plain_rope(theta: float | None = None) -> Condition:
    """Rope without scaling, and with the base that llama.cpp takes if its header has none."""

    def holds(config: ModelConfig) -> bool:
        rope = read_rope(config)
        return rope.kind == "default" and (
            theta is None or float(rope.full.get("rope_theta") or theta) == theta
        )

    expected = "plain rope" if theta is None else f"{theta:.0f} without scaling"
    field = "rope_scaling" if theta is None else "rope_theta"
    return Condition(field, holds, f"{expected}: llama.cpp computes no other here")


TIED_HEAD = Condition(TIED, lambda config: config.flag(TIED), "true: llama.cpp has no head of its own here")


# What llama.cpp leaves out of most architectures; both matter for long texts only.
LIMITS = (
    FULL_ATTENTION,
    Condition(
        "rope_scaling",
        lambda config: read_rope(config).kind != "dynamic",
        "none: llama.cpp leaves dynamic scaling out, so texts longer than max_position_embeddings differ",
    ),
)
