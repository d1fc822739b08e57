"""Anything else: a folder and a table with one row per image, in columns that may have other names (`ColumnMap`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path, PurePosixPath

from dr_platform.data.layouts.delivery import ICDR, IMAGE_ENDINGS, Delivery, Options, Reading, whole
from dr_platform.data.layouts.mapping import ColumnMap
from dr_platform.data.listing import Eye, Listed
from dr_platform.data.tables import Table, require_unique, same_name
from dr_platform.errors import DataError

LOOKS_FOR = "one table in the folder itself with the columns grade, and image_id or file"
LICENSE = ""  # what the table says, row by row

_EYES: dict[str, Eye | None] = {
    "": None, "left": "left", "l": "left", "os": "left", "right": "right", "r": "right", "od": "right",
}  # fmt: skip


def recognise(delivery: Delivery) -> str | None:
    """Which table has the standard columns, in words; None unless exactly one has."""
    found = _standard(delivery)
    return f"{found[0]} has the columns of a table of images" if len(found) == 1 else None


def read(delivery: Delivery, options: Options) -> Reading:
    """The rows of the table, checked. An image whose file is not named is looked for by its image_id.

    Raises DataError naming row, column, value and what is accepted.
    """
    columns = options.columns or ColumnMap()
    found = _standard(delivery) if options.columns is None else []
    found = found or [table for table in delivery.tables if "/" not in table or Path(table).is_absolute()]
    found = found or list(delivery.tables)
    if len(found) > 1:
        raise DataError(f"{delivery.directory} has several tables: {', '.join(found)}. Say which one lists the images.")
    if not found:
        return Reading([])
    table = delivery.read(found[0])
    present = _present(table, columns)
    images = [_listed(delivery, table, line, values, present) for line, values in _rows(table, present)]
    require_unique(((image.where, image.image_id, image.grade_given) for image in images), "image_id")
    named = zip(images, table.rows, strict=True)
    require_unique(
        ((image.where, image.file, "") for image, row in named if "file" in present and row.cells[present["file"]]),
        "file",
    )
    return Reading(images, list(table.notes))


def _standard(delivery: Delivery) -> list[str]:
    return [
        table
        for table, columns in delivery.headers().items()
        if "grade" in columns and {"image_id", "file"} & columns and ("/" not in table or Path(table).is_absolute())
    ]


def _present(table: Table, columns: ColumnMap) -> dict[str, int]:
    """Field of ColumnMap -> column, for those there are. There must be grade, image_id or file, and any renamed one."""
    present, missing = {}, {}
    for field in fields(ColumnMap):
        column = getattr(columns, field.name)
        if table.has(column):
            present[field.name] = table.index(column)
        elif column != field.default or field.name == "grade":
            missing[field.name] = repr(column)
    if not {"image_id", "file"} & present.keys() and not {"image_id", "file"} & missing.keys():
        missing |= {"image_id or file": f"{columns.image_id!r} or {columns.file!r}"}
    if missing:
        said = ", and ".join(f"no column {column} for {field}" for field, column in missing.items())
        options = ", ".join(f"--{field.replace('_', '-')} COLUMN" for name in missing for field in name.split(" or "))
        raise DataError(f"{table.name} has {said}. It has: {table.said()}. Say which of them it is: {options}.")
    return present


def _rows(table: Table, present: dict[str, int]) -> Iterator[tuple[int, dict[str, str]]]:
    for row in table.rows:
        yield row.line, {name: row.cells[index] for name, index in present.items()}


def _listed(delivery: Delivery, table: Table, line: int, values: dict[str, str], present: dict[str, int]) -> Listed:
    where = f"{table.name} row {line}"
    file = values.get("file", "").replace("\\", "/")
    if file and not PurePosixPath(file).name:
        raise DataError(f"{where}: file is {file!r}, which names no file. Give it relative to the folder.")
    image_id = values.get("image_id") or (PurePosixPath(file).with_suffix("").as_posix() if file else "")
    if not image_id:
        raise DataError(f"{where}: no image_id and no file. Give at least one of them.")
    given, eye = values["grade"], values.get("eye", "").lower()
    if whole(given) not in ICDR:
        raise DataError(
            f"{where}: {table.header[present['grade']]} is {given!r}; "
            f"accepted are 0, 1, 2, 3, 4 (ICDR), or empty where unknown."
        )
    if eye not in _EYES:
        raise DataError(
            f"{where}: {table.header[present['eye']]} is {eye!r}; "
            f"accepted are left, right, L, R, OS, OD, or empty where unknown."
        )
    return Listed(
        where=where,
        image_id=image_id,
        file=_as_delivered(delivery, file) if file else _file_of(delivery, image_id),
        grade=ICDR[whole(given)],
        grade_given=given,
        scale="icdr" if given else "none",
        patient_id=values.get("patient_id") or None,
        eye=_EYES[eye],
        source=values.get("source", ""),
        license=values.get("license", ""),
    )


def _file_of(delivery: Delivery, image_id: str) -> str:
    """The picture at this path, or at this path with an ending; the id itself where none or several are."""
    name = image_id.replace("\\", "/")
    if PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS:
        return _as_delivered(delivery, name)
    found = delivery.by_path.get(same_name(name), [])
    return found[0] if len(found) == 1 else name


def _as_delivered(delivery: Delivery, name: str) -> str:
    """The picture of that path; if there is none, the only one whose path differs from it in case alone."""
    stem = PurePosixPath(name).with_suffix("").as_posix()
    alike = [found for found in delivery.by_path.get(same_name(stem), []) if same_name(found) == same_name(name)]
    return alike[0] if len(alike) == 1 and name not in alike else name
