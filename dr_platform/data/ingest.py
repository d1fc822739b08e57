"""From a folder of photographs and a CSV to a raw collection: a fault in the table stops it, one in an image does not.

A table is written by a person who can mend it, so its first mistake is an error that names row, column and value. Among
thousands of images some are broken for good: each is listed with its reason, and the rest goes on.

Only pixels are kept. Photographs carry names and dates of patients in EXIF, comments and colour profiles, and Pillow
hands some of these on when it saves a file again. So each image is decoded whole, turned upright, and encoded anew from
a bare array: as PNG where the source was lossless, else as JPEG of quality 95 without chroma subsampling.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dr_platform import files
from dr_platform.data import collections
from dr_platform.data.collections import VISIBILITIES, ImageRow, Progress, Rejected
from dr_platform.data.listing import Eye
from dr_platform.errors import DataError
from dr_platform.records import Collection, Visibility

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
JPEG_QUALITY = 95
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_FORMATS = ("JPEG", "PNG", "TIFF")
_GRADES = {text: grade for grade in range(5) for text in (str(grade), f"{grade}.0")} | {"": None}
_EYES: dict[str, Eye | None] = {
    "": None, "left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right",
}  # fmt: skip


@dataclass(frozen=True)
class ColumnMap:
    """Which column of the CSV holds what. `grade` must be there, and `image_id` or `file`; others may be absent."""

    image_id: str = "image_id"
    file: str = "file"
    grade: str = "grade"
    patient_id: str = "patient_id"
    eye: str = "eye"
    source: str = "source"
    license: str = "license"


@dataclass(frozen=True)
class IngestResult:
    """What became of a folder."""

    collection: Collection
    directory: Path
    rejected: tuple[Rejected, ...]
    without_grade: int
    without_patient: int


@dataclass(frozen=True)
class _Entry:
    """A row of the user's table, its values checked."""

    line: int
    image_id: str
    file: str | None  # None: to be found by image_id
    grade: int | None
    patient_id: str | None
    eye: Eye | None
    source: str
    license: str


class _UnusableImageError(Exception):
    """Why an image cannot be used, in a few words. Never leaves this module."""


def ingest(
    source_dir: Path,
    labels: Path,
    name: str,
    visibility: Visibility,
    raw_root: Path,
    columns: ColumnMap | None = None,
    *,
    strict: bool = False,
    replace: bool = False,
    progress: Progress = collections.silent,
) -> IngestResult:
    """Make the collection `name` under `raw_root` from the images that `labels` lists, relative to `source_dir`.

    strict: the first unusable image is an error. replace: take the place of a collection of that name and visibility.
    Raises DataError, with nothing written, for a mistake in the table, a name that is taken, or no usable image.
    """
    target = _free_target(raw_root, visibility, name, replace)
    if not source_dir.is_dir():
        raise DataError(f"{source_dir} is not a folder. Give the one that holds the images.")
    entries = read_table(labels, columns or ColumnMap())
    rows: list[ImageRow] = []
    rejected: list[Rejected] = []
    with files.directory_aside(target, failure=DataError) as aside:
        (aside / collections.IMAGES_DIRECTORY).mkdir()
        for done, entry in enumerate(entries, start=1):
            try:
                rows.append(_store(source_dir, entry, aside))
            except _UnusableImageError as error:
                if strict:
                    raise DataError(
                        f"{labels} row {entry.line}: {entry.file or entry.image_id} cannot be used: {error}. "
                        f"Mend or remove it, or leave out --strict to list it and go on."
                    ) from None
                rejected.append(Rejected(entry.file or "", entry.image_id, str(error)))
            progress(done, len(entries))
        if not rows:
            reason, count = Counter(image.reason for image in rejected).most_common(1)[0]
            raise DataError(
                f"None of the {len(entries)} images of {labels} can be used; {count} of them: {reason}. "
                f"Is {source_dir} the folder that the table's files are relative to?"
            )
        record = collections.finish_collection(aside, rows, rejected, name, visibility, "ingest")
    if rejected:
        report = target / collections.REPORT_FILE
        logger.warning("%d of %d images cannot be used; %s lists them.", len(rejected), len(entries), report)
    return IngestResult(
        collection=record,
        directory=target,
        rejected=tuple(rejected),
        without_grade=sum(row.grade is None for row in rows),
        without_patient=sum(row.patient_id is None for row in rows),
    )


def _free_target(raw_root: Path, visibility: Visibility, name: str, replace: bool) -> Path:
    for label in VISIBILITIES:
        taken = collections.collection_directory(raw_root, label, name)
        if label != visibility and taken.exists():
            raise DataError(
                f"There is a {label} collection {name} already ({taken}), and a name has one visibility. "
                f"Choose another name, or remove that one."
            )
    target = collections.collection_directory(raw_root, visibility, name)
    if target.exists() and not replace:
        raise DataError(f"There is a collection {name} already ({target}). Choose another name, or use --replace.")
    return target


# ---- the table -------------------------------------------------------------------------------------------------------


def read_table(labels: Path, columns: ColumnMap) -> list[_Entry]:
    """The rows of a CSV, checked. Comma, semicolon or tab; with or without byte order mark; any line ends.

    Raises DataError naming row (as a line of the file), column, value and what is accepted.
    """
    lines = _read_rows(labels)
    present = _present_columns(labels, lines[0][1], columns)
    entries = []
    first_line: dict[tuple[str, str], int] = {}
    for line, cells in lines[1:]:
        entry = _entry(labels, line, cells, lines[0][1], present)
        for column, value in (("image_id", entry.image_id), ("file", entry.file)):
            earlier = first_line.setdefault((column, value or f"row {line}"), line)
            if earlier != line:
                raise DataError(
                    f"{labels} row {line}: {column} {value!r} is in row {earlier} already. Each image is listed once."
                )
        entries.append(entry)
    if not entries:
        raise DataError(f"{labels} has a header but no rows. Give one row per image.")
    return entries


def _read_rows(labels: Path) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the header and of every row that is not blank."""
    try:
        text = labels.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{labels} cannot be read: {error.strerror}. Give the CSV that lists the images.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{labels} is not UTF-8 at byte {error.start}. Save it as CSV in UTF-8.") from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(f"{labels} row {reader.line_num}: not CSV ({error}). Correct the row.") from None
    if not rows:
        raise DataError(f"{labels} is empty. Give a CSV with a header and one row per image.")
    for line, cells in rows[1:]:
        if len(cells) != len(rows[0][1]):
            raise DataError(
                f"{labels} row {line} has {len(cells)} fields, the header {len(rows[0][1])}. "
                f"Quote fields that hold {delimiter!r}."
            )
    return rows


def _present_columns(labels: Path, header: list[str], columns: ColumnMap) -> dict[str, str]:
    """Field of ColumnMap -> column, for those there are. There must be grade, image_id or file, and any renamed one."""
    twice = [column for column, count in Counter(header).items() if count > 1 and column]
    if twice:
        raise DataError(f"{labels} has two columns {twice[0]!r}. Rename or remove one.")
    present = {}
    for field in fields(ColumnMap):
        column = getattr(columns, field.name)
        if column in header:
            present[field.name] = column
        elif column != field.default or field.name == "grade":
            raise DataError(
                f"{labels} has no column {column!r} for {field.name}. It has: {', '.join(header)}. "
                f"Say which of them it is."
            )
    if not {"image_id", "file"} & present.keys():
        raise DataError(
            f"{labels} has neither a column {columns.image_id!r} nor {columns.file!r}. It has: {', '.join(header)}. "
            f"Say which of them it is."
        )
    return present


def _entry(labels: Path, line: int, cells: list[str], header: list[str], present: dict[str, str]) -> _Entry:
    row = dict(zip(header, cells, strict=True))
    values = {field: row[column] for field, column in present.items()}
    file = values.get("file") or None
    if file and not PurePosixPath(file).name:
        raise DataError(f"{labels} row {line}: file is {file!r}, which names no file. Give it relative to the folder.")
    image_id = values.get("image_id") or (PurePosixPath(file).with_suffix("").as_posix() if file else "")
    if not image_id:
        raise DataError(f"{labels} row {line}: no image_id and no file. Give at least one of them.")
    grade = values["grade"]
    if grade not in _GRADES:
        raise DataError(
            f"{labels} row {line}: {present['grade']} is {grade!r}; "
            f"accepted are 0, 1, 2, 3, 4 (ICDR), or empty where unknown."
        )
    eye = values.get("eye", "").lower()
    if eye not in _EYES:
        raise DataError(
            f"{labels} row {line}: {present['eye']} is {eye!r}; "
            f"accepted are left, right, L, R, OS, OD, or empty where unknown."
        )
    return _Entry(
        line=line,
        image_id=image_id,
        file=file,
        grade=_GRADES[grade],
        patient_id=values.get("patient_id") or None,
        eye=_EYES[eye],
        source=values.get("source", ""),
        license=values.get("license", ""),
    )


# ---- the images ------------------------------------------------------------------------------------------------------


def _store(source_dir: Path, entry: _Entry, collection: Path) -> ImageRow:
    """Copy the pixels of an entry's image into a collection; returns its row."""
    pixels, lossless = decode(_locate(source_dir, entry))
    content = _encode(pixels, lossless)
    file = collections.image_file(entry.image_id, "png" if lossless else "jpg")
    (collection / file).write_bytes(content)
    return ImageRow(
        image_id=entry.image_id,
        file=file,
        grade=entry.grade,
        patient_id=entry.patient_id,
        eye=entry.eye,
        source=entry.source,
        license=entry.license,
        sha256=hashlib.sha256(content).hexdigest(),
        width=pixels.shape[1],
        height=pixels.shape[0],
    )


def _locate(source_dir: Path, entry: _Entry) -> Path:
    """The file of an entry, which must lie in the folder also after its symbolic links are followed."""
    path = _find(source_dir, entry)
    if not path.resolve().is_relative_to(source_dir.resolve()):
        raise _UnusableImageError("it is a link that leads out of the folder")
    return path


def _find(source_dir: Path, entry: _Entry) -> Path:
    """The file named, or the one called like its image_id with an ending of an image."""
    name = PurePosixPath((entry.file or entry.image_id).replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        raise _UnusableImageError("its path leads out of the folder")
    if entry.file or name.suffix.lower() in ENDINGS:
        if (source_dir / name).is_file():
            return source_dir / name
        raise _UnusableImageError("there is no such file")
    found = list(_with_an_ending(source_dir, name))
    if not found:
        raise _UnusableImageError(f"there is no file of that name ending in {', '.join(ENDINGS)}")
    if len(found) > 1:
        raise _UnusableImageError(f"several files have that name: {', '.join(path.name for path in found)}")
    return found[0]


def _with_an_ending(source_dir: Path, name: PurePosixPath) -> Iterator[Path]:
    for ending in ENDINGS:
        variants = (source_dir / f"{name}{spelling}" for spelling in (ending, ending.upper()))
        # A file system that ignores case finds one file under both spellings.
        yield from {path.stat().st_ino: path for path in variants if path.is_file()}.values()


def decode(path: Path) -> tuple[NDArray[np.uint8], bool]:
    """The upright pixels of an image file, [height, width, 3], and whether its format is lossless.

    Raises _UnusableImageError with the reason if the file is not one whole JPEG, PNG or TIFF picture of at most 64 Mpx.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow only warns of what is refused below
            with Image.open(path, formats=_FORMATS) as image:
                _check_header(image)
                image.verify()  # the checksums of a PNG, which decoding ignores; the file must then be opened again
            with Image.open(path, formats=_FORMATS) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image)), image.format != "JPEG"
    except _UnusableImageError:
        raise
    except Image.DecompressionBombError:
        raise _UnusableImageError(f"it has more than {MAX_PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        raise _UnusableImageError("it is not a JPEG, PNG or TIFF") from None
    except Exception as error:  # decoders meet damaged input with exceptions of every kind
        said = " ".join(str(error).split()) or type(error).__name__
        raise _UnusableImageError(f"it cannot be decoded ({said})") from None


def _check_header(image: Image.Image) -> None:
    """Refuse before decoding what would be too large, or more than one picture."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _UnusableImageError(f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} million")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise _UnusableImageError(f"it holds {frames} pictures instead of one")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """[H, W, 3] by a rule for each mode. One without a rule is refused: `convert` would guess, and it clips 16 bits."""
    if image.mode in ("RGB", "L", "CMYK", "YCbCr") or (image.mode == "P" and "transparency" not in image.info):
        return np.asarray(image.convert("RGB"))
    if image.mode in ("RGBA", "LA", "P"):  # transparent is what lies outside of the field: black
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB"))
    if image.mode in ("I;16", "I;16B", "I;16L"):
        grey = np.asarray(image).astype(np.float32) * np.float32(255 / 65535)
        return np.repeat(np.rint(grey).astype(np.uint8)[:, :, None], 3, axis=2)
    raise _UnusableImageError(f"its pixels are of mode {image.mode}, for which there is no rule")


def _encode(pixels: NDArray[np.uint8], lossless: bool) -> bytes:
    """A PNG or JPEG file of nothing but these pixels; the same bytes each time."""
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if lossless:
        image.save(stream, "PNG")
    else:
        image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()
