"""The tensors of a GGUF file, each made of which rows of which Hugging Face tensors, by the table's rules.

They stand in the order in which llama.cpp's converter writes them. A tensor that is missing, too many, or of
another shape is an error that names it. Only names and shapes are looked at, no weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorafold.errors import InputError
from lorafold.export.arch.hyperparameters import ModelConfig, dimensions
from lorafold.export.arch.rules import STACKS, Architecture, TensorRule
from lorafold.export.arch.table import FOLDER_WORKS, view_of
from lorafold.export.gguf.parts import MappedTensor, RowRange
from lorafold.weights import TensorInfo

# Buffers that old checkpoints store beside the weights; they follow from the config.
_BUFFERS = (
    (r"(^|\.)rotary_emb\.inv_freq$", "follows from the config"),
    (r"\.(attn|attention)\.(masked_)?bias$", "a mask that follows from the config"),
)
BUFFER_REASONS = frozenset(reason for _, reason in _BUFFERS)
_MARKS = [mark.strip("{}") for mark in STACKS]
# What is named in an error about many tensors.
_NAMED = 8


def map_tensors(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> list[MappedTensor]:
    """What each tensor of the GGUF file is made of.

    Args:
        config: the parsed config.json; after a fold, with `vocab_size` and `tie_word_embeddings` as the fold
            left them (`Folded.config`).
        tensors: the source's tensors by name; only names, shapes, files are looked at.

    Returns:
        The GGUF tensors in the converter's order: generated ones, then by file and Hugging Face name.

    Raises:
        InputError: no such architecture; the config asks for what llama.cpp does not compute; a tensor is
            missing, has another shape than the config says, or is none of the architecture's.
    """
    row, view = view_of(config)
    actual = {_canonical(name, row, view): name for name in tensors}
    view = replace(view, further_layers=_further(row, view, actual))
    sizes = sizes_of(row, view)
    rules = [rule for rule in (*row.tensors, *_variants(row, actual, view)) if _counts(rule, view)]
    _check_number(rules, sizes, len(tensors))
    _check(view, row)
    order = {name: place for place, name in enumerate(_file_order(tensors))}
    found: list[tuple[int, int, MappedTensor]] = []
    missing: list[str] = []
    used: set[str] = set()
    for number, rule in enumerate(rules):
        for layer in layers_of(rule, view):
            wanted = _wanted(rule, layer, sizes, actual, view)
            absent = [source for source in wanted if source not in actual]
            missing += absent
            if absent or not wanted:
                continue
            names = [actual[source] for source in wanted]
            for name in names:
                _check_shape(tensors[name], rule, sizes)
            used.update(names)
            last = max(order[name] for name in names)
            if "{expert}" in rule.source:
                last = _last_part(rules, layer, sizes, actual, order, last)
            found.append((last, number, _mapped(rule, layer, names, sizes, view)))
    if missing:
        raise InputError(
            f"{_some(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            at="model.safetensors",
            fix="download the model again, or correct config.json if it is of another model",
        )
    in_header = {name for names in header_numbers(config, tensors).values() for name in names}
    unknown = sorted(set(tensors) - used - in_header - skipped_tensors(config, tensors).keys())
    if unknown:
        raise InputError(
            f"{_some(unknown)} {'is' if len(unknown) == 1 else 'are'} no part of this {row.classes[0]}",
            at="model.safetensors",
            fix=f"correct config.json if it is of another model; {FOLDER_WORKS}",
        )
    found.sort(key=lambda item: item[:2])
    generated = row.generated(view) if row.generated else {}
    made = [MappedTensor(name, (len(values),), constant=values) for name, values in generated.items()]
    return made + [tensor for _, _, tensor in found]


def skipped_tensors(config: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, str]:
    """Tensors that llama.cpp has no use for.

    Args:
        config: the parsed config.json.
        tensors: names.

    Returns:
        Reason by name.
    """
    row, view = view_of(config)
    skipped = {
        name: reason
        for name in tensors
        for pattern, reason in (*_BUFFERS, *row.skipped)
        if re.search(pattern, name)
    }
    if row.further == "left out":
        for name in tensors:
            if _behind(_canonical(name, row, view), view) >= 0:
                skipped[name] = "predicts further tokens, which llama.cpp leaves out here"
    return skipped


def header_numbers(config: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of one number each that a GGUF keeps in its header.

    Args:
        config: the parsed config.json.
        tensors: names.

    Returns:
        For each entry of the row's `numbers` the tensors that are there, layer by layer.
    """
    row, view = view_of(config)
    if not row.numbers:
        return {}
    actual = {_canonical(name, row, view): name for name in tensors}
    names = {
        field: [pattern.format(layer=layer) for layer in range(view.integer("num_hidden_layers"))]
        for field, pattern in row.numbers.items()
    }
    return {field: [actual[name] for name in some if name in actual] for field, some in names.items()}


def sizes_of(row: Architecture, config: ModelConfig) -> dict[str, int]:
    """The sizes that an architecture's shapes are spelled in.

    Raises:
        InputError: a field of the config cannot be used.
    """
    return dimensions(config) | (row.sizes(config) if row.sizes else {})


def layers_of(rule: TensorRule, config: ModelConfig) -> list[int]:
    """The layers that have a rule's tensor; [0] for a tensor outside layers."""
    if "{layer}" not in rule.name:
        return [0]
    layers = config.integer("num_hidden_layers")
    if rule.layers is None:
        return list(range(layers))
    return [layer for layer in range(layers + config.further_layers) if rule.layers(config, layer)]


def quantize_order(names: Iterable[str]) -> list[str]:
    """The order in which llama_model_quantize writes tensors: by (layer, name), those of no layer first."""

    def key(name: str) -> tuple[int, bytes]:
        in_layer = re.match(r"blk\.(\d+)\.", name)
        return (int(in_layer.group(1)) if in_layer else -1, name.encode())

    return sorted(names, key=key)


def _check_number(rules: Sequence[TensorRule], sizes: Mapping[str, int], held: int) -> None:
    """Refuse a config that asks for far more tensors than there are, before counting through their names."""
    wanted = sum(
        (sizes["layers"] if "{layer}" in rule.source and rule.layers is None else 1)
        * (sizes.get(rule.stacked, 0) if rule.stacked else 1)
        for rule in rules
    )
    if wanted > 2 * held + 1000:
        raise InputError(
            f"num_hidden_layers {sizes['layers']} asks for {wanted} tensors, the files hold {held}",
            at="config.json: num_hidden_layers",
            fix="download the config.json that belongs to these weights",
        )


def _check(config: ModelConfig, row: Architecture) -> None:
    """Refuse what would be computed wrongly, rather than write it."""
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
        raise InputError(
            f"the weights are quantized already ({method})",
            at="config.json: quantization_config",
            fix="choose the model it was quantized from, in 16 or 32 bit",
        )
    for rule in row.required:
        if not rule.holds(config):
            error = config.wrong(rule.field, config.get(rule.field), rule.expected)
            raise InputError(error.problem, at=error.at, fix=FOLDER_WORKS)


def _canonical(name: str, row: Architecture, config: ModelConfig) -> str:
    """A tensor's name as the table spells it."""
    for spelled, canonical in row.spellings:
        if name.startswith(spelled):
            name = canonical + name.removeprefix(spelled)
            break
    return name if row.canonical is None else row.canonical(name, config)


def _behind(name: str, config: ModelConfig) -> int:
    """How many layers behind the last one that the config counts a tensor lies; -1 if it does not."""
    found = re.match(r"model\.layers\.(\d{1,9})\.", name)
    return max(int(found[1]) - config.integer("num_hidden_layers"), -1) if found else -1


def _further(row: Architecture, config: ModelConfig, names: Iterable[str]) -> int:
    """How many blocks behind the last layer are kept."""
    if row.further != "kept":
        return 0
    # Blocks are counted in order, so there are no more of them than tensors.
    found = [_behind(name, config) + 1 for name in names]
    if (count := max(found, default=0)) > len(found):
        problem = f"a tensor lies {count:,} blocks behind the last layer of config.json"
        raise InputError(problem, at="model.safetensors", fix="download the model again")
    return count


def _variants(row: Architecture, actual: Mapping[str, str], config: ModelConfig) -> tuple[TensorRule, ...]:
    """The variants whose tensors are present: of the layers, and of those that predict further tokens."""
    rules = _variant(row, actual, replace(config, further_layers=0))
    if not config.further_layers:
        return rules
    last = config.integer("num_hidden_layers")
    behind = {name: at for name, at in actual.items() if _behind(name, config) >= 0}
    further = next(
        (some for some in row.variants if any(_source(rule, last, 0) in behind for rule in some)), rules
    )
    if further is rules:
        return rules
    return (*_only(rules, range(last)), *_only(further, range(last, last + config.further_layers)))


def _only(rules: Sequence[TensorRule], layers: range) -> Iterator[TensorRule]:
    """Rules for some of their layers."""

    def both(had: Callable[[ModelConfig, int], bool] | None) -> Callable[[ModelConfig, int], bool]:
        return lambda config, layer: layer in layers and (had is None or had(config, layer))

    for rule in rules:
        yield replace(rule, layers=both(rule.layers))


def _variant(row: Architecture, actual: Mapping[str, str], config: ModelConfig) -> tuple[TensorRule, ...]:
    """The variant whose tensors are present; the first if none is, so that its tensors are named."""
    for rules in row.variants:
        for rule in rules:
            first = next(iter(layers_of(rule, config)), 0)
            if _source(rule, first, 0) in actual:
                return rules
    return row.variants[0] if row.variants else ()


def _counts(rule: TensorRule, config: ModelConfig) -> bool:
    """Whether the config's switches ask for a rule's tensor."""
    if rule.when is None:
        return True
    wanted = not rule.when.startswith("not ")
    return config.flag(rule.when.removeprefix("not ")) == wanted


def _file_order(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Tensors as the converter meets them: file by file, by name in each."""
    return sorted(tensors, key=lambda name: (tensors[name].file.name, name))


def _wanted(
    rule: TensorRule, layer: int, sizes: Mapping[str, int], actual: Mapping[str, str], config: ModelConfig
) -> list[str]:
    """The canonical names of the sources to take; none if the tensor may be and is absent."""
    sources = _sources(rule, layer, sizes)
    if rule.unless is None or not config.flag(rule.unless) or sources[0] in actual:
        return sources
    return [] if rule.instead is None else [rule.instead]


def _source(rule: TensorRule, layer: int, number: int) -> str:
    """The canonical name of one of a rule's sources."""
    return rule.source.format(layer=layer, **dict.fromkeys(_MARKS, number))


def _sources(rule: TensorRule, layer: int, sizes: Mapping[str, int]) -> list[str]:
    """The canonical names of a rule's sources: one, or as many as are stacked."""
    count = sizes.get(rule.stacked, 0) if rule.stacked else 1
    return [_source(rule, layer, number) for number in range(count)]


def _last_part(
    rules: Sequence[TensorRule],
    layer: int,
    sizes: Mapping[str, int],
    actual: Mapping[str, str],
    order: Mapping[str, int],
    last: int,
) -> int:
    """Where the last of all experts' tensors of a layer stands: there the converter emits their stacks."""
    for rule in rules:
        if "{expert}" in rule.source:
            present = (actual[name] for name in _sources(rule, layer, sizes) if name in actual)
            last = max([last, *(order[name] for name in present)])
    return last


def _check_shape(info: TensorInfo, rule: TensorRule, sizes: Mapping[str, int]) -> None:
    """Compare a tensor's shape with the config's."""
    lacking = [name for name in rule.shape if name not in sizes]
    expected = tuple(sizes[name] for name in rule.shape if name in sizes)
    if lacking or info.shape != expected:
        meaning = " x ".join(rule.shape)
        raise InputError(
            f"tensor {info.name} has shape {info.shape}, expected {expected} ({meaning} by config.json)",
            at=info.file,
            fix="download the config.json that belongs to these weights",
        )


def _mapped(
    rule: TensorRule, layer: int, names: Sequence[str], sizes: Mapping[str, int], config: ModelConfig
) -> MappedTensor:
    """One GGUF tensor from a rule and its sources' names."""
    shape = tuple(sizes[name] for name in rule.shape)
    ranges = rule.rows(sizes) if rule.rows else _matrices(shape, rule.transpose)
    scales = rule.scales(config) if rule.scales else [1.0] * len(ranges)
    if rule.becomes is not None:
        shape = tuple(sizes[name] for name in rule.becomes)
    elif rule.transpose:
        shape = (*shape[:-2], shape[-1], shape[-2])
    elif rule.stacked:
        shape = (len(names), *shape)
    group = sizes[rule.group]
    return MappedTensor(
        rule.name.format(layer=layer),
        shape,
        tuple(
            RowRange(name, start, stop, scale)
            for name in names
            for (start, stop), scale in zip(ranges, scales, strict=True)
        ),
        op=rule.op,
        group=group if len(shape) > 1 else 1,
        param=group if rule.op is not None and rule.group != "one" else None,
        columns=tuple(rule.columns(sizes)) if rule.columns else (),
        transpose=rule.transpose,
        flat=rule.flat,
    )


def _matrices(shape: tuple[int, ...], apart: bool) -> list[tuple[int, int]]:
    """All rows of a source, in one range or, if its matrices are to be transposed, in one for each."""
    rows = math.prod(shape[:-1])
    height = shape[-2] if apart and len(shape) > 1 else rows
    return [(start, start + height) for start in range(0, rows, height)]


def _some(names: Sequence[str]) -> str:
    """Names for a message, the first few of many."""
    shown = ", ".join(names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"tensor{'s' if len(names) > 1 else ''} {shown}{more}"
