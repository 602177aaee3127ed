"""Llamas with a difference, by maker, or by kind for makers of one model."""

from __future__ import annotations

from lorafold.export.arch.families.llama_like.baidu import BAIDU_ROWS
from lorafold.export.arch.families.llama_like.dense import APERTUS, ARCEE, INDEX, SEED_OSS, SMOLLM3
from lorafold.export.arch.families.llama_like.lg import LG_ROWS
from lorafold.export.arch.families.llama_like.routed import ROUTED_ROWS
from lorafold.export.arch.families.llama_like.tencent import TENCENT_ROWS

LLAMA_LIKE_ROWS = (
    *(APERTUS, ARCEE, INDEX, SEED_OSS, SMOLLM3),
    *BAIDU_ROWS,
    *LG_ROWS,
    *ROUTED_ROWS,
    *TENCENT_ROWS,
)
