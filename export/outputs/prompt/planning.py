"""The prompt of a GGUF output: planned from a chat template, proven with held-out chats and their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lorafold.chat.sandbox import Message
from lorafold.chat.tokenizer import ChatTemplate, ChatTokenizer
from lorafold.errors import InputError
from lorafold.export.config import ExportConfig
from lorafold.export.gguf.plan import ExportPlan
from lorafold.export.inputs import Inputs
from lorafold.export.modelfile.parser import Parameter
from lorafold.export.modelfile.plan import ModelfilePlan, plan_modelfile
from lorafold.export.onto.projector import Projector
from lorafold.export.outputs.prompt.modelfiles import check_prompt, models_of
from lorafold.export.proof.chats import proof_chats
from lorafold.export.proof.check import Check
from lorafold.export.proof.llama import Vocabulary
from lorafold.export.proof.logits import Effort, WrittenModel, check_answers
from lorafold.export.proof.sample import Questions, question
from lorafold.export.proof.tokens import check_prompt_tokens
from lorafold.export.quant.mixture import Importance
from lorafold.export.vocab.vocab import Vocab
from lorafold.gguf_file.header import GgufHeader
from lorafold.progress import Progress

Chats = list[Sequence[Message]]


def held_out(inputs: Inputs, config: ExportConfig) -> Chats:
    """The chats that the proof may ask, which also tell what the model learnt to say.

    Raises:
        InputError: the user's file is missing, not readable, or without a question.
    """
    return proof_chats(config.chats, [adapter.folder for adapter, _ in inputs.adapters], config.proof_minutes)


def plan_prompt(
    source: Path | GgufHeader,
    inputs: Inputs,
    config: ExportConfig,
    chats: Chats,
    template: Callable[[], ChatTemplate],
    *,
    named: Sequence[str] = (),
    parameters: Mapping[str, Parameter] | None = None,
    architecture: str | None = None,
) -> ModelfilePlan | None:
    """The Modelfile's plan; None for a model that needs none.

    Args:
        source: what says the rest of a prompt: the base's folder, or a GGUF's header.
        inputs: base and adapters.
        config: how.
        chats: as `held_out` gives them.
        template: reads the chat template.
        named: names of further templates that the model has.
        parameters: see `plan_modelfile`.
        architecture: see `plan_modelfile`.

    Raises:
        InputError: there is no template, or none that can be expressed.
    """
    if not config.modelfile:
        return None
    try:
        found = template()
    except InputError as error:
        if not named and error.at and Path(error.at).is_file():
            raise  # what is wrong with a file has its own cure
        problem = f"no default chat template, only {', '.join(named)}" if named else error.problem
        fix = "choose one with --chat-template, or pass --no-modelfile for a model that does not chat"
        raise InputError(problem, at=error.at, fix=fix) from error
    return plan_modelfile(
        source,
        chat_template=found,
        thinking=None if config.thinking is None else config.thinking == "on",
        parameters=parameters,
        allow_embedded_jinja=config.allow_embedded_jinja,
        path=config.ollama_path,
        writable=True,
        system=config.system,
        architecture=architecture,
        answers=[message["content"] for chat in chats for message in chat if message["role"] == "assistant"],
    )


AskedTokens = tuple[tuple[Check, ...], Questions | str]
"""The tokens of prompts, compared, and what is asked; or why nothing can be."""


def ask_tokens(judge: Vocabulary | None, inputs: Inputs, chats: Chats, vocab: Vocab | None) -> AskedTokens:
    """Compare the tokens of prompts, and keep those of the chats.

    Args:
        judge: the file's vocabulary in llama.cpp; None if it cannot be compared.
        inputs: base and adapters.
        chats: what is asked.
        vocab: what is known of the vocabulary, if there is a judge.
    """
    if not (inputs.tokenizer / "tokenizer.json").is_file():
        return (), "no tokenizer.json cuts the chats into tokens"
    try:
        tokenizer = ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
    except InputError as error:
        return (), error.problem
    compared: tuple[Check, ...] = ()
    if judge is not None and vocab is not None:
        compared = (check_prompt_tokens(judge, tokenizer, vocab, [question(chat) for chat in chats]),)
    return compared, Questions.of(tokenizer, chats)


def prove_answers(
    folder: Path,
    plan: ExportPlan,
    projector: Projector | None,
    models: Sequence[WrittenModel],
    asked: AskedTokens,
    prompt: ModelfilePlan | None,
    inputs: Inputs,
    config: ExportConfig,
    imatrix: Importance | None,
    progress: Progress,
) -> list[Check]:
    """The end of a proof: prompts, their tokens, and every model's answers beside those of base + adapter."""
    compared, questions = asked
    checks: list[Check] = []
    if prompt is not None:
        checks.append(check_prompt(folder, prompt, models_of(plan.files), config.system, projector))
    checks += compared
    if isinstance(questions, str):
        return checks + [Check(f"logits {model.path.name}", "not checked", questions) for model in models]
    effort = Effort(config.proof_minutes, config.reference)
    return checks + check_answers(list(models), inputs, questions, imatrix, progress, effort)
