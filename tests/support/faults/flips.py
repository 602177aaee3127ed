"""What this program commits to a disk, and who notices if a bit of it changes there.

Each kind is made by the command or stage that makes it for users, on tiny models. `notices` asks what a user
would ask: `lorafold verify`, or the loader that goes on with the file.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import tiny_chat
from tiny_run import tiny_run

from lorafold.artifacts import MANIFEST
from lorafold.errors import LorafoldError
from lorafold.export import ExportConfig, export, verify
from lorafold.export.inputs import open_inputs
from lorafold.export.proof.kept import KeptAnswers, KeptReference
from lorafold.export.proof.sample import AskedChat, ChatTokens
from lorafold.serve.comparison.journal import Journal
from lorafold.serve.conversation import Answer, Conversation, Sampling, Turn
from lorafold.serve.rows import AnswerRow, QuestionRow
from lorafold.train import train
from lorafold.train.saved.checkpoints import list_checkpoints, newest_whole


@dataclass(frozen=True, slots=True)
class Kept:
    """One kind of what is kept.

    Args:
        name: in the table.
        noticed_by: who is asked.
        files: whose bits change.
        notices: whether a change of one of the files is found; False while it is whole.
    """

    name: str
    noticed_by: str
    files: tuple[Path, ...]
    notices: Callable[[Path], bool]


def all_kept(home: Path) -> Iterator[Kept]:
    """Make one of each kind in a folder."""
    base, adapter = str(tiny_chat.folder()), str(tiny_chat.adapter())
    config = partial(ExportConfig, adapter, base=base, name="tiny", pre_tokenizer="gpt-2", verify=False)
    forms = {
        "GGUF export": config(out=home / "gguf", quant=("Q8_0", "F16"), report=True),
        "merged folder": config(out=home / "folder", format="folder"),
        "adapter GGUF": config(out=home / "adapter", format="adapter"),
    }
    folders = {name: export(each).folder for name, each in forms.items()}
    trained = train(replace(tiny_run(home / "trained"), save_steps=2, save_total_limit=2)).folder
    folders["trained adapter"] = trained
    for name, folder in folders.items():
        yield Kept(
            name, "`lorafold verify`", _files(folder), lambda path, folder=folder: _refused(verify, folder)
        )
    newest = list_checkpoints(trained)[0]
    yield Kept("checkpoint", "`train --resume`, which falls back", _files(newest, ""), _fallen_back(newest))
    manifests = tuple(folder / MANIFEST for folder in folders.values())
    yield Kept("manifest", "`lorafold verify`", manifests, lambda path: _refused(verify, path.parent))
    yield _journal(home / "journal")
    yield _answers(home / "answers")
    yield _session(home / "session.json")


def flips(kept: Kept, count: int, seed: int = 0) -> Iterator[str]:
    """Change one bit, ask, and change it back, so many times; yields the places that nobody noticed."""
    assert not kept.notices(kept.files[0]), f"{kept.name}: a whole one is refused"
    draw = random.Random(seed)
    for _ in range(count):
        path = draw.choice(kept.files)
        content, times = path.read_bytes(), os.stat(path)
        bit = draw.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        if not kept.notices(path):
            yield f"{path.name}, bit {bit}"
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not kept.notices(kept.files[0]), f"{kept.name}: it was not put back"


def _files(folder: Path, without: str = MANIFEST) -> tuple[Path, ...]:
    """All files with content in a folder; checkpoints in it are a kind of their own."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size)
    inside = (path for path in paths if "checkpoint-" not in str(path.relative_to(folder)))
    return tuple(path for path in inside if path.name != without)


def _refused(loads: Callable[..., object], *given: object) -> bool:
    try:
        loads(*given)
    except LorafoldError:
        return True
    return False


def _fallen_back(newest: Path) -> Callable[[Path], bool]:
    def notices(path: Path) -> bool:
        found, notes = newest_whole(newest.parent)
        return found != newest and f"{newest.name} is not whole" in notes[0]

    return notices


def _journal(path: Path) -> Kept:
    rows = {}
    for number in range(6):
        answers = [AnswerRow.of(Answer(text=f"ä {number} {model}", tokens=3, elapsed=0.5)) for model in "ab"]
        rows[number] = QuestionRow(f"question {number}", [{"role": "user", "content": "?"}], None, answers)
    with Journal(path, "identity", len(rows), 2) as journal:
        for number, row in rows.items():
            journal.write(number, row)

    def notices(path: Path) -> bool:
        found = Journal(path, "identity", len(rows), 2).rows
        return len(found) < len(rows) and all(
            rows[number].as_json() == row.as_json() for number, row in found.items()
        )

    return Kept("journal of a comparison", "the same command, which asks again", (path,), notices)


def _answers(home: Path) -> Kept:
    inputs = open_inputs(ExportConfig(str(tiny_chat.folder()), out=home.parent / "none"))
    dice = np.random.default_rng(0)
    chats = [AskedChat([1, 2, 3, 4], 2), AskedChat([5, 6], 1)]
    answers = KeptAnswers(chats, *([dice.random((n, 50), np.float32) for n in (2, 1)] for _ in range(2)))
    kept, asked = KeptReference(inputs, home), [ChatTokens([1, 2])]
    kept.keep(asked, answers)
    found = kept.find(asked)
    assert found is not None and found.chats == chats
    return Kept(
        "cache of a proof",
        "the next proof, which computes anew",
        _files(home),
        lambda path: kept.find(asked) is None,
    )


def _session(path: Path) -> Kept:
    turn = Turn("a question", {0: Answer(text="an answer", tokens=3, elapsed=0.25)}, columns=[0])
    Conversation(["m.gguf"], Sampling(), "You help.", [turn]).save(path)

    assert json.loads(path.read_text(encoding="utf-8"))["turns"]
    return Kept(
        "saved conversation", "`/load`", (path,), lambda path: _refused(Conversation.load, path, ["m.gguf"])
    )
