"""What can be typed after a slash: a table of commands over one conversation.

Each takes the shell and what stands behind its name, says something, and leaves the conversation in order:
whatever a command raises as a `LorafoldError` has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorafold.chat.sandbox import Message
from lorafold.console import Row
from lorafold.errors import InputError, UsageError
from lorafold.serve.config import SAMPLING_RANGES, WHOLE
from lorafold.serve.engine import Engine
from lorafold.serve.session import Session, utf8
from lorafold.serve.terminal.judging import blind, lens, tell_score, vote
from lorafold.serve.terminal.panes import wrapped
from lorafold.serve.terminal.shell import Command, Shell, last_turn, model_at, named_file, tell_kept
from lorafold.serve.terminal.views import STYLES


def run_command(shell: Shell, line: str) -> None:
    """Run what was typed, "/name argument".

    Raises:
        UsageError: there is no such command, or the argument is wrong.
    """
    name, _, argument = line[1:].strip().partition(" ")
    found = _named(name, "/help lists the commands; begin a message with // to send a slash")
    words = argument.split()
    if found.most is not None and len(words) > found.most:
        takes = "nothing" if not found.most else f"at most {found.most} word{'s' * (found.most != 1)}"
        raise UsageError(f"/{name} takes {takes}, got {argument.strip()!r}", fix=f"/{found.usage}")
    found.run(shell, argument.strip())


def _named(name: str, fix: str) -> Command:
    found = COMMANDS.get(ALIASES.get(name, name))
    if found is None:
        raise UsageError(f"there is no command /{name}", fix=fix)
    return found


def help_(shell: Shell, argument: str) -> None:
    """List the commands, or one."""
    if argument:
        name = argument.lstrip("/")
        found = _named(name, "/help lists the commands")
        also = [f"/{other}" for other, known in ALIASES.items() if COMMANDS[known] is found]
        shell.tell(f"/{found.usage}\n{found.does}" + (f" (also {', '.join(also)})" if also else ""))
        return
    wide = max(len(command.usage) for command in COMMANDS.values()) + 3
    rows: list[Row] = []
    for command in COMMANDS.values():
        for number, line in enumerate(wrapped(command.does, max(20, shell.width() - wide))):
            head = f"/{command.usage}" if number == 0 else ""
            rows.append([(f"{head:<{wide}}", "bold"), *line])
    rows += wrapped("Alt-Enter: a new line. Ctrl-C: stop the answers. Ctrl-D: leave.", shell.width(), "dim")
    shell.say(rows)


def system(shell: Shell, argument: str) -> None:
    """Show, set or (with -) remove the system message."""
    if argument:
        shell.talk.session.system = None if argument == "-" else argument
    shell.tell(f"system: {shell.talk.session.system or '(none: the template may bring its own)'}")


def set_(shell: Shell, argument: str) -> None:
    """Show or change the sampling."""
    session = shell.talk.session
    name, _, text = argument.replace("=", " ").partition(" ")
    if name:
        known = next((key for key in SAMPLING_RANGES if key == name.replace("-", "_")), None)
        if known is None:
            raise UsageError(f"there is no setting {name!r}", fix=f"choose {', '.join(SAMPLING_RANGES)}")
        if text.strip():
            value = _number(known, text.strip())
            try:
                session.sampling = replace(session.sampling, **{known: value})
            except UsageError as error:
                raise UsageError(error.problem, at=known, fix=f"/set {known} NUMBER") from None
    settings = (f"{key} {getattr(session.sampling, key)}" for key in SAMPLING_RANGES)
    shell.tell("  ".join(settings).replace("seed None", "seed none (new each time)"))


def _number(name: str, text: str) -> Any:
    if name == "seed" and text.lower() in ("none", "-"):
        return None
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        number = "a whole number" if name in WHOLE else "a number"
        raise UsageError(f"{name} takes {number}, got {text!r}", fix=f"/set {name} NUMBER") from None


def show(shell: Shell, argument: str) -> None:
    """Show settings and models, or the last prompt as the models read it."""
    if argument == "prompt":
        _show_prompt(shell)
        return
    if argument:
        raise UsageError(f"expected nothing or prompt, got {argument!r}", fix="/show prompt")
    models(shell, "")
    system(shell, "")
    set_(shell, "")
    session = shell.talk.session
    follow = (
        "each model its own" if session.follow is None else f"all follow {session.models[session.follow]}"
    )
    shell.tell(f"{len(session.turns)} turns; history: {follow}; blind: {'on' if shell.talk.blind else 'off'}")
    tell_score(shell)


def _show_prompt(shell: Shell) -> None:
    turn, talk = last_turn(shell), shell.talk
    found = {
        index: _what_was_read(talk.engines[index], talk.session.messages(index))
        for _, index in talk.places(turn)
        if index in turn.answers
    }
    if turn.hidden and len(set(found.values())) > 1:
        # Templates, and earlier answers that stood under names, would tell who reads them.
        raise UsageError("the prompts would tell which model is which", fix="/vote first")
    for letter, index in talk.places(turn):
        if index in found:
            name = "" if turn.hidden else talk.engines[index].about.name
            shell.tell(f"{letter}  {name}".rstrip(), "bold" if turn.hidden else STYLES[index])
            shell.tell(found[index])


def _what_was_read(engine: Engine, messages: Sequence[Message]) -> str:
    """The prompt as a model read it; of a server, which builds its own, the messages that it was sent."""
    prompt = engine.prompt(messages)
    if prompt is not None:
        return prompt
    sent = "\n".join(f"[{message['role']}] {message['content']}" for message in messages)
    return f"{sent}\n(these messages were sent; the server builds the prompt)"


def models(shell: Shell, argument: str) -> None:
    """List the models."""
    list_models(shell, wait=2.0)


def list_models(shell: Shell, wait: float) -> None:
    """List the models, waiting so many seconds for digests of large files."""
    talk = shell.talk
    talk.digests.wait(wait)
    for index in talk.order:
        about = talk.engines[index].about
        facts = [about.quantization, about.kind, talk.digests.short(index)]
        context = talk.engines[index].context
        facts += [f"{context:,} tokens of context"] if context else []
        facts += ["resting"] if talk.only is not None and index not in talk.only else []
        shell.tell(f"{talk.letter(index)}  {about.name}", STYLES[index])
        shell.tell("   " + " · ".join(fact for fact in facts if fact), "dim")
        for note in about.notes:
            shell.tell(f"   {note}", "yellow")


def retry(shell: Shell, argument: str) -> None:
    """Answer the last question again."""
    last_turn(shell)
    turn = shell.talk.again()
    if turn is None:
        shell.tell("no answer; the old ones stand", "yellow")
    else:
        tell_kept(shell, turn)


def undo(shell: Shell, argument: str) -> None:
    """Forget the last question and its answers."""
    turn = last_turn(shell)
    shell.talk.session.turns.pop()
    shell.tell(f"forgotten: {turn.user[:60]!r}; {len(shell.talk.session.turns)} turns are left")


def edit(shell: Shell, argument: str) -> None:
    """Change the last question and ask it again."""
    user = last_turn(shell).user
    shell.draft = f"/{user}" if user.startswith("/") else user  # a slash alone would be a command
    shell.editing = True


def reset(shell: Shell, argument: str) -> None:
    """Forget the conversation; settings stay."""
    shell.talk.session.turns.clear()
    shell.talk.session.file = None  # which holds the old conversation
    shell.tell("a new conversation")


def save(shell: Shell, argument: str) -> None:
    """Save the conversation as JSON."""
    path = named_file(argument, "save")
    if path.is_dir():
        raise UsageError("this is a folder", at=path, fix="/save FILE.json")
    session = shell.talk.session
    if path.exists() and path.resolve() != session.file:
        problem = "the file exists, and this conversation was not saved to it or loaded from it"
        raise InputError(problem, at=path, fix="choose another name")
    session.save(path)
    shell.tell(f"saved {len(session.turns)} turns: {path}")


def load(shell: Shell, argument: str) -> None:
    """Go on with a saved conversation."""
    path = named_file(argument, "load")
    shell.talk.session = Session.load(path, shell.talk.session.models)
    shell.tell(f"{len(shell.talk.session.turns)} turns from {path}")


def follow(shell: Shell, argument: str) -> None:
    """All models continue one model's answers, or each its own."""
    session = shell.talk.session
    session.follow = None if argument in ("", "off") else model_at(shell, argument)
    text = "each model follows its own answers"
    shell.tell(text if session.follow is None else f"all follow {session.models[session.follow]}")


def only(shell: Shell, argument: str) -> None:
    """Let only some models answer."""
    letters = argument.replace(",", " ").split()
    talk = shell.talk
    talk.only = None if not letters or letters == ["all"] else {model_at(shell, letter) for letter in letters}
    names = (f"{talk.letter(i)} {talk.engines[i].about.name}" for i in talk.order)
    answering = [
        name for name, i in zip(names, talk.order, strict=True) if talk.only is None or i in talk.only
    ]
    shell.tell("answering: " + ", ".join(answering))


def swap(shell: Shell, argument: str) -> None:
    """Exchange two columns."""
    order = shell.talk.order
    letters = argument.split() or [shell.talk.letter(order[0]), shell.talk.letter(order[-1])]
    if len(letters) != 2:
        raise UsageError("expected two letters", fix="/swap A B")
    first, second = (order.index(model_at(shell, letter)) for letter in letters)
    order[first], order[second] = order[second], order[first]
    names = (f"{shell.talk.letter(i)} {shell.talk.engines[i].about.name}" for i in order)
    shell.tell("columns: " + ", ".join(names))


def export(shell: Shell, argument: str) -> None:
    """Write the conversation as a page, a table or JSON lines."""
    path = named_file(argument, "export")
    from lorafold.artifacts import write_atomic  # with the page's code it is needed by few conversations
    from lorafold.serve.comparison.report import RENDERERS
    from lorafold.serve.terminal.session_export import as_result

    turn = last_turn(shell)
    if turn.hidden and len(turn.standing()) > 1:
        raise UsageError("the report tells the names, which the vote is not to know", fix="/vote first")
    if path.suffix.lower() not in RENDERERS:
        raise UsageError(f"unknown format {path.suffix!r}", at=path, fix=f"end in {', '.join(RENDERERS)}")
    if path.exists():
        raise InputError("the file exists", at=path, fix="choose another name")
    if len(shell.talk.engines) > 1:
        shell.tell("scoring the answers for the lens …", "dim")
    write_atomic(path, utf8(RENDERERS[path.suffix.lower()](as_result(shell.talk))))
    shell.tell(f"written: {path}")


def quit_(shell: Shell, argument: str) -> None:
    """Leave."""
    shell.leaving = True


COMMANDS: Mapping[str, Command] = {
    "help": Command("help [COMMAND]", "list the commands", help_, "command", most=1),
    "system": Command("system [TEXT|-]", "show, set or remove the system message", system, most=None),
    "set": Command(
        "set [NAME VALUE]", "show or change the sampling", set_, tuple(SAMPLING_RANGES), most=None
    ),
    "show": Command(
        "show [prompt]", "settings, models, votes; or what was last read", show, ("prompt",), most=1
    ),
    "retry": Command("retry", "answer the last question again, with other random numbers", retry),
    "undo": Command("undo", "forget the last question and its answers", undo),
    "edit": Command("edit", "change the last question and ask it again", edit),
    "reset": Command("reset", "forget the conversation; settings stay", reset),
    "save": Command("save FILE", "save the conversation as JSON", save, "path", most=None),
    "load": Command("load FILE", "go on with a saved conversation", load, "path", most=None),
    "models": Command("models", "list the models: files, digests, context", models),
    "follow": Command(
        "follow A|off", "all continue A's answers, or each its own", follow, ("off",), letters=True, most=1
    ),
    "only": Command("only A …|all", "let only some models answer", only, ("all",), letters=True, most=None),
    "swap": Command("swap [A B]", "exchange two columns", swap, letters=True, most=2),
    "vote": Command("vote A|B|tie", "say which answer is better", vote, ("tie",), letters=True, most=1),
    "blind": Command("blind [on|off]", "hide the names and shuffle the sides", blind, ("on", "off"), most=1),
    "lens": Command("lens [A [B]]", "colour A's answer by how surprised B is", lens, letters=True, most=2),
    "export": Command(
        "export FILE", "write a page (.html), a table (.md) or .jsonl", export, "path", most=None
    ),
    "quit": Command("quit", "leave (also Ctrl-D)", quit_),
}
ALIASES = {"exit": "quit", "bye": "quit", "q": "quit", "?": "help", "clear": "reset"}
