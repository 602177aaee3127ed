"""What base + adapter answered, kept for the next proof of the same model: with another type, in another run.

A folder of the user's cache for each model and choice of chats: the chats as tokens, with the greedy answers
that were taken, and the log-probabilities of base + adapter and of the base alone, with their sha256. What
made them is in its name: sizes and times of the files of base and adapters, config.json, versions, and this
program's own code. The oldest ones go when they take more than a gigabyte together, or are more than 32.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lorafold
from lorafold.artifacts import sha256_file
from lorafold.export.inputs import Inputs
from lorafold.export.proof.measured import Answers
from lorafold.export.proof.sample import AskedChat, ChatTokens
from lorafold.files.seals import is_intact, sealed
from lorafold.models import cache_folder

_MOST_BYTES = 1_000_000_000
_MOST = 32  # models and choices of chats
_PACKAGES = ("numpy", "torch", "transformers")
_OWN_CODE = ("export/fold", "export/proof", "adapters", "packed", "weights.py")
"""Rooms and modules below `lorafold` that the answers depend on."""


@dataclass(slots=True)
class KeptAnswers:
    """What was answered.

    Attributes:
        chats: the conversations with their answers.
        tuned: log-probabilities of base + adapter.
        base: of the base alone; None if there is no adapter.
    """

    chats: list[AskedChat]
    tuned: Answers
    base: Answers | None

    @property
    def asked(self) -> list[ChatTokens]:
        """The chats as they are asked of a file: with their answers."""
        return [ChatTokens(each.ids[: each.start], each.ids[each.start :]) for each in self.chats]


class KeptReference:
    """The answers of one model that are kept.

    Args:
        inputs: base and adapters.
        home: where they are kept; the user's cache if not given.
        most: bytes that all answers together may take there.
    """

    def __init__(self, inputs: Inputs, home: Path | None = None, most: int = _MOST_BYTES) -> None:
        self._home = home or cache_folder() / "references"
        self._most = most
        self._made_of = list(_made_of(inputs))

    def find(self, asked: Sequence[ChatTokens]) -> KeptAnswers | None:
        """What was answered, if it is kept whole; a missing answer is the greedy one of the file of then."""
        folder = self._folder(asked)
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            text = (folder / "chats.json").read_text(encoding="utf-8")
            told = json.loads(text)
            if not is_intact(text) or any(
                sha256_file(folder / name) != digest for name, digest in told["files"].items()
            ):
                return None
            chats = [AskedChat(**each) for each in told["chats"]]
            answers = _read(folder / "base.npy", chats) if "base.npy" in told["files"] else None
            found = KeptAnswers(chats, _read(folder / "tuned.npy", chats), answers)
            os.utime(folder)
            return found
        return None

    def keep(self, asked: Sequence[ChatTokens], answers: KeptAnswers) -> None:
        """Keep answers; without a word if the disk does not take them."""
        folder = self._folder(asked)
        with contextlib.suppress(OSError):
            self._home.mkdir(parents=True, exist_ok=True)
            self._make_room(sum(each.nbytes for each in (*answers.tuned, *(answers.base or ()))))
            new = Path(tempfile.mkdtemp(dir=self._home, prefix=".new-"))
            try:
                for name, values in (("tuned", answers.tuned), ("base", answers.base)):
                    if values is not None:
                        _write(new / f"{name}.npy", values)
                files = {path.name: sha256_file(path) for path in sorted(new.iterdir())}
                told = {"chats": [asdict(each) for each in answers.chats], "files": files}
                (new / "chats.json").write_text(sealed(told), encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)

    def _folder(self, asked: Sequence[ChatTokens]) -> Path:
        told = json.dumps([self._made_of, [asdict(each) for each in asked]])
        return self._home / hashlib.sha256(told.encode()).hexdigest()[:32]

    def _make_room(self, more: int) -> None:
        """Remove the oldest answers until there is room for more."""
        kept = sorted(
            (each for each in self._home.iterdir() if each.is_dir()), key=lambda e: e.stat().st_mtime
        )
        sizes = {each: sum(file.stat().st_size for file in each.iterdir()) for each in kept}
        while kept and (len(kept) >= _MOST or sum(sizes[each] for each in kept) + more > self._most):
            shutil.rmtree(kept.pop(0), ignore_errors=True)


def _write(path: Path, values: Answers) -> None:
    """Write log-probabilities, conversation after conversation, without a second copy in memory."""
    rows = sum(map(len, values))
    shape = (rows, values[0].shape[1])
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    start = 0
    for each in values:
        file[start : start + len(each)] = each
        start += len(each)
    file.flush()


def _read(path: Path, chats: Sequence[AskedChat]) -> Answers:
    """The log-probabilities of a file, by conversation.

    Raises:
        OSError: there is none.
        ValueError: it is not whole.
    """
    values: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    lengths = [len(each.ids) - each.start for each in chats]
    if values.ndim != 2 or len(values) != sum(lengths):
        raise ValueError(values.shape)
    return np.split(values, np.cumsum(lengths)[:-1])


def own_code() -> list[Path]:
    """The modules of this program that the answers depend on, in packages within packages too."""
    home = Path(lorafold.__file__).parent
    rooms = (home / room for room in _OWN_CODE)
    return [path for room in rooms for path in ([room] if room.is_file() else sorted(room.rglob("*.py")))]


def _made_of(inputs: Inputs) -> Iterator[list[object]]:
    """What the answers depend on; of files the name, size and time, which any change of them changes."""
    yield [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    files = own_code()
    for folder in (inputs.base.folder, *(adapter.folder for adapter, _ in inputs.adapters)):
        files += sorted(path for path in folder.resolve().iterdir() if path.is_file())
    for path in files:
        status = path.stat()
        yield [str(path), status.st_size, status.st_mtime_ns]
    yield [weight for _, weight in inputs.adapters]
