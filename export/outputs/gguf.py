"""GGUF files for llama.cpp and Ollama, with their Modelfile, written from one read and proven."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorafold.chat.sandbox import Message
from lorafold.chat.sources import TemplateSource, folder_source
from lorafold.chat.tokenizer import ChatTemplate, ChatTokenizer
from lorafold.errors import InputError, UsageError
from lorafold.export import arch
from lorafold.export.config import ExportConfig
from lorafold.export.gguf.header import GgufFile
from lorafold.export.gguf.parts import MappedTensor
from lorafold.export.gguf.plan import ExportPlan, describe
from lorafold.export.gguf.writer import write_gguf_files
from lorafold.export.imatrix.collect import collected_names
from lorafold.export.imatrix.data import check_can_collect, collect_importance
from lorafold.export.imatrix.file import read_imatrix, write_imatrix
from lorafold.export.inputs import Inputs
from lorafold.export.modelfile.plan import ModelfilePlan, plan_modelfile
from lorafold.export.modelfile.probe import find_switches
from lorafold.export.outputs.gguf_models import PromptMetadata, plan_gguf_models
from lorafold.export.outputs.kept_blocks import KeptBlocks
from lorafold.export.outputs.modelfiles import (
    check_prompt,
    how_to_join,
    models_of,
    next_steps,
    question,
    tensors_of_model,
    write_modelfiles,
)
from lorafold.export.outputs.side_files import gguf_notes, named_templates
from lorafold.export.outputs.surviving import exact_of, models_in, survey_of
from lorafold.export.outputs.tensor_list import PlannedTensor, tensors_of
from lorafold.export.proof.chats import proof_chats
from lorafold.export.proof.check import Check
from lorafold.export.proof.llama import Vocabulary, vocabulary
from lorafold.export.proof.logits import Effort, WrittenModel, check_answers
from lorafold.export.proof.sample import Questions
from lorafold.export.proof.tensors import check_tensors
from lorafold.export.proof.tokens import (
    check_prompt_tokens,
    check_special_tokens,
    check_tokenizer,
    reference_of,
)
from lorafold.export.quant.mixture import Importance, parse_override
from lorafold.export.survival.fill import Filled, bytes_of, fill
from lorafold.export.survival.protect import Raised, raise_types
from lorafold.export.survival.survey import Survey, TypedModel
from lorafold.export.survival.words import describe_filled, describe_raised
from lorafold.export.vocab.probe import probe_texts
from lorafold.export.vocab.vocab import Vocab
from lorafold.export.workers import Written
from lorafold.progress import Progress, silent

_KEPT = "{} tensors of the base stay in MXFP4 as it has them, without loss (--tensor-type gives another type)"
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
        raised: what `--keep-delta` raised, by recipe.
        filled: what `--fit` raised, by recipe.
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
    raised: Mapping[str, Sequence[Raised]] = field(default_factory=dict)
    filled: Mapping[str, Sequence[Filled]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Exact bytes of the GGUF files."""
        return self.plan.size

    def describe(self) -> list[tuple[str, str]]:
        """Files with sizes and types, memory, time, and how Ollama will build the prompt."""
        paths = self.prompt.paths() if self.prompt else []
        data = self.config.imatrix_data
        matrix = [] if data is None else [(IMATRIX, f"from {data}, with the whole model in memory")]
        return [*describe(self.plan), *self._raised(), *matrix, *paths]

    def _raised(self) -> Iterator[tuple[str, str]]:
        for file in self._models():
            size = sum(other.size for other in self.plan.files if other.recipe == file.recipe)
            name = file.joined or file.name
            if (keep := self.config.keep_delta) is not None:
                yield from describe_raised(name, self.raised[file.recipe], keep, size)
            if (fit := self.config.fit_bytes) is not None:
                yield describe_filled(name, file.recipe, self.filled[file.recipe], size, fit)

    def tensors(self) -> list[PlannedTensor]:
        """Every tensor of every file."""
        return tensors_of(self.plan.files)

    def survey(self, weights: int | None = None) -> Survey | None:
        """What survives of the adapters' change, to be measured."""
        return survey_of(models_in(self.plan.files), self.inputs, self.imatrix, weights)

    def write(self, folder: Path, progress: Progress, survey: Survey | None = None) -> Written:
        """Write the GGUF files and a Modelfile for each; an importance matrix before, if asked for."""
        if (data := self.config.imatrix_data) is not None:
            matrix = collect_importance(self.inputs, self.mapped, data, progress)
            write_imatrix(matrix, folder / IMATRIX)
        importance = self._importance(folder)
        if survey is not None:
            survey.imatrix = importance
        written = write_gguf_files(
            self.plan.files,
            self.inputs.source,
            folder,
            threads=self.config.workers,
            max_memory=self.config.max_memory,
            imatrix=importance,
            packed=KeptBlocks(self.mapped, self.inputs.source),
            watcher=survey,
            progress=progress,
        )
        if self.prompt:
            write_modelfiles(folder, self.prompt, self._models(), self.config.system)
        return written

    def next_steps(self, out: Path) -> list[tuple[str, str]]:
        """Chat here, or create the model in Ollama."""
        return next_steps(out, self.plan.files[0], self.prompt)

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
            asked = self._questions(judge, readable=reference is not None)
            del reference  # its memory is needed
        for number, file in enumerate(files):
            progress("prove the tensors", number, len(files))
            checks.append(
                check_tensors(folder, file, inputs.source, rounding=self.config.rounding, imatrix=importance)
            )
        progress("prove the tensors", len(files), len(files))
        models = [
            WrittenModel(file.recipe, folder / file.name, tensors_of_model(files, file))
            for file in self._models()
        ]
        if self.prompt is None or isinstance(asked, str):
            return checks + [
                Check(f"logits {model.path.name}", "not checked", str(asked)) for model in models
            ]
        prompts, questions = asked
        checks += [check_prompt(folder, self.prompt, self._models(), self.config.system), prompts]
        effort = Effort(self.config.proof_minutes, self.config.reference)
        return checks + check_answers(models, inputs, questions, importance, progress, effort)

    def _questions(self, judge: Vocabulary, *, readable: bool) -> tuple[Check, Questions] | str:
        """The tokens of prompts, compared, and what is asked; or why nothing can be."""
        if not readable:
            return "no tokenizer.json cuts the chats into tokens"
        if self.prompt is None:
            return "there is no chat template"
        tokenizer = ChatTokenizer.from_folder(self.inputs.tokenizer, self.inputs.template)
        asked = [question(chat) for chat in self.chats]
        compared = check_prompt_tokens(judge, tokenizer, self.vocab, asked)
        return compared, Questions.of(tokenizer, self.chats)

    def _importance(self, folder: Path) -> Importance | None:
        """The importance weights: those that were given, or those that were collected into the folder."""
        if self.config.imatrix_data is None:
            return self.imatrix
        return _read_importance(folder / IMATRIX, self.mapped)

    def _models(self) -> list[GgufFile]:
        return models_of(self.plan.files)


def plan_gguf_output(inputs: Inputs, config: ExportConfig, progress: Progress = silent) -> GgufOutput:
    """Plan GGUF files and their Modelfile: read the matrix, derive and prove the TEMPLATE, lay out the files.

    Raises:
        LorafoldError: whatever makes the export impossible.
    """
    tensors = tuple(arch.map_tensors(inputs.config, inputs.source.tensors))
    imatrix = None if config.imatrix is None else _read_importance(config.imatrix, tensors)
    weighted: Collection[str] | None = imatrix
    if config.imatrix_data is not None:
        check_can_collect(inputs, config.imatrix_data)
        weighted = collected_names(tensors, inputs.config)
    folders = [adapter.folder for adapter, _ in inputs.adapters]
    named = named_templates([*folders, inputs.prompt])
    prompt = _plan_prompt(inputs, config, named)
    # Read before anything is written: a file that cannot be read must not end an hour's work.
    chats = proof_chats(config.chats, folders, config.proof_minutes) if config.verify else []
    metadata = _prompt_metadata(prompt, inputs, _fixed(named, config))
    raised: dict[str, Sequence[Raised]] = {}
    filled: dict[str, Sequence[Filled]] = {}
    patterns = [re.compile(parse_override(text)[0]) for text in config.tensor_type]

    kept = KeptBlocks(tensors, inputs.source).types

    def adjust(recipe: str, model: TypedModel, header: int) -> TypedModel:
        fixed = [tensor.name for tensor, _ in model if any(one.search(tensor.name) for one in patterns)]
        if config.keep_delta is not None:
            model, raised[recipe] = raise_types(
                model,
                inputs.source,
                config.keep_delta,
                fixed=fixed,
                exact=exact_of(inputs),
                imatrix=imatrix,
                threads=config.workers,
                progress=progress,
            )
        if (size := config.fit_bytes) is not None:
            fixed += [*kept, *(one.tensor.name for one in raised.get(recipe, ()))]
            room = size - header - sum(bytes_of(tensor, kind) for tensor, kind in model)
            _check_room(room, size)
            model, filled[recipe] = fill(
                model,
                inputs.source,
                room,
                fixed=fixed,
                imatrix=imatrix,
                threads=config.workers,
                progress=progress,
            )
        return model

    plan, vocab = plan_gguf_models(inputs, config, metadata, weighted, adjust)
    source = inputs.source
    notes = (
        *inputs.notes,
        *arch.caveats(inputs.config),
        *arch.describe_omissions(
            inputs.config, source.tensors, source.touched, folders[0] if folders else None
        ),
        *vocab.notes,
        *([_KEPT.format(len(kept))] if kept else ()),
        *(prompt.notes if prompt else ("no Modelfile: --no-modelfile",)),
        *_named_notes(named, metadata.template, inputs),
        *gguf_notes(inputs),
        *(note for file in models_of(plan.files) if prompt for note in how_to_join(file)),
    )
    return GgufOutput(inputs, config, tensors, plan, vocab, prompt, imatrix, chats, notes, raised, filled)


def _check_room(room: int, fit: int) -> None:
    """Refuse a size that what is raised to keep the adapter's change does not leave."""
    if room < 0:
        raise UsageError(
            f"what --keep-delta raises takes {-room:,} bytes more than {fit:,}",
            at="--fit",
            fix=f"give at least {fit - room:,}, a smaller --keep-delta, or a smaller --quant",
        )


def _read_importance(path: Path, tensors: Sequence[MappedTensor]) -> Importance:
    return read_imatrix(path).weights([(tensor.name, tensor.shape) for tensor in tensors])


def _plan_prompt(
    inputs: Inputs, config: ExportConfig, named: Mapping[str, TemplateSource]
) -> ModelfilePlan | None:
    if not config.modelfile:
        return None
    try:
        template = ChatTemplate.from_folder(inputs.tokenizer, inputs.template)
    except InputError as error:
        if not named and error.at and Path(error.at).is_file():
            raise  # what is wrong with a file has its own cure
        problem = error.problem
        if named:
            problem = f"no default chat template, only {', '.join(named)}"
        fix = "choose one with --chat-template, or pass --no-modelfile for a model that does not chat"
        raise InputError(problem, at=error.at, fix=fix) from error
    return plan_modelfile(
        inputs.prompt,
        chat_template=template,
        thinking=None if config.thinking is None else config.thinking == "on",
        allow_embedded_jinja=config.allow_embedded_jinja,
        path=config.ollama_path,
        writable=True,
        system=config.system,
        answers=learnt_answers(config, inputs),
    )


def learnt_answers(config: ExportConfig, inputs: Inputs) -> list[str]:
    """What the model learnt to say, as far as the proof's chats tell."""
    chats = proof_chats(config.chats, [adapter.folder for adapter, _ in inputs.adapters])
    return [message["content"] for chat in chats for message in chat if message["role"] == "assistant"]


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
