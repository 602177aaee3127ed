"""Models that normalise with LayerNorm, a module for each maker."""

from __future__ import annotations

from lorafold.export.arch.families.layer_norm.bigcode import GPT_BIGCODE, STARCODER2
from lorafold.export.arch.families.layer_norm.bigscience import BLOOM
from lorafold.export.arch.families.layer_norm.eleuther import GPT_NEOX
from lorafold.export.arch.families.layer_norm.inception import JAIS
from lorafold.export.arch.families.layer_norm.mosaic import MPT
from lorafold.export.arch.families.layer_norm.stability import STABLELM

LAYER_NORM_ROWS = (BLOOM, GPT_BIGCODE, GPT_NEOX, JAIS, MPT, STABLELM, STARCODER2)
