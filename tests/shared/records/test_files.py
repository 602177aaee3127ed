"""Files of every type, compressed, in archives and in folders: read, named as left out, or refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oracles import REPOSITORY

from lorafold.errors import InputError, SystemFault, UnsafeInputError
from lorafold.records.files import Reading, read_parts
from lorafold.records.packed import kind_of

ROWS = [{"prompt": f"q{number} «é»", "completion": f"a{number}"} for number in range(3)]


def as_lines(rows: list[dict[str, str]] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv() -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


TYPES: dict[str, Callable[[], bytes]] = {
    ".json": lambda: json.dumps(ROWS, indent=1).encode(),
    ".jsonl": as_lines,
    ".ndjson": as_lines,
    ".csv": as_csv,
    ".tsv": lambda: as_csv().replace(b",", b"\t"),
    ".parquet": as_parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def read(path: Path, **reading: Any) -> tuple[list[Any], list[str]]:
    """Records and notes."""
    notes: list[str] = []
    parts = read_parts(str(path), Reading(**reading), notes.append)
    return [record for part in parts for _, record in part.records], notes


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_read_in_every_packing(kind: str, packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"d{kind}{packed}"
    path.write_bytes(PACKERS[packed](TYPES[kind]()))
    assert read(path) == (ROWS, [])


@pytest.mark.parametrize("packed", PACKERS)
def test_a_long_array_that_calls_itself_lines(packed: str, tmp_path: Path) -> None:
    """It is begun again as an array, over several chunks; a stream cannot simply go back."""
    rows = [{"text": f"{number} " + "é" * 300_000} for number in range(8)]
    path = tmp_path / f"d.jsonl{packed}"
    path.write_bytes(PACKERS[packed](json.dumps(rows, ensure_ascii=False).encode()))
    assert read(path)[0] == rows


def test_packed_pieces_one_behind_the_other_are_all_read(tmp_path: Path) -> None:
    """`cat a.zst b.zst` and parallel compressors write several frames."""
    for packed, pack in PACKERS.items():
        path = tmp_path / f"d.jsonl{packed}"
        path.write_bytes(b"".join(pack(as_lines([row])) for row in ROWS))
        assert read(path)[0] == ROWS, packed


@pytest.mark.parametrize("packed", [packed for packed in PACKERS if packed])
def test_damaged_packings_are_named(packed: str, tmp_path: Path) -> None:
    rows = [{"text": f"{number * 7919} {number**5}"} for number in range(4000)]
    whole = PACKERS[packed](as_lines(rows))
    for content in (b"no such packing at all", whole[: len(whole) // 2]):
        path = tmp_path / f"d.jsonl{packed}"
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"d\.jsonl{packed}: not a readable {packed} file") as caught:
            read(path)
        assert "\n" not in str(caught.value) and caught.value.fix


def test_types_by_name() -> None:
    assert kind_of("a/B.JSONL.GZ") == (".jsonl", (".gz",))
    assert kind_of("a.tgz") == (".tar", (".gz",)) == kind_of("a.tar.gz")
    assert kind_of("a.json.gz.zst") == (".json", (".zst", ".gz"))
    assert kind_of("a") == ("", ()) and kind_of("a.gz") == ("", (".gz",))


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path: Path) -> None:
    """In a Python that finds no pyarrow; the packings of the standard library are read there."""
    for name, packed in (("d.jsonl.zst", ".zst"), ("d.jsonl.xz", ".xz")):
        (tmp_path / name).write_bytes(PACKERS[packed](as_lines()))
    (tmp_path / "d.parquet").write_bytes(as_parquet())
    code = (
        "import sys; from importlib import util; found = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'pyarrow' else found(name, *rest)\n"
        "from lorafold.records.files import Reading, read_parts\n"
        "from lorafold.errors import SystemFault\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        parts = read_parts(name, Reading(), print)\n"
        "        print([record for part in parts for _, record in part.records])\n"
        "    except SystemFault as error: print(error)\n"
    )
    names = ("d.jsonl.zst", "d.parquet", "d.jsonl.xz")
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    *faults, rows = done.stdout.splitlines()
    assert all("fix: pip install pyarrow" in fault and "[data]" in fault for fault in faults)
    assert len(faults) == 2 and rows == str(ROWS)
    assert SystemFault.exit_code == 5


# Archives and folders


MEMBERS: dict[str, bytes] = {
    "part-1.jsonl": as_lines(),
    "deep/part-2.jsonl.gz": gzip.compress(as_lines()),
    "part-3.ndjson": as_lines(),
    "part-4.csv.xz": lzma.compress(as_csv()),
    "part-5.jsonl.zst": zstd(as_lines()),
}
LEFT_OUT: dict[str, tuple[bytes, str]] = {
    "README.txt": (b"About the set.\n", "describes the data"),
    "LICENSE": (b"MIT", "describes the data"),
    "notes.txt": (b"first\n\nsecond\n", "a text file beside data files"),
    "picture.png": (b"\x89PNG", "no reader for this type"),
    "inner.zip": (b"PK", "an archive inside another"),
    "make.py": (b"print(1)", "code"),
    ".hidden.jsonl": (b"{", "hidden"),
    "dataset_info.json": (b"{}", "describes the data"),
    "frame.pkl": (b"\x80", "no reader for this type"),
}


def fill_folder(path: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def fill_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def fill_tar(path: Path, members: dict[str, bytes]) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(PACKERS[kind_of(path.name)[1][0] if kind_of(path.name)[1] else ""](buffer.getvalue()))
    return path


HOLDERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "folder": fill_folder,
    "d.zip": fill_zip,
    "d.tar": fill_tar,
    "d.tar.gz": fill_tar,
    "d.tgz": fill_tar,
    "d.tar.xz": fill_tar,
    "d.tar.zst": fill_tar,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_member_is_read_or_named(holder: str, tmp_path: Path) -> None:
    members = {**MEMBERS, "part-6.parquet": as_parquet()}
    useless = {name: content for name, (content, _) in LEFT_OUT.items()}
    path = HOLDERS[holder](tmp_path / holder, {**useless, **members})
    records, notes = read(path)
    assert records == ROWS * len(members)
    told, left_out = notes
    assert f"{holder}: {len(members)} files are read: " in told and all(name in told for name in members)
    assert left_out.startswith(f"{holder}: not read: ")
    for name, (_, reason) in LEFT_OUT.items():
        assert f"{name} ({reason})" in left_out


@pytest.mark.parametrize("holder", HOLDERS)
def test_of_files_called_after_splits_the_others_are_left_out(holder: str, tmp_path: Path) -> None:
    names = [
        "data/train-00000-of-00001.jsonl",
        "data/test-00000-of-00001.jsonl",
        "my_dev.jsonl",
        "more.jsonl",
    ]
    members = {name: as_lines([{"prompt": name, "completion": "a"}]) for name in names}
    records, notes = read(HOLDERS[holder](tmp_path / holder, members))
    assert sorted(record["prompt"] for record in records) == sorted((names[0], names[3]))
    for name in (names[1], names[2]):
        assert f"{name} (not the train split)" in notes[-1]
    del members[names[0]]  # nothing says what is to be trained on
    assert len(read(HOLDERS[holder](tmp_path / f"2.{holder}", members))[0]) == 3


def test_of_a_saved_data_set_with_splits_it_is_told_what_is_read(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    saved, odd = tmp_path / "saved", tmp_path / "odd"
    datasets.DatasetDict({"test": rows.select([0]), "train": rows, "dev": rows}).save_to_disk(str(saved))
    records, notes = read(saved)
    assert records == ROWS
    assert notes == [f"saved: the split train is read; another is had with {saved}/test or dev"]
    assert read(saved / "test") == (ROWS[:1], [])
    datasets.DatasetDict({"test": rows}).save_to_disk(str(odd))
    with pytest.raises(InputError, match=rf"no split called train \(splits: test\); fix: .*{odd}/test"):
        read(odd)


@pytest.mark.parametrize("holder", HOLDERS)
def test_texts_alone_are_the_data(holder: str, tmp_path: Path) -> None:
    texts = {"a.txt": b"one\n\ntwo\n", "b.txt.gz": gzip.compress(b"three\n"), "README.txt": b"about"}
    records, notes = read(HOLDERS[holder](tmp_path / holder, texts))
    assert records == [{"text": "one"}, {"text": "two"}, {"text": "three"}]
    assert notes[-1] == f"{holder}: not read: README.txt (describes the data)"


@pytest.mark.parametrize("holder", HOLDERS)
def test_nothing_but_what_cannot_be_read_is_refused_by_name(holder: str, tmp_path: Path) -> None:
    path = HOLDERS[holder](tmp_path / holder, {"a.docx": b"x", "README.md": b"y"})
    said = r"no data file is in it \(not read: .*a.docx \(no reader for this type\)"
    with pytest.raises(InputError, match=said):
        read(path)


def test_a_damaged_member_is_named_with_its_archive(tmp_path: Path) -> None:
    path = fill_zip(tmp_path / "d.zip", {"a.jsonl": as_lines(), "b.jsonl": b'{"a": 1}\n{"b"'})
    with pytest.raises(InputError, match=r"d.zip/b.jsonl:2: not valid JSON"):
        read(path)
    path = fill_zip(tmp_path / "e.zip", {"a.jsonl.gz": gzip.compress(as_lines())[:-9]})
    with pytest.raises(InputError, match=r"e.zip/a.jsonl.gz: not a readable .gz file"):
        read(path)


def test_links_in_a_tar_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("secret.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(as_lines())
        archive.addfile(info, io.BytesIO(as_lines()))
    records, notes = read(path)
    assert records == ROWS and notes == ["d.tar: not read: secret.jsonl (not a plain file)"]


def test_a_folder_that_holds_code_alone_is_unsafe(tmp_path: Path) -> None:
    with pytest.raises(UnsafeInputError, match="a loading script"):
        read(fill_folder(tmp_path / "d", {"load.py": b"1"}))


def test_a_model_given_as_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a model folder, not data"):
        read(fill_folder(tmp_path / "d", {"config.json": b"{}"}))
