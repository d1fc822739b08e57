"""One reader for tables as people deliver them: CSV in any dialect and encoding that can be told, and both Excels.

A table is read whole or refused in one line: which row, which column, what stood there, what is accepted. Whatever had
to be assumed (an encoding, a sheet) is a note, never silence. Formulas are not evaluated.
"""

from __future__ import annotations

import csv
import datetime
import io
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dr_platform.errors import DataError

MAX_FIELD = 10_000  # characters
MAX_ROWS = 5_000_000
MAX_UNPACKED = 1 << 29  # bytes of an .xlsx, which is a zip: 512 MiB are more than 5 million rows of names and grades
TABLE_ENDINGS = (".csv", ".tsv", ".xls", ".xlsx")

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the container of .xls from Excel 97 on
_ZIP = b"PK\x03\x04"
_PEEK_BYTES = 1 << 16
_UTF16_SHARE = 0.4  # Latin text in UTF-16 has a NUL in every other byte; mojibake and binary files have not
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # categories: controls, bidi overrides, surrogates, ...
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[=+\-@＝＋－＠])")


@dataclass(frozen=True)
class Row:
    """A row that is not blank."""

    line: int  # counted from 1 as an editor or Excel does; the first of a row that goes over several
    cells: tuple[str, ...]  # trimmed, as many as the header has


@dataclass(frozen=True)
class Table:
    """A table as it was delivered. `header` has no name twice, apart from empty ones."""

    name: str  # for messages
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # what was assumed

    def index(self, column: str) -> int:
        """Where a column is; case and the number of blanks do not matter. Raises DataError listing those there are."""
        for index, name in enumerate(self.header):
            if same_name(name) == same_name(column):
                return index
        raise DataError(f"{self.name} has no column {column!r}. It has: {self.said()}.")

    def said(self) -> str:
        """The names of the columns, in one line."""
        return ", ".join(" ".join(name.split()) for name in self.header)

    def has(self, column: str) -> bool:
        """Whether there is such a column."""
        return same_name(column) in map(same_name, self.header)

    def pick(self, *columns: str) -> Iterator[tuple[int, list[str]]]:
        """(line, cells of these columns) of every row."""
        indices = [self.index(column) for column in columns]
        for row in self.rows:
            yield row.line, [row.cells[index] for index in indices]


def same_name(name: str) -> str:
    """Equal for names that people take for one: of columns, and of files on another file system."""
    return " ".join((name if name.isascii() else unicodedata.normalize("NFC", name)).casefold().split())


def read_table(path: Path, *, columns: Sequence[str] | None = None, name: str | None = None) -> Table:
    """The header and the rows of a table. What it is, CSV or Excel, is told by its content, not by its ending.

    columns: names for a table that comes without a header. name: what messages call it instead of its path.
    Raises DataError if it is empty, ragged, damaged, or holds what no table of images holds.
    """
    name = name or str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}. Give the table that lists the images.") from None
    rows, notes = _parse(name, path, content)
    return _table(name, rows, columns, notes)


def peek(path: Path, rows: int = 2) -> list[tuple[str, ...]]:
    """The first rows of a CSV, trimmed, to recognise it by; none if it is no CSV. Reads little of it."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(_PEEK_BYTES)
    except OSError:
        return []
    if content.startswith((_OLE, _ZIP)):
        return []
    try:
        text = _decode(path.name, _whole_lines(content))[0]
        found: list[tuple[str, ...]] = []
        for row in _read_csv(path.name, text):
            found.append(_without_empty_tail(row.cells))
            if len(found) == rows:
                break
    except DataError:
        return []
    return found


def _whole_lines(content: bytes) -> bytes:
    """What was read of a file, up to its last line end if there is more to come; in UTF-16 an even number of bytes."""
    if len(content) < _PEEK_BYTES or b"\n" not in content:
        return content
    end = content.rindex(b"\n")
    return content[: end & ~1] if b"\0" in content else content[:end]


def check_id(where: str, column: str, value: str) -> str:
    """`value` itself, which is to name an image or a patient. Raises DataError for characters that nobody sees."""
    if value.isprintable():
        return value
    for character in value:
        if unicodedata.category(character) in _INVISIBLE:
            raise DataError(
                f"{where}: {column} {value!r} holds the invisible character U+{ord(character):04X}; "
                f"accepted are letters, digits, blanks and signs. Remove it."
            )
    return value


def require_unique(entries: Iterable[tuple[str, str, str]], what: str) -> None:
    """Raises DataError if two of the (where, id, grade) have one id; it names both, and grades that differ.

    Ids that only case or Unicode form tells apart are one: on some file systems their files are.
    """
    seen: dict[str, tuple[str, str, str]] = {}
    for where, value, grade in entries:
        key = same_name(value)
        if key not in seen:
            seen[key] = (where, value, grade)
            continue
        before, spelt, grade_before = seen[key]
        earlier = before.removeprefix(where.rpartition(" row ")[0]).strip()
        earlier += " already" if spelt == value else f" already, as {spelt!r}"
        conflict = "" if grade == grade_before else f", graded {grade_before or 'none'} there, {grade or 'none'} here"
        raise DataError(f"{where}: {what} {value!r} is in {earlier}{conflict}. Each image is listed once.")


def safe_csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A table as UTF-8 CSV with LF that a spreadsheet shows and never computes; None is an empty field.

    Text that would begin a formula gets an apostrophe, also behind a semicolon, tab or line end within a cell, where
    a spreadsheet set to another separator begins a cell of its own. Negative numbers stay numbers.
    """
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")  # so that cells with either of them are quoted
    writer.writerow([harmless(name) for name in header])
    writer.writerows([harmless(cell) for cell in row] for row in rows)
    text = "".join(line.removesuffix("\r\n") + "\n" for line in lines)
    return text.encode(errors="backslashreplace")  # a name that is no UTF-8 is shown all the same


class _Lines(list[str]):
    """What csv writes, a text for every row."""

    write = list.append


def harmless(cell: object) -> object:
    """The cell as no spreadsheet takes it for a formula; what is no text, or a number, is left as it is."""
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    harmless = _FORMULA.sub(r"\1'", cell)
    return f"'{harmless}" if harmless.startswith(("\t", "\r", "\n")) else harmless


# ---- rows of cells ---------------------------------------------------------------------------------------------------


def _parse(name: str, path: Path, content: bytes) -> tuple[Iterator[Row], list[str]]:
    if content.startswith(_OLE):
        return _read_xls(name, content)
    if content.startswith(_ZIP):
        return _read_xlsx(name, content)
    if path.suffix.lower() in (".xls", ".xlsx") and b"\0" in content:
        raise DataError(f"{name} is not an Excel workbook, whatever its ending. Save it again from Excel, or as CSV.")
    text, notes = _decode(name, content)
    lines = max(text.count("\n"), text.count("\r"))
    if lines > MAX_ROWS + 1:
        raise DataError(f"{name} has {lines} lines; accepted are up to {MAX_ROWS}. Split the table.")
    return _read_csv(name, text), notes


def _table(name: str, parsed: Iterator[Row], columns: Sequence[str] | None, notes: list[str]) -> Table:
    rows = list(parsed)
    if not rows:
        raise DataError(f"{name} is empty. Give a table with a header and one row per image.")
    header = tuple(columns) if columns else _without_empty_tail(rows.pop(0).cells)
    if not rows:
        raise DataError(f"{name} has a header but no rows. Give one row per image.")
    twice = [column for column, count in Counter(map(same_name, header)).items() if count > 1 and column]
    if twice:
        raise DataError(f"{name} has two columns {twice[0]!r}. Rename or remove one.")
    width = len(header)
    return Table(name, header, tuple(_fitted(name, row, header, width) for row in rows), tuple(notes))


def _fitted(name: str, row: Row, header: tuple[str, ...], width: int) -> Row:
    """The row with as many cells as the header: empty ones beyond it are dropped."""
    for index, cell in enumerate(row.cells):
        if len(cell) > MAX_FIELD:
            column = header[index] if index < width else f"number {index + 1}"
            raise DataError(
                f"{name} row {row.line}: column {column!r} has {len(cell)} characters, {cell[:20]!r}...; "
                f"accepted are up to {MAX_FIELD}. Shorten it, or look for a quote that is never closed."
            )
    if len(row.cells) < width or any(row.cells[width:]):
        raise DataError(
            f"{name} row {row.line} has {len(row.cells)} fields, the header {width}. "
            f"Quote fields that hold the separator, and give every row all columns."
        )
    return row if len(row.cells) == width else Row(row.line, row.cells[:width])


def _without_empty_tail(cells: tuple[str, ...]) -> tuple[str, ...]:
    width = len(cells)
    while width > 1 and not cells[width - 1]:
        width -= 1
    return cells[:width]


# ---- CSV -------------------------------------------------------------------------------------------------------------


def _decode(name: str, content: bytes) -> tuple[str, list[str]]:
    """The text of a CSV, and notes on what had to be assumed."""
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise DataError(f"{name} is UTF-32; accepted are UTF-8, UTF-16 and Windows-1252. Save it as CSV in UTF-8.")
    notes: list[str] = []
    encoding = "utf-8-sig"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in content[:_PEEK_BYTES] and (guess := _utf16_without_mark(content[:_PEEK_BYTES])):
        encoding = guess
        notes.append(f"{name} has no byte order mark; every other byte is NUL, so it was read as {guess.upper()}.")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise DataError(f"{name} is damaged UTF-16 at byte {error.start}. Save it as CSV in UTF-8.") from None
        text = _decode_western(content)
        notes.append(f"{name} is not UTF-8 (byte {error.start}), so it was read as Windows-1252: look at its accents.")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name} row {line} holds a NUL byte; a table is text. Save it as CSV in UTF-8.")
    return text, notes


def _utf16_without_mark(content: bytes) -> str | None:
    """utf-16-le or utf-16-be if NULs are in every other byte as in Latin text, and nowhere else."""
    even, odd = content[0::2].count(0), content[1::2].count(0)
    enough = _UTF16_SHARE * len(content) / 2
    if even == 0 and odd >= enough:
        return "utf-16-le"
    if odd == 0 and even >= enough:
        return "utf-16-be"
    return None


def _decode_western(content: bytes) -> str:
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:  # five bytes mean nothing there
        return content.decode("latin-1")


def _read_csv(name: str, text: str) -> Iterator[Row]:
    """Every row that is not blank. Comma, semicolon or tab, whichever is most in the first line, outside of quotes."""
    first, skipped = _first_line(text), 0
    declared = re.fullmatch(r"sep=([,;\t])", first.strip(" \r\n"))  # a first line that Excel writes and hides
    if declared:
        text, skipped = text[len(first) :], 1
        first = declared[1]
    bare = re.sub(r'"[^"]*"', "", first)
    delimiter = max(",;\t", key=bare.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = 0
    try:
        for cells in reader:
            start, line = line + 1, reader.line_num
            trimmed = tuple(cell.strip() for cell in cells)
            if any(trimmed):
                yield Row(start + skipped, trimmed)
    except csv.Error as error:
        raise DataError(f"{name} row {line + 1 + skipped}: not CSV ({error}). Correct the row.") from None


def _first_line(text: str) -> str:
    return io.StringIO(text, newline="").readline()


# ---- Excel -----------------------------------------------------------------------------------------------------------


def _read_xls(name: str, content: bytes) -> tuple[Iterator[Row], list[str]]:
    import xlrd  # type: ignore[import-untyped]

    try:
        book = xlrd.open_workbook(file_contents=content, logfile=io.StringIO())
        sheets = [sheet for sheet in book.sheets() if sheet.nrows]
        if not sheets:
            return iter(()), []
        sheet = sheets[0]
        rows = [(number, sheet.row(number - 1)) for number in range(1, sheet.nrows + 1)]
    except Exception as error:  # xlrd meets damaged files with exceptions of every kind
        raise _not_excel(name, error) from None

    def value(line: int, cell: xlrd.sheet.Cell) -> object:
        if cell.ctype == xlrd.XL_CELL_ERROR:
            raise DataError(f"{name} row {line} holds the Excel error {cell.value}. Correct the cell.")
        if cell.ctype == xlrd.XL_CELL_DATE:
            return xlrd.xldate_as_datetime(cell.value, book.datemode)
        return bool(cell.value) if cell.ctype == xlrd.XL_CELL_BOOLEAN else cell.value

    parsed = (Row(line, tuple(_excel_text(value(line, cell)) for cell in cells)) for line, cells in rows)
    return (row for row in parsed if any(row.cells)), _sheet_note(name, [found.name for found in sheets])


def _read_xlsx(name: str, content: bytes) -> tuple[Iterator[Row], list[str]]:
    import openpyxl  # type: ignore[import-untyped]

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_UNPACKED:
            raise DataError(
                f"{name} unpacks to {unpacked >> 20} MiB; accepted are {MAX_UNPACKED >> 20}. Save it as CSV."
            )
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True)
        sheets = book.worksheets
        rows: list[Row] = []
        for line, cells in enumerate(sheets[0].iter_rows(), start=1):
            row = Row(line, tuple(_xlsx_text(name, line, cell) for cell in cells))
            if any(row.cells):
                rows.append(row)
            if len(rows) > MAX_ROWS:
                raise DataError(f"{name} has more than {MAX_ROWS} rows. Split the table.")
        book.close()
    except DataError:
        raise
    except Exception as error:
        raise _not_excel(name, error) from None
    width = max((len(row.cells) for row in rows), default=0)
    filled = (Row(row.line, row.cells + ("",) * (width - len(row.cells))) for row in rows)
    return filled, _sheet_note(name, [sheet.title for sheet in sheets])


def _xlsx_text(name: str, line: int, cell: object) -> str:
    kind = getattr(cell, "data_type", "n")
    value = getattr(cell, "value", None)
    if kind == "f":
        raise DataError(f"{name} row {line} holds the formula {str(value)[:40]!r}. Replace formulas by their values.")
    if kind == "e":
        raise DataError(f"{name} row {line} holds the Excel error {value}. Correct the cell.")
    return _excel_text(value)


def _excel_text(value: object) -> str:
    """A cell as it reads: Excel knows no whole numbers, so 3.0 is 3."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    return str(value).strip()


def _sheet_note(name: str, sheets: list[str]) -> list[str]:
    return [f"{name} has {len(sheets)} sheets; the first, {sheets[0]!r}, was read."] if len(sheets) > 1 else []


def _not_excel(name: str, error: Exception) -> DataError:
    said = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{name} cannot be read as an Excel workbook ({said[:120]}). Save it again, or as CSV in UTF-8.")
