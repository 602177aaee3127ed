"""Lanes: models that answer at once share the cores, and nobody takes more than was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from lorafold.serve.engines import lanes as computing
from lorafold.serve.engines.lanes import Lane, thread_count


class Meter:
    """Work that notes how many threads compute at a time, and in which order.

    Args:
        full: threads that will compute at once; the first work waits until they do.
    """

    def __init__(self, full: int = 0) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.full, self.reached = full, threading.Event()
        self.told: list[tuple[str, int]] = []

    def work(self, name: str) -> Callable[[int], None]:
        def run(threads: int) -> None:
            with self.lock:
                self.now += threads
                self.most = max(self.most, self.now)
                self.told.append((name, threads))
                if self.now >= self.full:
                    self.reached.set()
            self.reached.wait(10)
            with self.lock:
                self.now -= threads

        return run


def together(meter: Meter, lanes: dict[str, Lane], rounds: int = 20) -> None:
    """All lanes answer at once, `rounds` tokens each."""
    barrier = threading.Barrier(len(lanes))

    def answer(name: str, lane: Lane) -> None:
        with lane.answering():
            barrier.wait(10)
            for _ in range(rounds):
                lane.run(meter.work(name))
            barrier.wait(10)  # nobody leaves early, so that the shares stay

    threads = [threading.Thread(target=answer, args=item) for item in lanes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


@pytest.mark.parametrize(
    ("models", "limit", "share"), [(2, 2, 1), (2, 4, 2), (3, 2, 1), (2, 1, 1), (1, 3, 3)]
)
def test_threads_are_shared(models: int, limit: int, share: int) -> None:
    meter = Meter(full=min(limit, models * share))
    lanes = {f"m{number}": Lane(limit) for number in range(models)}
    together(meter, lanes)
    assert {threads for _, threads in meter.told} == {share}
    assert meter.most == meter.full
    # When the others have ended, one has all threads again.
    lanes["m0"].run(meter.work("alone"))
    assert meter.told[-1] == ("alone", limit)


def test_a_lane_that_does_not_compute_has_no_thread() -> None:
    """OpenMP's helpers of a thread end with it, and no longer count against those who compute."""

    def here(_: int) -> threading.Thread:
        return threading.current_thread()

    lane, other = Lane(2), Lane(2)
    with lane.answering():
        first, second = lane.run(here), lane.run(here)
        assert first is second and first.is_alive()
        assert not other.run(here).is_alive()
    assert not first.is_alive()


def test_nothing_is_computed_once_a_lane_is_closed() -> None:
    """An answer that was left in its middle asks for its next token: the model is freed by then."""
    lane, begun, go, done = Lane(1), threading.Event(), threading.Event(), []

    def token(_: int) -> None:
        begun.set()
        go.wait(10)
        done.append("token")

    def answer() -> None:
        with lane.answering():
            lane.run(token)
            with pytest.raises(RuntimeError, match="closed"):
                lane.run(token)

    thread = threading.Thread(target=answer)
    thread.start()
    begun.wait(10)
    closer = threading.Thread(target=lane.close, args=(lambda: done.append("freed"),))
    closer.start()
    while not lane._closed:
        time.sleep(0.001)
    go.set()
    closer.join(10)
    thread.join(10)
    assert done == ["token", "freed"]
    with pytest.raises(RuntimeError, match="closed"):
        lane.run(token)


def test_first_come_first_served() -> None:
    """While one computes, others queue up; each gets its turn in that order."""
    begun, go, meter = threading.Event(), threading.Event(), Meter()

    def hold(_: int) -> None:
        begun.set()
        go.wait(10)

    lanes = {name: Lane(1) for name in "abcd"}
    first = threading.Thread(target=lanes["a"].run, args=(hold,))
    first.start()
    begun.wait(10)
    waiting = []
    for number, name in enumerate("cbd", 1):
        thread = threading.Thread(target=lanes[name].run, args=(meter.work(name),))
        thread.start()
        waiting.append(thread)
        deadline = time.monotonic() + 10
        while len(computing._cores.waiting) < number and time.monotonic() < deadline:
            time.sleep(0.001)
    go.set()
    for thread in (first, *waiting):
        thread.join(10)
    assert [name for name, _ in meter.told] == list("cbd") and meter.most == 1


def test_a_lane_that_does_not_share_computes_alone() -> None:
    meter = Meter()
    lanes = {"whole": Lane(2, shares=False), "other": Lane(2, shares=False), "gguf": Lane(2)}
    together(meter, lanes)
    assert {told for told in meter.told if told[0] != "gguf"} == {("whole", 2), ("other", 2)}
    assert meter.most == 2


def test_a_failure_gives_the_threads_back() -> None:
    def fail(threads: int) -> None:
        raise ValueError("no")

    lane, meter = Lane(2), Meter()
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            lane.run(fail)
    lane.run(meter.work("after"))
    assert meter.told == [("after", 2)]


def test_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (thread_count(5), thread_count(0)) == (5, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert thread_count(0) >= 1
