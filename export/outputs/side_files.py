"""The files beside the weights: which go into a merged folder, and which of them an output leaves behind.

What is left behind is said in a note, so that nothing of a base or an adapter is lost in silence.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from lorafold.chat.sources import (
    DEFAULT,
    JINJA_FILE,
    MORE_TEMPLATES,
    TemplateSource,
    folder_tokens,
    read_text,
    template_sources,
)
from lorafold.errors import UnsafeInputError
from lorafold.export.inputs import Inputs
from lorafold.files.jsonfile import read_object
from lorafold.tokenizer.folder import TOKENIZER_FILES, find_files, tokenizer_files

# What a model's folder holds beside weights, config.json and tokenizer, and a merged folder needs too.
MODEL_FILES = (
    "generation_config.json",
    "configuration.json",
    "*processor_config.json",
    "*.py",
    "custom_generate/*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
# What a GGUF's header or the Modelfile is made from, or what llama.cpp computes by itself.
_IN_A_GGUF = (*TOKENIZER_FILES, "generation_config.json", "configuration.json", "README.md", "*.py")
# Read for every output: weights, their index, the configuration.
_READ = ("*.safetensors", "*.safetensors.index.json", "adapter_*", "config.json")
# The same weights in another format, without the fold.
_SAME_WEIGHTS = ("pytorch_model*", "tf_model*", "flax_model*", "*.gguf")
# The record of a training or an export: what transformers' Trainer and this program write.
_RECORDS = (
    "lorafold.json",
    "report.md",
    "metrics.jsonl",
    "heldout.jsonl",
    "loss.*",
    "training_args.bin",
    "trainer_state.json",
    "optimizer.*",
    "scheduler.*",
    "scaler.pt",
    "rng_state*",
    "*_results.json",
    "*.log",
    "checkpoint-*",
    "global_step*",
    "runs",
    "latest",
    "zero_to_fp32.py",
)
# Special tokens that begin and end what a model writes.
_ENDS = ("bos_token", "eos_token")
_NAMED = 6  # files that a note names
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What a merged folder holds beside the weights and config.json.

    Attributes:
        copied: files by their names in the folder.
        written: texts of files that are copies of none, by name.
    """

    copied: Mapping[str, Path]
    written: Mapping[str, str] = field(default_factory=dict)


def find_side_files(
    base: Path,
    *,
    prompt: Path | None = None,
    tokenizer: Path | None = None,
    adapters: Sequence[Path] = (),
    template: str | None = None,
) -> SideFiles:
    """Choose the files of a merged folder.

    Args:
        base: the base's folder.
        prompt: a copy of its small files with a tokenizer.json, if the base has none.
        tokenizer: the folder whose tokenizer is the model's: an adapter's that brings tokens; default: the
            base's.
        adapters: the adapters' folders, whose chat templates go before the base's.
        template: Jinja source of the default chat template, if the base's own was not chosen.

    Raises:
        UnsafeInputError: a chat template's name would lead out of the folder.
    """
    ours = tokenizer_files(base) | tokenizer_files(prompt or base)
    of_base = tokenizer in (None, base, prompt)
    own = ours if of_base or tokenizer is None else tokenizer_files(tokenizer)
    if not any(name.startswith("tokenizer") for name in own):
        own = ours | own
    copied = find_files(base, MODEL_FILES) | own
    if of_base and template is None and not transformers_templates(adapters):
        return _template_inside(SideFiles(copied))
    # The templates come from several places: all are written as the files that transformers prefers.
    chosen = transformers_templates([*adapters, tokenizer or base, base])
    texts = {name: source.text for name, source in chosen.items()}
    texts |= {} if template is None else {DEFAULT: template}
    written = {
        JINJA_FILE if name == DEFAULT else f"{MORE_TEMPLATES}/{_file_name(name, base)}.jinja": text
        for name, text in texts.items()
    }
    return _template_inside(
        SideFiles({name: path for name, path in copied.items() if name not in written}, written)
    )


def _template_inside(files: SideFiles) -> SideFiles:
    """The files with the default template in tokenizer_config.json too.

    Ollama and older transformers read it only there.
    """
    text = files.written.get(JINJA_FILE)
    if text is None and JINJA_FILE in files.copied:
        text = read_text(files.copied[JINJA_FILE])
    path = files.copied.get(TOKENIZER_CONFIG)
    settings = {} if path is None else read_object(path)
    inside = settings.get("chat_template")
    if text is None or path is None or inside == text or isinstance(inside, list | dict):
        return files
    copied = {name: other for name, other in files.copied.items() if name != TOKENIZER_CONFIG}
    changed = json.dumps({**settings, "chat_template": text}, indent=2, ensure_ascii=False) + "\n"
    return SideFiles(copied, {**files.written, TOKENIZER_CONFIG: changed})


def _file_name(template: str, base: Path) -> str:
    if Path(template).name != template:
        raise UnsafeInputError(
            f"a chat template has the name {template!r}, which is no file name",
            at=base,
            fix="correct the name in tokenizer_config.json",
        )
    return template


def transformers_templates(folders: Iterable[Path]) -> dict[str, TemplateSource]:
    """The chat templates that transformers reads from folders, by name; a name's first one counts."""
    found: dict[str, TemplateSource] = {}
    for folder in folders:
        for source in template_sources(folder)[:1]:
            found = source | found
    return found


def named_templates(folders: Iterable[Path]) -> dict[str, TemplateSource]:
    """Every chat template of folders but the default one, by name; a name's first one counts."""
    found: dict[str, TemplateSource] = {}
    for folder in folders:
        for source in template_sources(folder):
            found = source | found
    found.pop(DEFAULT, None)
    return found


def folder_notes(inputs: Inputs, kept: Collection[str]) -> Iterator[str]:
    """Sentences about files of the base and the adapters that a merged folder lacks.

    Args:
        inputs: what the export reads.
        kept: names of the files that the merged folder holds.
    """
    yield from _left_behind("base", inputs.base.folder, kept)
    yield from _adapter_notes(inputs)


def gguf_notes(inputs: Inputs) -> Iterator[str]:
    """Sentences about files of the base and the adapters that have no place in a GGUF."""
    yield from _left_behind("base", inputs.base.folder, _IN_A_GGUF)
    yield from _adapter_notes(inputs)


def _adapter_notes(inputs: Inputs) -> Iterator[str]:
    base = inputs.base.folder
    for folder in (adapter.folder for adapter, _ in inputs.adapters):
        same = [
            path.name
            for path in folder.iterdir()
            if path.is_file()
            and (base / path.name).is_file()
            and filecmp.cmp(path, base / path.name, shallow=False)
        ]
        yield from _left_behind("adapter", folder, ["README.md", *TOKENIZER_FILES, *same])
        if inputs.tokenizer in (base, inputs.prompt):
            yield from _other_ends(folder, base)


def _other_ends(adapter: Path, base: Path) -> Iterator[str]:
    """Special tokens that an adapter's tokenizer names differently, though its tokens are the base's."""
    if not (adapter / "tokenizer_config.json").is_file():
        return
    theirs, ours = folder_tokens(adapter)[0], folder_tokens(base)[0]
    for name in _ENDS:
        if theirs.get(name) not in (None, ours.get(name)):
            yield (
                f"the adapter's tokenizer_config.json names another {name} ({theirs.get(name)!r}) than the "
                f"base's ({ours.get(name)!r}), which is kept"
            )


def _left_behind(whose: str, folder: Path, kept: Iterable[str]) -> Iterator[str]:
    """One sentence about the files of a folder that fit none of the patterns; mostly none."""
    known = (*_READ, *_SAME_WEIGHTS, *_RECORDS, *kept)
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or any(fnmatch(path.name, pattern) for pattern in known):
            continue
        if path.is_dir():
            inside = [file.relative_to(folder).as_posix() for file in path.rglob("*") if file.is_file()]
            nested = [pattern for pattern in known if "/" in pattern]
            if all(any(fnmatch(name, pattern) for pattern in nested) for name in inside):
                continue
        found.append(path.name + "/" * path.is_dir())
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        yield f"of the {whose}'s folder these are not in the export: {', '.join(found[:_NAMED])}{more}"
