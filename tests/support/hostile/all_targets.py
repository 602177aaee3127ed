"""Every parser."""

from __future__ import annotations

from hostile.answers import ANSWERS
from hostile.folds import FOLDS
from hostile.records import RECORDS
from hostile.targets import WEIGHTS, Target
from hostile.tokens import TOKENS

TARGETS: dict[str, Target] = {
    target.name: target for target in (*WEIGHTS, *TOKENS, *RECORDS, *ANSWERS, *FOLDS)
}
