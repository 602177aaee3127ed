r"""Mamba 2 layers, which several makers mix with attention: their sizes, tensors and header entries.

in_proj: | gate: inner rows | input: inner | B, C: groups * state each | dt: heads |
                            \______ what the convolution sees ______/
"""

from __future__ import annotations

from collections.abc import Callable

from lorafold.export.arch.hyperparameters import Hyperparameter, ModelConfig, u32
from lorafold.export.arch.rules import TensorRule, in_layers, layer


def mamba_sizes(config: ModelConfig) -> dict[str, int]:
    """Sizes of a layer, from the config's `mamba_…` fields.

    Raises:
        InputError: the heads cannot be shared out among the groups.
    """
    heads, groups = config.integer("mamba_n_heads"), config.integer("mamba_n_groups")
    if heads % groups:
        raise config.wrong("mamba_n_groups", groups, f"a divisor of the {heads} heads")
    inner = heads * config.integer("mamba_d_head")
    channels = inner + 2 * groups * config.integer("mamba_d_state")
    return {
        "mamba_heads": heads,
        "mamba_groups": groups,
        "mamba_inner": inner,
        "mamba_group": inner // groups,
        "mamba_channels": channels,
        "mamba_in": inner + channels + heads,
        "kernel": config.integer("mamba_d_conv"),
    }


def mamba_rules(prefix: str, which: Callable[[ModelConfig, int], bool]) -> tuple[TensorRule, ...]:
    """Rules for the tensors below `prefix` in some layers."""
    column = ("mamba_heads", "one")
    return in_layers(
        which,
        layer("ssm_in.weight", prefix + "in_proj.weight", "mamba_in", "width"),
        layer(
            "ssm_conv1d.weight",
            prefix + "conv1d.weight",
            *("mamba_channels", "one", "kernel"),
            becomes=("mamba_channels", "kernel"),
        ),
        layer("ssm_conv1d.bias", prefix + "conv1d.bias", "mamba_channels", when="mamba_conv_bias"),
        layer("ssm_dt.bias", prefix + "dt_bias", "mamba_heads"),
        layer("ssm_a", prefix + "A_log", "mamba_heads", becomes=column, transpose=True, op="negative_exp"),
        layer("ssm_d", prefix + "D", "mamba_heads", becomes=column, transpose=True),
        layer(
            "ssm_norm.weight",
            prefix + "norm.weight",
            "mamba_inner",
            becomes=("mamba_groups", "mamba_group"),
            flat=True,
        ),
        layer("ssm_out.weight", prefix + "out_proj.weight", "width", "mamba_inner"),
    )


MAMBA_HEADER: tuple[Hyperparameter, ...] = (
    u32("ssm.conv_kernel", "mamba_d_conv"),
    u32("ssm.state_size", "mamba_d_state"),
    u32("ssm.group_count", "mamba_n_groups"),
    u32("ssm.inner_size", lambda config: config.integer("mamba_n_heads") * config.integer("mamba_d_head")),
    u32("ssm.time_step_rank", "mamba_n_heads"),
)
ENDLESS_CONTEXT = u32("context_length", lambda _: 1 << 20)
"""A state has no longest context; llama.cpp's converter writes this number."""
