"""Signals that arrive where their exception cannot pass."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from lorafold.interrupts import Terminated, interruptible, signals_raise

SIGNALS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_an_exception_lost_in_a_callback_comes_at_the_next_check(
    number: signal.Signals, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    callback = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), number))
    went_on = False
    with pytest.raises(error), interruptible() as check:
        callback()  # ctypes prints and drops what is raised in it
        went_on = True
        check()
    assert went_on
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_another_exception_in_its_place_gives_way(number: signal.Signals, error: type[BaseException]) -> None:
    with pytest.raises(error), interruptible():
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise TypeError("what an extension module made of it") from None


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_an_import_is_finished_first(
    number: signal.Signals, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "struck.py").write_text(f"import os\nos.kill(os.getpid(), {number:d})\nwhole = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "struck", raising=False)
    with pytest.raises(error), interruptible():
        import_module("struck")
        time.sleep(30)  # struck again here
    assert sys.modules.pop("struck").whole


def test_signals_raise_at_once_and_what_is_ignored_stays_so() -> None:
    for number, error in SIGNALS:
        before = signal.signal(number, signal.SIG_DFL)  # a test run in the background ignores SIGINT
        try:
            with pytest.raises(error), signals_raise():
                os.kill(os.getpid(), number)
            signal.signal(number, signal.SIG_IGN)
            with signals_raise():
                os.kill(os.getpid(), number)
            assert signal.getsignal(number) is signal.SIG_IGN
        finally:
            signal.signal(number, before)


def test_errors_of_an_undisturbed_block_and_handlers_stay() -> None:
    before = [signal.getsignal(number) for number, _ in SIGNALS], sys.unraisablehook
    with pytest.raises(TypeError), interruptible() as check:
        check()
        raise TypeError
    assert ([signal.getsignal(number) for number, _ in SIGNALS], sys.unraisablehook) == before


@pytest.mark.parametrize(
    ("deed", "code", "said"),
    [
        # Modules that make code do so on import.
        ("exec('os.kill(os.getpid(), signal.SIGINT)', globals())", 130, "error: interrupted\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "error: terminated\n"),
        (
            "bytearray(1 << 62)",
            5,
            "error: out of memory; fix: close other programs, or use a machine with more memory\n",
        ),
    ],
)
def test_the_code_and_the_line_of_a_command_that_is_cut_short(deed: str, code: int, said: str) -> None:
    program = (
        "import os, signal, sys\n"
        "import lorafold.doctor\n"
        "def examine():\n"
        f"    {deed}\n"
        "lorafold.doctor.examine = examine\n"
        "from lorafold.cli import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        # A shell's background jobs, and so perhaps this test run, ignore SIGINT; a user's command does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.returncode, ended.stderr) == (code, said)


def test_what_waited_for_an_import_does_not_strike_the_cleaning_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A progress report raises what arrived in an import; the retry must not come on top of it."""
    (tmp_path / "struck_too.py").write_text(f"import os\nos.kill(os.getpid(), {signal.SIGTERM:d})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    cleaned = False
    with pytest.raises(Terminated), interruptible() as check:
        import_module("struck_too")
        try:
            check()
        finally:
            time.sleep(0.2)  # longer than the retry waits
            cleaned = True
    assert cleaned
