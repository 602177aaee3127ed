"""Where the time goes: every moment counts once, for the innermost block, and only where one measures."""

from __future__ import annotations

import threading
import time

import pytest

from lorafold.stopwatch import OTHER, Spent, Stopwatch, doing


def sleep() -> None:
    time.sleep(0.02)


def work() -> None:
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass


def test_a_moment_counts_for_the_innermost_block_alone() -> None:
    watch = Stopwatch()
    began = time.perf_counter()
    with watch.measured():
        sleep()
        with doing("outer"):
            sleep()
            with doing("inner"):
                work()
            with doing("inner"):
                sleep()
            sleep()
        sleep()
    passed = time.perf_counter() - began
    spent = watch.spent
    assert spent.keys() == {OTHER, "outer", "inner"}
    assert all(each.wall >= 0.04 for each in spent.values())
    # Nothing is counted twice and nothing is lost, however slow the machine is.
    assert sum(each.wall for each in spent.values()) == pytest.approx(passed, rel=0.05)
    assert spent["inner"].processor >= 0.02
    # Sleeping takes no processor.
    assert spent["outer"].processor < 0.02 and spent[OTHER].processor < 0.02


def test_threads_are_added_up_and_unmeasured_ones_left_out() -> None:
    watch = Stopwatch()

    def measured() -> None:
        with watch.measured(), doing("sleep"):
            sleep()

    def unmeasured() -> None:
        with doing("unseen"):
            sleep()

    threads = [threading.Thread(target=target) for target in (measured, measured, unmeasured)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.spent.keys() == {OTHER, "sleep"} and watch.spent["sleep"].wall >= 0.04


def test_an_error_ends_its_block() -> None:
    watch = Stopwatch()
    with watch.measured():
        with pytest.raises(ValueError, match="no"), doing("failing"):
            raise ValueError("no")
        sleep()
    assert watch.spent[OTHER].wall >= 0.02 and watch.spent.keys() == {OTHER, "failing"}


def test_a_stopwatch_within_another_takes_over() -> None:
    outer, inner = Stopwatch(), Stopwatch()
    with outer.measured("all"):
        with inner.measured("part"):
            sleep()
        with doing("after"):
            sleep()
    assert inner.spent.keys() == {"part"}
    assert outer.spent.keys() == {"all", "after"}


def test_times_add_up() -> None:
    assert Spent(1.0, 0.5) + Spent(0.25) == Spent(1.25, 0.5)
