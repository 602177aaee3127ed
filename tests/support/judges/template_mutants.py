"""How many small damages of a Go template the proof catches; Go itself tells what is damage."""

from __future__ import annotations

import random

from go_oracle import go_render

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.export.modelfile.chat_format import derive
from lorafold.export.modelfile.proof import CLOCKS, ollama_data, prove, random_chats
from lorafold.export.modelfile.template import to_go


def mutants(source: str, count: int, seed: int = 0) -> list[str]:
    """One-character mutants: a character deleted, doubled, or replaced by another of the template's."""
    chosen = random.Random(seed)
    found = []
    while len(found) < count:
        at, letter = chosen.randrange(len(source)), chosen.choice(source)
        kind = chosen.randrange(3)
        middle = ("", source[at] * 2, letter)[kind]
        mutant = source[:at] + middle + source[at + 1 :]
        if mutant != source:
            found.append(mutant)
    return found


def mutation_score(template: ChatTemplate, count: int) -> tuple[int, int, list[str]]:
    """Caught, equivalent, and the mutants that were missed.

    A mutant that the proof passes is equivalent if Go writes the same for it on 300 other conversations.
    """
    form = derive(template)
    source = to_go(form)
    cases = [
        (ollama_data(chat, form.variants[number % len(form.variants)]), CLOCKS[number % len(CLOCKS)][:10])
        for number, chat in enumerate(random_chats(300, seed=2))
    ]
    want = go_render(source, cases)
    caught, same, missed = 0, 0, []
    for mutant in mutants(source, count):
        if not prove(template, mutant, form).passed:
            caught += 1
        elif go_render(mutant, cases) == want:
            same += 1
        else:
            missed.append(mutant)
    return caught, same, missed
