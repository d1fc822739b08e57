"""Tables as people deliver them: one content in every dialect, and every mistake named by row, column and value."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import openpyxl
import pytest
import xlwt

from dr_platform.data import tables
from dr_platform.data.tables import check_id, peek, read_table, require_unique, safe_csv
from dr_platform.errors import DataError

HEADER = ("Image name", "Retinopathy grade", "Département")
ROWS = (("a.tif", "3", "Lariboisière"), ("b.tif", "0", ""))


def deliver(folder: Path, content: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder: Path, content: str | bytes, name: str = "labels.csv", **options: object) -> tables.Table:
    return read_table(deliver(folder, content, name), **options)  # type: ignore[arg-type]


def cells(table: tables.Table) -> tuple[tuple[str, ...], ...]:
    return tuple(row.cells for row in table.rows)


def old_excel(rows: list[list[object]]) -> bytes:
    book = xlwt.Workbook()
    sheet = book.add_sheet("Feuil1")
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            sheet.write(y, x, value)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def new_excel(rows: list[list[object]], sheets: int = 1) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    for _ in range(1, sheets):
        book.create_sheet().append(["other"])
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_one_table_in_every_dialect(encoding: str, delimiter: str, ends: str, tmp_path: Path) -> None:
    text = ends.join(f" {delimiter} ".join(row) for row in (HEADER, *ROWS)) + ends
    table = read(tmp_path, text.encode(encoding))
    assert (table.header, cells(table)) == (HEADER, ROWS)
    assert [row.line for row in table.rows] == [2, 3]
    assert bool(table.notes) == (encoding in ("utf-16-le", "utf-16-be", "cp1252"))


@pytest.mark.parametrize("write", [old_excel, new_excel])
@pytest.mark.parametrize("name", ["labels.xls", "labels.xlsx", "labels.csv"])
def test_excel_is_told_by_its_content(write: object, name: str, tmp_path: Path) -> None:
    rows: list[list[object]] = [list(HEADER), ["a.tif", 3, "Lariboisière"], [None, "", " "], ["b.tif ", 0.0]]
    table = read(tmp_path, write(rows), name)  # type: ignore[operator]
    assert (table.header, cells(table)) == (HEADER, ROWS)
    assert [row.line for row in table.rows] == [2, 4]


def test_of_several_sheets_the_first_is_read_and_that_is_said(tmp_path: Path) -> None:
    table = read(tmp_path, new_excel([["image"], ["a"]], sheets=2))
    assert cells(table) == (("a",),)
    assert "2 sheets; the first" in table.notes[0]


def test_empty_columns_at_the_end_are_dropped(tmp_path: Path) -> None:
    table = read(tmp_path, "name,grade,,,\na,1,,,\nb,2,\nc,3\nd,4,, ,,,\n")
    assert table.header == ("name", "grade")
    assert cells(table) == (("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"))


def test_names_for_a_table_without_a_header(tmp_path: Path) -> None:
    table = read(tmp_path, "a,1\nb,2\n", columns=("image", "level"))
    assert list(table.pick("level", "image")) == [(1, ["1", "a"]), (2, ["2", "b"])]


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    table = read(tmp_path, 'image,grade,note\n\na,1,"two\nlines"\n , ,\nb,2,x\n')
    assert [(row.line, row.cells[2]) for row in table.rows] == [(3, "two\nlines"), (6, "x")]


def test_the_separator_that_excel_declares(tmp_path: Path) -> None:
    table = read(tmp_path, "sep=;\r\nimage;a,b\r\nx;1\r\n")
    assert (table.header, table.rows[0].line) == (("image", "a,b"), 3)


def test_columns_are_found_whatever_their_case_and_blanks(tmp_path: Path) -> None:
    table = read(tmp_path, "Risk of macular  edema ,x\n1,2\n")
    assert table.index("risk of Macular edema") == 0
    assert not table.has("y")
    assert read(tmp_path, '"image\nname",x\n1,2\n').said() == "image name, x"
    with pytest.raises(DataError, match=r"no column 'y'\. It has: Risk of macular edema, x"):
        table.index("y")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"image,level\r\n10_left,0\r\n10_right,1\r\n", [("image", "level"), ("10_left", "0")]),
        ("left;right\nä;b\n".encode("utf-16"), [("left", "right"), ("ä", "b")]),
        (b"", []),
        (b"\0\0\1", []),
        (b'"never closed\n', []),
        (new_excel([["a"]]), []),
    ],
)
def test_a_peek_never_fails(content: bytes, found: list, tmp_path: Path) -> None:
    assert peek(deliver(tmp_path, content)) == found


def test_a_peek_at_a_large_table_cuts_no_character(tmp_path: Path) -> None:
    assert peek(deliver(tmp_path, "ä,ö\n" * 40_000), rows=10**6)[-1] == ("ä", "ö")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n,,\n", "is empty"),
        ("image,grade\n", "a header but no rows"),
        ("image,grade,grade \na,1,1\n", "two columns 'grade'"),
        ("image,grade\na,1,surplus\n", "row 2 has 3 fields, the header 2"),
        ("image,grade\na,1\n\nb\n", "row 4 has 1 fields, the header 2"),
        ('image,grade\nb,2\n"a,1\n', "row 3: not CSV"),
        (b"image,grade\na,1\nb\0,1\n", "row 3 holds a NUL byte"),
        ("image,grade\n".encode("utf-16") + b"x", "damaged UTF-16"),
        ("image,grade\na,1\n".encode("utf-32"), "is UTF-32"),
        ("image,grade\na," + "9" * 10_001, r"row 2: column 'grade' has 10001 characters, '99999999999999999999'\.\.\."),
        ('image,grade\na,"' + "9" * 200_000, "row 2: not CSV .*field"),
        (new_excel([["image"], ["=1+1"]]), r"row 2 holds the formula '=1\+1'"),
        (old_excel([["image"]])[:600], "cannot be read as an Excel workbook"),
        (new_excel([["image"]])[:600], "cannot be read as an Excel workbook"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused_in_one_line(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, content)
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read"):
        read_table(tmp_path / "nowhere.csv")


def test_too_many_rows_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    content = b"image\n" + b"a\n" * (tables.MAX_ROWS + 1)
    with pytest.raises(DataError, match="has 5000002 lines; accepted are up to 5000000"):
        read(tmp_path, content)


def test_a_workbook_that_unpacks_to_too_much_is_refused_unopened(tmp_path: Path) -> None:
    stream = io.BytesIO(new_excel([["image"], ["a"]]))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/bomb.xml", bytes(tables.MAX_UNPACKED))
    with pytest.raises(DataError, match="unpacks to 512 MiB"):
        read(tmp_path, stream.getvalue())


@pytest.mark.parametrize("hidden", ["\u202e", "\u2066", "\u200b", "\x07", "\ufeff", "\n"])
def test_an_id_has_no_invisible_characters(hidden: str) -> None:
    with pytest.raises(DataError, match=rf"labels.csv row 3: image .* U\+{ord(hidden):04X}"):
        check_id("labels.csv row 3", "image", f"a{hidden}b")
    assert check_id("labels.csv row 3", "image", "Été 1_b") == "Été 1_b"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("t row 2", "a", "1"), ("t row 5", "a", "1")], "t row 5: image 'a' is in row 2 already. Each"),
        ([("t row 2", "a", "1"), ("t row 5", "A", "1")], "t row 5: image 'A' is in row 2 already, as 'a'"),
        (
            [("t row 2", "a", "1"), ("u row 2", "a", "")],
            "u row 2: image 'a' is in t row 2 already, graded 1 there, none here",
        ),
    ],
)
def test_an_image_that_is_listed_twice_is_told_with_both_rows(entries: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_unique(entries, "image")
    require_unique(entries[:1], "image")


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "stored"),
    [
        ("=1+1", "'=1+1"),
        ("+41 44", "'+41 44"),
        ("-cmd", "'-cmd"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t'=1"),
        ("\r1", "'\r1"),
        ("＝1", "'＝1"),
        ("a;=1", "a;'=1"),
        ("-3", "-3"),
        ("-1.5e-3", "-1.5e-3"),
        ("-3-3", "'-3-3"),
        ("a=b-c", "a=b-c"),
        (-2.5, "-2.5"),
        (None, ""),
        ("Lariboisière", "Lariboisière"),
    ],
)
def test_no_cell_begins_a_formula(cell: object, stored: str) -> None:
    content = safe_csv(["=head", "x"], [[cell, 1]])
    assert list(csv.reader(io.StringIO(content.decode(), newline=""))) == [["'=head", "x"], [stored, "1"]]
