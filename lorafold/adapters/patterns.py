"""Regular expressions in an adapter's configuration: PEFT's forms of them, and a trial of a stranger's.

Python's engine tries one way through a text after the other, and for some patterns (`(a+)+b`) there are more
ways than anybody can wait for. So what leaves a choice is tried in a child first, on the very names that it
will be asked about and with a limit of processor time; what ends there ends here too.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lorafold.child import Child, KeptChild
from lorafold.errors import InputError, SystemFault

ENDS = r"(.*\.)?({})$"
"""Of `rank_pattern` and `alpha_pattern`: the end of a module's name."""
ENDED = r".*\.{}$"
"""The same in PEFT up to 0.13."""
BEFORE_NUMBER = r"(?:^|.*?\.){}\.(\d+)\."
"""Of `layers_pattern`: what stands before the number of a layer."""
_SAVED = r"(^|.*\.){}($|\..*)"  # of `modules_to_save`, in which PEFT takes a name for a pattern
_FORMS = {
    "rank_pattern": (ENDS, ENDED),
    "alpha_pattern": (ENDS, ENDED),
    "layers_pattern": (BEFORE_NUMBER,),
    "modules_to_save": (_SAVED,),
}
_WHOLE = ("target_modules", "exclude_modules", "feedforward_modules")
FIELDS = (*_WHOLE, *_FORMS)
_CHOICES = re.compile(r"[*+?{|]")  # `.?.?.?…` and `(a|a)(a|a)…` have as many ways as `(a+)+`
_SECONDS = 2  # of processor time, for all patterns of an adapter
_WALL_SECONDS = 60.0  # a machine may be busy

_kept = KeptChild(lambda: Child([sys.executable, "-I", str(Path(__file__).with_name("pattern_trial.py"))]))


def try_patterns(fields: Mapping[str, Any], names: Iterable[str], at: Path) -> None:
    """Try the patterns of a configuration on names of modules, before anything here or PEFT does.

    Args:
        fields: of `adapter_config.json`, by their names in it; only the patterns among them are looked at.
        names: of modules.
        at: the file, for messages.

    Raises:
        InputError: one takes for ever, or is no regular expression in the place where PEFT puts it.
        SystemFault: the child does not run.
    """
    found = [entry for entry in _patterns(fields) if _CHOICES.search(entry[1])]
    if not found:
        return
    patterns = [(form.format(text), form == "{}") for _, text, form in found]
    tried, problem = _tried({"seconds": _SECONDS, "patterns": patterns, "names": sorted(set(names))}, at)
    if problem:
        field, text, _ = found[tried]
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise InputError(
            f"{shown!r} {problem}",
            at=f"{at}: {field}",
            fix="name the modules one by one, or write it without a repetition inside of a repetition",
        )


def _tried(task: Mapping[str, Any], at: Path) -> tuple[int, str]:
    """How many patterns of a task passed, and what is wrong with the next one, if any is."""
    with _kept.lent() as child:
        child.send(task)
        for number in range(len(task["patterns"])):
            if (answer := child.receive(_WALL_SECONDS)) is None:
                if child.ended() not in (-signal.SIGPROF, None):
                    raise _not_running(at)
                _kept.drop()
                return number, "takes too long on a name"
            if not answer["fits"]:
                return number, "is no regular expression there"
    return len(task["patterns"]), ""


def _not_running(at: Path) -> SystemFault:
    return SystemFault(
        "the process that tries an adapter's patterns does not run",
        at=at,
        fix=f"check that `{sys.executable} -c 'import json'` works and that memory is free",
    )


def _patterns(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Field, text, and the form in which it is asked, of every pattern."""
    for field in _WHOLE:
        if isinstance(fields.get(field), str):
            yield field, fields[field], "{}"
    for field, forms in _FORMS.items():
        value = fields.get(field) or ()
        for text in (value,) if isinstance(value, str) else value if isinstance(value, Iterable) else ():
            if isinstance(text, str):
                yield from ((field, text, form) for form in forms)
