"""Export a tiny model with every chat template, create each in a running Ollama, and compare its prompts.

    python tools/observe_templates.py ../shared/templates --ollama 127.0.0.1:11434 --out now.json
    python tools/check_templates.py ../shared/templates --now now.json --out docs/templates.md

Nothing stays on the server. The tiny model is random, and has the template's control tokens. Prompts are
compared under `think` unset, true and false, with and without a system message, and the tokens that the
server counts with those of the tokenizer, and conversations with tools. Templates: as in check_templates.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from check_templates import SUPPORT, TOKENS, templates

from lorafold.artifacts import write_atomic
from lorafold.chat.dialogue import Dialogue
from lorafold.chat.sandbox import Message, Refusal
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import LorafoldError
from lorafold.export import ExportConfig, export
from lorafold.export.modelfile.native import STATES, state_name
from lorafold.export.modelfile.parser import parse
from lorafold.export.modelfile.probe import find_reference, find_switches
from lorafold.export.modelfile.proof import random_chats
from lorafold.export.modelfile.tools import random_tool_chats
from lorafold.export.ollama.client import Ollama
from lorafold.export.ollama.rules import Refused, select, tool_as_read
from lorafold.export.proof.observed import created_fields
from lorafold.gguf_file.tokens import read_gguf_tokens

NAME = "lorafold-templates"
COUNTED = 4  # prompts of which the server counts the tokens; it reads them for that
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

# Of a template, not of a user's text, for which `usual_control_text` is: also names as plain as [ARGS], and
# not Llama 2's <<SYS>>, which is no token.
CONTROLS = re.compile(r"<\|[^\s|<>]+\|>|<｜[^\s|<>]+｜>|\[/?[A-Z_]{3,}\]|</?(?:start|end)_of_turn>")


def tiny_model(folder: Path, source: str) -> Path:
    """A random model whose tokenizer has `<s>`, `</s>`, and the control tokens that a template names."""
    from tiny_base import tiny_base
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    shutil.rmtree(folder, ignore_errors=True)
    words = folder / "tokenizer"
    words.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        list(dict.fromkeys([*TOKENS.values(), "<|pad|>", *CONTROLS.findall(source)]))
    )
    tokenizer.save(str(words / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **TOKENS}
    (words / "tokenizer_config.json").write_text(json.dumps(settings))
    return tiny_base(folder / "base", tokenizer=words, max_position_embeddings=32_768)


def observe(server: Ollama, base: Path, template: ChatTemplate, out: Path, count: int) -> dict[str, str]:
    """One row: the way, and how many prompts are right under each setting."""
    jinja = out.with_suffix(".jinja")
    jinja.write_text(template.source, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    options: dict[str, Any] = {
        "quant": ("F32",),
        "verify": False,
        "name": "tiny",
        "chat_template": str(jinja),
    }
    try:
        export(ExportConfig(str(base), out=out, **options))
    except LorafoldError as error:
        return {"way": f"not exported: {error.problem[:80]}"}
    gguf = out / "tiny-F32.gguf"
    read = parse((out / "Modelfile").read_text(encoding="utf-8"))
    fields = {**created_fields(read), "files": {gguf.name: server.upload(gguf)}}
    server.create(NAME, fields, lambda _: None)
    try:
        tokens, written = read_gguf_tokens(gguf), ChatTemplate.from_folder(base, str(jinja))
        bos = written.tokens["bos_token"] if tokens.add_bos else ""
        wins = read.parser or select(tokens.chat_template, read.template) == "template"
        row = {"way": "TEMPLATE" if wins else "Jinja"}
        row |= _prompts(server, base, written, bos, count)
        return row | {"tools": _tools(server, written, bos, count)}
    finally:
        server.delete(NAME)


def _tools(server: Ollama, template: ChatTemplate, bos: str, count: int) -> str:
    """What became of tools: how many conversations with them were written as in training.

    Of the others those are told that differ in nothing but the order of keys, which is Ollama's.
    """
    prompt = server.prompt(NAME, [{"role": "user", "content": "Hello"}], None, tools=[TOOL])
    if isinstance(prompt, Refused):
        return "refused"
    if "get_weather" not in prompt:
        return "not shown"
    chats = list(random_tool_chats(count, seed=7))
    wanted = template.render_all(chats, add_generation_prompt=True)
    ordered = template.render_all(
        [Dialogue(map(_ordered, chat), map(tool_as_read, chat.tools)) for chat in chats],
        add_generation_prompt=True,
    )
    equal = but_order = asked = 0
    for chat, right, turned in zip(chats, wanted, ordered, strict=True):
        if isinstance(right, Refusal):
            continue
        prompt = server.prompt(NAME, [_as_asked(message) for message in chat], None, tools=list(chat.tools))
        asked += 1
        equal += not isinstance(prompt, Refused) and bos + prompt == right
        but_order += not isinstance(prompt, Refused) and right != bos + prompt == turned
    return f"{equal}/{asked}" + (f", {but_order} but for the order of keys" if but_order else "")


def _ordered(message: Message) -> Message:
    """A message whose calls have the keys of inner objects sorted."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _inner_sorted(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else message


def _inner_sorted(arguments: str) -> str:
    told = {
        key: json.loads(json.dumps(value, sort_keys=True)) for key, value in json.loads(arguments).items()
    }
    return json.dumps(told, ensure_ascii=False)


def _as_asked(message: Message) -> dict[str, Any]:
    """A message as `/api/chat` takes it."""
    told: dict[str, Any] = {**message}
    if calls := message.get("tool_calls"):
        told["tool_calls"] = [
            {
                "id": call["id"],
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.loads(call["function"]["arguments"]),
                },
            }
            for call in calls
        ]
    if message["role"] == "tool":
        told["tool_name"] = told.pop("name")
    return told


def _prompts(server: Ollama, base: Path, template: ChatTemplate, bos: str, count: int) -> dict[str, str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    reference = find_reference(template, {})
    switches = find_switches(template.source)
    row, counts = {}, []
    for state in STATES:
        right = asked = 0
        said = ""
        variables = {} if state is None else dict.fromkeys(switches, state)
        for chat in random_chats(count, seed=7):
            (wanted,) = reference.render([chat], variables, clock=datetime.datetime.now().isoformat())
            if isinstance(wanted, Refusal):
                continue
            prompt = server.prompt(NAME, chat.messages(), state)
            if isinstance(prompt, Refused):
                said = "refused"
                break
            asked += 1
            right += bos + prompt == wanted
            if state is None and len(counts) < COUNTED:
                ours = len(tokenizer.encode(wanted, add_special_tokens=False).ids)
                counts.append(server.count(NAME, prompt) == ours)
        row[state_name(state)] = said or f"{right}/{asked}"
    return row | {"tokens": f"{sum(counts)}/{len(counts)}"}


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ollama", default="", help="address; default: OLLAMA_HOST or this machine")
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--published", action="store_true", help="those of the folder, and no others")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    sys.path[:0] = [str(SUPPORT), str(SUPPORT / "material")]
    server = Ollama(asked.ollama)
    rows: dict[str, Any] = {"version": server.version(), "conversations": asked.conversations, "rows": {}}
    with tempfile.TemporaryDirectory() as place:
        for group, template in templates(asked.folder):
            if group == "Cannot be expressed" or asked.only not in template.origin:
                continue
            if asked.published and group != "Published":
                continue
            base = tiny_model(Path(place) / "model", template.source)
            try:
                row = observe(server, base, template, Path(place) / "out", asked.conversations)
            except LorafoldError as error:
                row = {"way": f"failed: {error.problem[:200]}"}
            print(f"{template.origin[:48]:48} {row}", flush=True)
            rows["rows"][template.origin] = row
    write_atomic(asked.out, json.dumps(rows, indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
