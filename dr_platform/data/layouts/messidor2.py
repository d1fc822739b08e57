"""Messidor-2: a table of pairs, `left;right`, without grades, and a table of adjudicated ICDR grades from elsewhere.

The pairs tell who belongs together: an examination of two eyes is the patient, named after its left picture. The grades
come with either of two headers. Tables and folders write `.JPG` and `.jpg` as they like. 1,058 of the pictures are
Messidor's own (`20051020_43808_0100_PP.png`): a note counts them, for whoever uses both.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dr_platform.data.layouts.delivery import ICDR, UNKNOWN_LICENSE, Delivery, Options, Reading, accepted, stem
from dr_platform.data.listing import Eye, Listed
from dr_platform.data.tables import require_unique, same_name
from dr_platform.errors import DataError

LOOKS_FOR = "a table of pairs with the columns left and right, or a table with adjudicated_gradable"
LICENSE = UNKNOWN_LICENSE

_MESSIDOR = re.compile(r"20\d{6}_\d+_\d+_PP", re.IGNORECASE)
_GRADABLE = {"1": True, "0": False, "": True}
_EYES: tuple[Eye, Eye] = ("left", "right")


@dataclass(frozen=True)
class _Grade:
    where: str
    name: str
    grade: int | None
    given: str


def recognise(delivery: Delivery) -> str | None:
    """Which tables are Messidor-2's, in words; None if none is."""
    pairs, grades = _pairs(delivery), _grades(delivery)
    said = [f"{table} has the columns left and right" for table in pairs]
    said += [f"{table} has adjudicated grades" for table in grades]
    return ", ".join(said) or None


def read(delivery: Delivery, options: Options) -> Reading:
    """The pictures in the order of the pairs, then those that only the table of grades names."""
    reading = Reading([])
    pairs = _only(_pairs(delivery), "pairs")
    grades = _read_grades(delivery, reading.notes)
    named: set[str] = set()
    if pairs:
        table = delivery.read(pairs)
        reading.notes.extend(table.notes)
        for line, names in table.pick("left", "right"):
            for name, eye in zip(names, _EYES, strict=True):
                grade = grades.get(same_name(stem(name)))
                where = f"{pairs} row {line}"
                reading.images.append(_listed(delivery, where, name, stem(names[0]), eye, grade))
                named.add(same_name(stem(name)))
    else:
        reading.notes.append("There is no table of pairs, so patients and eyes are unknown.")
    rest = [grade for key, grade in grades.items() if key not in named]
    reading.images.extend(_listed(delivery, grade.where, grade.name, None, None, grade) for grade in rest)
    if pairs and rest:
        reading.notes.append(f"{len(rest)} graded pictures are in no pair, so their patients and eyes are unknown.")
    if not grades:
        reading.notes.append("There is no table of grades, so no picture has one; the owner's pairs come without.")
    if shared := sum(bool(_MESSIDOR.fullmatch(image.image_id)) for image in reading.images):
        reading.notes.append(f"{shared} pictures bear names of Messidor's: they are the same pictures in both.")
    return reading


def _pairs(delivery: Delivery) -> list[str]:
    return [table for table, columns in delivery.headers().items() if columns == {"left", "right"}]


def _grades(delivery: Delivery) -> list[str]:
    return [
        table
        for table, columns in delivery.headers().items()
        if {"image_id", "adjudicated_dr_grade"} <= columns
        or {"id_code", "diagnosis", "adjudicated_gradable"} <= columns
    ]


def _only(found: list[str], what: str) -> str | None:
    if len(found) > 1:
        raise DataError(f"{' and '.join(found)} are both tables of {what}. Take one of them out of the folder.")
    return found[0] if found else None


def _read_grades(delivery: Delivery, notes: list[str]) -> dict[str, _Grade]:
    """By the name of the picture. One that is not gradable has no grade."""
    path = _only(_grades(delivery), "grades")
    if path is None:
        return {}
    table = delivery.read(path)
    notes.extend(table.notes)
    google = table.has("adjudicated_dr_grade")
    name_column, grade_column = ("image_id", "adjudicated_dr_grade") if google else ("id_code", "diagnosis")
    gradable_column = "adjudicated_gradable" if table.has("adjudicated_gradable") else grade_column
    found = []
    for line, (name, given, gradable) in table.pick(name_column, grade_column, gradable_column):
        where = f"{path} row {line}"
        grade = accepted(where, grade_column, given, ICDR)
        usable = gradable_column == grade_column or accepted(where, gradable_column, gradable, _GRADABLE)
        found.append(_Grade(where, name, grade if usable else None, given))
    require_unique(((grade.where, stem(grade.name), grade.given) for grade in found), "image")
    if without := sum(grade.grade is None for grade in found):
        notes.append(f"{without} pictures are listed in {path} without a grade, or as not gradable.")
    return {same_name(stem(grade.name)): grade for grade in found}


def _listed(
    delivery: Delivery, where: str, name: str, patient: str | None, eye: Eye | None, grade: _Grade | None
) -> Listed:
    if grade is not None and grade.where != where:
        where = f"{where}, {grade.where}"
    file = delivery.find(name, where)
    return Listed(
        where=where,
        image_id=stem(name),
        file=file or f"IMAGES/{name}",
        grade=grade.grade if grade else None,
        grade_given=grade.given if grade else "",
        scale="icdr" if grade and grade.given else "none",
        patient_id=patient,
        eye=eye,
        source="Messidor-2",
        license=LICENSE,
    )
