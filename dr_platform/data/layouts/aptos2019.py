"""APTOS 2019: `id_code,diagnosis`, twelve hexadecimal digits for a name; or a copy in folders named for the classes.

Of the copies, those under `gaussian_filtered_images/` are altered in colour and are no photographs as taken. They are
listed only where no other picture of that name was delivered, and a note says so.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from dr_platform.data.layouts.delivery import (
    ICDR,
    UNKNOWN_LICENSE,
    Delivery,
    Options,
    Reading,
    accepted,
    folders,
    in_folder,
    is_form,
    stem,
)
from dr_platform.data.listing import Listed
from dr_platform.data.tables import check_id, same_name
from dr_platform.errors import DataError

LOOKS_FOR = "a CSV with id_code and diagnosis, or class folders No_DR ... Proliferate_DR, and names of 12 hex digits"
LICENSE = UNKNOWN_LICENSE

_CLASSES = {"no_dr": 0, "mild": 1, "moderate": 2, "severe": 3, "proliferate_dr": 4}
_NAME = re.compile(r"[0-9a-f]{12}")
_ALTERED = "gaussian_filtered_images"


def recognise(delivery: Delivery) -> str | None:
    """Which table, or which folder, is one of APTOS 2019, in words; None if none is."""
    graded = [table for table, columns in _tables(delivery).items() if "diagnosis" in columns]
    if graded:
        return f"{graded[0]} has the columns id_code and diagnosis and names of 12 hexadecimal digits"
    for image in delivery.images:
        if _class(image):
            return f"{image} is named by 12 hexadecimal digits in a folder named for a class"
    return None


def read(delivery: Delivery, options: Options) -> Reading:
    """The images of the tables, then those that only class folders tell of."""
    reading = Reading([])
    for path, columns in _tables(delivery).items():
        reading.images.extend(_from_table(delivery, path, "diagnosis" in columns, reading.notes))
    listed = {image.image_id for image in reading.images}
    by_class = {image: folder for image in delivery.images if (folder := _class(image)) and stem(image) not in listed}
    as_taken = {stem(image) for image in by_class if not in_folder(image, _ALTERED)}
    for image, folder in by_class.items():
        if not in_folder(image, _ALTERED) or stem(image) not in as_taken:
            reading.images.append(
                _listed(image, stem(image), image, folder, _CLASSES[folder.casefold()], "class folders")
            )
    _note_altered(delivery, reading)
    return reading


def _tables(delivery: Delivery) -> dict[str, set[str]]:
    """Each table of this layout and its columns: graded, or of the test part, which has none but the name."""
    found = {}
    for table, columns in delivery.headers().items():
        rows = delivery.first_rows[table]
        if columns in ({"id_code", "diagnosis"}, {"id_code"}) and not is_form(table) and len(rows) > 1:
            position = [same_name(cell) for cell in rows[0]].index("id_code")
            if _NAME.fullmatch(stem(rows[1][position])):
                found[table] = columns
    return found


def _class(image: str) -> str | None:
    """The class folder of a picture, as it is written; None if it is in none, or is not named as APTOS names."""
    inside = folders(image)
    return inside[-1] if inside and inside[-1].casefold() in _CLASSES and _NAME.fullmatch(stem(image)) else None


def _from_table(delivery: Delivery, path: str, graded: bool, notes: list[str]) -> list[Listed]:
    table = delivery.read(path)
    notes.extend(table.notes)
    part = PurePosixPath(path).stem
    images = []
    for line, cells in table.pick("id_code", "diagnosis") if graded else table.pick("id_code"):
        name, given = stem(cells[0]), cells[1] if graded else ""
        where = f"{path} row {line}"
        check_id(where, "id_code", name)
        grade = accepted(where, "diagnosis", given, ICDR)
        file = delivery.find(name, where, near=path, prefer=lambda image: not in_folder(image, _ALTERED))
        folder = _class(file) if file else None
        if folder and given and _CLASSES[folder.casefold()] != grade:
            raise DataError(
                f"{where}: diagnosis of {name} is {given}, but {file} lies in the folder of class "
                f"{_CLASSES[folder.casefold()]}. Correct one of them."
            )
        images.append(_listed(where, name, file or f"{part}_images/{name}.png", given, grade, part))
    return images


def _listed(where: str, name: str, file: str, given: str, grade: int | None, part: str) -> Listed:
    altered = ", altered in colour" if in_folder(file, _ALTERED) else ""
    return Listed(
        where=where,
        image_id=name,
        file=file,
        grade=grade,
        grade_given=given,
        scale="icdr" if given else "none",
        patient_id=None,
        eye=None,
        source=f"APTOS 2019, {part}{altered}",
        license=LICENSE,
    )


def _note_altered(delivery: Delivery, reading: Reading) -> None:
    used = {image.file for image in reading.images}
    altered = {image for image in delivery.images if in_folder(image, _ALTERED)}
    if listed := altered & used:
        reading.notes.append(
            f"{len(listed)} pictures under {_ALTERED} are altered in colour, not photographs as taken, and none else "
            f"of their names were delivered: they are listed, and their source says so."
        )
    if spare := altered - used:
        reading.notes.append(f"{len(spare)} pictures under {_ALTERED} are altered in colour and stay out.")
        reading.aside.update(spare)
    for form in filter(is_form, delivery.tables):
        reading.notes.append(f"{form} holds no grades, only the form of an answer, and was not read.")
        reading.aside.add(form)
