"""The GGUF models of an export, one for each quantization: tensors, types and header, laid out in files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType

from lorafold.errors import InputError, UsageError
from lorafold.export import arch
from lorafold.export.config import ExportConfig
from lorafold.export.gguf.header import encode_header, place_tensors
from lorafold.export.gguf.parts import KeyValue, MappedTensor
from lorafold.export.gguf.plan import ExportPlan, GgufModel, plan_files
from lorafold.export.inputs import Inputs
from lorafold.export.quant.mixture import parse_override, plan_types
from lorafold.export.quant.recipes import ModelShape, Recipe, find_recipe
from lorafold.export.survival.ladder import bytes_together, least_bytes
from lorafold.export.survival.survey import TypedModel
from lorafold.export.vocab.vocab import Vocab, read_vocab


@dataclass(frozen=True, slots=True)
class PromptMetadata:
    """What the chat template adds to the header.

    Attributes:
        template: the Jinja source of the default template, or None for a model without one.
        named: the sources of further templates by name.
        end_of_turn: the control token that ends an assistant's turn, or None.
        add_bos: whether the tokenizer puts BOS before the prompt; None leaves the tokenizer's own setting.
    """

    template: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    end_of_turn: str | None = None
    add_bos: bool | None = None


def plan_gguf_models(
    inputs: Inputs,
    config: ExportConfig,
    prompt: PromptMetadata,
    tensors: Sequence[MappedTensor],
    kept: Mapping[str, Type],
    imatrix: Collection[str] | None = None,
    adjust: Callable[[str, TypedModel, int], TypedModel] | None = None,
) -> tuple[ExportPlan, Vocab]:
    """Plan one model per recipe, all written from one read.

    Args:
        inputs: base and adapters.
        config: recipes, overrides, limits.
        prompt: the chat template's part of the header.
        tensors: what each GGUF tensor is made of.
        kept: the types of tensors that stay as the base has them, see `KeptBlocks`.
        imatrix: GGUF names of the tensors with importance weights, or None.
        adjust: given a recipe's name, its model and the bytes of its header, returns it with other types.

    Returns:
        The plan, and what is known of the vocabulary, without its tokens.

    Raises:
        UsageError: an unknown recipe or override.
        InputError: an architecture or tokenizer that cannot be converted; tensors that do not fit.
    """
    recipes = list(dict.fromkeys(find_recipe(name).name for name in config.quant))
    overrides = [parse_override(text) for text in config.tensor_type]
    rows = next(tensor.rows for tensor in tensors if tensor.name == "token_embd.weight")
    vocab = read_vocab(
        inputs.tokenizer,
        inputs.config,
        rows,
        pre_tokenizer=config.pre_tokenizer,
        end_of_turn=prompt.end_of_turn,
        add_bos=prompt.add_bos,
    )
    called = inputs.name if inputs.adapters or config.name else None

    typed = partial(typed_model, tensors, imatrix=imatrix, overrides=overrides, kept=kept)
    if (size := config.fit_bytes) is not None:
        first = _metadata(inputs, tensors, find_recipe("Q8_0"), vocab, prompt, called)
        below = adjust is not None or config.imatrix_data is not None  # which is collected before adjusting
        recipes = [largest(size, recipes, partial(typed, metadata=first), first, below=below)]
    elif config.max_kl is not None and not recipes:
        recipes = ["Q4_K_M"]  # to begin with; its name is that of its size
    models = []
    for name in recipes:
        recipe = find_recipe(name)
        metadata = _metadata(inputs, tensors, recipe, vocab, prompt, called)
        model = typed(recipe, metadata)
        if adjust is not None:
            # The vocabulary takes a while.
            header = len(encode_header(metadata, place_tensors(model))) if config.measures_size else 0
            model = adjust(name, model, header)
            if config.max_kl is not None and not config.quant:  # it is called after the recipe of its size
                recipe = _nearest(model, partial(typed, metadata=metadata))
                metadata = _metadata(inputs, tensors, recipe, vocab, prompt, called)
                types = {tensor.name: kind for tensor, kind in model}
                model = [(tensor, types[tensor.name]) for tensor in _order(tensors, recipe)]
        models.append(GgufModel(recipe.name, metadata, tuple(model)))
    plan = plan_files(
        models,
        inputs.name,
        threads=config.workers,
        max_memory=config.max_memory,
        split_max_size=config.split_bytes,
    )
    return plan, vocab.without_tokens()


def typed_model(
    tensors: Sequence[MappedTensor],
    recipe: Recipe,
    metadata: Sequence[KeyValue],
    *,
    imatrix: Collection[str] | None = None,
    overrides: Sequence[tuple[str, Type]] = (),
    kept: Mapping[str, Type] = MappingProxyType({}),
) -> TypedModel:
    """Tensors with the types that a recipe gives them, in the order of its file.

    Args:
        tensors: what each GGUF tensor is made of.
        recipe: the mixture.
        metadata: the header's entries; the architecture's sizes are among them.
        imatrix: as for `plan_types`, as `overrides` and `kept`.
        overrides: types by pattern.
        kept: types of tensors that stay as the base has them.
    """
    shape = ModelShape.from_metadata({entry.key: entry.value for entry in metadata})
    names = [(tensor.name, tensor.shape) for tensor in tensors]
    types = plan_types(names, recipe, shape, imatrix, overrides, kept)
    return [(tensor, types[tensor.name]) for tensor in _order(tensors, recipe)]


# What `--fit` begins with: each is the best of its size. Those of the second line need an importance matrix.
_UNWEIGHTED = (
    *("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)
_MIXTURES = (*_UNWEIGHTED, "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS")


def largest(
    size: int,
    asked: Sequence[str],
    typed: Callable[[Recipe], TypedModel],
    metadata: Sequence[KeyValue],
    *,
    below: bool = False,
) -> str:
    """The recipe whose file comes nearest to a size without exceeding it.

    Args:
        size: bytes.
        asked: names of recipes; empty for all.
        typed: gives a recipe's model.
        metadata: the header's entries.
        below: whether a mixture may be smaller than every recipe: then the smallest one is where it begins.

    Raises:
        UsageError: none is that small; the message tells the least.
    """
    sizes: dict[str, int] = {}
    leasts: dict[str, int] = {}
    header = 0  # types change no byte of its size
    for name in asked or _MIXTURES:
        try:
            model = typed(find_recipe(name))
        except (UsageError, InputError):
            if asked:
                raise
            continue  # it needs an importance matrix
        header = header or len(encode_header(metadata, place_tensors(model)))
        sizes[name] = header + bytes_together(model)
        leasts[name] = header + least_bytes(model)
    fitting = {name: each for name, each in sizes.items() if each <= size}
    if not fitting:
        least = min(sizes, key=lambda name: sizes[name])
        if below and size >= leasts[least]:
            return least
        told = f"{leasts[least]:,}" if below else f"{sizes[least]:,} ({least})"
        more = "" if _MIXTURES[-1] in sizes else "; with --imatrix there are smaller types"
        raise UsageError(
            f"no mixture is as small as {size:,} bytes: the least is {told}",
            at="--fit",
            fix="give at least that" + (", or leave out --quant" if asked else more),
        )
    return max(fitting, key=lambda name: fitting[name])


def _nearest(model: TypedModel, typed: Callable[[Recipe], TypedModel]) -> Recipe:
    """The recipe whose size is nearest to a mixture's."""
    size = bytes_together(model)
    return min(map(find_recipe, _UNWEIGHTED), key=lambda recipe: abs(bytes_together(typed(recipe)) - size))


def _metadata(
    inputs: Inputs,
    tensors: Sequence[MappedTensor],
    recipe: Recipe,
    vocab: Vocab,
    prompt: PromptMetadata,
    name: str | None,
) -> tuple[KeyValue, ...]:
    entries = arch.metadata(inputs.config, tensors, inputs.base.folder, recipe.file_type, name=name)
    written = next(str(entry.value) for entry in entries if entry.key == "general.name")
    if vocab.needs_name and vocab.needs_name.lower() not in written.lower():
        # llama.cpp looks at general.name for a few tokenizers' white space.
        name = f"{vocab.needs_name} {written}"
        entries = arch.metadata(inputs.config, tensors, inputs.base.folder, recipe.file_type, name=name)
    return (*entries, *vocab.metadata(), *_template_entries(prompt))


def _template_entries(prompt: PromptMetadata) -> Iterator[KeyValue]:
    """The chat templates, as gguf-py's `add_chat_template` writes them."""
    named: dict[str, str] = {}
    for name, template in prompt.named.items():
        named.setdefault(re.sub("[^A-Za-z0-9]", "_", name), template)
    for name, template in named.items():
        yield KeyValue(f"tokenizer.chat_template.{name}", template, GGUFValueType.STRING)
    if named:
        yield KeyValue("tokenizer.chat_templates", list(named), GGUFValueType.ARRAY, GGUFValueType.STRING)
    if prompt.template is not None:
        yield KeyValue("tokenizer.chat_template", prompt.template, GGUFValueType.STRING)


def _order(tensors: Sequence[MappedTensor], recipe: Recipe) -> Sequence[MappedTensor]:
    """The converter's order for what the converter writes, llama_model_quantize's for the rest."""
    if not recipe.quantized or recipe.name == "Q8_0":
        return tensors
    by_name = {tensor.name: tensor for tensor in tensors}
    return [by_name[name] for name in arch.quantize_order(by_name)]
