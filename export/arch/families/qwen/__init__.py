"""Alibaba: Qwen 2, 3 and 3.5."""

from __future__ import annotations

from lorafold.export.arch.families.qwen.dense import QWEN2, QWEN2_VL, QWEN3, QWEN3_ASR, QWEN3_VL
from lorafold.export.arch.families.qwen.linear import QWEN3_NEXT, QWEN35, QWEN35_MOE
from lorafold.export.arch.families.qwen.routed import QWEN2_MOE, QWEN3_MOE, QWEN3_VL_MOE

QWEN_ROWS = (
    QWEN2,
    QWEN2_MOE,
    QWEN2_VL,
    QWEN3,
    QWEN3_MOE,
    QWEN3_VL,
    QWEN3_VL_MOE,
    QWEN3_ASR,
    QWEN3_NEXT,
    QWEN35,
    QWEN35_MOE,
)
