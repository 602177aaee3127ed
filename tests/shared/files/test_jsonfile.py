"""JSON objects from files: read in no more memory than they need, up to the limit."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from lorafold.errors import InputError
from lorafold.files.jsonfile import read_object


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": 1}))
    read_object(path)
    tracemalloc.start()
    try:
        assert read_object(path) == {"a": 1}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False), (200, False)])
def test_the_limit_is_the_last_size_that_is_read(tmp_path: Path, size: int, fits: bool) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": "' + "x" * (size - 9) + '"}')
    if fits:
        assert len(read_object(path, limit=100)["a"]) == size - 9
    else:
        with pytest.raises(InputError, match="larger than 100 bytes"):
            read_object(path, limit=100)
