"""Folders on disk: the target is always the complete old state or the complete new one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lorafold.artifacts import (
    check_output,
    damaged_files,
    lock,
    new_folder,
    read_manifest,
    system_faults,
    write_atomic,
    write_manifest,
)
from lorafold.errors import BusyError, InputError, SystemFault, UsageError
from lorafold.files.renames import remove_folder


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), new_folder(out) as staging:
        (staging / "half").write_text("half")
        raise RuntimeError
    assert not out.exists()
    with new_folder(out) as staging:
        (staging / "whole").write_text("whole")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "whole").read_text() == "whole"


def test_force_replaces_an_old_folder_and_a_failure_keeps_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(UsageError, match=r"not empty.*--force"), new_folder(out):
        pass
    with pytest.raises(RuntimeError), new_folder(out, force=True):
        raise RuntimeError
    assert (out / "old").read_text() == "old"
    with new_folder(out, force=True) as staging:
        (staging / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["new"]


def test_an_output_may_not_overlap_an_input(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "inner").mkdir(parents=True)
    for out in (base, base / "inner" / "out", tmp_path):
        with pytest.raises(UsageError, match="overlaps the input"):
            check_output(out, inputs=[base], force=True)
    check_output(tmp_path / "other", inputs=[base])


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        check_output(tmp_path / "file")


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from lorafold.artifacts import lock
        with lock(Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
    """)
    other = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(BusyError, match=f"process {other.pid} is writing") as caught, lock(out):
            pass
        assert caught.value.exit_code == 7
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with lock(out):  # the lock ended with its process
        pass


def test_sigkill_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as staging:
        (staging / "old").write_text("old")
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from lorafold.artifacts import new_folder
        with new_folder(Path(sys.argv[1]), force=True) as staging:
            (staging / "new").write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script, str(out)]).returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == ["old"]
    with new_folder(out, force=True) as staging:  # what it left behind is in nobody's way
        (staging / "newer").write_text("newer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("swap", [True, False], ids=["exchanged", "two renames"])
@pytest.mark.parametrize(
    ("event", "number"), [("os.rename", 1), ("os.rename", 2), ("os.rename", 3), ("os.remove", 2)]
)
def test_sigkill_anywhere_in_a_replacement(tmp_path: Path, swap: bool, event: str, number: int) -> None:
    """Killed by the kernel before the n-th rename or removal, on a system that can exchange names or not."""
    out = tmp_path / "out"
    with new_folder(out) as staging:
        for name in ("a", "b"):
            (staging / name).write_text("old")
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from lorafold.files import renames
        from lorafold.artifacts import new_folder
        out, event, number, swap = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
        if not swap:
            renames._RENAME_EXCHANGE = 1 << 30  # a flag that the kernel refuses with EINVAL
        seen, armed = 0, False
        def hook(name, arguments):
            global seen
            if armed and name == event:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
        with new_folder(Path(out), force=True) as staging:
            for name in ("a", "b"):
                (staging / name).write_text("new")
            sys.addaudithook(hook)
            armed = True
        print("finished")
    """)
    command = [sys.executable, "-c", script, str(out), event, str(number), str(swap)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL or done.stdout == "finished\n", done.stderr
    aside = (swap, event, number) == (False, "os.rename", 2)
    assert out.exists() is not aside
    with pytest.raises(UsageError, match="not empty"), new_folder(out):  # it is there again, and kept
        pass
    assert {path.name for path in out.iterdir()} == {"a", "b"}
    assert len({path.read_text() for path in out.iterdir()}) == 1
    with new_folder(out, force=True) as staging:
        (staging / "newer").write_text("newer")
    assert [path.name for path in out.iterdir()] == ["newer"]
    assert not list(tmp_path.glob(".out.old")) and not list(tmp_path.glob(".out.partial"))


def test_the_target_of_a_symlink_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "there" / "real", tmp_path / "here" / "link"
    for folder in (real, link.parent):
        folder.mkdir(parents=True)
    link.symlink_to(real)
    with new_folder(link) as staging:
        assert staging.parent == real.parent
        (staging / "file").write_text("x")
    assert link.is_symlink() and (real / "file").read_text() == "x"
    assert [path.name for folder in (real.parent, link.parent) for path in folder.iterdir()] == [
        "real",
        "link",
    ]


def test_the_working_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_folder(Path(".")) as staging:
        (staging / "file").write_text("x")
    assert (tmp_path / "file").read_text() == "x"


def test_a_lock_whose_file_was_replaced_meanwhile_is_not_held(tmp_path: Path) -> None:
    """Between opening and locking the file, its holder ends and removes it, and a third makes a new one."""
    script = textwrap.dedent("""
        import fcntl, sys
        from pathlib import Path
        from lorafold.artifacts import lock
        from lorafold.errors import BusyError
        out = Path(sys.argv[1])
        path = out.with_name(".out.lock")
        third = None
        def hook(name, arguments):
            global third
            if name == "fcntl.flock" and third is None:
                path.unlink()
                third = open(path, "w")
                fcntl.flock(third, fcntl.LOCK_EX)
        sys.addaudithook(hook)
        try:
            with lock(out):
                print("two hold it")
        except BusyError:
            print("busy")
        third.close()
        with lock(out):
            print("held")
        print(list(out.parent.iterdir()))
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["busy", "held", "[]"], done.stderr


def test_a_lock_leaves_nothing_when_its_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lock(tmp_path / "out"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_sigkill_while_a_folder_is_removed_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    """Killed by the kernel when the first file has gone: the name is free, or the folder is whole."""
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    names = [f"{number:04}" for number in range(50)]
    for name in names:
        (folder / name).write_text("x")
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from lorafold.files.renames import remove_folder
        def die(event, arguments):
            if event == "os.remove":
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(die)
        remove_folder(Path(sys.argv[1]))
    """)
    assert subprocess.run([sys.executable, "-c", script, str(folder)]).returncode == -signal.SIGKILL
    assert not folder.exists()
    folder.mkdir()
    remove_folder(folder)  # what the killed one left over goes as well
    assert not list(tmp_path.iterdir())


def test_write_atomic_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1


def test_a_manifest_finds_every_damage(tmp_path: Path) -> None:
    for name in ("same", "flipped", "gone", "longer"):
        (tmp_path / name).write_bytes(bytes(1000))
    write_manifest(tmp_path, "export", {"proof": []})
    manifest = read_manifest(tmp_path)
    assert manifest is not None and manifest["kind"] == "export" and damaged_files(tmp_path, manifest) == []
    (tmp_path / "flipped").write_bytes(bytes(999) + b"\1")
    (tmp_path / "gone").unlink()
    (tmp_path / "longer").write_bytes(bytes(1001))
    assert sorted(damaged_files(tmp_path, manifest)) == ["flipped", "gone", "longer"]


@pytest.mark.parametrize("content", ["{", "[]", '{"files": 1}', "\udcff".encode("utf-8", "surrogatepass")])
def test_a_broken_manifest_is_an_error(tmp_path: Path, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "lorafold.json").write_bytes(data)
    with pytest.raises(InputError, match=r"lorafold\.json"):
        read_manifest(tmp_path)
    assert read_manifest(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "input/output error"),
    ],
)
def test_the_systems_refusals_are_one_line(tmp_path: Path, code: int, words: str) -> None:
    with pytest.raises(SystemFault, match=words) as caught, system_faults(tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "x"))
    assert "fix:" in str(caught.value) and caught.value.exit_code == 5


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not on this system")
    out = tmp_path / "out"
    with pytest.raises(SystemFault, match="disk is full"), new_folder(out) as staging:
        (staging / "full").symlink_to("/dev/full")
        with open(staging / "full", "wb", buffering=0) as file:
            file.write(b"x")
    assert list(tmp_path.iterdir()) == [] or not out.exists()


@pytest.mark.parametrize(("number", "is_read"), [(1, True), (None, True), (2, False), ("1", False)])
def test_a_manifest_of_a_later_format_is_not_guessed_at(
    number: object, is_read: bool, tmp_path: Path
) -> None:
    write_manifest(tmp_path, "export", {})
    path = tmp_path / "lorafold.json"
    manifest = {key: value for key, value in json.loads(path.read_text()).items() if key != "format"}
    path.write_text(json.dumps(manifest if number is None else manifest | {"format": number}))
    if is_read:
        assert read_manifest(tmp_path) is not None
        return
    with pytest.raises(InputError, match="expected at most 1: a newer lorafold made it") as caught:
        read_manifest(tmp_path)
    assert "upgrade" in str(caught.value)
