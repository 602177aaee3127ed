"""What is held out for evaluation, and that nothing of it is trained on.

An example that occurs several times would stand on both sides of a split drawn by position, and the
evaluation would measure what was learnt by heart. So examples that say the same go to the same side.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Sequence

from lorafold.chat.dialogue import calls_of
from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.records.layouts import Example


def draw_split(examples: Sequence[Example], share: float, seed: int) -> tuple[set[int], tuple[str, ...]]:
    """Draw the evaluation set.

    Args:
        examples: all of them.
        share: of the examples, above 0.
        seed: decides which.

    Returns:
        Indices of the examples held out, and what the user should know.

    Raises:
        InputError: nothing would be left to train on.
    """
    count = max(1, round(len(examples) * share))
    groups: dict[object, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(content_key(example), []).append(index)
    if len(groups) == 1:  # the share is at most a half
        found = f"{len(examples)} example" + ("s that all say the same" if len(examples) > 1 else "")
        verb = "leave" if len(examples) > 1 else "leaves"
        problem = f"{found} {verb} nothing to train on beside the evaluation split"
        raise InputError(problem, at="--eval-split", fix="give more data")
    group_of = {index: group for group in groups.values() for index in group}
    draw = random.Random(seed)
    drawn = draw.sample(range(len(examples)), count)
    rest = sorted(set(range(len(examples))).difference(drawn))
    draw.shuffle(rest)
    held_out: set[int] = set()
    for index in (*drawn, *rest):
        group = group_of[index]
        if index not in held_out and len(held_out) + len(group) <= count:  # a group goes over whole
            held_out.update(group)
    if not held_out:  # every group is larger than the share
        held_out.update(sorted(groups.values(), key=len)[0])
    copies = len(examples) - len(groups)
    if not copies:
        return held_out, ()
    told = "copies stay together, for training or for evaluation"
    note = f"{copies} of {len(examples)} examples repeat another: {told}"
    if len(held_out) != count:
        note += f"; {len(held_out)} examples are held out instead of {count}"
    return held_out, (note,)


def leak_note(examples: Sequence[Example], held_out: Sequence[Example]) -> tuple[str, ...]:
    """What is said if evaluation data are also trained on.

    Args:
        examples: to train on.
        held_out: to evaluate on.

    Returns:
        One note, or none.
    """
    trained = {content_key(example) for example in examples}
    leaked = [example for example in held_out if content_key(example) in trained]
    if not leaked:
        return ()
    note = f"{len(leaked)} of {len(held_out)} evaluation examples are trained on too"
    return (f"{note} (first: {leaked[0].place}): the evaluation loss looks better than it is",)


def content_key(example: Example) -> object:
    """What an example says, so that the same in other white space, case or Unicode form is the same.

    A system message says nothing of its own: the same exchange under another one counts as the same.
    """
    if example.text is not None:
        return _normal(example.text)
    turns = example.messages
    return tuple((turn["role"], *_said(turn)) for turn in turns if turn["role"] != "system")


def _said(turn: Message) -> list[str]:
    """What a turn says, and what it calls."""
    calls = [json.dumps(call["function"], sort_keys=True) for call in calls_of(turn)]
    return [_normal(text) for text in (turn["content"], *calls)]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
