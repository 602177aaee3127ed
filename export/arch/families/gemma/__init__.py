"""Google: Gemma 1 to 4."""

from __future__ import annotations

from lorafold.export.arch.families.gemma.dense import GEMMA, GEMMA2, GEMMA3
from lorafold.export.arch.families.gemma.fourth import GEMMA4
from lorafold.export.arch.families.gemma.nano import GEMMA3N

GEMMA_ROWS = (GEMMA, GEMMA2, GEMMA3, GEMMA3N, GEMMA4)
