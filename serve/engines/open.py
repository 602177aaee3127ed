"""From what the user typed to engines: which kind a model is, and what it shares with the others."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from lorafold.errors import InputError, UsageError
from lorafold.files.home import expanded
from lorafold.gguf_file.read import read_gguf_header
from lorafold.models import demo_gguf
from lorafold.progress import Progress, silent
from lorafold.serve.config import ChatConfig, CompareConfig
from lorafold.serve.protocol import About, Engine

Config = ChatConfig | CompareConfig
_WEB, _OLLAMA = ("http://", "https://"), "ollama:"
_LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")


def open_engines(config: Config, progress: Progress = silent) -> list[Engine]:
    """Open every model of a config; those already open are closed again if one fails.

    Args:
        config: names the models.
        progress: told about each model.

    Returns:
        Engines in the order of `config.models`, by names that differ. Equal GGUF files share their weights.

    Raises:
        InputError: a model does not exist or is damaged.
        SystemFault: a package, the memory or a server is missing.
    """
    with contextlib.ExitStack() as undo:
        opener = _Opener(config, progress)
        engines = []
        for index, model in enumerate(config.models):
            progress("load the models", index, len(config.models), model)
            engine = opener.open(model)
            undo.callback(engine.close)
            engines.append(engine)
        progress("load the models", len(config.models), len(config.models))
        for engine, name in zip(engines, told_apart([engine.about for engine in engines]), strict=True):
            engine.about = replace(engine.about, name=name)
        undo.pop_all()
        return engines


@contextlib.contextmanager
def opened(config: Config, progress: Progress = silent) -> Iterator[list[Engine]]:
    """`open_engines`, closed at the end of the block."""
    engines = open_engines(config, progress)
    try:
        yield engines
    finally:
        for engine in engines:
            engine.close()


def is_served(model: str) -> bool:
    """Whether a model is one that a server has loaded, and no file here."""
    return model.startswith((*_WEB, _OLLAMA))


def parts(model: str) -> list[str]:
    """Split `BASE+ADAPTER+...`; a path that exists as a whole is not split at the pluses in it.

    Raises:
        UsageError: a part is empty.
    """
    if expanded(model).exists():
        return [model]
    found: list[str] = []
    for piece in model.split("+"):
        # A plus inside an existing name belongs to the name: the shortest joins that exist win.
        if found and not expanded(found[-1]).exists():
            joined = f"{found[-1]}+{piece}"
            if expanded(joined).exists():
                found[-1] = joined
                continue
        found.append(piece)
    if not all(found):
        raise UsageError("a part beside `+` is empty", at=model, fix="write BASE+ADAPTER")
    return found


def model_file(folder: Path) -> Path | None:
    """The GGUF of an export folder; None for a folder that holds none, or weights of another kind.

    Raises:
        UsageError: there are several models in it.
    """
    if not folder.is_dir() or any(
        (folder / name).exists() for name in ("config.json", "adapter_config.json")
    ):
        return None
    # Of a model in several parts the first one names the others.
    files = [path for path in sorted(folder.glob("*.gguf")) if not _LATER_PART.search(path.name)]
    models = [path for path in files if read_gguf_header(path).text("general.type") in (None, "model")]
    if len(models) > 1:
        raise UsageError(
            f"this folder has {len(models)} models", at=folder, fix=f"choose {' or '.join(map(str, models))}"
        )
    return models[0] if models else None


def pieces_of(model: str) -> list[str]:
    """The parts of a model (see `parts`), an export folder replaced by the GGUF in it."""
    base, *adapters = parts(model)
    return [str(model_file(expanded(base)) or base), *adapters]


def told_apart(abouts: Sequence[About]) -> list[str]:
    """Names for models that stand side by side: equal ones with as much of their paths as tells them apart.

    Args:
        abouts: of the models; those of equal name and place are the same model, and stay so.
    """
    names = [about.name for about in abouts]
    for name in {name for name in names if names.count(name) > 1}:
        places = {index: _places(abouts[index]) for index, known in enumerate(names) if known == name}
        everywhere = set.intersection(*map(set, places.values()))  # such as the base of two adapters
        different = len(set(places.values()))
        longest = max(len(path) for found in places.values() for path in found)
        for size in range(2, longest + 1) if different > 1 else ():
            labels = {
                index: "+".join("/".join(path[-1:] if path in everywhere else path[-size:]) for path in found)
                for index, found in places.items()
            }
            if len(set(labels.values())) == different:
                names = [labels.get(index, known) for index, known in enumerate(names)]
                break
    return names


def _places(about: About) -> tuple[tuple[str, ...], ...]:
    """Where a model's parts lie, as the parts of a path."""
    if about.kind in ("ollama", "openai"):
        return ((urlsplit(about.source).netloc or about.kind, about.name),)
    paths = [expanded(piece) for piece in parts(about.source)]
    return tuple(Path(os.path.abspath(path)).parts[1:] if path.exists() else path.parts for path in paths)


class _Opener:
    """Opens models one after the other and remembers weights that the next one may share."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self.config = config
        self.progress = progress
        self.shared: dict[Path, object] = {}

    def open(self, model: str) -> Engine:
        if model.startswith(_WEB):
            from lorafold.serve.engines.servers.openai import OpenAIEngine

            return OpenAIEngine(model, self.config.context)
        if model.startswith(_OLLAMA):
            from lorafold.serve.engines.servers.ollama import OllamaEngine

            return OllamaEngine(model, self.config.context)
        pieces = pieces_of(model)
        if pieces == ["demo"] and not self._any_folder():
            pieces = [str(demo_gguf())]  # as it came: no torch, and half a second instead of many
        opener: Callable[[str, Sequence[str]], Engine]
        opener = self._open_gguf if pieces[0].lower().endswith(".gguf") else self._open_folder
        return opener(model, pieces)

    def _any_folder(self) -> bool:
        """Whether transformers is needed anyway; all models of a folder's kind then compute alike."""
        return self.config.load_in_4bit or any(
            not is_served(model) and model != "demo" and not pieces_of(model)[0].lower().endswith(".gguf")
            for model in self.config.models
        )

    def _open_gguf(self, model: str, pieces: Sequence[str]) -> Engine:
        from lorafold.serve.engines.llama import LlamaEngine
        from lorafold.serve.engines.llama_model import LlamaModel

        paths = [expanded(piece) for piece in pieces]
        for path in paths[1:]:
            if path.is_dir():
                raise InputError(
                    "a GGUF base takes GGUF adapters, this is a folder",
                    at=path,
                    fix=f"lorafold export {path} --format adapter --out {path}-gguf",
                )
        key = paths[0].resolve()
        weights = self.shared.get(key)
        if not isinstance(weights, LlamaModel):
            self.shared[key] = weights = LlamaModel(paths[0], self.config.chat_template)
        try:
            return LlamaEngine(
                weights,
                paths[1:],
                source=model,
                context=self.config.context,
                threads=self.config.threads,
            )
        except BaseException:
            weights.release()
            if weights.users <= 0:
                del self.shared[key]
            raise

    def _open_folder(self, model: str, pieces: Sequence[str]) -> Engine:
        from lorafold.serve.engines.transformers import open_transformers

        for piece in pieces[1:]:
            if piece.lower().endswith(".gguf"):
                fix = f"lorafold export {pieces[0]} --out DIR makes one; or give the adapter's folder"
                raise InputError(f"an adapter GGUF needs a base GGUF, not {pieces[0]}", at=piece, fix=fix)
        engine: Engine = open_transformers(model, pieces, self.config, self.progress)
        return engine
