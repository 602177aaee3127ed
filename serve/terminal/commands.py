"""What can be typed after a slash: a table of commands over one conversation.

Each takes the chat's state and what stands behind its name, says something, and leaves the conversation in
order: whatever a command raises as a `LorafoldError` has changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from lorafold.chat.call_spellings import told, told_message
from lorafold.chat.dialogue import name_of
from lorafold.chat.sandbox import Message
from lorafold.console import Row
from lorafold.errors import InputError, UsageError
from lorafold.serve.config import SAMPLING_RANGES, WHOLE, noise_note
from lorafold.serve.conversation import Conversation, utf8
from lorafold.serve.protocol import Engine, Resizable
from lorafold.serve.terminal.chat_state import ChatState, last_turn, model_at, named_file, tell_kept
from lorafold.serve.terminal.lens_view import lens
from lorafold.serve.terminal.panes import wrapped
from lorafold.serve.terminal.talk import Talk
from lorafold.serve.terminal.views import STYLES
from lorafold.serve.terminal.votes import blind, tell_score, vote


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        usage: its name and arguments.
        does: what it does, one line.
        run: does it.
        choices: what may stand behind it, for completion; "path": file names, "command": commands.
        letters: models' letters may stand behind it too.
        most: how many words may stand behind it; None: a text, a file name or any number of letters.
    """

    usage: str
    does: str
    run: Callable[[ChatState, str], None]
    choices: Sequence[str] | str = ()
    letters: bool = False
    most: int | None = 0


def run_command(state: ChatState, line: str) -> None:
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
    found.run(state, argument.strip())


def _named(name: str, fix: str) -> Command:
    found = COMMANDS.get(ALIASES.get(name, name))
    if found is None:
        near = get_close_matches(name.lower(), [*COMMANDS, *ALIASES], n=1)
        meant = f"; did you mean /{near[0]}?" if near else ""
        raise UsageError(f"there is no command /{name}{meant}", fix=fix)
    return found


def help_(state: ChatState, argument: str) -> None:
    """List the commands, or one."""
    if argument:
        name = argument.lstrip("/")
        found = _named(name, "/help lists the commands")
        also = [f"/{other}" for other, known in ALIASES.items() if COMMANDS[known] is found]
        state.tell(f"/{found.usage}\n{found.does}" + (f" (also {', '.join(also)})" if also else ""))
        return
    wide = max(len(command.usage) for command in COMMANDS.values()) + 3
    rows: list[Row] = []
    for command in COMMANDS.values():
        for number, line in enumerate(wrapped(command.does, max(20, state.width() - wide))):
            head = f"/{command.usage}" if number == 0 else ""
            rows.append([(f"{head:<{wide}}", "bold"), *line])
    rows += wrapped("Alt-Enter: a new line. Ctrl-C: stop the answers. Ctrl-D: leave.", state.width(), "dim")
    state.say(rows)


def system(state: ChatState, argument: str) -> None:
    """Show, set or (with -) remove the system message."""
    if argument:
        state.talk.conversation.system = None if argument == "-" else argument
    state.tell(f"system: {state.talk.conversation.system or '(none: the template may bring its own)'}")


def set_(state: ChatState, argument: str) -> None:
    """Show or change the sampling, or the context of models in Ollama."""
    conversation = state.talk.conversation
    name, _, text = argument.replace("=", " ").partition(" ")
    if name == "context":
        _set_context(state, text.strip())
    elif name:
        known = next((key for key in SAMPLING_RANGES if key == name.replace("-", "_")), None)
        if known is None:
            raise UsageError(
                f"there is no setting {name!r}", fix=f"choose context, {', '.join(SAMPLING_RANGES)}"
            )
        if text.strip():
            value = _number(known, text.strip())
            try:
                conversation.sampling = replace(conversation.sampling, **{known: value})
            except UsageError as error:
                raise UsageError(error.problem, at=known, fix=f"/set {known} NUMBER") from None
    settings = (f"{key} {getattr(conversation.sampling, key)}" for key in SAMPLING_RANGES)
    state.tell("  ".join(settings).replace("seed None", "seed none (new each time)"))
    if note := noise_note(conversation.sampling):
        state.tell(note, "yellow")


def _set_context(state: ChatState, text: str) -> None:
    """Another context for models that take one while they run, which are Ollama's."""
    if not text:
        return
    try:
        context = int(text) if text.isascii() and text.isdigit() else 0
    except ValueError:  # Python reads no more than 4,300 digits
        context = 0
    if not context:
        raise UsageError(f"context takes a whole number above 0, got {text!r}", fix="/set context NUMBER")
    engines = state.talk.engines
    able = [engine for engine in engines if isinstance(engine, Resizable)]
    if not able:
        raise UsageError(
            "these models keep the context that they were loaded with",
            fix="start again with --context NUMBER",
        )
    for engine in able:
        engine.resize(context)
    rest = len(engines) - len(able)
    kept = f"; {rest} of {len(engines)} models keep the one that they were loaded with" if rest else ""
    state.tell(f"context {context:,} from the next answer on{kept}")


def _number(name: str, text: str) -> Any:
    if name == "seed" and text.lower() in ("none", "-"):
        return None
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        number = "a whole number" if name in WHOLE else "a number"
        raise UsageError(f"{name} takes {number}, got {text!r}", fix=f"/set {name} NUMBER") from None


def show(state: ChatState, argument: str) -> None:
    """Show settings and models, or the last prompt as the models read it."""
    if argument == "prompt":
        _show_prompt(state)
        return
    if argument:
        raise UsageError(f"expected nothing or prompt, got {argument!r}", fix="/show prompt")
    models(state, "")
    system(state, "")
    set_(state, "")
    conversation = state.talk.conversation
    follow = (
        "each model its own"
        if conversation.follow is None
        else f"all follow {conversation.models[conversation.follow]}"
    )
    state.tell(
        f"{len(conversation.turns)} turns; history: {follow}; blind: {'on' if state.talk.blind else 'off'}"
    )
    tell_score(state)


def _show_prompt(state: ChatState) -> None:
    turn, talk = last_turn(state), state.talk
    found = {
        model: _what_was_read(talk.engines[model], talk.conversation.messages(model)) for model in turn.asked
    }
    if turn.hidden and len(set(found.values())) > 1:
        # Templates, and earlier answers that stood under names, would tell who reads them.
        raise UsageError("the prompts would tell which model is which", fix="/vote first")
    for model, prompt in found.items():
        name = "" if turn.hidden else talk.engines[model].about.name
        state.tell(f"{turn.letter(model)}  {name}".rstrip(), "bold" if turn.hidden else STYLES[model])
        state.tell(prompt)


def _what_was_read(engine: Engine, messages: Sequence[Message]) -> str:
    """The prompt as a model read it; of a server, which builds its own, the messages that it was sent."""
    prompt = engine.prompt(messages)
    if prompt is not None:
        return prompt
    sent = "\n".join(f"[{message['role']}] {told_message(message)}" for message in messages)
    return f"{sent}\n(these messages were sent; the server builds the prompt)"


def models(state: ChatState, argument: str) -> None:
    """List the models."""
    list_models(state, wait=2.0)


def list_models(state: ChatState, wait: float) -> None:
    """List the models, waiting so many seconds for digests of large files."""
    talk = state.talk
    talk.digests.wait(wait)
    for index in talk.columns:
        about = talk.engines[index].about
        facts = [about.quantization, about.kind, talk.digests.short(index)]
        context = talk.engines[index].context
        facts += [f"{context:,} tokens of context"] if context else []
        facts += ["resting"] if talk.only is not None and index not in talk.only else []
        state.tell(f"{talk.letter(index)}  {about.name}", STYLES[index])
        state.tell("   " + " · ".join(fact for fact in facts if fact), "dim")
        for note in about.notes:
            state.tell(f"   {note}", "yellow")


def retry(state: ChatState, argument: str) -> None:
    """Answer the last question again."""
    last_turn(state)
    turn = state.talk.again()
    if turn is None:
        state.tell("no answer; the old ones stand", "yellow")
    else:
        tell_kept(state, turn)


def tool(state: ChatState, argument: str) -> None:
    """Show the tools, or give the result of what was called last."""
    talk = state.talk
    if not argument:
        names = ", ".join(name_of(tool) for tool in talk.conversation.tools)
        state.tell(f"tools: {names or '(none: start with --tools FILE)'}")
        for model in talk.calling():
            for call in talk.conversation.waiting(model):
                state.tell(f"{talk.letter(model)} waits: {told(call)}")
        return
    turn = talk.ask(argument, results_of(talk, argument))
    if turn is None:
        state.tell("no answer; the result was not kept")


def results_of(talk: Talk, text: str) -> tuple[str, ...]:
    """The results that a text gives: itself of one call, the entries of a JSON list of several.

    Raises:
        UsageError: no call waits, or there are more or fewer results than calls.
    """
    counts = {len(talk.conversation.waiting(model)) for model in talk.calling()}
    if not counts:
        raise UsageError("no call of a tool waits for a result", fix="ask something first")
    most = max(counts)
    if most == 1:
        return (text,)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != most:
        problem = f"{most} calls wait, so the results are a JSON list of as many"
        raise UsageError(problem, fix='/tool ["first", "second"]')
    return tuple(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in found)


def undo(state: ChatState, argument: str) -> None:
    """Forget the last question and its answers."""
    turn = last_turn(state)
    state.talk.conversation.turns.pop()
    state.tell(f"forgotten: {turn.user[:60]!r}; {len(state.talk.conversation.turns)} turns are left")


def edit(state: ChatState, argument: str) -> None:
    """Change the last question and ask it again."""
    turn = last_turn(state)
    user = turn.user
    if turn.results:
        state.talk.conversation.turns.pop()
        state.draft = f"/tool {user}"
        return
    state.draft = f"/{user}" if user.startswith("/") else user  # a slash alone would be a command
    state.editing = True


def reset(state: ChatState, argument: str) -> None:
    """Forget the conversation; settings stay."""
    state.talk.conversation.turns.clear()
    state.talk.conversation.file = None  # which holds the old conversation
    state.tell("a new conversation")


def save(state: ChatState, argument: str) -> None:
    """Save the conversation as JSON."""
    path = named_file(argument, "save")
    if path.is_dir():
        raise UsageError("this is a folder", at=path, fix="/save FILE.json")
    conversation = state.talk.conversation
    if path.exists() and path.resolve() != conversation.file:
        problem = "the file exists, and this conversation was not saved to it or loaded from it"
        raise InputError(problem, at=path, fix="choose another name")
    conversation.save(path)
    state.tell(f"saved {len(conversation.turns)} turns: {path}")


def load(state: ChatState, argument: str) -> None:
    """Go on with a saved conversation."""
    path = named_file(argument, "load")
    state.talk.conversation = Conversation.load(path, state.talk.conversation.models)
    state.tell(f"{len(state.talk.conversation.turns)} turns from {path}")


def follow(state: ChatState, argument: str) -> None:
    """All models continue one model's answers, or each its own."""
    conversation = state.talk.conversation
    conversation.follow = None if argument in ("", "off") else model_at(state, argument)
    text = "each model follows its own answers"
    state.tell(
        text if conversation.follow is None else f"all follow {conversation.models[conversation.follow]}"
    )


def only(state: ChatState, argument: str) -> None:
    """Let only some models answer."""
    letters = argument.replace(",", " ").split()
    talk = state.talk
    talk.only = None if not letters or letters == ["all"] else {model_at(state, letter) for letter in letters}
    names = (f"{talk.letter(i)} {talk.engines[i].about.name}" for i in talk.columns)
    answering = [
        name for name, i in zip(names, talk.columns, strict=True) if talk.only is None or i in talk.only
    ]
    state.tell("answering: " + ", ".join(answering))


def swap(state: ChatState, argument: str) -> None:
    """Exchange two columns."""
    order = state.talk.columns
    letters = argument.split() or [state.talk.letter(order[0]), state.talk.letter(order[-1])]
    if len(letters) != 2:
        raise UsageError("expected two letters", fix="/swap A B")
    first, second = (order.index(model_at(state, letter)) for letter in letters)
    order[first], order[second] = order[second], order[first]
    names = (f"{state.talk.letter(i)} {state.talk.engines[i].about.name}" for i in order)
    state.tell("columns: " + ", ".join(names))


def export(state: ChatState, argument: str) -> None:
    """Write the conversation as a page, as Markdown or as JSON lines."""
    path = named_file(argument, "export")
    from lorafold.artifacts import write_atomic  # with the page's code it is needed by few conversations
    from lorafold.serve.comparison.report import RENDERERS
    from lorafold.serve.terminal.export import as_result

    turn = last_turn(state)
    if turn.hidden and len(turn.standing()) > 1:
        raise UsageError("the report shows the names, which a blind vote must not know", fix="/vote first")
    if path.suffix.lower() not in RENDERERS:
        raise UsageError(f"unknown format {path.suffix!r}", at=path, fix=f"end in {', '.join(RENDERERS)}")
    if path.exists():
        raise InputError("the file exists", at=path, fix="choose another name")
    if len(state.talk.engines) > 1:
        state.tell("scoring the answers for the lens …", "dim")
    write_atomic(path, utf8(RENDERERS[path.suffix.lower()](as_result(state.talk))))
    state.tell(f"written: {path}")


def quit_(state: ChatState, argument: str) -> None:
    """Leave."""
    state.leaving = True


COMMANDS: Mapping[str, Command] = {
    "help": Command("help [COMMAND]", "list the commands", help_, "command", most=1),
    "system": Command("system [TEXT|-]", "show, set or remove the system message", system, most=None),
    "set": Command(
        "set [NAME VALUE]",
        "show or change the sampling; context for Ollama",
        set_,
        ("context", *SAMPLING_RANGES),
        most=None,
    ),
    "show": Command(
        "show [prompt]", "settings, models, votes; or what was last read", show, ("prompt",), most=1
    ),
    "tool": Command("tool [RESULT]", "show the tools, or give the result of a call", tool, most=None),
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
        "export FILE", "write a page (.html), a text (.md) or .jsonl", export, "path", most=None
    ),
    "quit": Command("quit", "leave (also Ctrl-D)", quit_),
}
ALIASES = {"exit": "quit", "bye": "quit", "q": "quit", "?": "help", "clear": "reset"}
