"""Rahim's collection: no table, but folders such as `2 - Mild DR without maculopathy/Patient007_L.jpg`.

Ten classes join a grade with maculopathy or its absence; class 10, "ADED", has no ICDR grade. Most names tell patient
and eye; a note lists those that do not. The eyes of a patient may differ in grade, so they may lie in two folders.
"""

from __future__ import annotations

import re

from dr_platform.data.layouts.delivery import UNKNOWN_LICENSE, Delivery, Options, Reading, few, folders, stem
from dr_platform.data.listing import Eye, Listed
from dr_platform.errors import DataError

LOOKS_FOR = "class folders such as '2 - Mild DR without maculopathy', with pictures such as Patient007_L.jpg"
LICENSE = UNKNOWN_LICENSE

_FOLDER = re.compile(r"\d+ ?- ?(.+)")
_CLASS = re.compile(r"(no|mild|moderate|severe) dr\b.*|(pdr|proliferative dr|aded)\b.*", re.IGNORECASE)
_GRADES = {"no": 0, "mild": 1, "moderate": 2, "severe": 3, "pdr": 4, "proliferative dr": 4, "aded": None}
_NAME = re.compile(r"patient[ _-]*0*(\d+)[ _-]*(left|right|l|r)\b.*", re.IGNORECASE)
_EYES: dict[str, Eye] = {"l": "left", "r": "right"}


def recognise(delivery: Delivery) -> str | None:
    """Which folder is a class of Rahim's, in words; None if none is."""
    for image in delivery.images:
        folder = _folder(image)
        if folder and _class(folder):
            return f"the folder {folder!r} is a class of Rahim's and holds {image.rsplit('/', 1)[-1]}"
    return None


def read(delivery: Delivery, options: Options) -> Reading:
    """The pictures in numbered class folders, by path. Raises DataError for a numbered folder that is no class."""
    reading = Reading([])
    for image in delivery.images:
        folder = _folder(image)
        if folder is None:
            continue
        match = _class(folder)
        if match is None:
            raise DataError(
                f"{image}: the folder {folder!r} is no class; accepted are No DR, Mild DR, Moderate DR, "
                f"Severe DR, PDR, ADED behind a number."
            )
        grade = _GRADES[(match[1] or match[2]).lower()]
        named = _NAME.fullmatch(stem(image))
        reading.images.append(
            Listed(
                where=image,
                image_id=stem(image),
                file=image,
                grade=grade,
                grade_given=folder,
                scale="none" if grade is None else "icdr",
                patient_id=f"Patient{int(named[1]):03d}" if named else None,
                eye=_EYES[named[2][0].lower()] if named else None,
                source="Rahim",
                license=LICENSE,
            )
        )
    _note(reading)
    return reading


def _folder(image: str) -> str | None:
    """The numbered folder a picture lies in, if it does."""
    inside = folders(image)
    return inside[-1] if inside and _FOLDER.fullmatch(inside[-1]) else None


def _class(folder: str) -> re.Match[str] | None:
    words = _FOLDER.fullmatch(folder)
    return _CLASS.fullmatch(words[1]) if words else None


def _note(reading: Reading) -> None:
    by_patient: dict[str, set[int | None]] = {}
    for image in reading.images:
        if image.patient_id:
            by_patient.setdefault(image.patient_id, set()).add(image.grade)
    differing = sum(len(grades) > 1 for grades in by_patient.values())
    if differing:
        reading.notes.append(f"{differing} of {len(by_patient)} patients have pictures of different grades.")
    if unnamed := [image.image_id for image in reading.images if image.patient_id is None]:
        reading.notes.append(f"{len(unnamed)} names tell neither patient nor eye: {few(unnamed)}")
    if without := sum(image.grade is None for image in reading.images):
        reading.notes.append(f"{without} pictures are of a class without an ICDR grade.")
