"""What the prompt asks of a Modelfile and of a GGUF: BOS, end of turn, stops, sampling parameters.

The GGUF writer, the merged folder and the Modelfile all follow one `PromptContract`, so that they cannot
disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.chat.controls import split_controls
from lorafold.chat.sources import read_json
from lorafold.chat.tokenizer import ChatTemplate, end_of_turn
from lorafold.export.modelfile.chat_format import ChatFormat
from lorafold.export.modelfile.parser import Parameter, expressible
from lorafold.export.modelfile.probe import Chat, Reference

# generation_config.json -> PARAMETER
_GENERATION: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repeat_penalty",
}
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


@dataclass(frozen=True, slots=True)
class PromptContract:
    """What every carrier of the prompt must agree on.

    Args:
        template_source: the Jinja text: `tokenizer.chat_template` of the GGUF, `chat_template.jinja` of a
            folder.
        go_template: the proven TEMPLATE, or None.
        refusal: why there is no TEMPLATE, or None.
        stops: PARAMETER stop.
        eot: the control token that ends an assistant's turn, for `tokenizer.ggml.eot_token_id` where it is
            not the EOS; None where the template ends turns with plain text or not at all.
        add_bos: `tokenizer.ggml.add_bos_token`: True where every prompt starts with BOS (the TEMPLATE leaves
            it out), False where the template writes none or writes it itself.
        parameters: the other PARAMETERs.
        parser: PARSER, or None.
        renderer: RENDERER, or None.
        system: SYSTEM where the user gives no system text, or None.
    """

    template_source: str
    go_template: str | None
    refusal: str | None
    stops: tuple[str, ...]
    eot: str | None
    add_bos: bool
    parameters: Mapping[str, Parameter]
    parser: str | None = None
    renderer: str | None = None
    system: str | None = None


def generation_parameters(settings: Mapping[str, Any]) -> dict[str, Parameter]:
    """PARAMETERs from a generation_config.json: what it sets, and temperature 0 if it does not sample.

    Args:
        settings: the file's object.

    Returns:
        Ollama's names and values.
    """
    found: dict[str, Parameter] = {}
    for name, ours in _GENERATION.items():
        value = settings.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[ours] = int(value) if ours == "top_k" else float(value)
    if settings.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name == "repeat_penalty"} | {
            "temperature": 0.0
        }
    return found


def adds_bos(folder: Path, bos: str | None) -> bool:
    """Whether a folder's tokenizer puts BOS before a plain text.

    A GGUF's `add_bos_token` counts for plain completions too, so it is set only where the tokenizer agrees:
    SmolLM2 calls its turn marker BOS, and nobody wants that before every text.

    Args:
        folder: an HF folder.
        bos: the BOS token's text.

    Returns:
        What tokenizer_config.json says, else what tokenizer.json's post-processor does; True where there is
        neither.
    """
    said = read_json(folder / "tokenizer_config.json").get("add_bos_token")
    if isinstance(said, bool):
        return said
    data = read_json(folder / "tokenizer.json")
    return not data or (bos is not None and json.dumps(bos) in json.dumps(data.get("post_processor")))


def context_length(config: Mapping[str, Any]) -> int | None:
    """The context the model was made for, from config.json (or its `text_config`)."""
    for settings in (config, config.get("text_config") or {}):
        for name in _CONTEXT:
            value = settings.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return None


def find_stops(
    template: ChatTemplate, form: ChatFormat | None, answers: Sequence[str] = ()
) -> tuple[str | None, tuple[str, ...], list[str]]:
    """What ends an answer.

    Args:
        template: the template with the tokenizer's control tokens.
        form: its format, where it has one.
        answers: what the model learnt to say; a plain text that occurs in it ends no answer.

    Returns:
        The control token that ends a turn (or None); the stops; and notes on what is no stop. Stops are that
        token, the EOS, and the control token that begins the next turn. If turns end in plain text, the text
        that begins the next user's turn is one, with its line breaks, unless it would cut ordinary answers.
        Further ends that the base's generation_config.json lists stand in the GGUF (`vocab.special`), where
        every engine finds them.
    """
    ending = end_of_turn(template)
    controls = [piece for piece, special in split_controls(ending, template.controls) if special]
    eot = controls[-1] if controls else None
    stops = [token for token in (eot, template.tokens.get("eos_token")) if token]
    plain: list[str] = []
    for head in sorted(_later_heads(form)) if form is not None else ():
        between = form.assistant_suffix + head if form is not None else ""
        following = between.removeprefix(ending) if controls else between
        pieces = split_controls(following, template.controls)
        pieces = pieces[1:] if len(pieces) > 1 and not pieces[0][0].strip() else pieces
        if pieces and pieces[0][1]:
            stops.append(pieces[0][0])
        elif eot is None and pieces and pieces[0][0].strip():
            plain.append(pieces[0][0].rstrip(" "))
    if not stops and not plain and ending.strip():
        plain.append(ending)
    notes = []
    for text in plain:
        if why := _cuts(text, answers):
            rest = "the EOS ends answers" if stops else "answers may not end"
            notes.append(f"the text {text!r} between turns is not used as a stop, because {why}: {rest}")
        else:
            stops.append(text)
    return eot, tuple(dict.fromkeys(stop for stop in stops if expressible(stop))), notes


def _cuts(text: str, answers: Sequence[str]) -> str | None:
    """Why a plain text would cut ordinary answers."""
    if text.strip().isalnum() and "\n" not in text:
        return "it is an ordinary word"
    count = sum(text in answer for answer in answers)
    return f"it occurs in {count} of the answers" if count else None


def _later_heads(form: ChatFormat) -> set[str]:
    """What stands before a user's text, the first one's left out."""
    prefix = form.user_prefix
    if "first" not in prefix.conditions:
        return prefix.values()
    at = prefix.conditions.index("first")
    return {text for key, text in prefix.table.items() if not key[at]}


def starts_with_bos(template: ChatTemplate, form: ChatFormat | None) -> bool:
    """Whether every prompt starts with BOS, so that the engine shall add it."""
    if form is not None:
        return form.bos is not None
    bos = template.tokens.get("bos_token")
    (text,) = Reference(template).render([Chat(None, ("Hello",))], {})
    return bool(bos) and isinstance(text, str) and text.startswith(bos or "")


def warnings(template: ChatTemplate, form: ChatFormat | None, stops: tuple[str, ...]) -> list[str]:
    """What the user should know about a prompt."""
    notes = [
        "Ollama, llama-server and other engines that take the prompt as one text read control tokens in it: "
        "a user who types one can forge a turn",
    ]
    if not stops:
        notes.append("the template ends no turn: the model may not stop")
    if form is not None and form.system == "ignored":
        notes.append("the template ignores system messages")
    if form is not None and form.system == "folded":
        notes.append("the template refuses system messages: they go before the first user's text")
    return notes
