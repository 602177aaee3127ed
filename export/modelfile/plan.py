"""The Modelfile of a model: planned, proven, written.

In: an HF folder or a GGUF, with its own chat template or a chosen one. Out: a `ModelfilePlan`, whose
`PromptContract` says what the GGUF's metadata and the Modelfile must hold so that llama.cpp,
llama-cpp-python, LM Studio and Ollama build the prompt that the model was trained on; and the Modelfile's
text. Nothing is guessed: the TEMPLATE is derived from the Jinja template by probing and proven on random
conversations, and refused where it cannot be both. Method and limits: docs/modelfile.md.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorafold.artifacts import write_atomic
from lorafold.chat.sources import read_json
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError, UsageError
from lorafold.export.config import ModelfileConfig
from lorafold.export.modelfile.chat_format import ChatFormat, derive
from lorafold.export.modelfile.contract import (
    PromptContract,
    adds_bos,
    context_length,
    find_stops,
    generation_parameters,
    starts_with_bos,
    warnings,
)
from lorafold.export.modelfile.parser import Modelfile, Parameter, expressible
from lorafold.export.modelfile.probe import find_switches
from lorafold.export.modelfile.proof import PromptProof, prove
from lorafold.export.modelfile.template import to_go
from lorafold.gguf_file.tokens import read_gguf_tokens

JINJA_SINCE = "0.30.0"  # the first Ollama whose runner renders a GGUF's own chat template


@dataclass(frozen=True, slots=True)
class ModelfilePlan:
    """A Modelfile before it has a name and a place.

    Args:
        template: the chat template with its tokens.
        contract: what it comes to.
        form: the derived format, or None where it was refused.
        proof: what was compared, or None where it was refused.
        seconds: wall time of the derivation, without the proof.
        notes: what the user should know.
    """

    template: ChatTemplate
    contract: PromptContract
    form: ChatFormat | None
    proof: PromptProof | None
    seconds: float
    notes: tuple[str, ...] = ()

    def paths(self) -> list[tuple[str, str]]:
        """Which way each Ollama version takes, for the report: (versions, way)."""
        if self.contract.go_template is None:
            return [
                ("Ollama before 0.30", "cannot run it: there is no TEMPLATE, and Jinja is not read"),
                ("Ollama 0.30 and later", "the GGUF's own Jinja template"),
            ]
        dated = ", where Ollama knows currentDate" if "currentDate" in self.contract.go_template else ""
        return [
            ("Ollama before 0.30", f"the TEMPLATE{dated}"),
            (
                "Ollama 0.30 and later",
                "the TEMPLATE, or the GGUF's own Jinja template where that can do more (tools, thinking)",
            ),
        ]


def plan_modelfile(
    source: Path,
    *,
    chat_template: str | ChatTemplate | None = None,
    thinking: bool | None = None,
    conversations: int = 300,
    parameters: Mapping[str, Parameter] | None = None,
    allow_embedded_jinja: bool = False,
) -> ModelfilePlan:
    """Derive and prove the prompt of a model.

    Args:
        source: an HF folder, or a GGUF file.
        chat_template: a template, a name or a Jinja file, instead of the model's own.
        thinking: fix the template's thinking switch, for a model that was tuned so.
        conversations: how many random conversations the proof compares.
        parameters: PARAMETERs that go before those of the model's generation_config.json.
        allow_embedded_jinja: return a plan without TEMPLATE where it is refused, instead of raising.

    Returns:
        The plan.

    Raises:
        InputError: no chat template; or it cannot be expressed or proven, with the reason or the smallest
            counterexample.
        UnsafeInputError: the template left its sandbox or its limits.
    """
    template, model_parameters, engine_bos = _read_source(source, chat_template)
    if thinking is not None:
        template = template.fixed(**dict.fromkeys(find_switches(template.source), thinking))
    begun = time.perf_counter()
    form: ChatFormat | None = None
    proof: PromptProof | None = None
    go_template = refusal = None
    notes: list[str] = []
    try:
        form = derive(template, thinking, engine_bos=engine_bos)
        written = to_go(form)
        seconds = time.perf_counter() - begun
        proof = prove(template, written, form, conversations=conversations)
        if not proof.passed:
            raise _not_proven(template, proof)
        go_template = written
        notes += form.notes
    except InputError as error:
        if not allow_embedded_jinja:
            raise
        seconds = time.perf_counter() - begun
        refusal, form = error.problem, None
        notes.append(f"no TEMPLATE: {refusal}")
    eot, stops = find_stops(template, form)
    notes += warnings(template, form, stops)
    contract = PromptContract(
        template_source=template.source,
        go_template=go_template,
        refusal=refusal,
        stops=stops,
        eot=eot,
        add_bos=engine_bos and starts_with_bos(template, form),
        parameters={**model_parameters, **(parameters or {})},
    )
    return ModelfilePlan(template, contract, form, proof, seconds, tuple(notes))


def _not_proven(template: ChatTemplate, proof: PromptProof) -> InputError:
    why = (
        str(proof.counterexample)
        if proof.counterexample
        else f"it refuses {proof.refused} ordinary conversations"
    )
    return InputError(
        f"the derived TEMPLATE does not write what the chat template writes: {why}",
        at=template.origin,
        fix="use --allow-embedded-jinja (Ollama 0.30 and later render Jinja), or another --chat-template",
    )


def _read_source(
    source: Path, chosen: str | ChatTemplate | None
) -> tuple[ChatTemplate, dict[str, Parameter], bool]:
    """The template with the model's tokens, its PARAMETERs, and whether its tokenizer puts BOS first."""
    parameters: dict[str, Parameter] = {}
    name = None if isinstance(chosen, ChatTemplate) else chosen
    if source.is_dir():
        template = chosen if isinstance(chosen, ChatTemplate) else ChatTemplate.from_folder(source, name)
        parameters = generation_parameters(read_json(source / "generation_config.json"))
        context = context_length(read_json(source / "config.json"))
        engine_bos = adds_bos(source, template.tokens.get("bos_token"))
    elif source.is_file():
        template = chosen if isinstance(chosen, ChatTemplate) else ChatTemplate.from_gguf(source, name)
        found = read_gguf_tokens(source)
        context, engine_bos = found.context_length, found.add_bos
    else:
        raise InputError("no such folder or file", at=source, fix="give a Hugging Face folder or a GGUF")
    if context:
        parameters["num_ctx"] = context
    return template, parameters, engine_bos


def write_modelfile(
    plan: ModelfilePlan,
    from_name: str,
    *,
    system: str | None = None,
    adapter: str | None = None,
    comments: Sequence[str] = (),
) -> str:
    """The Modelfile's text.

    Args:
        plan: what was planned.
        from_name: FROM: a path as seen from the Modelfile, or a model's name.
        system: a system text for chats that bring none; where a Modelfile cannot hold it, it goes into the
            TEMPLATE.
        adapter: ADAPTER: an adapter GGUF.
        comments: lines for its reader, before those on Ollama's versions.

    Returns:
        Text that parses back, by Ollama's rules, to what was meant.

    Raises:
        InputError: a value cannot be written.
    """
    contract = plan.contract
    modelfile = Modelfile(
        model=from_name,
        adapter=adapter,
        template=contract.go_template,
        system=system or None,
        stops=contract.stops,
        parameters=contract.parameters,
        comments=(*comments, *(f"{versions}: {way}." for versions, way in plan.paths())),
    )
    if contract.go_template is None:
        modelfile = replace(modelfile, requires=JINJA_SINCE)
    elif system and not expressible(system):
        assert plan.form is not None
        template = to_go(plan.form, system)
        proof = prove(plan.template, template, plan.form, conversations=100, default_system=system)
        if not proof.passed:
            raise _not_proven(plan.template, proof)
        modelfile = replace(modelfile, system=None, template=template)
    return modelfile.render()


@dataclass(frozen=True, slots=True)
class ModelfileResult:
    """What `lorafold modelfile` did.

    Args:
        path: the file written.
        text: its text.
        plan: what it was made from.
    """

    path: Path
    text: str
    plan: ModelfilePlan

    def lines(self) -> list[tuple[str, str]]:
        """Labels and texts for the terminal."""
        contract, proof = self.plan.contract, self.plan.proof
        lines = [("written", str(self.path)), ("template", self.plan.template.origin)]
        if proof is not None and contract.go_template is not None:
            many = f"{proof.conversations} conversations, {proof.clocks} dates"
            lines.append(
                ("proven", f"TEMPLATE equals Jinja on {many} (derived in {self.plan.seconds:.2f} s)")
            )
        lines += [(versions, way) for versions, way in self.plan.paths()]
        lines.append(("stops", ", ".join(map(repr, contract.stops)) or "none"))
        lines.append(("BOS", "added by the engine" if contract.add_bos else "not added"))
        return lines + [("note", note) for note in self.plan.notes]


def make_modelfile(config: ModelfileConfig) -> ModelfileResult:
    """Write the Modelfile of an HF folder or a GGUF.

    Args:
        config: what to read, write and choose.

    Returns:
        What was written.

    Raises:
        UsageError: the output exists.
        InputError: there is no template, or it cannot be expressed or proven.
        UnsafeInputError: the template left its sandbox or its limits.
    """
    folder = config.path if config.path.is_dir() else config.path.parent
    out = config.out or folder / "Modelfile"
    if out.exists() and not config.force:
        raise UsageError(
            "the output exists", at=out, fix="pass --force to replace it, or choose another --out"
        )
    chosen: dict[str, Parameter] = {} if config.num_ctx is None else {"num_ctx": config.num_ctx}
    plan = plan_modelfile(
        config.path,
        chat_template=config.chat_template,
        thinking=None if config.thinking is None else config.thinking == "on",
        conversations=config.conversations,
        parameters=chosen,
        allow_embedded_jinja=config.allow_embedded_jinja,
    )
    if config.chat_template is not None:
        if plan.contract.go_template is None:
            raise UsageError(
                "without a TEMPLATE Ollama takes the model's own Jinja template, not the chosen one",
                at="--allow-embedded-jinja",
                fix="export the model with this --chat-template, which then lies in the GGUF",
            )
        note = "the model keeps its own chat template; `lorafold export` writes the chosen one into the GGUF"
        plan = replace(plan, notes=(*plan.notes, note))
    text = write_modelfile(
        plan, config.from_name or _relative(config.path, out), system=config.system, adapter=config.adapter
    )
    write_atomic(out, text)
    return ModelfileResult(out, text, plan)


def _relative(path: Path, out: Path) -> str:
    """The model as FROM names it: Ollama takes paths from the Modelfile's folder."""
    model, folder = path.resolve(), out.resolve().parent
    if model == folder:
        return "."
    return f"./{model.relative_to(folder)}" if model.is_relative_to(folder) else str(model)
