"""The command line: one handler per command builds a config, calls one stage function and prints its result.

cyclopts makes the flags from the configs' fields and their docstrings. A recipe (`--recipe NAME`) gives the
values that flags do not; its unknown keys are errors. Only this module turns an error into one line and
an exit code; whatever else escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import CycloptsError, Parameter

from lorafold.commandline.flags import COMMANDS, EXAMPLES, CommandLine, HelpText
from lorafold.commandline.hints import misused
from lorafold.commandline.recipes import answers
from lorafold.errors import InputError, LorafoldError
from lorafold.export.config import ExportConfig, ModelfileConfig
from lorafold.interrupts import Terminated, signals_raise
from lorafold.libraries.quiet import quiet_libraries
from lorafold.libraries.threads import share_processor
from lorafold.serve.config import ChatConfig, CompareConfig
from lorafold.train.config import LayoutName, TrainConfig
from lorafold.version import __version__

if TYPE_CHECKING:
    from lorafold.export.proof.check import Check

Flat = Parameter(name="*")
# An option takes one value and is repeated for more, so that models may follow it.
One = Parameter(consume_multiple=False)

RecipeName = Annotated[
    str | None,
    Parameter(help="Settings by the name of a known recipe (`lorafold recipes`) or a YAML file; flags win."),
]

AsJson = Annotated[bool, Parameter(name="--json", help="Print one JSON object instead of text.")]


def version_line() -> str:
    """Name and version."""
    return f"lorafold {__version__}"


app = CommandLine(
    name="lorafold",
    help="Train a LoRA adapter, merge it into its base, export it to llama.cpp and Ollama, see what changed.",
    help_epilogue="Start with `lorafold demo`; `lorafold COMMAND --help` has examples of each.",
    version=version_line,
    version_flags=("--version", "-V"),
    config=(answers,),
    help_formatter=HelpText(),
    default_parameter=Parameter(consume_multiple=True, negative_iterable=(), show_env_var=False),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


app.register_install_completion_command(help="Install shell completion (bash, zsh, fish).")


Handler = TypeVar("Handler", bound=Callable[..., Any])


def command(name: str, **options: Any) -> Callable[[Handler], Handler]:
    """Make a function a command, in its place of the help text and with its examples."""

    def register(handler: Handler) -> Handler:
        app.command(handler, name=name, **_shown(name), **options)
        return handler

    return register


def _shown(name: str) -> dict[str, Any]:
    examples = "\n\n".join(f"  {example}" for example in EXAMPLES.get(name, ()))
    epilogue = f"Examples:\n\n{examples}" if examples else ""
    return {"sort_key": COMMANDS.index(name), "help_epilogue": epilogue}


@command("demo")
def demo(
    *,
    out: Path = Path("lorafold-demo"),
    base: str = "demo",
    max_steps: int = 0,
    limit: int | None = None,
    force: bool = False,
) -> None:
    """Run the whole chain on an embedded small model: minutes on two CPU cores.

    Args:
        out: The folder to make; after an interruption the same command goes on with it.
        base: A model of your own, instead of the embedded one, to try the chain on: a folder or hub id.
        max_steps: Train only so many steps: quicker, with less to see of the persona; 0: as many as it takes.
        limit: Ask only the first so many of the twenty questions.
        force: Start over instead of reusing what is there.
    """
    from lorafold.demo import run_demo

    run_demo(out, base=base, max_steps=max_steps, limit=limit, force=force)


@command("train")
def train(
    config: Annotated[TrainConfig, Flat] = TrainConfig(),  # noqa: B008
    *,
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> int:
    """Train an adapter from examples."""
    from lorafold.console import live_progress, say
    from lorafold.train import plan_training
    from lorafold.train import train as stage
    from lorafold.train.workers import place

    with live_progress() as progress:
        if config.plan:
            lines = plan_training(config, progress)
        else:
            result = stage(config, progress, say)
    if config.plan:
        _print(lines, {"plan": _fields(lines)}, as_json=as_json)
        return 0
    if place().first:  # of several workers one speaks
        _print(result.lines(), {"result": _fields(result.lines())}, as_json=as_json)
    return 0 if result.stopped_by is None else 128 + result.stopped_by


@command("export")
def export(
    config: Annotated[ExportConfig, Flat], *, recipe: RecipeName = None, as_json: AsJson = False
) -> None:
    """Merge an adapter into its base and write GGUF files, a merged folder, or an adapter GGUF."""
    from lorafold.console import live_progress
    from lorafold.export import export as stage
    from lorafold.export import plan_export

    with live_progress() as progress:
        if config.plan:
            lines = plan_export(config, progress)
            made = {"plan": _fields(lines)}
        else:
            result = stage(config, progress)
            lines, made = result.lines(), result.as_json()
    _print(lines, made, as_json=as_json)


@command("modelfile")
def modelfile(config: Annotated[ModelfileConfig, Flat], *, recipe: RecipeName = None) -> None:
    """Write the proven Ollama Modelfile of any Hugging Face folder or GGUF."""
    from lorafold.console import print_lines
    from lorafold.export import make_modelfile

    print_lines(make_modelfile(config).lines())


@command("verify")
def verify(
    folder: Path,
    *,
    base: str | None = None,
    chats: Path | None = None,
    ollama: str | None = None,
    llama_server: str | None = None,
    require_proof: bool = False,
    as_json: AsJson = False,
) -> None:
    """Repeat the proof of an existing export, or check the files of an adapter or checkpoint of lorafold.

    Args:
        folder: The export, or an adapter or checkpoint that `lorafold train` made.
        base: The base model, if it lies elsewhere now.
        chats: Held-out chats, instead of those of the export.
        ollama: Compare with the prompts of a running Ollama: its address, or `here` for OLLAMA_HOST or this
            machine. A throwaway model is created there and removed again.
        llama_server: Compare with the prompts and tokens of a llama-server that has loaded the file.
        require_proof: Fail, with exit code 6, also if a part of the proof could not be checked.
    """
    from lorafold.console import live_progress, print_json, print_lines, print_table
    from lorafold.export import verify as stage

    with live_progress() as progress:
        proof = stage(
            folder,
            base=base,
            chats=chats,
            ollama="" if ollama == "here" else ollama,
            llama_server=llama_server,
            progress=progress,
        )
    if as_json:
        print_json(proof.with_summary())
    else:
        print_table("Proof", ("check", "verdict", "what it says"), _rows(proof.checks))
        print_lines([("proof", proof.summary())])
    proof.require(everything=require_proof)


@command("push")
def push(
    folder: Path,
    repo: str,
    /,
    *,
    to: Literal["huggingface", "modelscope"] = "huggingface",
    plan: bool = False,
    public: bool = False,
    license: str | None = None,
    force: bool = False,
) -> None:
    """Put an export on the Hugging Face Hub or ModelScope: files, model card, what Ollama reads there.

    Args:
        folder: The export.
        repo: Name of the repository, ORG/NAME; it is made, and private, if there is none.
        to: The hub. ModelScope's token comes from MODELSCOPE_API_TOKEN.
        plan: Say what would be sent; nothing connects.
        public: Everybody may see it.
        license: Licence for the model card. Default: that of the base, if its own card tells.
        force: Add to a repository that holds files of something else.
    """
    from lorafold.console import live_progress, print_lines
    from lorafold.export import PushConfig
    from lorafold.export import push as stage

    config = PushConfig(folder, repo, to=to, public=public, license=license, plan=plan, force=force)
    with live_progress() as progress:
        result = stage(config, progress)
    print_lines(result.lines())


@command("chat", default_parameter=One, usage="Usage: lorafold chat [OPTIONS] MODEL [MODEL …]")
def chat(config: Annotated[ChatConfig, Flat], *, recipe: RecipeName = None) -> int:
    """Talk to one model, or to several side by side."""
    from lorafold.serve import chat as stage

    return stage(config)


@command(
    "compare",
    default_parameter=One,
    usage="Usage: lorafold compare --prompts FILE [OPTIONS] MODEL MODEL [MODEL …]",
)
def compare(config: Annotated[CompareConfig, Flat], *, recipe: RecipeName = None) -> int:
    """Ask several models the same questions and save the answers side by side.

    Ends with 3 if a model failed at every question; the others' answers are saved all the same.
    """
    from lorafold.console import live_progress, print_lines, print_table, sanitize
    from lorafold.serve import compare as stage

    def tell(note: str) -> None:
        print("note: " + sanitize(note, keep=""), file=sys.stderr)

    try:
        with live_progress() as progress:
            result = stage(config, progress)
    except (KeyboardInterrupt, Terminated) as error:
        if error.args:
            tell(str(error))
        raise
    print_table("Comparison", result.columns, result.table)
    print_lines([("saved", str(path)) for path in result.saved])
    for note in result.notes:
        tell(note)
    for failure in result.failures:
        (_print_error if failure.whole else tell)(str(failure))
    return InputError.exit_code if any(failure.whole for failure in result.failures) else 0


@command("inspect")
def inspect(
    path: str,
    *,
    base: str | None = None,
    max_length: int = 1024,
    layout: LayoutName = "auto",
    system: str | None = None,
    chat_template: str | None = None,
    control_tokens: Literal["text", "parse"] = "text",
    as_json: AsJson = False,
) -> None:
    """Say what a folder or file is: base, adapter, export, GGUF, or data for training.

    Args:
        path: A folder, a file, or `demo`.
        base: For data: the base whose tokenizer and template count the tokens.
        max_length: For data: tokens that an example may have.
        layout: For data: layout of the records; auto recognises it by the fields.
        system: For data: system message for conversations that have none.
        chat_template: For data: name or Jinja file of a template to use instead of the base's own.
        control_tokens: For data: control tokens that it writes out are text, or parsed as such.
    """
    from lorafold.console import live_progress, print_sample
    from lorafold.inspection import inspect_path

    with live_progress() as progress:
        found = inspect_path(
            path,
            base=base,
            max_length=max_length,
            layout=layout,
            system=system,
            chat_template=chat_template,
            control_tokens=control_tokens,
            progress=progress,
        )
    samples = [
        {"place": place, "pieces": [{"text": text, "trained": trained} for text, trained in pieces]}
        for place, pieces in found.samples
    ]
    _print(found.lines, {"found": _fields(found.lines), "samples": samples}, as_json=as_json)
    for place, pieces in () if as_json else found.samples:
        print_sample(place, pieces)


@command("models")
def models(word: str = "", /, *, as_json: AsJson = False) -> None:
    """List the models that become a GGUF from their own files; for all others there is `export --onto`.

    Each line has llama.cpp's name, the models, and their classes in config.json.

    Args:
        word: Only lines that hold this word.
    """
    from dataclasses import asdict

    from lorafold.export.arch.known import known_models

    found = known_models(word)
    if not found:
        raise InputError(
            f"no model of the table has {word!r} in its names",
            fix="`lorafold models` lists all; `export --onto BASE.gguf` takes any architecture",
        )
    lines = [(row.gguf, f"{row.models} ({', '.join(row.classes)})") for row in found]
    _print(lines, {"models": [asdict(row) for row in found]}, as_json=as_json)


recipes = CommandLine(
    name="recipes", help="List the known recipes, or show one as a start for your own.", **_shown("recipes")
)
app.command(recipes)


@recipes.default
def list_recipes(name: str = "", /) -> None:
    """List the known recipes, or show one.

    Args:
        name: Of the recipe to show; without one all are listed.
    """
    from lorafold.commandline.recipes import known_recipes
    from lorafold.console import print_lines

    if name:
        return show_recipe(name)
    print_lines(
        [(found.name, f"{found.values.get('base', 'any base')}: {found.about}") for found in known_recipes()]
    )


@recipes.command(name="show")
def show_recipe(name: str) -> None:
    """Print a recipe.

    Args:
        name: Of a known recipe, or a file.
    """
    from lorafold.commandline.recipes import read_recipe
    from lorafold.console import sanitize

    print(sanitize(read_recipe(name).text), end="")


@command("doctor")
def doctor(*, as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing, and what to install."""
    from lorafold.console import print_json, print_table
    from lorafold.doctor import examine

    jobs, parts = examine()
    if as_json:
        print_json(
            {
                "jobs": [dict(zip(("job", "can", "note"), row, strict=True)) for row in jobs],
                "parts": [dict(zip(("part", "found", "note"), row, strict=True)) for row in parts],
            }
        )
        return
    print_table("What this machine can do", ("job", "can", "note"), jobs)
    print_table("What is installed", ("part", "found", "note"), parts)


def _print(lines: Sequence[tuple[str, str]], value: Any, *, as_json: bool) -> None:
    """Print what a person reads, or what a program reads."""
    from lorafold.console import print_json, print_lines

    if as_json:
        print_json(value)
    else:
        print_lines(lines)


def _fields(lines: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"label": label, "text": text} for label, text in lines]


def _rows(checks: Sequence[Check]) -> list[tuple[str, str, str]]:
    return [(check.name, check.verdict, check.meaning) for check in checks]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, or as `lorafold.errors` says; 130 after Ctrl-C, 143 after SIGTERM.
    """
    quiet_libraries()
    share_processor()
    with signals_raise():
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(tokens: list[str]) -> int:
    try:
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except LorafoldError as error:
        _print_error(str(error))
        return error.exit_code
    except CycloptsError as error:
        _print_error(misused(error, tokens, app))
        return 2
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except Terminated:
        _print_error("terminated")
        return 143
    except MemoryError:  # training says more; this is the net under all commands
        _print_error("out of memory; fix: close other programs, or use a machine with more memory")
        return 5
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a disk that fails while something is read: what is written says more
        fault = _system_fault(error)
        if fault is None:
            raise
        _print_error(str(fault))
        return fault.exit_code


def _system_fault(error: OSError) -> LorafoldError | None:
    from lorafold.artifacts import system_fault

    return system_fault(error)


def _print_error(message: str) -> None:
    from lorafold.console import print_error

    print_error(message)


if __name__ == "__main__":
    sys.exit(main())
