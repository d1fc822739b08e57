"""DeepDRiD, regular photographs: a grade stands in the column of the left or of the right eye, the other is empty.

A few names contradict their column (`56_r3` under left): the grade stays, the eye is unknown, and a note names them.
Grades of the evaluation part are in a workbook. Ultra-widefield pictures are of another kind and stay out.
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
    few,
    folders,
    stem,
)
from dr_platform.data.listing import Eye, Listed
from dr_platform.errors import DataError

LOOKS_FOR = "a CSV with left_eye_DR_Level and right_eye_DR_Level, or Challenge1_labels.xlsx"
LICENSE = UNKNOWN_LICENSE

_NAME = re.compile(r"(\d+)_([lr])\d+", re.IGNORECASE)
_EYES: dict[str, Eye] = {"l": "left", "r": "right"}
_COLUMNS = ("left_eye_DR_Level", "right_eye_DR_Level")
_EVALUATION = re.compile(r"challenge1_labels", re.IGNORECASE)
_OTHER_KIND = "ultra-widefield"


def recognise(delivery: Delivery) -> str | None:
    """Which tables are DeepDRiD's, in words; None if none is."""
    said = [f"{table} has columns of grades for left and right eyes" for table in _graded(delivery)]
    said += [f"{table} is the table of the evaluation part" for table in _evaluation(delivery)]
    return ", ".join(said) or None


def read(delivery: Delivery, options: Options) -> Reading:
    """The images of training, validation and evaluation, as far as they were delivered."""
    reading = Reading([])
    contradicting: list[str] = []
    for path in _graded(delivery):
        reading.images.extend(_by_eye(delivery, path, reading.notes, contradicting))
    for path in _evaluation(delivery):
        reading.images.extend(_in_one_column(delivery, path, reading.notes))
    if contradicting:
        reading.notes.append(
            f"{len(contradicting)} names contradict the column their grade is in, so the eye is unknown: "
            f"{few(contradicting)}"
        )
    reading.aside.update(image for image in delivery.images if not _regular(image))
    if reading.aside:
        reading.notes.append(f"{len(reading.aside)} ultra-widefield pictures are of another kind and stay out.")
    return reading


def _regular(path: str) -> bool:
    return not any(folder.casefold().startswith(_OTHER_KIND) for folder in folders(path))


def _graded(delivery: Delivery) -> list[str]:
    needed = {"patient_id", "image_id", *(column.casefold() for column in _COLUMNS)}
    return [table for table, columns in delivery.headers().items() if needed <= columns and _regular(table)]


def _evaluation(delivery: Delivery) -> list[str]:
    """Tables of the evaluation part; of two forms in one folder the owner's, which is the workbook."""
    found = [table for table in delivery.tables if _EVALUATION.match(PurePosixPath(table).name) and _regular(table)]
    books = {folder for table in found if table.lower().endswith(".xlsx") for folder in [PurePosixPath(table).parent]}
    return [table for table in found if table.lower().endswith(".xlsx") or PurePosixPath(table).parent not in books]


def _by_eye(delivery: Delivery, path: str, notes: list[str], contradicting: list[str]) -> list[Listed]:
    table = delivery.read(path)
    notes.extend(table.notes)
    images = []
    for line, (patient, name, left, right) in table.pick("patient_id", "image_id", *_COLUMNS):
        where = f"{path} row {line}"
        if left and right:
            raise DataError(
                f"{where}: {name} is graded {left} as a left and {right} as a right eye. Empty one of them."
            )
        named, graded = _eye_named(name), "left" if left else "right" if right else None
        if named and graded and named != graded:
            contradicting.append(name)
        eye = named if graded in (named, None) else None
        images.append(
            _listed(delivery, path, where, name, _COLUMNS[0] if left else _COLUMNS[1], left or right, patient, eye)
        )
    return images


def _in_one_column(delivery: Delivery, path: str, notes: list[str]) -> list[Listed]:
    table = delivery.read(path)
    notes.extend(table.notes)
    column = "DR_Levels" if table.has("DR_Levels") else "DR_Level"
    images = []
    for line, (name, given) in table.pick("image_id", column):
        match = _NAME.fullmatch(stem(name))
        patient = match[1] if match else ""
        images.append(_listed(delivery, path, f"{path} row {line}", name, column, given, patient, _eye_named(name)))
    return images


def _eye_named(name: str) -> Eye | None:
    match = _NAME.fullmatch(stem(name))
    return _EYES[match[2].lower()] if match else None


def _listed(
    delivery: Delivery, path: str, where: str, name: str, column: str, given: str, patient: str, eye: Eye | None
) -> Listed:
    """The picture is looked for by its name: `image_path` has backslashes and leaves out a folder that is there."""
    home = PurePosixPath(path).parent
    file = delivery.find(name, where, near=path, keep=_regular)
    return Listed(
        where=where,
        image_id=stem(name),
        file=file or (home / "Images" / patient / f"{stem(name)}.jpg").as_posix(),
        grade=accepted(where, column, given, ICDR),
        grade_given=given,
        scale="icdr" if given else "none",
        patient_id=patient or None,
        eye=eye,
        source=f"DeepDRiD, {home.name or PurePosixPath(path).stem}",
        license=LICENSE,
    )
