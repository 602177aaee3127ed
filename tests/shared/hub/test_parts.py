"""Parts of a file on a hub: right bytes, few requests, no token for strangers, nothing that changes."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_hub import COMMIT, Hub, go_there, serve

from lorafold.errors import InputError, SystemFault
from lorafold.hub import parts as module
from lorafold.hub.files import HubFile
from lorafold.hub.parts import HubParts

CONTENT = random.Random(1).randbytes(300_000)
FILE = HubFile("org/x", COMMIT, "a.gguf")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve(Hub(models={"org/x": {"a.gguf": CONTENT}})) as hub:
        go_there(hub.address, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(module, "_WAIT", 0.001)
        yield hub


def read(parts: HubParts, start: int, stop: int, ahead: int = 0) -> bytes:
    into = bytearray(stop - start)
    parts.read(FILE.path, start, memoryview(into), ahead)
    return bytes(into)


@pytest.mark.parametrize("far", [False, True])
def test_any_part_is_the_files(hub: Hub, far: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.far = far
    monkeypatch.setattr(module, "LARGEST", 10_000)
    monkeypatch.setattr(module, "HELD", 40_000)
    parts, drawn = HubParts([FILE]), random.Random(2)
    assert parts.size == parts.size_of(FILE.path) == len(CONTENT)

    def some(_: int) -> bool:
        start = drawn.randrange(len(CONTENT))
        stop = min(start + drawn.randrange(1, 30_000), len(CONTENT))
        return read(parts, start, stop, drawn.choice((0, 50_000))) == CONTENT[start:stop]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(some, range(100)))
    assert max(stop - start for _, start, stop in hub.ranges) == 10_000


def test_nothing_is_read_that_was_not_asked_for(hub: Hub) -> None:
    parts = HubParts([FILE])
    assert read(parts, 1000, 1100) == CONTENT[1000:1100]
    assert hub.ranges == [("a.gguf", 1000, 1100)]
    for start in range(2000, 6000, 500):
        assert read(parts, start, start + 500, 6000 - start - 500) == CONTENT[start : start + 500]
    assert hub.ranges[1:] == [("a.gguf", 2000, 6000)]  # one request for what was announced
    assert parts.fetched == hub.bytes_of("a.gguf") == 4100


def test_what_is_read_ahead_is_given_up_at_the_end(hub: Hub) -> None:
    """Otherwise the program would wait at its end for megabytes that nobody reads."""
    parts = HubParts([FILE])
    read(parts, 0, 10)
    with ThreadPoolExecutor(1) as aside:
        hub.pause = 0.01
        ahead = aside.submit(read, parts, 10, 100_000)
        while len(hub.ranges) < 2:
            time.sleep(0.01)
        parts.close()
        assert ahead.exception(timeout=20) is not None


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    read(HubParts([FILE]), 0, 10)
    hub.far = True
    read(HubParts([FILE]), 0, 10)
    near = [token for asked, token in hub.tokens if "/resolve/" in asked]
    away = [token for asked, token in hub.tokens if "/far/" in asked]
    assert set(near) == {"Bearer hf_secret"} and away and set(away) == {""}


def test_an_address_that_has_run_out_is_asked_for_again(hub: Hub) -> None:
    hub.far = True
    parts = HubParts([FILE])
    read(parts, 0, 10)
    hub.signature = "2"
    assert read(parts, 20, 30) == CONTENT[20:30]


def test_a_hub_that_fails_for_a_moment(hub: Hub) -> None:
    parts = HubParts([FILE])
    hub.failing = 3
    assert read(parts, 20, 30) == CONTENT[20:30]
    hub.failing = 100
    with pytest.raises(SystemFault, match=r"org/x: the download failed .*try again"):
        read(parts, 40, 50)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize(
    "changed",
    [CONTENT[::-1], CONTENT[:-1], CONTENT + b"x", CONTENT[:50]],
    ids=["other bytes", "a byte less", "a byte more", "cut"],
)
def test_a_file_that_changes_between_two_reads_is_refused(hub: Hub, changed: bytes, far: bool) -> None:
    hub.far = far
    parts = HubParts([FILE])
    read(parts, 0, 10)
    hub.models["org/x"]["a.gguf"] = changed
    with pytest.raises(InputError, match=r"org/x/a\.gguf: it changed while it was read.*ORG/NAME@COMMIT"):
        read(parts, 100, 110)


@pytest.mark.parametrize("changed", [CONTENT[:-1], CONTENT + b"x"], ids=["a byte less", "a byte more"])
def test_a_server_without_etags_shows_another_size(hub: Hub, changed: bytes) -> None:
    hub.far, hub.marked = True, False
    parts = HubParts([FILE])
    read(parts, 0, 10)
    hub.models["org/x"]["a.gguf"] = changed
    with pytest.raises(InputError, match="it changed while it was read: first 300,000 bytes"):
        read(parts, 100, 110)


def test_another_content_behind_a_new_address_is_refused(hub: Hub) -> None:
    hub.far = True
    parts = HubParts([FILE])
    hub.signature, hub.models["org/x"]["a.gguf"] = "2", CONTENT[::-1]
    with pytest.raises(InputError, match="it changed while it was read"):
        read(parts, 100, 110)


def test_a_server_without_ranges(hub: Hub) -> None:
    hub.whole = True
    with pytest.raises(SystemFault, match=r"hands out whole files alone.*download the file"):
        read(HubParts([FILE]), 100, 110)


def test_a_whole_file_instead_of_a_part_is_not_read(hub: Hub) -> None:
    hub.whole, size = True, 64_000_000
    hub.models["org/x"]["a.gguf"] = bytes(size)
    parts = HubParts([FILE])
    tracemalloc.start()
    try:
        with pytest.raises(SystemFault, match="hands out whole files alone"):
            read(parts, 100, 110)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size  # the server here makes a copy of its own
    finally:
        tracemalloc.stop()


def test_a_file_that_is_gone(hub: Hub) -> None:
    with pytest.raises((InputError, SystemFault), match="org/x: "):
        HubParts([HubFile("org/x", COMMIT, "b.gguf")])
