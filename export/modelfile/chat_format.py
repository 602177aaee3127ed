"""Jinja chat template -> segments and rules, found by probing; the middle between Jinja and Go.

A `ChatFormat` says what is written around each text under which conditions, and how texts are trimmed. A
template that does more than that (transforms, counts, repeats or drops what people say) is refused with a
reason. Conditions are seven: thinking set, thinking on, has system, first, second and last
user turn; for each piece the smallest subset that decides it in all probed renderings is kept. Method:
docs/modelfile.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorafold.chat.sandbox import Refusal
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError
from lorafold.export.modelfile.pieces import CONDITIONS, Choice, Key, Tokens, Value, decide
from lorafold.export.modelfile.probe import (
    DATE,
    PADDINGS,
    STRESS,
    TURNS,
    Chat,
    Reference,
    Trim,
    Variant,
    cut,
    find_reference,
    find_switches,
    find_trim,
    question,
    refuse,
)

DATE_PARTS = frozenset(
    ("Y", "y", "m", "-m", "d", "-d", "b", "B", "%")
)  # strftime directives that Ollama's currentDate can answer


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A chat template as segments.

    Segments are texts in which `probe.SYSTEM` stands for the system text and marked strftime formats for
    dates.

    Args:
        start: before everything.
        user_prefix, user_trim, user_suffix: around a user's text; the suffix is the same everywhere.
        assistant_prefix, assistant_trim, assistant_suffix: around an assistant's text.
        generation: after the last user's suffix, so that the assistant begins.
        system_trim: what is trimmed off the system text.
        system: "honoured", "ignored" or "folded".
        bos: the BOS token that every rendering starts with and that was taken off, or None.
        variants: thinking settings that were derived.
        notes: what the user should know.
    """

    start: Choice[str]
    user_prefix: Choice[str]
    user_trim: Choice[Trim]
    user_suffix: str
    assistant_prefix: Choice[str]
    assistant_trim: Choice[Trim]
    assistant_suffix: str
    generation: Choice[str]
    system_trim: Trim
    system: str
    bos: str | None
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()


def derive(template: ChatTemplate, thinking: bool | None = None, *, engine_bos: bool = True) -> ChatFormat:
    """Derive the format of a template.

    Args:
        template: the template, with its tokenizer's special tokens.
        thinking: None derives the template's thinking switch as variants; True or False fixes it, for a model
            that was tuned so.

    Returns:
        The format. It holds for the probed conversations; `proof.prove` tests it on many others.

    Raises:
        InputError: the template cannot be expressed; the message says why.
        UnsafeInputError: the template left its sandbox or its limits.
    """
    switches = find_switches(template.source)
    fixed = {} if thinking is None else dict.fromkeys(switches, thinking)
    reference = find_reference(template, fixed)
    variants, notes = [Variant(False, False, fixed)], []
    observed = [_observe(reference, variants[0])]
    if thinking is None and switches:
        for value in (True, False):
            variant = Variant(True, value, dict.fromkeys(switches, value))
            try:
                observed.append(_observe(reference, variant))
                variants.append(variant)
            except InputError as error:
                notes.append(f"thinking {'on' if value else 'off'} is left out: {error.problem}")
    return _assemble(reference, variants, observed, notes, engine_bos)


@dataclass(slots=True)
class _Observed:
    """What one variant showed."""

    before: list[tuple[Key, str]]
    after: list[tuple[Key, str]]
    user_trim: list[tuple[Key, Trim]]
    assistant_trim: list[tuple[Key, Trim]]
    system_trim: set[Trim]
    user_ends: list[str]  # what follows a last user's text without generation prompt
    assistant_ends: list[str]  # what follows a last assistant's text


def _key(variant: Variant, system: bool, turn: int, users: int) -> Key:
    place = (turn == 0, turn == 1, turn == users - 1, turn == users - 2)
    return (variant.think_set, variant.think, system, *place)


def _observe(reference: Reference, variant: Variant) -> _Observed:
    """Ask one variant all questions."""
    seen = _Observed([], [], [], [], set(), [], [])
    for system in (False, True):
        chats = [question(system, users) for users in range(1, TURNS + 1)]
        texts = _rendered(reference, variant, chats)
        for users, chat, text in zip(range(1, TURNS + 1), chats, texts, strict=True):
            segments = cut(chat, text, reference)
            for turn in range(users):
                key = _key(variant, system, turn, users)
                seen.before.append((key, segments.before[turn]))
                seen.after.append((key, segments.after[turn]))
            _find_trims(reference, variant, chat, text, seen)
        _find_ends(reference, variant, system, seen)
    return seen


def _rendered(reference: Reference, variant: Variant, chats: Sequence[Chat]) -> list[str]:
    texts = []
    for chat, text in zip(chats, reference.render(chats, variant.variables), strict=True):
        if isinstance(text, Refusal):
            what = f"{len(chat.turns) // 2 + 1} user turns" + (
                " after a system message" if chat.system else ""
            )
            raise refuse(f"it refuses a conversation of {what}: {text.problem}", reference.template)
        texts.append(text)
    return texts


def _find_trims(reference: Reference, variant: Variant, chat: Chat, text: str, seen: _Observed) -> None:
    """Pad and stress each text of a question in turn."""
    users, system = len(chat.turns) // 2 + 1, chat.system is not None
    words = list(chat.turns)
    if chat.system is not None and reference.system != "ignored":
        words.append(chat.system)
    asked = []
    for at, word in enumerate(words):
        forms = [word + STRESS + word, *(left + word + right for left, right in PADDINGS)]
        asked += [chat.saying(at, form) for form in forms]
    answers = _rendered(reference, variant, asked)
    for number, word in enumerate(words):
        who = "the system" if number == len(chat.turns) else f"{'assistant' if number % 2 else 'user'} turn"
        stressed, *padded = answers[number * (1 + len(PADDINGS)) : (number + 1) * (1 + len(PADDINGS))]
        if stressed != text.replace(word, word + STRESS + word):
            raise refuse(
                f"it changes the text of {who} (quotes, braces, tags, blank lines …)", reference.template
            )
        trim = find_trim(text, word, padded, reference.template, who)
        if number == len(chat.turns):
            seen.system_trim.add(trim)
        else:
            key = _key(variant, system, number // 2, users)
            (seen.assistant_trim if number % 2 else seen.user_trim).append((key, trim))


def _find_ends(reference: Reference, variant: Variant, system: bool, seen: _Observed) -> None:
    """What a rendering without generation prompt ends with; templates that refuse that tell nothing."""
    for users in (1, 2):
        chat = question(system, users)
        answered = Chat(chat.system, (*chat.turns, f"Zqa{users - 1}Qz"))
        for asked, ends in ((chat, seen.user_ends), (answered, seen.assistant_ends)):
            (text,) = reference.render([asked], variant.variables, prompt=False)
            if isinstance(text, str) and text.count(asked.turns[-1]) == 1:
                ends.append(text.partition(asked.turns[-1])[2])


def _assemble(
    reference: Reference,
    variants: Sequence[Variant],
    observed: Sequence[_Observed],
    notes: list[str],
    engine_bos: bool,
) -> ChatFormat:
    """Turn observations into pieces, each with the conditions it needs."""
    template = reference.template
    before = [row for seen in observed for row in seen.before]
    after = [row for seen in observed for row in seen.after]
    _check_dates([text for _, text in before + after], template)
    bos, first = template.tokens.get("bos_token"), CONDITIONS.index("first")
    if engine_bos and bos and all(text.startswith(bos) for key, text in before if key[first]):
        before = [(key, text.removeprefix(bos) if key[first] else text) for key, text in before]
    else:
        bos = None
    tokens = Tokens(template.controls)
    user_suffix = tokens.shared_start(
        [text for _, text in after] + [end for seen in observed for end in seen.user_ends]
    )
    assistant_suffix = tokens.shared_start(
        [text for key, text in before if not key[first]]
        + [end for seen in observed for end in seen.assistant_ends]
    )
    last = CONDITIONS.index("last")
    rest = [(key, text[len(user_suffix) :]) for key, text in after]
    prefixes = [(key, text if key[first] else text[len(assistant_suffix) :]) for key, text in before]
    start, user_prefix = _hoist(prefixes, tokens, template)
    trims = {trim for seen in observed for trim in seen.system_trim}
    if len(trims) > 1:
        raise refuse("it trims the system text differently in different places", template)
    return ChatFormat(
        start=start,
        user_prefix=user_prefix,
        user_trim=_decided(
            [row for seen in observed for row in seen.user_trim], "trims user texts", template
        ),
        user_suffix=user_suffix,
        assistant_prefix=_decided(
            [row for row in rest if not row[0][last]], "begins assistant turns", template
        ),
        assistant_trim=_decided(
            [row for seen in observed for row in seen.assistant_trim], "trims assistant texts", template
        ),
        assistant_suffix=assistant_suffix,
        generation=_decided([row for row in rest if row[0][last]], "ends the prompt", template),
        system_trim=trims.pop() if trims else ("none", "none"),
        system=reference.system,
        bos=bos,
        variants=tuple(variants),
        notes=tuple(notes),
    )


def _hoist(
    prefixes: Sequence[tuple[Key, str]], tokens: Tokens, template: ChatTemplate
) -> tuple[Choice[str], Choice[str]]:
    """Split what stands before the first user's text into what starts the prompt and what starts the turn.

    Ollama may cut a long history so that an assistant's message comes first; the start must be there even
    then.
    """
    first = CONDITIONS.index("first")
    later = {text for key, text in prefixes if not key[first]}
    if len(later) == 1:
        (turn,) = later
        heads = [
            (key, text.removesuffix(turn)) for key, text in prefixes if key[first] and text.endswith(turn)
        ]
        start = decide(heads, ("think_set", "think", "system"))
        if len(heads) == sum(key[first] for key, _ in prefixes) and start is not None:
            return start, Choice((), {(): turn})
    common = tokens.leading_controls([text for key, text in prefixes if key[first]])
    cut_off = [(key, text[len(common) :] if key[first] else text) for key, text in prefixes]
    return Choice((), {(): common}), _decided(cut_off, "begins user turns", template)


def _decided(rows: Sequence[tuple[Key, Value]], what: str, template: ChatTemplate) -> Choice[Value]:
    choice = decide(rows)
    if choice is None:
        raise refuse(
            f"what {what} depends on more than the first, second and last turn (it may count)", template
        )
    return choice


def _check_dates(texts: Sequence[str], template: ChatTemplate) -> None:
    for text in texts:
        for form in DATE.findall(text):
            letters = re.findall(r"%(-?.)", form)
            if unknown := [letter for letter in letters if letter not in DATE_PARTS]:
                raise refuse(f"it writes a date as {form!r}, and Ollama cannot write %{unknown[0]}", template)
