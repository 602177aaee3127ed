"""The line for a command line that cannot be meant: what is missing, or which word was most likely meant.

People come from transformers, PEFT, LLaMA-Factory, Unsloth and axolotl, and type those programs' names.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from cyclopts import (
    App,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

# What other programs call it -> what it is called here. A name counts only if the command has the flag.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": ("learning-rate",),
    "epochs": ("num-train-epochs",),
    "num-epochs": ("num-train-epochs",),
    "steps": ("max-steps",),
    "iters": ("max-steps",),
    "batch-size": ("per-device-train-batch-size",),
    "micro-batch-size": ("per-device-train-batch-size",),
    "train-batch-size": ("per-device-train-batch-size",),
    "grad-accum": ("gradient-accumulation-steps",),
    "grad-accumulation-steps": ("gradient-accumulation-steps",),
    "model": ("base", "models"),
    "model-name": ("base",),
    "model-path": ("base",),
    "model-name-or-path": ("base",),
    "base-model": ("base",),
    "output": ("out",),
    "output-dir": ("out",),
    "output-path": ("out",),
    "export-dir": ("out",),
    "save-path": ("out",),
    "dataset": ("data",),
    "datasets": ("data",),
    "dataset-path": ("data",),
    "train-file": ("data",),
    "eval-dataset": ("eval-data",),
    "val-set-size": ("eval-split",),
    "val-size": ("eval-split",),
    "test-split": ("eval-split",),
    "cutoff-len": ("max-length",),
    "max-seq-length": ("max-length",),
    "max-seq-len": ("max-length",),
    "sequence-len": ("max-length",),
    "block-size": ("max-length",),
    "lora-r": ("r",),
    "lora-rank": ("r",),
    "rank": ("r",),
    "alpha": ("lora-alpha",),
    "dropout": ("lora-dropout",),
    "lora-target": ("target-modules",),
    "lora-target-modules": ("target-modules",),
    "additional-target": ("modules-to-save",),
    "lora-modules-to-save": ("modules-to-save",),
    "lora-target-linear": ("target-modules",),
    "sample-packing": ("packing",),
    "warmup-proportion": ("warmup-ratio",),
    "fp16": ("dtype",),
    "bf16": ("dtype",),
    "torch-dtype": ("dtype",),
    "load-in-4-bit": ("load-in-4bit",),
    "quantization-bit": ("load-in-4bit",),
    "adapter-type": ("method",),
    "finetuning-type": ("method",),
    "train-type": ("method",),
    "scheduler": ("lr-scheduler-type",),
    "lr-scheduler": ("lr-scheduler-type",),
    "optimizer": ("optim",),
    "warmup": ("warmup-steps", "warmup-ratio"),
    "flash-attn": ("attn-implementation",),
    "template": ("chat-template",),
    "resume-from-checkpoint": ("resume",),
    "overwrite": ("force",),
    "overwrite-output-dir": ("force",),
    "adapter-name-or-path": ("adapter",),
    "adapter-path": ("adapter",),
    "quantization": ("quant",),
    "quantization-method": ("quant",),
    "quantize": ("quant",),
    "outtype": ("quant", "dtype"),
    "ftype": ("quant",),
    "temp": ("temperature",),
    "max-new-tokens": ("max-tokens",),
    "n-predict": ("max-tokens",),
    "ctx-size": ("context",),
    "num-ctx": ("context",),
    "system-prompt": ("system",),
    "default-system": ("system",),
    "cpu": ("device-map",),
    "validate": ("verify",),
}
# What is done elsewhere, and where.
ELSEWHERE = {
    "task-type": "only causal language models are trained: leave it out",
    "inference-mode": "an adapter is always saved ready for use: leave it out",
    "bias": "biases are not trained: leave it out",
    "save-on-each-node": "one worker saves: leave it out",
    "push-to-hub": "export first, then `lorafold push DIR ORG/NAME`",
    "hub-model-id": "export first, then `lorafold push DIR ORG/NAME`",
    "deepspeed": "several GPUs share the base with --fsdp",
    "do-train": "`lorafold train` trains: leave it out",
    "stage": "only supervised fine-tuning is done here: leave it out",
}
NEAR = 0.8  # ratio of difflib from which two names count as neighbours; below it the hints mislead


def meant(word: str, names: Collection[str]) -> str | None:
    """What an unknown name most likely stands for, as the end of a sentence.

    Args:
        word: as typed, with or without the dashes before it.
        names: what there is, spelled as it is to be shown ("--learning-rate").
    """
    plain = word.lstrip("-").partition("=")[0].replace("_", "-").lower()
    if plain in ELSEWHERE:
        return ELSEWHERE[plain]
    by_name = {name.lstrip("-").replace("_", "-"): name for name in names}
    hits = [by_name[name] for name in SYNONYMS.get(plain, ()) if name in by_name]
    if not hits:
        words = [name for name in (*by_name, *SYNONYMS) if len(name) > 2]
        # Letters in another order count for little with difflib: "bsae" is 0.75 of "base".
        swapped = [name for name in words if sorted(name) == sorted(plain)]
        near = swapped or difflib.get_close_matches(plain, words, 1, NEAR)
        hits = [by_name[n] for name in near for n in (name, *SYNONYMS.get(name, ())) if n in by_name][:1]
    return f"here it is {' or '.join(hits)}" if hits else None


def misused(error: CycloptsError, tokens: list[str], app: App) -> str:
    """The line for a command line that cannot be meant.

    cyclopts names what is missing; that an option with several values took it, only the words can tell.

    Args:
        error: what cyclopts says.
        tokens: the words.
        app: the program.
    """
    commands = list(app)
    command = f"lorafold {tokens[0]}" if tokens and tokens[0] in commands else "lorafold"
    if isinstance(error, UnknownOptionError):
        return _unknown_option(error, command)
    if isinstance(error, MissingArgumentError) and (word := _unknown_word(tokens, app)) is not None:
        # What is missing was most likely given under a name of another program.
        return _no_such_option(word, names_of(app, tokens[0]), command)
    if isinstance(error, UnknownCommandError):
        near = meant(tokens[0], commands) or "`lorafold --help` lists the commands"
        return f"there is no command {tokens[0]!r}; fix: {near}"
    if isinstance(error, UnusedCliTokensError):
        word = error.unused_tokens[0] if error.unused_tokens else ""
        return f"{word!r} is one word too many; fix: see {command} --help"
    argument = error.argument
    if not isinstance(error, MissingArgumentError) or argument is None or error.keyword is not None:
        return f"{error}; fix: {command} --help".replace(".; fix", "; fix").replace("..;", "…;")
    if argument.index is None:
        name = max(argument.names, key=len)
        return f"{name} is missing; fix: add {name} with its value, or see {command} --help"
    name = argument.name.lstrip("-").upper()
    option, values = _longest_list(tokens)
    if len(values) > 1:
        fix = f"write {name} before {option}: {command} {values[-1]} {option} {' '.join(values[:-1])}"
        return f"{name} is missing: {option} took all of {' '.join(values)}; fix: {fix}"
    return f"{name} is missing; fix: {command} {name} …, or see {command} --help"


def _unknown_option(error: UnknownOptionError, command: str) -> str:
    """An option or a recipe's key that the command does not have."""
    token = error.token
    word = token.keyword or token.value
    names = [name for argument in error.argument_collection for name in argument.names if argument.parse]
    if token.source == "cli":
        return _no_such_option(word, names, command)
    key = word.strip("[]\"' ")
    known = meant(key, [name.lstrip("-").replace("-", "_") for name in names if name.startswith("--")])
    return f"{token.source}: {key}: {command} has no such setting; fix: {known or f'see {command} --help'}"


def _no_such_option(word: str, names: Collection[str], command: str) -> str:
    return f"{word}: {command} has no such option; fix: {meant(word, names) or f'see {command} --help'}"


def names_of(app: App, command: str) -> list[str]:
    """Every spelling of a command's flags."""
    collection = app[command].assemble_argument_collection(default_parameter=app.default_parameter)
    return [name for argument in collection for name in argument.names]


def _unknown_word(tokens: list[str], app: App) -> str | None:
    """The first option among the words that the command does not have."""
    if not tokens or tokens[0] not in list(app):
        return None
    names = names_of(app, tokens[0])
    options = [token.partition("=")[0] for token in tokens[1:] if token.startswith("--")]
    return next((option for option in options if option.replace("_", "-") not in names), None)


def _longest_list(tokens: list[str]) -> tuple[str, list[str]]:
    """The option followed by most values, and these."""
    lists: list[tuple[str, list[str]]] = [("", [])]
    for token in tokens:
        if token.startswith("-"):
            lists.append((token, []))
        elif lists[-1][0]:
            lists[-1][1].append(token)
    return max(lists, key=lambda pair: len(pair[1]))
