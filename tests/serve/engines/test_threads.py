"""Models that answer at once share the cores, and nobody takes more than was asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from lorafold.serve.engines import threads as computing
from lorafold.serve.engines.threads import ModelThread, thread_count


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


def together(meter: Meter, models: dict[str, ModelThread], rounds: int = 20) -> None:
    """All models answer at once, `rounds` tokens each."""
    barrier = threading.Barrier(len(models))

    def answer(name: str, model: ModelThread) -> None:
        with model.answering():
            barrier.wait(10)
            for _ in range(rounds):
                model.run(meter.work(name))
            barrier.wait(10)  # nobody leaves early, so that the shares stay

    threads = [threading.Thread(target=answer, args=item) for item in models.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


@pytest.mark.parametrize(("count", "limit", "share"), [(2, 2, 1), (2, 4, 2), (3, 2, 1), (2, 1, 1), (1, 3, 3)])
def test_threads_are_shared(count: int, limit: int, share: int) -> None:
    meter = Meter(full=min(limit, count * share))
    models = {f"m{number}": ModelThread(limit) for number in range(count)}
    together(meter, models)
    assert {threads for _, threads in meter.told} == {share}
    assert meter.most == meter.full
    # When the others have ended, one has all threads again.
    models["m0"].run(meter.work("alone"))
    assert meter.told[-1] == ("alone", limit)


def test_a_lane_that_does_not_compute_has_no_thread() -> None:
    """OpenMP's helpers of a thread end with it, and no longer count against those who compute."""

    def here(_: int) -> threading.Thread:
        return threading.current_thread()

    model, other = ModelThread(2), ModelThread(2)
    with model.answering():
        first, second = model.run(here), model.run(here)
        assert first is second and first.is_alive()
        assert not other.run(here).is_alive()
    assert not first.is_alive()


def test_nothing_is_computed_once_a_lane_is_closed() -> None:
    """An answer that was left in its middle asks for its next token: the model is freed by then."""
    model, begun, go, done = ModelThread(1), threading.Event(), threading.Event(), []

    def token(_: int) -> None:
        begun.set()
        go.wait(10)
        done.append("token")

    def answer() -> None:
        with model.answering():
            model.run(token)
            with pytest.raises(RuntimeError, match="closed"):
                model.run(token)

    thread = threading.Thread(target=answer)
    thread.start()
    begun.wait(10)
    closer = threading.Thread(target=model.close, args=(lambda: done.append("freed"),))
    closer.start()
    while not model._closed:
        time.sleep(0.001)
    go.set()
    closer.join(10)
    thread.join(10)
    assert done == ["token", "freed"]
    with pytest.raises(RuntimeError, match="closed"):
        model.run(token)


def test_first_come_first_served() -> None:
    """While one computes, others queue up; each gets its turn in that order."""
    begun, go, meter = threading.Event(), threading.Event(), Meter()

    def hold(_: int) -> None:
        begun.set()
        go.wait(10)

    models = {name: ModelThread(1) for name in "abcd"}
    first = threading.Thread(target=models["a"].run, args=(hold,))
    first.start()
    begun.wait(10)
    waiting = []
    for number, name in enumerate("cbd", 1):
        thread = threading.Thread(target=models[name].run, args=(meter.work(name),))
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
    models = {
        "whole": ModelThread(2, shares=False),
        "other": ModelThread(2, shares=False),
        "gguf": ModelThread(2),
    }
    together(meter, models)
    assert {told for told in meter.told if told[0] != "gguf"} == {("whole", 2), ("other", 2)}
    assert meter.most == 2


def test_a_failure_gives_the_threads_back() -> None:
    def fail(threads: int) -> None:
        raise ValueError("no")

    model, meter = ModelThread(2), Meter()
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            model.run(fail)
    model.run(meter.work("after"))
    assert meter.told == [("after", 2)]


def test_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (thread_count(5), thread_count(0)) == (5, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert thread_count(0) >= 1
