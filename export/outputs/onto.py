"""An adapter folded onto a GGUF that exists: the header stays, and what the adapter leaves alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf import GGMLQuantizationType as Type

from lorafold.chat.sandbox import Message
from lorafold.chat.sources import read_json
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError, UsageError
from lorafold.export.config import ExportConfig
from lorafold.export.gguf.header import GgufFile, encode_header, place_tensors
from lorafold.export.gguf.parts import KeyValue
from lorafold.export.gguf.plan import ExportPlan, GgufModel, describe, plan_files
from lorafold.export.imatrix.file import read_imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.modelfile.contract import generation_parameters
from lorafold.export.modelfile.plan import ModelfilePlan
from lorafold.export.onto import entries
from lorafold.export.onto.find import find_sources
from lorafold.export.onto.model import BaseGguf
from lorafold.export.onto.places import Places
from lorafold.export.onto.projector import PartOfFold, Projector
from lorafold.export.onto.source import OntoSource, check_types
from lorafold.export.outputs.gguf_models import largest
from lorafold.export.outputs.prompt.modelfiles import (
    how_to_join,
    models_of,
    next_steps,
    open_projector,
    tensors_of_model,
    write_models,
)
from lorafold.export.outputs.prompt.planning import ask_tokens, held_out, plan_prompt, prove_answers
from lorafold.export.outputs.surviving import MeasuredTypes, exact_of, models_in, survey_of
from lorafold.export.outputs.tensor_list import PlannedTensor, tensors_of
from lorafold.export.proof.check import Check
from lorafold.export.proof.copied import check_copy, check_left_alone
from lorafold.export.proof.llama import vocabulary
from lorafold.export.proof.logits import WrittenModel
from lorafold.export.proof.tokens import check_tokenizer, reference_of
from lorafold.export.quant.mixture import Importance, is_quantizable, parse_override, plan_types
from lorafold.export.quant.recipes import ModelShape, Recipe, find_recipe
from lorafold.export.survival.survey import Survey, TypedModel
from lorafold.export.vocab.probe import probe_texts
from lorafold.export.vocab.vocab import Vocab, read_vocab
from lorafold.export.workers import Written
from lorafold.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class OntoOutput:
    """Planned GGUF files made from one that exists; an `Output`.

    Attributes:
        inputs: the base and the adapters.
        config: how.
        source: the rows of the result, by GGUF name.
        plan: the files.
        prompt: the Modelfile's plan, or None for a model that does not chat.
        imatrix: importance weights by GGUF tensor name, if `--imatrix` gives them.
        chats: held-out chats for the proof.
        notes: what the user should know.
        measured: the types that `--keep-delta` and `--fit` raised.
        projector: of a multimodal model, if one is given.
    """

    inputs: Inputs
    config: ExportConfig
    source: OntoSource
    plan: ExportPlan
    prompt: ModelfilePlan | None
    imatrix: Importance | None
    chats: list[Sequence[Message]]
    notes: tuple[str, ...]
    measured: MeasuredTypes
    projector: Projector | None = None

    @property
    def size(self) -> int:
        """Exact bytes of the GGUF files."""
        return self.plan.size + (self.projector.file.size if self.projector else 0)

    @property
    def _retyped(self) -> bool:
        """Whether tensors that the adapter leaves alone get other types."""
        return bool(self.config.quant or self.config.fit)

    def describe(self) -> list[tuple[str, str]]:
        """The file that is folded onto, what is touched in it and how, the files that are made."""
        header, touched = self.source.model.header, self.source.touched
        kinds = ", ".join(f"{count} by {kind}" for kind, count in Counter(touched.values()).most_common())
        kept = len(self.source.file_tensors()) - len(touched)
        how = "quantized again" if self._retyped else "copied byte by byte"
        hub = self.source.model.hub
        read = [] if hub is None else [("from the hub", f"{hub.fetched:,} of {hub.size:,} bytes read so far")]
        return [
            ("onto", f"{header.path} ({header.architecture}, {header.quantization})"),
            *read,
            ("folded", f"{len(touched)} tensors, found by their values: {kinds}"),
            ("kept", f"{kept} tensors that the adapter leaves alone, {how}"),
            *describe(self.plan),
            *self.measured.describe(self.plan.files),
            *([self.projector.describe()] if self.projector else []),
            *(self.prompt.paths() if self.prompt else []),
        ]

    def tensors(self) -> list[PlannedTensor]:
        """Every tensor of every file."""
        return tensors_of(self.plan.files)

    def survey(self, weights: int | None = None) -> Survey | None:
        """What survives of the adapters' change, to be measured."""
        return survey_of(models_in(self.plan.files), self.inputs, self.imatrix, weights, self.source)

    def write(self, folder: Path, progress: Progress, survey: Survey | None = None) -> Written:
        """Write the GGUF files and a Modelfile for each."""
        return write_models(
            self.plan,
            self.source,
            folder,
            self.config,
            self.prompt,
            imatrix=self.imatrix,
            packed=self.source.packed,
            projector=self.projector,
            watcher=survey,
            progress=progress,
        )

    def next_steps(self, out: Path) -> list[tuple[str, str]]:
        """Chat here, or create the model in Ollama."""
        return next_steps(out, self.plan.files[0], self.prompt, self.projector)

    def prove(self, folder: Path, progress: Progress) -> list[Check]:
        """Tokens, prompts, tensors, answers."""
        inputs, files = self.inputs, self.plan.files
        first = folder / files[0].name
        vocab = self._vocab()
        checks = []
        if isinstance(vocab, str):
            checks.append(Check("tokenizer", "not checked", vocab))
            asked = ask_tokens(None, inputs, self.chats, None)
        else:
            with vocabulary(first) as judge:
                checks.append(check_tokenizer(judge, reference_of(inputs.tokenizer), vocab, probe_texts()))
                asked = ask_tokens(judge, inputs, self.chats, vocab)
        for number, file in enumerate(files):
            progress("prove the tensors", number, len(files))
            checks += check_copy(
                folder, file, self.source, rounding=self.config.rounding, imatrix=self.imatrix
            )
        if (beside := self.projector) is not None:
            checks += check_copy(folder, beside.file, beside.source, rounding=self.config.rounding)
        progress("prove the tensors", len(files), len(files))
        places = self._places(folder)
        checks += check_left_alone(places)
        return checks + prove_answers(
            folder,
            self.plan,
            self.projector,
            self._written(folder, places),
            asked,
            self.prompt,
            inputs,
            self.config,
            self.imatrix,
            progress,
        )

    def _places(self, folder: Path) -> Places:
        model = self.source.model
        if model.hub is not None and not self._retyped:  # what was left alone is in the result as it was
            model = BaseGguf.open(folder / self.plan.files[0].name)
        return Places(self.source, model, self.config.workers)

    def _written(self, folder: Path, places: Places) -> list[WrittenModel]:
        """The models with the checkpoint's names for what they hold, as far as it is found."""
        written = []
        for file in self._models():
            tensors = (places.of(typed) for typed in tensors_of_model(self.plan.files, file))
            own = tuple(tensor for tensor in tensors if tensor is not None)
            written.append(WrittenModel(file.recipe, folder / file.name, own))
        return written

    def _vocab(self) -> Vocab | str:
        """What is known of the tokenizer, or why the file's cannot be compared with it."""
        embedding = self.source.model.tensors.get("token_embd.weight")
        rows = 0 if embedding is None else embedding.rows
        try:
            return read_vocab(
                self.inputs.tokenizer, self.inputs.config, rows, pre_tokenizer=self.config.pre_tokenizer
            ).without_tokens()
        except InputError as error:
            return f"the base's tokenizer cannot be read here ({error.problem})"

    def _models(self) -> list[GgufFile]:
        return models_of(self.plan.files)


def plan_onto_output(inputs: Inputs, config: ExportConfig, progress: Progress = silent) -> OntoOutput:
    """Find every row that the adapters change in the file, decide types, lay out the files.

    Raises:
        LorafoldError: whatever makes the export impossible.
    """
    assert config.onto is not None
    _check_inputs(inputs, config, config.onto)
    model = BaseGguf.open(config.onto, offline=config.offline, progress=progress)
    _check_types(model, config)
    entries.check_sizes(model.header, inputs.config)
    projector = open_projector(inputs, config, progress)
    elsewhere = projector.touched if projector else ()
    fold = PartOfFold(inputs.source, frozenset(inputs.source.touched).difference(elsewhere))
    source = OntoSource(
        inputs.source, model, find_sources(fold, inputs.source.base, model, progress, threads=config.workers)
    )
    shapes = [(tensor.name, tensor.shape) for tensor in source.file_tensors()]
    imatrix = None if config.imatrix is None else read_imatrix(config.imatrix).weights(shapes)
    chats = held_out(inputs, config) if config.verify or config.modelfile else []
    prompt = plan_prompt(
        model.header,
        inputs,
        config,
        chats,
        lambda: _template(model, inputs),
        parameters=generation_parameters(read_json(inputs.prompt / "generation_config.json")),
    )
    changed = _changed_entries(model, config, prompt)
    exact_fold = exact_of(inputs)
    exact = None if exact_fold is None else replace(source, fold=exact_fold)
    measured = MeasuredTypes(config, source, exact, imatrix, progress=progress)
    planned = _Models(source, config, imatrix, changed, measured)
    models = planned.quantized() if config.quant or config.fit else [planned.same_types()]
    plan = plan_files(
        models,
        inputs.name,
        threads=config.workers,
        max_memory=config.max_memory,
        split_max_size=config.split_bytes,
    )
    notes = (
        *inputs.notes,
        *source.found.notes,
        *(projector.notes if projector else ()),
        *(prompt.notes if prompt else ("no Modelfile: --no-modelfile",)),
        *(note for file in models_of(plan.files) if prompt for note in how_to_join(file)),
    )
    return OntoOutput(inputs, config, source, plan, prompt, imatrix, chats, notes, measured, projector)


def _check_inputs(inputs: Inputs, config: ExportConfig, onto: str) -> None:
    if not inputs.adapters:
        raise UsageError(
            f"{config.source} is not an adapter, so there is nothing to fold onto {Path(onto).name}",
            at="--onto",
            fix="give the adapter's folder as SOURCE and its base with --base",
        )
    if inputs.tokenizer != inputs.prompt:
        raise InputError(
            "the adapter brings other tokens than the base's, and --onto keeps the file's tokenizer",
            at=inputs.tokenizer,
            fix="export without --onto, which writes a header of its own",
        )


def _check_types(model: BaseGguf, config: ExportConfig) -> None:
    """Refuse what would be quantized a second time."""
    if config.quant and not model.exact:
        raise UsageError(
            f"{model.header.path.name} is quantized ({model.header.quantization}): what the adapter "
            "leaves alone would be quantized a second time",
            at="--quant",
            fix="leave it out to keep the file's types, or give an F32, F16 or BF16 GGUF",
        )
    if config.fit and not model.exact:
        raise UsageError(
            f"{model.header.path.name} is quantized ({model.header.quantization}): what the adapter "
            "leaves alone keeps its size",
            at="--fit",
            fix="give an F32, F16 or BF16 GGUF; --keep-delta raises what the adapter changes",
        )
    if config.tensor_type and not (config.quant or config.fit):
        raise UsageError(
            "without --quant every tensor keeps its type", at="--tensor-type", fix="pass --quant"
        )


Changed = dict[str, str | bool | int]


@dataclass(frozen=True, slots=True)
class _Models:
    """The types of the files that are made."""

    source: OntoSource
    config: ExportConfig
    imatrix: Importance | None
    changed: Changed
    measured: MeasuredTypes

    def same_types(self) -> GgufModel:
        """Every tensor in the type that it has; refused if one that is touched cannot be written in it."""
        check_types(self.source, self.imatrix or ())
        header = self.source.model.header
        typed = [(self.source.mapped(tensor), tensor.type) for tensor in self.source.file_tensors()]
        name = header.quantization
        model = self.measured.adjust(name, typed, 0)
        return GgufModel(name, entries.entries(header, self.changed), tuple(model))

    def quantized(self) -> list[GgufModel]:
        """A model for each recipe; what llama.cpp does not quantize keeps its own type."""
        names = list(dict.fromkeys(find_recipe(name).name for name in self.config.quant))
        size = self.config.fit_bytes
        if size is not None:
            names = [largest(size, names, self._typed, self._metadata(find_recipe("Q8_0")))]
        models = []
        for name in names:
            recipe = find_recipe(name)
            typed, metadata = self._typed(recipe), self._metadata(recipe)
            header = len(encode_header(metadata, place_tensors(typed))) if size is not None else 0
            models.append(GgufModel(name, metadata, tuple(self.measured.adjust(name, typed, header))))
        return models

    def _typed(self, recipe: Recipe) -> TypedModel:
        tensors = self.source.file_tensors()
        shape = ModelShape.from_metadata(entries.plain_values(self.source.model.header))
        overrides = [parse_override(text) for text in self.config.tensor_type]
        shapes = [(tensor.name, tensor.shape) for tensor in tensors]
        types: dict[str, Type] = plan_types(shapes, recipe, shape, self.imatrix, overrides)
        for tensor in tensors:
            if not tensor.plain or not is_quantizable(tensor.name, tensor.shape):
                types[tensor.name] = tensor.type
        return [(self.source.mapped(tensor), types[tensor.name]) for tensor in tensors]

    def _metadata(self, recipe: Recipe) -> tuple[KeyValue, ...]:
        header = self.source.model.header
        return entries.entries(header, self.changed | entries.quantized(recipe.file_type))


def _changed_entries(model: BaseGguf, config: ExportConfig, prompt: ModelfilePlan | None) -> Changed:
    """Entries of the header that are not the file's."""
    changed: Changed = {entries.NAME: config.name} if config.name else {}
    contract = None if prompt is None else prompt.contract
    if contract is not None and contract.template_source != model.header.text(entries.TEMPLATE):
        changed |= entries.prompt(model.header, contract.template_source, contract.eot, contract.add_bos)
    return changed


def _template(model: BaseGguf, inputs: Inputs) -> ChatTemplate:
    """The adapter's template if it brings one, else the file's own."""
    if inputs.template is None:
        return ChatTemplate.from_gguf(model.header)
    return ChatTemplate.from_folder(inputs.tokenizer, inputs.template)
