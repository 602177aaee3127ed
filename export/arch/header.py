"""The entries of a GGUF header that come from a model's config.json and model card.

They stand in the order in which llama.cpp's converter writes them. What the converter writes differs, in
header or tensors, in these listed cases:
- The head of a tied model whose architecture llama.cpp loads only with `output.weight` (OLMo 2, InternLM 2,
  Qwen 2 MoE) is written from the embedding; the converter's file does not load.
- YaRN's `attention_factor`, `mscale` and `mscale_all_dim`, and longrope's `attention_factor` and `factor`, go
  into rope.scaling.attn_factor, which llama.cpp reads; the entries that the converter writes for them are not
  read.
- GPT-2's, Phi 2's, Falcon's and StarCoder's inner width is the one that is given; the converter always
  writes four times the outer.
- StableLM's norms of single heads become one matrix; the converter collects them, writes none and stops.
- ERNIE 4.5's shared experts are as wide as that many experts; the converter divides the dense width by the
  key-value heads, which gives the same in the released models.
- GLM 4.5 counts the layers that predict further tokens if the files hold them, and not if they do not.
- Gemma 3 keeps embedding rows beyond the tokenizer's last token, as every other architecture does.
- The router's function of DeepSeek, GLM-4.7-Flash, K-EXAONE, dots.llm1 and MiniMax M2 is written even if
  config.json does not name it (those of transformers 5 do not): llama.cpp would take softmax. In the same
  way it is written that Trinity's weights of experts are scaled to one.
- GLM 4 9B has the context and the epsilon of its config.json; the converter writes the width and 1e-5.
- GLM 4V and Solar Open rotate as many columns as transformers does if config.json does not say how many; the
  converter takes half of a head.
- Falcon H1's head is written even if it is tied: head and embedding are multiplied by different numbers.
- GPT-NeoX and MPT have a general.file_type, as every other file has.
- The pooling of an embedding model is written for every architecture; the converter does so for some.
- A block that predicts further tokens (MTP) is counted if the files hold it, whatever config.json says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFValueType

from lorafold.export.arch.hyperparameters import ModelConfig, read_all
from lorafold.export.arch.model_card import general_metadata
from lorafold.export.arch.pooling import pooling_entries
from lorafold.export.arch.table import view_of
from lorafold.export.arch.tensors import header_numbers
from lorafold.export.gguf.parts import KeyValue, MappedTensor
from lorafold.weights import Checkpoint


def metadata(
    config: Mapping[str, Any],
    tensors: Sequence[MappedTensor],
    folder: Path,
    file_type: int,
    *,
    name: str | None = None,
) -> list[KeyValue]:
    """The header's entries except the tokenizer's, in the converter's order.

    Args:
        config: as for `map_tensors`.
        tensors: what `map_tensors` gave; the number of weights goes into general.size_label.
        folder: the base: its name, README.md and generation_config.json tell general.*.
        file_type: llama.cpp's number of the mixture (`enum llama_ftype`).
        name: general.name, if it is not to be guessed from the folder.

    Raises:
        InputError: a field of config.json or of the model card cannot be used.
    """
    row, view = view_of(config)
    view = replace(
        view,
        raw={**view.raw, **_numbers(config, folder)} if row.numbers else view.raw,
        further_layers=_further_layers(tensors, view),
    )
    general = general_metadata(folder, tensors, name)
    file_type_entry = KeyValue("general.file_type", file_type, GGUFValueType.UINT32)
    hyperparameters = read_all((*row.hyperparameters, *row.extensions), view, row.gguf)
    before = {entry.key for entry in read_all(row.hyperparameters, view, row.gguf)}
    return [
        KeyValue("general.architecture", row.gguf, GGUFValueType.STRING),
        *read_all(row.first, view, row.gguf),
        *general,
        *(entry for entry in hyperparameters if entry.key in before),
        file_type_entry,
        *pooling_entries(folder, row.gguf),
        *(entry for entry in hyperparameters if entry.key not in before),
        KeyValue("general.quantization_version", GGML_QUANT_VERSION, GGUFValueType.UINT32),
    ]


def _numbers(config: Mapping[str, Any], folder: Path) -> dict[str, list[float]]:
    """Numbers that the base keeps in tensors and a GGUF in its header, layer by layer."""
    source = Checkpoint.open(folder)
    named = header_numbers(config, source.tensors)
    return {field: [float(source.rows(name, 0, 1)[0, 0]) for name in names] for field, names in named.items()}


def _further_layers(tensors: Sequence[MappedTensor], config: ModelConfig) -> int:
    """How many blocks there are behind the last layer that the config counts."""
    blocks = [int(found[1]) + 1 for tensor in tensors if (found := re.match(r"blk\.(\d+)\.", tensor.name))]
    return max(max(blocks, default=0) - config.integer("num_hidden_layers"), 0)
