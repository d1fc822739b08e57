"""SUSTech-SYSU: `drLabels.csv` with name, eye (0 left, 1 right) and grade, in which 5 says that there are laser scars.

A 5 is no ICDR grade. `c5_DR_reclassified.csv` grades these eyes anew; where it is silent the image has no grade.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from dr_platform.data.layouts.delivery import (
    ICDR,
    UNKNOWN_LICENSE,
    Delivery,
    Options,
    Reading,
    accepted,
    few,
    stem,
    whole,
)
from dr_platform.data.listing import Eye, Listed
from dr_platform.data.tables import Table, require_unique, same_name
from dr_platform.errors import DataError

LOOKS_FOR = "a table called drLabels.csv"
LICENSE = UNKNOWN_LICENSE

_LABELS, _RECLASSIFIED = "drlabels.csv", "c5_dr_reclassified.csv"
_EYES: dict[str, Eye] = {"0": "left", "1": "right"}
_LASER = "5"
_GRADES = {**ICDR, _LASER: None}
_ANEW = {text: grade for text, grade in ICDR.items() if text}


def recognise(delivery: Delivery) -> str | None:
    """Which table is SUSTech-SYSU's, in words; None if none is."""
    found = _named(delivery, _LABELS)
    return f"{found[0]} is what SUSTech-SYSU calls its table" if found else None


def read(delivery: Delivery, options: Options) -> Reading:
    """The images in the order of the table."""
    reading = Reading([])
    for path in _named(delivery, _LABELS):
        table = delivery.read(path)
        reading.notes.extend(table.notes)
        anew = _reclassified(delivery, reading.notes)
        grade_column = _grade_column(table, 2)
        for line, (name, eye, given) in table.pick(table.header[0], table.header[1], grade_column):
            where = f"{path} row {line}"
            reading.images.append(_listed(delivery, where, name, eye, given, grade_column, anew))
        if anew:
            raise DataError(f"{next(iter(anew.values()))[0]}: no image of grade 5 in {path} is so called.")
    lasered = [image for image in reading.images if whole(image.grade_given) == _LASER]
    without = [image.image_id for image in lasered if image.grade is None]
    if lasered:
        reading.notes.append(
            f"{len(lasered)} images have grade 5, laser scars, which is no ICDR grade; "
            f"{len(lasered) - len(without)} of them were graded anew in {_RECLASSIFIED}."
        )
    if without:
        reading.notes.append(f"{len(without)} of grade 5 stay without an ICDR grade: {few(without)}")
    return reading


def _named(delivery: Delivery, name: str) -> list[str]:
    return [table for table in delivery.tables if PurePosixPath(table).name.casefold() == name]


def _grade_column(table: Table, position: int) -> str:
    """The column of the ICDR grade by its name, `DR_grade(International_...)`, else by its position."""
    named = [column for column in table.header if "international" in column.casefold()]
    if len(table.header) <= position:
        raise DataError(f"{table.name} has {len(table.header)} columns; needed are name, eye and ICDR grade.")
    return named[0] if named else table.header[position]


def _reclassified(delivery: Delivery, notes: list[str]) -> dict[str, tuple[str, int]]:
    """Name -> (where, ICDR grade) of the images that were graded anew."""
    found = []
    for path in _named(delivery, _RECLASSIFIED):
        table = delivery.read(path)
        notes.extend(table.notes)
        column = _grade_column(table, 1)
        for line, (name, given) in table.pick(table.header[0], column):
            where = f"{path} row {line}"
            grade = accepted(where, column, given, _ANEW)
            assert grade is not None
            found.append((where, stem(name), grade))
    require_unique(((where, name, str(grade)) for where, name, grade in found), "image")
    return {same_name(name): (where, grade) for where, name, grade in found}


def _listed(
    delivery: Delivery,
    where: str,
    name: str,
    eye: str,
    given: str,
    grade_column: str,
    anew: dict[str, tuple[str, int]],
) -> Listed:
    """An image of the table; what `anew` says of it is taken out of there."""
    grade = accepted(where, grade_column, given, _GRADES)
    side = accepted(where, "the eye", eye, _EYES)
    if whole(given) == _LASER and (again := anew.pop(same_name(stem(name)), None)):
        grade = again[1]
        where = f"{where}, {again[0]}"
    return Listed(
        where=where,
        image_id=stem(name),
        file=delivery.find(name, where, near="originalImages/x") or f"originalImages/{name}",
        grade=grade,
        grade_given=given,
        scale="icdr" if given else "none",
        patient_id=None,
        eye=side,
        source="SUSTech-SYSU",
        license=LICENSE,
    )
