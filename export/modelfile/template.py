"""Segments -> a Go text/template that Ollama renders to the same text as the Jinja template.

Language: https://pkg.go.dev/text/template; data and functions
are Ollama's (`.System`, `.Messages` with `.Role` and `.Content`, `.IsThinkSet`, `.Think`, `currentDate`).
Go templates have neither arithmetic nor trim: "first" and "second" come from a text that grows by one letter
a turn, "last" from the length of the rest of the messages, `len (slice . 1)` is one less than `len .`, and
trims are recursive definitions. Line breaks between actions are eaten by trim markers; no literal has bare
whitespace at an edge.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from lorafold.export.modelfile.chat_format import ChatFormat
from lorafold.export.modelfile.pieces import CONDITIONS, Choice, Key, Tokens
from lorafold.export.modelfile.probe import DATE, SYSTEM, Trim

MONTHS = (  # %B in the C locale; %b is the first three letters
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

_TESTS = {
    "think_set": "$.IsThinkSet",
    "think": "$.Think",
    "first": 'eq $turn "u"',
    "second": 'eq $turn "uu"',
    "last": "eq (len (slice $.Messages $i)) 1",
    "late": "eq (len (slice $.Messages $i)) 3",  # an answer and the last user's turn follow
}
_LATE_ANSWER = "eq (len (slice $.Messages $i)) 2"  # an assistant's message has its user turn's conditions

# What Python's str.strip() takes for whitespace, by the length in bytes of its UTF-8 form.
_SPACES = tuple(chr(code) for code in range(0x3001) if chr(code).isspace())
_BLANKS = {"space": _SPACES, "newline": ("\n",)}


def printable(character: str) -> bool:
    """Whether Go's strconv.IsPrint surely keeps a character.

    It keeps letters, marks, numbers, punctuation, symbols and the ASCII space. Versions of Unicode differ
    between Python and Ollama's Go, so that only what Unicode 3.2 already had counts as sure.
    """
    known = unicodedata.ucd_3_2_0.category(character) != "Cn"
    return character == " " or (known and unicodedata.category(character)[0] in "LMNPS")


def quoted(text: str) -> str:
    """A text as a Go string constant, without any character that a Modelfile would drop or take for a quote's
    end."""
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", '"': '\\"'}

    def spell(character: str) -> str:
        if character in short:
            return short[character]
        if printable(character):
            return character
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(spell, text)) + '"'


_MISREAD = re.compile(r"\A\s+|\s+\Z|\{\{+|\{\Z|\"{2,}|\"\Z")


def literal(text: str) -> str:
    """A literal as template text: what would be misread in it becomes quoted actions."""
    out, plain, position = "", "", 0
    while position < len(text):
        match = _MISREAD.match(text, position)
        size = len(match[0]) if match else 0
        while not match and position + size < len(text) and _dropped(text[position + size]):
            size += 1
        if not size:
            plain += text[position]
            position += 1
            continue
        braces = len(plain) - len(plain.rstrip("{"))  # a brace before an action would be read with its braces
        bad = "{" * braces + text[position : position + size]
        out += plain[: len(plain) - braces] + "{{ " + quoted(bad) + " }}"
        plain, position = "", position + size
    return out + plain


def _dropped(character: str) -> bool:
    return character not in "\n\t" and not printable(character)


# Tags around an assistant's thoughts, the commonest first.
THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)


def to_go(
    form: ChatFormat, default_system: str | None = None, thoughts: tuple[str, str] | None = None
) -> str:
    """Write a format as a Go template.

    Args:
        form: the derived format.
        default_system: a system text for chats that bring none, written into the template.
        thoughts: tags by which Ollama sees that the model can think, in a part that is never printed; None
            if `$.Think` is never to be true.

    Returns:
        The TEMPLATE's source, without characters that a Modelfile drops.
    """
    return _Writer(form, default_system, thoughts).source()


class _Writer:
    def __init__(
        self, form: ChatFormat, default_system: str | None, thoughts: tuple[str, str] | None
    ) -> None:
        self.thoughts = thoughts
        self.form = form
        self.default_system = default_system
        self.system = "$.System" if default_system is None else "$system"
        self.trims: dict[Trim, str] = {}

    def source(self) -> str:
        form = self.form
        user = [
            self.choice(form.user_prefix),
            self.trim_choice(form.user_trim),
            self.segment(form.user_suffix),
            _block(_TESTS["last"], self.choice(form.generation), ""),
        ]
        assistant = [
            self.choice(form.assistant_prefix).replace(_TESTS["late"], _LATE_ANSWER),
            self.trim_choice(form.assistant_trim).replace(_TESTS["late"], _LATE_ANSWER),
            _block("gt (len (slice $.Messages $i)) 1", self.segment(form.assistant_suffix), ""),
        ]
        start = self.choice(form.start)
        counts = {"first", "second"} & {
            name
            for piece in (
                form.user_prefix,
                form.user_trim,
                form.assistant_prefix,
                form.assistant_trim,
                form.generation,
            )
            for name in piece.conditions
        }
        lines = [
            *self.definitions(),
            *(['{{- $turn := "" -}}'] if counts else []),
            *self.default(),
            start,
            *self.loop(),
            '{{- if eq .Role "user" -}}',
            *(['{{- $turn = print $turn "u" -}}'] if counts else []),
            *user,
            '{{- else if eq .Role "assistant" -}}',
            *assistant,
            "{{- end -}}",
            "{{- end -}}",
        ]
        return _joined(lines)

    def loop(self) -> list[str]:
        if self.thoughts is None:
            return ["{{- range $i, $message := $.Messages -}}"]
        begin, end = self.thoughts
        # Ollama looks for a loop over `.Messages`, and there for the texts around `.Thinking`.
        never = f"{{{{- if false -}}}}{begin}{{{{ .Thinking }}}}{end}{{{{- end -}}}}"
        return ["{{- range $i, $message := .Messages -}}", never]

    def default(self) -> list[str]:
        if self.default_system is None:
            return []
        text = quoted(self.default_system)
        return [
            "{{- $system := $.System -}}",
            f"{{{{- if not $system -}}}}{{{{- $system = {text} -}}}}{{{{- end -}}}}",
        ]

    def choice(self, choice: Choice[str]) -> str:
        """What all values begin and end with, and between them the tree of what differs."""
        tokens, values = Tokens(frozenset()), list(choice.table.values())
        head = tokens.shared_start(values)
        tail = tokens.shared_end([value[len(head) :] for value in values])
        middle = {
            key: self.segment(value[len(head) : len(value) - len(tail)])
            for key, value in choice.table.items()
        }
        return self.segment(head) + self.tree(choice.conditions, middle) + self.segment(tail)

    def trim_choice(self, choice: Choice[Trim]) -> str:
        return self.tree(
            choice.conditions, {key: self.content(".Content", value) for key, value in choice.table.items()}
        )

    def tree(self, conditions: Sequence[str], table: dict[Key, str]) -> str:
        """Nested ifs over a table of texts; sides that cannot happen are left out."""
        if len(set(table.values())) == 1:
            return next(iter(table.values()))
        shapes = [self.split(at, conditions, table) for at in range(len(conditions))]
        return min(shapes, key=len)

    def split(self, at: int, conditions: Sequence[str], table: dict[Key, str]) -> str:
        """The tree that tests this condition first."""
        name, rest = conditions[at], [*conditions[:at], *conditions[at + 1 :]]
        sides = [
            {key[:at] + key[at + 1 :]: text for key, text in table.items() if key[at] is flag}
            for flag in (True, False)
        ]
        yes, no = (self.tree(rest, side) if side else None for side in sides)
        if yes is None or no is None:
            return yes or no or ""
        return _block(self.system if name == "system" else _TESTS[name], yes, no)

    def segment(self, text: str) -> str:
        """A segment's literals, system text and dates."""
        out, position = [], 0
        for match in re.finditer(f"{SYSTEM}|{DATE.pattern}", text):
            out.append(literal(text[position : match.start()]))
            out.append(
                self.content(self.system, self.form.system_trim) if match[0] == SYSTEM else _date(match[1])
            )
            position = match.end()
        return "".join([*out, literal(text[position:])])

    def content(self, value: str, trim: Trim) -> str:
        if trim == ("none", "none"):
            return f"{{{{ {value} }}}}"
        return f'{{{{ template "{self.trim_name(trim)}" {value} }}}}'

    def trim_name(self, trim: Trim) -> str:
        if trim not in self.trims:
            left, right = trim
            if left != "none" and right != "none":
                self.trim_name(("none", right))
            self.trims[trim] = f"trim-{left}-{right}"
        return self.trims[trim]

    def definitions(self) -> list[str]:
        return [_trim_definition(name, trim) for trim, name in self.trims.items()]


def _joined(lines: Sequence[str]) -> str:
    """Lines under each other where a trim marker eats the line break, else side by side."""
    out = ""
    for line in filter(None, lines):
        fits = out and (out.endswith("-}}") or line.startswith("{{-"))
        out += ("\n" if fits else "") + line
    return out


def _block(test: str, yes: str, no: str) -> str:
    """An if with two sides; edges of the sides hold no bare whitespace, so the markers eat only our line
    breaks."""
    if not yes and not no:
        return ""
    if not yes:
        return f"{{{{- if not ({test}) -}}}}{no}{{{{- end -}}}}"
    middle = f"{{{{- else -}}}}{no}" if no else ""
    return f"{{{{- if {test} -}}}}{yes}{middle}{{{{- end -}}}}"


def _date(form: str) -> str:
    """A strftime format from currentDate, which is YYYY-MM-DD."""
    month = "slice currentDate 5 7"
    parts = {
        "%Y": "{{ slice currentDate 0 4 }}",
        "%y": "{{ slice currentDate 2 4 }}",
        "%m": f"{{{{ {month} }}}}",
        "%-m": _unpadded(5),
        "%-d": _unpadded(8),
        "%d": "{{ slice currentDate 8 10 }}",
        "%B": _months(month, MONTHS),
        "%b": _months(month, [name[:3] for name in MONTHS]),
        "%%": "%",
    }
    if form.startswith("%Y-%m-%d"):
        return "{{ currentDate }}" + _date_rest(form[8:], parts)
    return _date_rest(form, parts)


def _date_rest(form: str, parts: dict[str, str]) -> str:
    pieces = re.split(r"(%-?.)", form)
    return "".join(parts.get(piece, "{{ " + quoted(piece) + " }}") for piece in pieces if piece)


def _unpadded(start: int) -> str:
    """Two digits of currentDate without a leading zero."""
    zero = f'eq (slice currentDate {start} {start + 1}) "0"'
    one, two = f"slice currentDate {start + 1} {start + 2}", f"slice currentDate {start} {start + 2}"
    return f"{{{{- if {zero} -}}}}{{{{ {one} }}}}{{{{- else -}}}}{{{{ {two} }}}}{{{{- end -}}}}"


def _months(month: str, names: Iterable[str]) -> str:
    tests = [f'eq ({month}) "{number:02}" -}}}}{name}' for number, name in enumerate(names, 1)]
    return "{{- if " + "{{- else if ".join(tests) + "{{- end -}}"


def _trim_definition(name: str, trim: Trim) -> str:
    """A template that prints its text trimmed: while the edge is blank, itself on the rest."""
    left, right = trim
    side, blanks = (True, _BLANKS[left]) if left != "none" else (False, _BLANKS[right])
    by_size: dict[int, list[str]] = {}
    for blank in blanks:
        by_size.setdefault(len(blank.encode()), []).append(quoted(blank))
    branches = []
    for size, texts in sorted(by_size.items()):
        edge = f"(slice . 0 {size})" if side else f"(slice . (len (slice . {size})))"
        rest = f"(slice . {size})" if side else f"(slice . 0 (len (slice . {size})))"
        test = f"and (ge (len .) {size}) (eq {edge} {' '.join(texts)})"
        branches.append(f'if {test} -}}}}{{{{ template "{name}" {rest} }}}}')
    final = "{{ . }}" if not side or right == "none" else f'{{{{ template "trim-none-{right}" . }}}}'
    body = "{{- " + "\n{{- else ".join(branches) + "\n{{- else -}}" + final + "{{- end -}}"
    return f'{{{{- define "{name}" -}}}}\n{body}\n{{{{- end -}}}}'


assert set(_TESTS) | {"system"} == set(CONDITIONS)
