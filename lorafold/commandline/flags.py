"""How each command's flags are shown: in groups, with short names, those that must be given marked.

The flags themselves are the fields of the stages' configs. A field that no group names is shown under
"Other"; a test keeps that group empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cyclopts import App, Group, Parameter

HUB = ("offline", "trust_remote_code")

# Command -> group -> fields, in the order in which they are shown.
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "Essentials": ("base", "data", "out", "recipe", "method", "plan", "as_json", "resume", "force"),
        "Data": (
            "layout",
            "max_length",
            "system",
            "chat_template",
            "control_tokens",
            "eval_split",
            "eval_data",
            "allow_pickle",
        ),
        "Adapter": (
            "r",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "target_parameters",
            "modules_to_save",
            "layers_to_transform",
            "loraplus_lr_ratio",
            "num_virtual_tokens",
            "new_tokens",
        ),
        "Optimisation": (
            "num_train_epochs",
            "max_steps",
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "warmup_ratio",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "optim",
            "weight_decay",
            "adam_beta1",
            "adam_beta2",
            "adam_epsilon",
            "max_grad_norm",
            "group_by_length",
            "seed",
        ),
        "Speed and memory": (
            "load_in_4bit",
            "load_in_8bit",
            "bnb_4bit_quant_type",
            "bnb_4bit_use_double_quant",
            "bnb_4bit_compute_dtype",
            "gradient_checkpointing",
            "dtype",
            "device_map",
            "fsdp",
            "packing",
            "packing_length",
            "attn_implementation",
            "use_liger_kernel",
            "fused_kernels",
            "cuda_graphs",
            "torch_compile",
        ),
        "Evaluation and checkpoints": (
            "logging_steps",
            "save_steps",
            "save_total_limit",
            "eval_steps",
            "early_stopping_patience",
            "load_best_model_at_end",
            "sample_answers",
            "report_to",
        ),
        "Hub": HUB,
    },
    "export": {
        "Essentials": (
            "source",
            "out",
            "quant",
            "base",
            "format",
            "onto",
            "mmproj",
            "recipe",
            "plan",
            "as_json",
            "force",
        ),
        "Adapters": ("adapter", "fold_into", "rounding", "seed"),
        "Types and sizes": (
            "tensor_type",
            "keep_delta",
            "fit",
            "max_kl",
            "imatrix",
            "imatrix_data",
            "imatrix_share",
            "dtype",
            "split_max_size",
            "shard_max_size",
            "tensors",
        ),
        "Prompt and Modelfile": (
            "chat_template",
            "system",
            "thinking",
            "modelfile",
            "name",
            "pre_tokenizer",
            "allow_embedded_jinja",
            "ollama_path",
            "ollama",
            "ollama_host",
        ),
        "Proof": ("verify", "chats", "proof_minutes", "reference", "require_proof", "report", "sbom"),
        "Machine": ("threads", "max_memory"),
        "Hub": HUB,
    },
    "modelfile": {
        "Essentials": ("path", "out", "recipe", "force"),
        "Content": (
            "from_name",
            "adapter",
            "chat_template",
            "system",
            "thinking",
            "num_ctx",
            "ollama_path",
            "allow_embedded_jinja",
            "conversations",
        ),
    },
    "push": {
        "Essentials": ("folder", "repo", "to", "plan", "public", "license", "force"),
    },
    "chat": {
        "Essentials": ("models", "prompt", "system", "recipe", "json", "plain", "blind", "session"),
        "Sampling": (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repeat_penalty",
            "seed",
            "max_tokens",
        ),
        "Model": ("context", "threads", "chat_template", "load_in_4bit", "tools"),
        "Hub": HUB,
    },
    "compare": {
        "Essentials": ("models", "prompts", "out", "recipe", "limit", "system", "force"),
        "Sampling": (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repeat_penalty",
            "seed",
            "max_tokens",
        ),
        "Page": ("lens", "language", "votes"),
        "Model": ("context", "threads", "chat_template", "load_in_4bit", "tools"),
        "Hub": HUB,
    },
}

# Short names of the flags that are typed daily.
_SHORT = {"out": "-o", "quant": "-q", "prompt": "-p", "force": "-f", "base": "-b", "data": "-d"}

# What a command cannot do without, though its config has a default (a recipe may give it). `--plan` needs no
# `--out`, so the config itself asks for that one.
REQUIRED = {"train": ("base", "data")}

EXAMPLES = {
    "train": (
        "lorafold train --base Qwen/Qwen3-4B --data chats.jsonl --out my-adapter",
        "lorafold train --recipe qwen3-qlora --data chats.jsonl --plan",
    ),
    "export": (
        "lorafold export my-adapter --out my-gguf --quant Q4_K_M",
        "lorafold export my-adapter --out merged --format folder",
    ),
    "verify": ("lorafold verify my-gguf", "lorafold verify my-gguf --json > proof.json"),
    "modelfile": (
        "lorafold modelfile model-Q4_K_M.gguf",
        "lorafold modelfile my-merged-folder --out Modelfile",
    ),
    "push": (
        "lorafold push my-gguf ORG/NAME --plan",
        "lorafold push my-gguf ORG/NAME",
        "lorafold push my-gguf ORG/NAME --to modelscope",
    ),
    "chat": (
        "lorafold chat my-gguf/my-adapter-Q4_K_M.gguf",
        "lorafold chat original.gguf tuned.gguf     (side by side)",
    ),
    "compare": ("lorafold compare base.gguf tuned.gguf --prompts questions.txt --out page.html",),
    "inspect": (
        "lorafold inspect my-adapter",
        "lorafold inspect chats.jsonl --base Qwen/Qwen2-1.5B-Instruct",
    ),
    "demo": ("lorafold demo", "lorafold demo --out quick --max-steps 20 --limit 4"),
    "models": ("lorafold models", "lorafold models qwen"),
    "recipes": ("lorafold recipes", "lorafold recipes show qwen3-lora > mine.yaml"),
}

# In the order of work.
COMMANDS = (
    "demo",
    "train",
    "export",
    "verify",
    "modelfile",
    "push",
    "chat",
    "compare",
    "inspect",
    "models",
    "recipes",
    "doctor",
)


class CommandLine(App):
    """An app whose flags are grouped, named and marked by the tables above."""

    def assemble_argument_collection(self, **options: Any) -> Any:
        """cyclopts' own collection of a command's arguments, with what the tables say added to each."""
        arguments = super().assemble_argument_collection(**options)
        command = self.name[0] if self.name else ""
        places = {name: place for place in _places(command) for name in place.fields}
        for argument in arguments:
            name = argument.field_info.name
            place = places.get(name)
            if place is None and command in GROUPS and argument.names and name != "config":
                place = _Place("Other", 99, ())
            told = _told(argument, place, required=name in REQUIRED.get(command, ()))
            # What is not named stays as it is: cyclopts takes None for a value.
            argument.parameter = Parameter.combine(argument.parameter, Parameter(**told))
        return arguments


@dataclass(frozen=True, slots=True)
class _Place:
    """A group of one command's flags."""

    title: str
    order: int
    fields: tuple[str, ...]


def _places(command: str) -> Iterator[_Place]:
    for order, (title, fields) in enumerate(GROUPS.get(command, {}).items()):
        yield _Place(title, order, fields)


_OFF = "off"  # the default of a flag that help is to show without its negative


def _told(argument: Any, place: _Place | None, required: bool) -> dict[str, Any]:
    """What the tables say of one argument, as cyclopts' settings of a parameter."""
    field, default = argument.field_info.name, argument.field_info.default
    told: dict[str, Any] = {}
    if argument.parameter.help:  # a docstring of two lines is one text
        told["help"] = " ".join(argument.parameter.help.split())
    if place is not None:
        told["group"] = (Group(place.title, sort_key=place.order),)
    long = tuple(argument.parameter.name or ())
    if field in _SHORT and any(name.startswith("--") for name in long):
        told["name"] = (_SHORT[field], *(name for name in long if name != _SHORT[field]))
    if required:
        told["required"] = True
    # False and nothing at all are not worth a line; a tuple is shown as it is typed.
    if default is False:
        told["show_default"] = lambda _: _OFF
    elif default in (None, "", ()) and not isinstance(default, int | float):
        told["show_default"] = False
    elif isinstance(default, tuple):
        told["show_default"] = lambda values: " ".join(map(str, values))
    return told


def _without_negatives(panel: Any) -> Any:
    """A panel without the `--no-X` of what is off anyway: it is taken all the same, against a recipe."""
    from attrs import evolve

    entries = [
        evolve(entry, negative_names=(), default=None) if entry.default == _OFF else entry
        for entry in panel.entries
    ]
    return evolve(panel, entries=entries)


def help_columns(console: Any, options: Any, entries: Any) -> Any:
    """Columns wide enough that no flag's name is broken at 80 columns."""
    from cyclopts.help.specs import AsteriskColumn, ColumnSpec, DescriptionColumn, NameRenderer

    width = max(36, console.width // 3)
    names = ColumnSpec(
        renderer=NameRenderer(max_width=width), header="Option", style="cyclopts.name", max_width=width
    )
    mark = (AsteriskColumn,) if any(entry.required for entry in entries) else ()
    return (*mark, names, DescriptionColumn)


class HelpText:
    """Draws help texts: cyclopts' own look, with `help_columns`. Its modules are loaded only for that."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Draw one panel."""
        of_flags = panel.format == "parameter"
        self._look(of_flags)(console, options, _without_negatives(panel) if of_flags else panel)

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Draw the line of usage."""
        self._look().render_usage(console, options, usage)

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Draw what the command is for."""
        self._look().render_description(console, options, description)

    @staticmethod
    def _look(of_flags: bool = False) -> Any:
        from cyclopts.help.formatters.default import DefaultFormatter

        return DefaultFormatter(column_specs=help_columns if of_flags else None)
