"""IDRiD, part B, "Disease Grading": training and testing pictures, whose 103 first names are the same in both folders.

So the id of an image is its part and its name, `train/IDRiD_001`, and a row is never matched with a picture of the
other part. The copy on Kaggle has both parts in one folder and marks testing pictures by their names: `IDRiD_001test`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

from dr_platform.data.layouts.delivery import ICDR, Delivery, Options, Reading, accepted, folders, stem
from dr_platform.data.listing import Listed
from dr_platform.errors import DataError

LOOKS_FOR = "a CSV of IDRiD_001 ... with the column Retinopathy grade, or id_code and diagnosis (the Kaggle copy)"
LICENSE = "CC BY 4.0"

Part = Literal["train", "test"]
_NAME = re.compile(r"(IDRiD_\d+)(test)?", re.IGNORECASE)
_OFFICIAL, _KAGGLE = ("image name", "retinopathy grade"), ("id_code", "diagnosis")
_FOLDERS = {"train": "1. Original Images/a. Training Set", "test": "1. Original Images/b. Testing Set"}


def recognise(delivery: Delivery) -> str | None:
    """Which tables are IDRiD's, in words; None if none is."""
    found = _tables(delivery)
    return f"{', '.join(found)}: grades of {delivery.first_rows[next(iter(found))][1][0]} and others" if found else None


def read(delivery: Delivery, options: Options) -> Reading:
    """The images of every table, in the tables' order."""
    reading = Reading([])
    for path, (name_column, grade_column) in _tables(delivery).items():
        table = delivery.read(path)
        reading.notes.extend(table.notes)
        for line, (name, given) in table.pick(name_column, grade_column):
            where = f"{path} row {line}"
            reading.images.append(_listed(delivery, path, where, name, given, grade_column))
    if len({image.image_id.split("/")[1] for image in reading.images}) < len(reading.images):
        reading.notes.append(
            "Training and testing pictures share names, so the part is in front of each: train/, test/."
        )
    return reading


def _tables(delivery: Delivery) -> dict[str, tuple[str, str]]:
    """Each table of this layout, and its columns for name and grade."""
    found = {}
    for table, columns in delivery.headers().items():
        rows = delivery.first_rows[table]
        for name, grade in (_OFFICIAL, _KAGGLE):
            if {name, grade} <= columns and len(rows) > 1 and _NAME.fullmatch(stem(rows[1][0])):
                found[table] = (name, grade)
    return found


def _part(path: str) -> Part | None:
    """What the innermost folder or file name that tells one part from the other says."""
    for name in reversed(PurePosixPath(path).parts):
        train, test = "train" in name.casefold(), "test" in name.casefold()
        if train != test:
            return "train" if train else "test"
    return None


def _listed(delivery: Delivery, path: str, where: str, name: str, given: str, grade_column: str) -> Listed:
    match = _NAME.fullmatch(stem(name))
    if match is None:
        raise DataError(f"{where}: the name is {name!r}; accepted are names such as IDRiD_001.")
    told_by_name = grade_column == _KAGGLE[1]
    part: Part = "test" if match[2] else "train" if told_by_name else _part(path) or "train"

    def of_this_part(image: str) -> bool:
        return told_by_name or _part("/".join(folders(image))) in (part, None)

    file = delivery.find(name, where, near=path, keep=of_this_part)
    return Listed(
        where=where,
        image_id=f"{part}/{match[1]}",
        file=file or f"{_FOLDERS[part]}/{stem(name)}.jpg",
        grade=accepted(where, grade_column, given, ICDR),
        grade_given=given,
        scale="icdr" if given else "none",
        patient_id=None,
        eye=None,
        source=f"IDRiD, {part}",
        license=LICENSE,
    )
