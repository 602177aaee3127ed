"""The Modelfile of a model: planned, proven, written.

A `ModelfilePlan` holds the `PromptContract`: what the GGUF's metadata and the Modelfile must say so that
llama.cpp, llama-cpp-python, LM Studio and Ollama build the prompt that the model was trained on. Nothing is
guessed: the TEMPLATE is derived from the Jinja template by probing and proven on random conversations, and
refused if it cannot be both. Method and limits: docs/modelfile.md.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorafold.artifacts import write_atomic
from lorafold.chat.calls import TOOL_PARTS
from lorafold.chat.sources import read_json
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError, UsageError
from lorafold.export.config import ModelfileConfig
from lorafold.export.modelfile.built_in import best_built_in
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
from lorafold.export.modelfile.native import Native, find_thinking, prove_native, write_native, writes_tools
from lorafold.export.modelfile.parser import Modelfile, Parameter, expressible
from lorafold.export.modelfile.probe import Reference, find_reference, find_switches
from lorafold.export.modelfile.proof import PromptProof, prove
from lorafold.export.modelfile.template import to_go
from lorafold.export.modelfile.tools import ToolProof, prove_tools
from lorafold.export.modelfile.way import Asked, Route, choose, thoughts
from lorafold.export.ollama.rules import NEWEST, guessable, template_abilities
from lorafold.gguf_file.header import GgufHeader
from lorafold.gguf_file.read import read_gguf_header
from lorafold.gguf_file.tokens import read_gguf_tokens
from lorafold.sources.naming import speaking_name
from lorafold.sources.recognize import is_adapter

JINJA_SINCE = "0.30.0"  # the first Ollama whose runner renders a GGUF's own chat template


@dataclass(frozen=True, slots=True)
class ModelfilePlan:
    """A Modelfile before it has a name and a place.

    Args:
        template: the chat template with its tokens.
        contract: what it comes to.
        form: the derived format, or None where it was refused.
        proof: what was compared, or None where it was refused.
        route: the way that the prompt goes in Ollama 0.30 and later, and what it needs.
        native: what is known of the Jinja way, or None.
        seconds: wall time of the derivation, without the proof.
        notes: what the user should know.
        tools: what was found about tools, or None if nobody looked.
    """

    template: ChatTemplate
    contract: PromptContract
    form: ChatFormat | None
    proof: PromptProof | None
    route: Route
    native: Native | None
    seconds: float
    notes: tuple[str, ...] = ()
    tools: ToolProof | None = None

    @property
    def thinks(self) -> bool:
        """Whether Ollama sees that the TEMPLATE can think."""
        return "thinking" in template_abilities(self.contract.go_template or "")

    def paths(self) -> list[tuple[str, str]]:
        """Which way each Ollama version takes, and what the other way would do: (versions, way)."""
        written = self.contract.go_template
        if self.route.way == "renderer":
            older = "not tried; the architecture is newer than most of them"
        elif written is None:
            older = "cannot run it: there is no TEMPLATE, and Jinja is not read"
        elif self.route.parser is not None:
            older = "the TEMPLATE, from 0.12 on: older ones do not know PARSER"
        else:
            older = "the TEMPLATE" + (", if Ollama knows currentDate" if "currentDate" in written else "")
        rows = [("Ollama before 0.30", older), ("Ollama 0.30 and later", self.route.says)]
        rows += [("to choose", self.route.other)] if self.route.other else []
        return rows + ([("tools", self.tools.says)] if self.tools is not None and self.tools.proven else [])


def plan_modelfile(
    source: Path | GgufHeader,
    *,
    chat_template: str | ChatTemplate | None = None,
    thinking: bool | None = None,
    conversations: int = 300,
    parameters: Mapping[str, Parameter] | None = None,
    allow_embedded_jinja: bool = False,
    path: Asked | None = None,
    writable: bool = False,
    system: str | None = None,
    answers: Sequence[str] = (),
    architecture: str | None = None,
) -> ModelfilePlan:
    """Derive and prove the prompt of a model, and choose its way.

    Args:
        source: an HF folder, or a GGUF file, or its header if the caller has read it already.
        chat_template: a template, a name or a Jinja file, instead of the model's own.
        thinking: fix the template's thinking switch, for a model that was tuned so.
        conversations: how many random conversations the proof compares.
        parameters: PARAMETERs that go before those of the model's generation_config.json.
        allow_embedded_jinja: return a plan without TEMPLATE where it is refused, instead of raising.
        path: the way that the prompt shall go; None chooses.
        writable: the GGUF is still to be written, and may carry another Jinja than the model's.
        system: the text that SYSTEM will hold.
        answers: what the model learnt to say: no stop may occur in it.
        architecture: llama.cpp's name of it; None: by the source.

    Returns:
        The plan.

    Raises:
        InputError: no chat template; or it cannot be expressed or proven, with the reason or the smallest
            counterexample.
        UnsafeInputError: the template left its sandbox or its limits.
    """
    model = _read_source(source, chat_template)
    template = model.template
    if thinking is not None:
        template = template.fixed(**dict.fromkeys(find_switches(template.source), thinking))
    derived = _derive_and_prove(template, model, thinking, conversations)
    if derived.error is not None and not allow_embedded_jinja:
        raise derived.error
    form, notes = derived.form, list(derived.notes)
    native = _native(template, min(conversations, NATIVE_CONVERSATIONS), writable)
    tools = prove_tools(template, native if writable else None)
    if native is not None and tools.unreadable:
        native = native.without(f"llama.cpp cannot run the Jinja: {tools.difference}")
    architecture = architecture or model.architecture
    taken = NEWEST.renderers.get(architecture)
    route = choose(
        path,
        jinja=template.source,
        template=derived.go_template,
        native=native,
        writable=writable,
        tools=writes_tools(template),
        architecture=architecture,
        plain_system=not system or expressible(system),
        built_in=None if taken is None else best_built_in(template, taken, NATIVE_CONVERSATIONS),
    )
    if route.way == "renderer" and not route.equal:
        notes.append(
            "Ollama 0.30 and later build another prompt than training, whatever the Modelfile says: run this "
            "model with llama-server, LM Studio or Jan, which read the GGUF's Jinja"
        )
    if route.template is None and not writable and guessable(route.jinja):
        notes.append(
            "without a TEMPLATE `ollama create` may take one of its own that this Jinja template resembles: "
            "`ollama show --modelfile NAME` shows it; `lorafold export` writes a GGUF that it cannot mistake"
        )
    eot, stops, left_out = find_stops(template, form, answers)
    notes += left_out + warnings(template, form, stops)
    contract = PromptContract(
        template_source=route.jinja,
        go_template=route.template,
        refusal=derived.error.problem if derived.error is not None else None,
        stops=stops,
        eot=eot,
        add_bos=model.adds_bos and starts_with_bos(template, form),
        parameters={**model.parameters, **(parameters or {})},
        parser=route.parser,
        renderer=route.renderer,
        system=route.system,
    )
    if not tools.proven and tools.lost != TOOL_PARTS:  # of a model that knows no tools nobody asks for them
        notes.append(f"tools: {tools.says}")
    return ModelfilePlan(
        template, contract, form, derived.proof, route, native, derived.seconds, tuple(notes), tools
    )


@dataclass(frozen=True, slots=True)
class _Derived:
    """What became of a TEMPLATE: either it is proven, or there is an error and no form."""

    form: ChatFormat | None
    go_template: str | None
    proof: PromptProof | None
    seconds: float
    notes: tuple[str, ...]
    error: InputError | None = None


def _derive_and_prove(
    template: ChatTemplate, model: _Source, thinking: bool | None, conversations: int
) -> _Derived:
    """The template as Ollama's, compared with Jinja on random conversations."""
    begun, proof = time.perf_counter(), None
    try:
        form = derive(template, thinking, engine_bos=model.adds_bos)
        written = to_go(form, thoughts=_thoughts(template, form, thinking))
        seconds = time.perf_counter() - begun
        proof = prove(template, written, form, conversations=conversations)
        if not proof.passed:
            raise _not_proven(template, proof)
    except InputError as error:
        note = f"no TEMPLATE: {error.problem}"
        return _Derived(None, None, proof, time.perf_counter() - begun, (note,), error)
    return _Derived(form, written, proof, seconds, tuple(form.notes))


NATIVE_CONVERSATIONS = 100  # random conversations that the Jinja way is compared on, under each setting


def _thoughts(template: ChatTemplate, form: ChatFormat, fixed: bool | None) -> tuple[str, str] | None:
    """Tags for a TEMPLATE whose thinking Ollama may turn on by itself; None where it must not.

    Ollama turns thinking on where nothing is said and the TEMPLATE can think. That is right only if the chat
    template, too, thinks where nothing is said.
    """
    found = find_thinking(Reference(template, form.system))
    derived = fixed is not None or any(variant.think for variant in form.variants)
    thinks = found.switches and derived and found.unset_is_on and (fixed is True or not found.unset_is_off)
    return thoughts(template.source) if thinks else None


def _native(template: ChatTemplate, conversations: int, writable: bool) -> Native | None:
    """What is known of the Jinja way; None if the template renders no ordinary chat."""
    try:
        if writable:
            return write_native(template, conversations)
        reference = find_reference(template, {})
        found = find_thinking(reference)
        return prove_native(template, template.source, reference, found, conversations)
    except InputError:
        return None


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


@dataclass(frozen=True, slots=True)
class _Source:
    """What is read of a model: its template with its tokens, and what goes around a prompt."""

    template: ChatTemplate
    parameters: dict[str, Parameter]
    adds_bos: bool
    architecture: str


def _read_source(source: Path | GgufHeader, chosen: str | ChatTemplate | None) -> _Source:
    parameters: dict[str, Parameter] = {}
    name = None if isinstance(chosen, ChatTemplate) else chosen
    if isinstance(source, Path) and source.is_dir():
        template = chosen if isinstance(chosen, ChatTemplate) else ChatTemplate.from_folder(source, name)
        parameters = generation_parameters(read_json(source / "generation_config.json"))
        config = read_json(source / "config.json")
        context, architecture = context_length(config), str(config.get("model_type", ""))
        engine_bos = adds_bos(source, template.tokens.get("bos_token"))
    elif isinstance(source, GgufHeader) or source.is_file():
        header = source if isinstance(source, GgufHeader) else read_gguf_header(source)
        template = chosen if isinstance(chosen, ChatTemplate) else ChatTemplate.from_gguf(header, name)
        found = read_gguf_tokens(header)
        context, engine_bos = found.context_length, found.add_bos
        architecture = header.text("general.architecture") or ""
    else:
        raise InputError("no such folder or file", at=source, fix="give a Hugging Face folder or a GGUF")
    if context:
        parameters["num_ctx"] = context
    return _Source(template, parameters, engine_bos, architecture)


ADAPTER_NOTE = (
    "Ollama 0.34.1 and later refuse ADAPTER: fold the adapter for those (lorafold export --format gguf)."
)


def write_modelfile(
    plan: ModelfilePlan,
    from_name: str,
    *,
    parts: Sequence[str] = (),
    system: str | None = None,
    adapter: str | None = None,
    comments: Sequence[str] = (),
) -> str:
    """The Modelfile's text.

    Args:
        plan: what was planned.
        from_name: FROM: a path as seen from the Modelfile, or a model's name.
        parts: the other files of a split GGUF.
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
    if adapter is not None:
        comments = (*comments, ADAPTER_NOTE)
    modelfile = Modelfile(
        model=from_name,
        parts=tuple(parts),
        adapter=adapter,
        parser=contract.parser,
        renderer=contract.renderer,
        template=contract.go_template,
        system=system or contract.system,
        stops=contract.stops,
        parameters=contract.parameters,
        comments=(*comments, *(f"{versions}: {way}." for versions, way in plan.paths()[:2])),
    )
    if system and not expressible(system) and plan.route.way != "template":
        by_jinja = plan.route.way == "jinja"
        raise InputError(
            "this system text cannot stand in a Modelfile, and the "
            f"{'Jinja' if by_jinja else 'renderer'} way has no other place for it",
            at="--system",
            fix=f"{'choose --ollama-path template, or' if by_jinja else 'use'} other characters",
        )
    if contract.go_template is None:
        modelfile = replace(modelfile, requires=JINJA_SINCE)
    elif system and not expressible(system):
        assert plan.form is not None
        template = to_go(plan.form, system, thoughts(plan.template.source) if plan.thinks else None)
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
        InputError: there is no template, or it cannot be expressed or proven; or no model for FROM.
        UnsafeInputError: the template left its sandbox or its limits.
    """
    folder = config.path if config.path.is_dir() else config.path.parent
    out = config.out or folder / "Modelfile"
    if out.exists() and not config.force:
        raise UsageError(
            "the output exists", at=out, fix="pass --force to replace it, or choose another --out"
        )
    if config.from_name is None and config.path.is_dir() and is_adapter(config.path):
        raise _no_model(config.path)
    chosen: dict[str, Parameter] = {} if config.num_ctx is None else {"num_ctx": config.num_ctx}
    plan = plan_modelfile(
        config.path,
        chat_template=config.chat_template,
        thinking=None if config.thinking is None else config.thinking == "on",
        conversations=config.conversations,
        parameters=chosen,
        allow_embedded_jinja=config.allow_embedded_jinja,
        path=config.ollama_path,
        system=config.system,
    )
    if config.chat_template is not None:
        if plan.contract.go_template is None or plan.route.way == "jinja":
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


def _no_model(adapter: Path) -> InputError:
    """The refusal of an adapter without a model that FROM could name."""
    command = (
        f"lorafold export {shlex.quote(str(adapter))} --out {shlex.quote(speaking_name(adapter) + '-gguf')}"
    )
    return InputError(
        "this is an adapter, and FROM needs a whole model",
        at=adapter,
        fix=f"{command} --quant Q4_K_M writes the model and its Modelfile; or name a model with --from-name",
    )


def _relative(path: Path, out: Path) -> str:
    """The model as FROM names it: Ollama takes paths from the Modelfile's folder."""
    model, folder = path.resolve(), out.resolve().parent
    if model == folder:
        return "."
    return f"./{model.relative_to(folder)}" if model.is_relative_to(folder) else str(model)
