"""`lorafold doctor`: a verdict for each job, and the command that mends it."""

from __future__ import annotations

import socket
import sys

import pytest

from lorafold import doctor
from lorafold.cli import main


@pytest.fixture
def nowhere() -> str:
    """An address on loopback where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def jobs() -> dict[str, tuple[str, str]]:
    return {job: (can, note) for job, can, note in doctor.examine()[0]}


def test_servers_that_answer_and_do_not(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", nowhere)
    monkeypatch.setenv("OLLAMA_HOST", nowhere)
    monkeypatch.setattr(doctor, "MODELSCOPE", nowhere)
    found = jobs()
    assert found["hub"] == (
        doctor.NO,
        f"{nowhere} does not answer: give folders, or a mirror (HF_ENDPOINT=https://…)",
    )
    assert found["Ollama"][0] != doctor.YES
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        monkeypatch.setenv("OLLAMA_HOST", address)
        found = jobs()
    assert found["hub"][0] == doctor.YES and found["Ollama"] == (doctor.YES, f"a server answers at {address}")


def test_what_is_missing_is_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PACKAGES, "peft", "no_such_module")
    monkeypatch.setitem(doctor.PACKAGES, "accelerate", "no_such_module_either")
    found = jobs()
    assert found["train"] == (doctor.NO, "pip install peft accelerate")
    assert found["train in 4 bit"] == (doctor.NO, "pip install peft accelerate")


def test_a_token_is_said_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert main(["doctor"]) == 0
    shown = capsys.readouterr()
    assert "a token is set" in shown.out and "hf_secret" not in shown.out + shown.err


def test_nothing_heavy_is_loaded() -> None:
    import subprocess

    script = (
        "import sys\nfrom lorafold.cli import main\nmain(['doctor'])\n"
        "assert not {'torch', 'numba', 'transformers', 'llama_cpp'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
