"""A bit that changes on the disk is found by whoever reads the file next; `make reliability` flips 10,000."""

from __future__ import annotations

from pathlib import Path

import pytest
from flips import all_kept, flips


@pytest.mark.slow
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    unnoticed = {kept.name: list(flips(kept, 40)) for kept in all_kept(tmp_path)}
    assert len(unnoticed) == 9 and not any(unnoticed.values()), unnoticed
