"""GGUF files for llama.cpp and Ollama, with their Modelfile, written from one read and proven."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorafold.chat.sandbox import Message
from lorafold.chat.sources import TemplateSource, folder_source
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError
from lorafold.export import arch
from lorafold.export.config import ExportConfig
from lorafold.export.fitting.fit import Fitted, Fitting
from lorafold.export.fitting.share import Calibrated, calibrate
from lorafold.export.gguf.header import GgufFile
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.gguf.plan import ExportPlan, describe
from lorafold.export.imatrix.collect import collected_names
from lorafold.export.imatrix.data import check_can_collect, weights_of
from lorafold.export.imatrix.file import read_imatrix, write_imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.modelfile.plan import ModelfilePlan
from lorafold.export.modelfile.probe import find_switches
from lorafold.export.onto.projector import Projector, is_tower
from lorafold.export.outputs.gguf_models import PromptMetadata, plan_gguf_models
from lorafold.export.outputs.kept_blocks import KeptBlocks
from lorafold.export.outputs.prompt.modelfiles import (
    how_to_join,
    models_of,
    next_steps,
    open_projector,
    tensors_of_model,
    write_models,
)
from lorafold.export.outputs.prompt.planning import (
    AskedTokens,
    ask_tokens,
    held_out,
    plan_prompt,
    prove_answers,
)
from lorafold.export.outputs.side_files import gguf_notes, named_templates
from lorafold.export.outputs.surviving import MeasuredTypes, exact_of, models_in, survey_of
from lorafold.export.outputs.tensor_list import PlannedTensor, tensors_of
from lorafold.export.proof.check import Check
from lorafold.export.proof.copied import check_copy
from lorafold.export.proof.llama import vocabulary
from lorafold.export.proof.logits import WrittenModel
from lorafold.export.proof.tensors import check_tensors
from lorafold.export.proof.tokens import check_special_tokens, check_tokenizer, reference_of
from lorafold.export.quant.ggml import requires_imatrix
from lorafold.export.quant.mixture import Importance
from lorafold.export.survival.protect import Raised
from lorafold.export.survival.survey import Survey, TypedModel
from lorafold.export.vocab.probe import probe_texts
from lorafold.export.vocab.vocab import Vocab
from lorafold.export.workers import Written
from lorafold.progress import Progress, silent

_KEPT = "{} tensors of the base stay in MXFP4 as it has them, without loss (--tensor-type gives another type)"
_MEMORY = "with at most 1 GB of the model in memory, or a layer of it"
IMATRIX = "imatrix.gguf"
"""What a collected importance matrix is called beside the files."""


@dataclass(frozen=True, slots=True)
class GgufOutput:
    """Planned GGUF files; an `Output`.

    Attributes:
        inputs: what they are made from.
        config: how.
        mapped: what each GGUF tensor is made of.
        plan: the files.
        vocab: what is known of the vocabulary, without its tokens.
        prompt: the Modelfile's plan, or None for a model that does not chat.
        imatrix: importance weights by GGUF tensor name, if `--imatrix` gives them.
        chats: held-out chats for the proof.
        notes: what the user should know.
        measured: the types that `--keep-delta` and `--fit` raised.
        projector: of a multimodal model, if one is given.
    """

    inputs: Inputs
    config: ExportConfig
    mapped: tuple[MappedTensor, ...]
    plan: ExportPlan
    vocab: Vocab
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

    def describe(self) -> list[tuple[str, str]]:
        """Files with sizes and types, memory, time, and how Ollama will build the prompt."""
        paths = self.prompt.paths() if self.prompt else []
        data = self.config.imatrix_data
        matrix = [] if data is None else [(IMATRIX, f"from {data} and general texts, {_MEMORY}")]
        beside = [self.projector.describe()] if self.projector else []
        return [
            *describe(self.plan),
            *self.measured.describe(self.plan.files),
            *matrix,
            *beside,
            *paths,
        ]

    def mixtures(self) -> dict[str, Fitted]:
        """What `--fit` or `--max-kl` chose, by the name of the file."""
        return self.measured.mixtures(self.plan.files)

    @property
    def raised(self) -> Mapping[str, Sequence[Raised]]:
        """What `--keep-delta` raised, by recipe."""
        return self.measured.raised

    def tensors(self) -> list[PlannedTensor]:
        """Every tensor of every file."""
        return tensors_of(self.plan.files)

    @property
    def awaits_matrix(self) -> bool:
        """Whether a type cannot be made without the importance matrix that the export collects."""
        if self.config.imatrix_data is None or self.imatrix is not None:
            return False
        return any(requires_imatrix(each.type) for file in self.plan.files for each in file.tensors)

    def survey(self, weights: int | None = None) -> Survey | None:
        """What survives of the adapters' change, to be measured."""
        return survey_of(models_in(self.plan.files), self.inputs, self.imatrix, weights)

    def calibrated(self, progress: Progress) -> GgufOutput:
        """The output with the importance matrix that is asked for; planned anew if none turns out best."""
        data = self.config.imatrix_data
        if data is None or self.measured.calibration is not None:
            return self
        models = _by_recipe(self.plan)
        found = calibrate(self.inputs, self.mapped, data, models, self.config.imatrix_share, progress)
        if found.matrix is not None:
            return replace(self, measured=replace(self.measured, calibration=found))
        planned = plan_gguf_output(self.inputs, _without_matrix(self.config), progress)
        return replace(planned, measured=replace(planned.measured, calibration=found))

    def write(self, folder: Path, progress: Progress, survey: Survey | None = None) -> Written:
        """Write the GGUF files and a Modelfile for each; an importance matrix before, if asked for."""
        if self.config.imatrix_data is not None:
            found = self.measured.calibration
            assert found is not None and found.matrix is not None, "it is collected before"
            write_imatrix(found.matrix, folder / IMATRIX)
        importance = self._importance(folder)
        if survey is not None:
            survey.imatrix = importance
        return write_models(
            self.plan,
            self.inputs.source,
            folder,
            self.config,
            self.prompt,
            imatrix=importance,
            packed=KeptBlocks(self.mapped, self.inputs.source),
            projector=self.projector,
            watcher=survey,
            progress=progress,
        )

    def next_steps(self, out: Path) -> list[tuple[str, str]]:
        """Chat here, or create the model in Ollama."""
        return next_steps(out, self.plan.files[0], self.prompt, self.projector)

    def prove(self, folder: Path, progress: Progress) -> list[Check]:
        """Tokens, prompts, tensors, answers."""
        inputs, files, importance = self.inputs, self.plan.files, self._importance(folder)
        first, *others = (folder / file.name for file in self._models())
        with vocabulary(first) as judge:
            reference = reference_of(inputs.tokenizer)
            checks = [
                check_tokenizer(judge, reference, self.vocab, probe_texts()),
                check_special_tokens(judge, others, self.vocab, inputs.tokenizer, reference),
            ]
            asked: AskedTokens = (), "there is no chat template"
            if self.prompt is not None:
                asked = ask_tokens(judge, inputs, self.chats, self.vocab)
            del reference  # its memory is needed
        for number, file in enumerate(files):
            progress("prove the tensors", number, len(files))
            checks.append(
                check_tensors(folder, file, inputs.source, rounding=self.config.rounding, imatrix=importance)
            )
        progress("prove the tensors", len(files), len(files))
        if (beside := self.projector) is not None:
            checks += check_copy(folder, beside.file, beside.source, rounding=self.config.rounding)
        models = [
            WrittenModel(file.recipe, folder / file.name, tensors_of_model(files, file))
            for file in self._models()
        ]
        return checks + prove_answers(
            folder,
            self.plan,
            self.projector,
            models,
            asked,
            self.prompt,
            inputs,
            self.config,
            importance,
            progress,
        )

    def _importance(self, folder: Path) -> Importance | None:
        """The importance weights: those that were given, or those that were collected into the folder."""
        if self.config.imatrix_data is None:
            return self.imatrix
        return weights_of(read_imatrix(folder / IMATRIX), self.mapped)

    def _models(self) -> list[GgufFile]:
        return models_of(self.plan.files)


def plan_gguf_output(inputs: Inputs, config: ExportConfig, progress: Progress = silent) -> GgufOutput:
    """Plan GGUF files and their Modelfile: read the matrix, derive and prove the TEMPLATE, lay out the files.

    Raises:
        LorafoldError: whatever makes the export impossible.
    """
    tensors = tuple(arch.map_tensors(inputs.config, inputs.source.tensors))
    imatrix = None if config.imatrix is None else weights_of(read_imatrix(config.imatrix), tensors)
    weighted: Collection[str] | None = imatrix
    if config.imatrix_data is not None:
        check_can_collect(inputs, config.imatrix_data)
        weighted = collected_names(tensors, inputs.config)
    folders = [adapter.folder for adapter, _ in inputs.adapters]
    named = named_templates([*folders, inputs.prompt])
    # Read before anything is written: a file that cannot be read must not end an hour's work.
    chats = held_out(inputs, config) if config.verify or config.modelfile else []
    prompt = plan_prompt(
        inputs.prompt,
        inputs,
        config,
        chats,
        lambda: ChatTemplate.from_folder(inputs.tokenizer, inputs.template),
        named=tuple(named),
        architecture=arch.find(inputs.config).gguf,
    )
    metadata = _prompt_metadata(prompt, inputs, _fixed(named, config))
    kept = KeptBlocks(tensors, inputs.source).types
    calibration: Calibrated | None = None
    if config.imatrix_data is not None and config.measures_types:  # by the errors that the matrix leaves
        plan, _ = plan_gguf_models(inputs, config, metadata, tensors, kept, weighted)
        data, share = config.imatrix_data, config.imatrix_share
        calibration = calibrate(inputs, tensors, data, _by_recipe(plan), share, progress)
        if calibration.matrix is None:
            config, weighted = _without_matrix(config), None
        else:
            imatrix = weights_of(calibration.matrix, tensors)
    fitting = Fitting(
        inputs,
        data=config.imatrix_data,
        keep=config.keep_delta,
        imatrix=imatrix,
        threads=config.workers,
        progress=progress,
    )
    measured = MeasuredTypes(
        config, inputs.source, exact_of(inputs), imatrix, tuple(kept), progress, fitting, calibration
    )
    plan, vocab = plan_gguf_models(inputs, config, metadata, tensors, kept, weighted, measured.adjust)
    source, projector = inputs.source, open_projector(inputs, config, progress)
    held = [name for name in source.tensors if projector is not None and is_tower(name)]
    notes = (
        *(projector.notes if projector else ()),
        *inputs.notes,
        *_asked_twice(config),
        *arch.caveats(inputs.config),
        *arch.describe_omissions(
            inputs.config,
            [name for name in source.tensors if name not in held],
            [name for name in source.touched if name not in held],
            folders[0] if folders else None,
        ),
        *vocab.notes,
        *([_KEPT.format(len(kept))] if kept else ()),
        *(prompt.notes if prompt else ("no Modelfile: --no-modelfile",)),
        *_named_notes(named, metadata.template, inputs),
        *gguf_notes(inputs),
        *(note for file in models_of(plan.files) if prompt for note in how_to_join(file)),
    )
    return GgufOutput(
        inputs, config, tensors, plan, vocab, prompt, imatrix, chats, notes, measured, projector
    )


def _by_recipe(plan: ExportPlan) -> dict[str, TypedModel]:
    """The tensors and types of each model."""
    return {
        file.recipe: [(each.tensor, each.type) for each in tensors_of_model(plan.files, file)]
        for file in models_of(plan.files)
    }


def _without_matrix(config: ExportConfig) -> ExportConfig:
    """What is exported if the best matrix is none."""
    return replace(config, imatrix_data=None, imatrix_share=None)


def _asked_twice(config: ExportConfig) -> Iterator[str]:
    """That a proof asks what the matrix was made of, so it flatters the file."""
    chats, data = config.chats, config.imatrix_data
    if config.verify and chats and data and chats.samefile(data):
        yield f"the proof asks {chats}, of which the matrix is made; other chats may come out worse"


def _prompt_metadata(
    prompt: ModelfilePlan | None, inputs: Inputs, named: Mapping[str, str]
) -> PromptMetadata:
    if prompt is None:
        try:
            return PromptMetadata(ChatTemplate.from_folder(inputs.tokenizer, inputs.template).source, named)
        except InputError:
            return PromptMetadata(named=named)  # a base model: it has no default template
    contract = prompt.contract
    return PromptMetadata(contract.template_source, named, contract.eot, contract.add_bos)


def _fixed(named: Mapping[str, TemplateSource], config: ExportConfig) -> dict[str, str]:
    """The sources of the named templates, with the thinking switch as in the default one."""
    if config.thinking is None:
        return {name: source.text for name, source in named.items()}
    on = config.thinking == "on"
    return {
        name: ChatTemplate(source.text).fixed(**dict.fromkeys(find_switches(source.text), on)).source
        for name, source in named.items()
    }


def _named_notes(named: Mapping[str, TemplateSource], default: str | None, inputs: Inputs) -> Iterator[str]:
    """Sentences on chat templates besides the default one, which alone the Modelfile can hold."""
    if not named:
        return
    yield (
        f"the GGUF also holds the chat templates named {', '.join(named)}, for engines that choose among "
        "several; the Modelfile and the proof know only the default one"
    )
    of_base = folder_source(inputs.prompt)
    others = [name for name, source in named.items() if Path(source.origin).is_relative_to(inputs.prompt)]
    if others and default is not None and inputs.template and (of_base is None or of_base.text != default):
        yield (
            f"the chat templates {', '.join(others)} are the base's, while the default one is not: compare "
            "their formats before you use both"
        )
