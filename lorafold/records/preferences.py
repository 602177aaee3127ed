"""Preference data (DPO, KTO): two answers of which one is better, or one with a verdict.

This program trains on answers alone. Half of such a record is what a model shall not say, so it is not taken
for an answer unasked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafold.errors import InputError

_VERDICTS = ("label", "kto_tag")  # TRL's and LLaMA-Factory's


def refuse_preferences(fields: Mapping[str, Any], missing: str, place: str) -> None:
    """Look whether a record without another answer is preference data.

    Args:
        fields: of the record.
        missing: the field that would answer; "" if it would not be a field of its own.
        place: of the record.

    Raises:
        InputError: it is.
    """
    if fields.get("chosen"):
        what = f"the field {missing!r} is missing" if missing else "there is no answer"
        problem = f"{what}: this is preference data (`chosen`, for DPO and its like)"
        fix = "--layout chosen trains on the chosen answers alone"
        raise InputError(problem, at=place, fix=fix)


def refuse_unwanted(fields: Mapping[str, Any], place: str) -> None:
    """Look whether a record says that its answer is one to avoid.

    Raises:
        InputError: it does.
    """
    for name in _VERDICTS:
        value = fields.get(name)
        if value is False or (isinstance(value, str) and value.strip().lower() == "false"):
            problem = f"{name}: false, so the answer is one that a model shall not give (KTO)"
            raise InputError(problem, at=place, fix="remove such records, or the field to train on all")
