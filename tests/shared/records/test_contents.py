"""What a file holds against what its name says: read as what it is, or refused by what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lorafold.errors import InputError
from lorafold.records.files import Reading, read_parts

ROWS = [{"prompt": f"q{number} «é»", "completion": "娘娘 😀"} for number in range(3)]
LINES = "".join(f'{{"prompt": "{row["prompt"]}", "completion": "{row["completion"]}"}}\r\n' for row in ROWS)
TABLE = "prompt,completion\r\n" + "".join(f"{row['prompt']},{row['completion']}\r\n" for row in ROWS)


def read(path: Path) -> list[Any]:
    return [record for part in read_parts(str(path), Reading(), print) for _, record in part.records]


def arrow(file: bool) -> bytes:
    import pyarrow
    from pyarrow import ipc

    table, sink = pyarrow.Table.from_pylist(ROWS), io.BytesIO()
    with (ipc.new_file if file else ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


READ = {
    "compressed, unsaid (gzip)": ("d.jsonl", lambda: gzip.compress(LINES.encode())),
    "compressed, unsaid (xz)": ("d.jsonl", lambda: lzma.compress(LINES.encode())),
    "compressed, unsaid (bzip2)": ("d.json", lambda: bz2.compress(LINES.encode())),
    "compressed, unsaid (zstd)": ("d.csv", lambda: zstd(TABLE.encode())),
    "compressed twice, said once": ("d.jsonl.gz", lambda: gzip.compress(gzip.compress(LINES.encode()))),
    "parquet called json": ("d.json", parquet),
    "UTF-16 lines": ("d.jsonl", lambda: LINES.encode("utf-16")),
    "UTF-16 without a mark": ("d.jsonl", lambda: LINES.encode("utf-16-le")),
    "UTF-16, the other order": ("d.json", lambda: b"\xfe\xff" + LINES.encode("utf-16-be")),
    "UTF-16 array that calls itself lines": (
        "d.jsonl",
        lambda: f"[{LINES.strip().replace(chr(10), ',')}]".encode("utf-16"),
    ),
    "Excel's Unicode text": ("d.csv", lambda: TABLE.replace(",", "\t").encode("utf-16")),
    "semicolons": ("d.csv", lambda: TABLE.replace(",", ";").encode()),
    "semicolons, said as Excel does": ("d.csv", lambda: b"sep=;\r\n" + TABLE.replace(",", ";").encode()),
    "bars": ("d.csv", lambda: TABLE.replace(",", "|").encode()),
    "tabs under .csv": ("d.csv", lambda: b"\xef\xbb\xbf" + TABLE.replace(",", "\t").encode()),
    "commas under .tsv": ("d.tsv", lambda: TABLE.encode()),
    "Arrow stream": ("data-00000-of-00001.arrow", lambda: arrow(file=False)),
    "Arrow file": ("d.feather", lambda: arrow(file=True)),
    "Arrow file called parquet": ("d.parquet", lambda: arrow(file=True)),
    "another name of lines": ("d.jsonlines", LINES.encode),
}


@pytest.mark.parametrize("case", READ)
def test_what_can_mean_only_one_thing_is_read(case: str, tmp_path: Path) -> None:
    name, content = READ[case]
    (tmp_path / name).write_bytes(content())
    assert read(tmp_path / name) == ROWS


def test_a_semicolon_within_a_table_of_commas_parts_nothing(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('prompt,completion\na; b,"c; d"\n')
    assert read(tmp_path / "d.csv") == [{"prompt": "a; b", "completion": "c; d"}]
    (tmp_path / "d.csv").write_text("text\na; b, c\n")
    with pytest.raises(InputError, match=r"d\.csv:2: expected 1 columns, got 2"):
        read(tmp_path / "d.csv")


def office() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
    return sink.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Entry not found</title></head></html>"
REFUSED = {
    "Git LFS pointer": (POINTER, "this is a Git LFS pointer, not data.*git lfs pull"),
    "web page": (PAGE, "this is a web page .*hf download"),
    "workbook": (office(), "this is a zip archive, not data; fix: .*CSV"),
    "pickle": (pickle.dumps(ROWS, 4), "this is a pickle, not data; fix: save it as parquet"),
    "SQLite": (b"SQLite format 3\0" + bytes(90), "this is a SQLite database"),
    "zeros": (bytes(2000), "this is nothing but zero bytes"),
    "PDF": (b"%PDF-1.7\n", "this is a PDF"),
}


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.json", "d.csv", "d.tsv", "d.parquet", "d.arrow", "d.jsonl.gz"]
)
@pytest.mark.parametrize("case", REFUSED)
def test_what_holds_no_records_is_refused_as_what_it_is(case: str, name: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    for written in [content, gzip.compress(content)] if name == "d.jsonl.gz" else [content]:
        (tmp_path / name).write_bytes(written)
        with pytest.raises(InputError, match=rf"^{name}: {message}") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value) and caught.value.fix


@pytest.mark.parametrize("name", ["d.zip", "d.tar", "d.tar.gz", "d.txt"])
def test_a_pointer_is_refused_under_every_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(InputError, match="this is a Git LFS pointer"):
        read(tmp_path / name)


def test_a_workbook_is_told_how_to_become_data(tmp_path: Path) -> None:
    (tmp_path / "d.xlsx").write_bytes(office())
    with pytest.raises(InputError, match=r"unknown file type .*; fix: save the sheet as CSV"):
        read(tmp_path / "d.xlsx")


def test_half_a_text_in_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(LINES.encode("utf-16")[:-1])
    with pytest.raises(InputError, match=r"d\.jsonl: invalid UTF-16"):
        read(tmp_path / "d.jsonl")


def test_a_damaged_arrow_file_is_named(tmp_path: Path) -> None:
    for content in (b"", b"x", arrow(file=False)[:90], arrow(file=True)[:90]):
        (tmp_path / "d.arrow").write_bytes(content)
        with pytest.raises(InputError, match=r"d\.arrow: not a readable Arrow file"):
            read(tmp_path / "d.arrow")
