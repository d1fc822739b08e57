"""Messidor: twelve parts of 100 TIFF files, `Base11` to `Base34`, each with an old Excel table, graded 0-3.

These grades are not ICDR and are never taken for it: each image keeps the grade given and the scale "messidor", and
its ICDR grade comes from an explicit mapping, which a note records. By default 0 is 0 and 1 is 1: up to 5
microaneurysms and no haemorrhage lie within ICDR 1. 2 and 3 get no ICDR grade: 2 is 6-14 microaneurysms or fewer than 5
haemorrhages, 3 is more or new vessels, and either cuts across ICDR 2-4.

The owner publishes corrections (duplicates in Base33, wrong grades). Whoever has them gives them as a table with the
columns `image name`, `corrected grade` (0-3) and `duplicate of`; none are built in.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dr_platform.data.layouts.delivery import Delivery, Options, Reading, accepted, few, in_folder, stem
from dr_platform.data.listing import Listed
from dr_platform.data.tables import read_table, same_name
from dr_platform.errors import DataError

LOOKS_FOR = "tables called Annotation_Base11.xls ... Annotation_Base34.xls"
LICENSE = "research and education free of charge; pictures may not be passed on"
PARTS = tuple(f"Base{department}{batch}" for department in (1, 2, 3) for batch in (1, 2, 3, 4))

_TABLE = re.compile(r"annotation[ _-]?(base[1-3][1-4])(?!\d).*\.(xls|xlsx|csv)", re.IGNORECASE)
_GIVEN = {"0": 0, "1": 1, "2": 2, "3": 3}
_ERRATA_COLUMNS = ("image name", "corrected grade", "duplicate of")


def recognise(delivery: Delivery) -> str | None:
    """Which tables are Messidor's, in words; None if none is."""
    found = [table for _, table in _tables(delivery)]
    return f"{few(found)}: Messidor's tables of grades" if found else None


def read(delivery: Delivery, options: Options) -> Reading:
    """The images of every part that was delivered, with the owner's corrections if they were given.

    Raises DataError for a grade that is not 0-3, two tables of one part, or corrections that do not fit.
    """
    mapping = _checked(options.messidor_grades)
    reading = Reading([])
    seen: dict[str, str] = {}
    for part, path in _tables(delivery):
        if part in seen:
            raise DataError(
                f"{seen[part]} and {path} are both the table of {part}. Take one of them out of the folder."
            )
        seen[part] = path
        reading.images.extend(_images(delivery, part, path, mapping, reading.notes))
    if options.errata is not None:
        _correct(reading, options.errata, mapping)
    counts = Counter(image.grade_given for image in reading.images)
    reading.notes.append(
        "Messidor's own grades were mapped to ICDR: "
        + ", ".join(f"{given} to {'none' if grade is None else grade}" for given, grade in sorted(mapping.items()))
        + "; given were "
        + ", ".join(f"{given}: {count}" for given, count in sorted(counts.items()))
        + "."
    )
    if absent := [part for part in PARTS if part not in seen]:
        reading.notes.append(f"{len(absent)} of the 12 parts have no table here: {', '.join(absent)}")
    return reading


def _tables(delivery: Delivery) -> list[tuple[str, str]]:
    """(part, table), in order of the parts."""
    matches = ((table, _TABLE.fullmatch(table.rsplit("/", 1)[-1])) for table in delivery.tables)
    return sorted((match[1].capitalize(), table) for table, match in matches if match)


def _checked(mapping: Mapping[int, int | None]) -> Mapping[int, int | None]:
    wrong = [grade for grade in mapping.values() if grade not in (None, 0, 1, 2, 3, 4)]
    if set(mapping) != set(_GIVEN.values()) or wrong:
        raise DataError(
            f"The mapping of Messidor's grades is {dict(mapping)}; it must give each of 0, 1, 2, 3 "
            f"an ICDR grade 0-4, or none."
        )
    return mapping


def _images(
    delivery: Delivery, part: str, path: str, mapping: Mapping[int, int | None], notes: list[str]
) -> list[Listed]:
    table = delivery.read(path)
    notes.extend(table.notes)
    images = []
    for line, (name, given) in table.pick("Image name", "Retinopathy grade"):
        where = f"{path} row {line}"
        file = delivery.find(name, where, near=path, prefer=lambda image: in_folder(image, part))
        images.append(
            Listed(
                where=where,
                image_id=stem(name),
                file=file or f"{part}/{name}",
                grade=mapping[accepted(where, "Retinopathy grade", given, _GIVEN)],
                grade_given=given,
                scale="messidor",
                patient_id=None,
                eye=None,
                source=f"Messidor, {part}",
                license=LICENSE,
            )
        )
    return images


def _correct(reading: Reading, errata: Path, mapping: Mapping[int, int | None]) -> None:
    """Lay the owner's corrections over the images, in place: grades replaced, duplicates left out."""
    table = read_table(errata)
    by_name = {same_name(image.image_id): index for index, image in enumerate(reading.images)}
    dropped: dict[str, str] = {}
    corrected: dict[str, str] = {}
    for line, (name, grade, original) in table.pick(*_ERRATA_COLUMNS):
        where, key = f"{errata} row {line}", same_name(stem(name))
        for listed in [name, *([original] if original else [])]:
            if same_name(stem(listed)) not in by_name:
                raise DataError(f"{where}: {listed!r} is in none of the tables. Correct the name, or add its part.")
        if bool(grade) == bool(original) or key == same_name(stem(original)):
            raise DataError(f"{where}: give {name!r} either a corrected grade or the other image it is a duplicate of.")
        if key in dropped or key in corrected:
            raise DataError(f"{where}: {name!r} is corrected already. Give each image once.")
        if original:
            dropped[key] = same_name(stem(original))
            continue
        corrected[key] = grade
        image = reading.images[by_name[key]]
        reading.images[by_name[key]] = replace(
            image,
            where=f"{image.where}, corrected by {errata.name} row {line}",
            grade=mapping[accepted(where, "corrected grade", grade, _GIVEN)],
            grade_given=grade,
        )
    if lost := [key for key, original in dropped.items() if original in dropped]:
        raise DataError(
            f"{errata}: {lost[0]} is a duplicate of an image that is left out as one too. Name the one kept."
        )
    out = [image for image in reading.images if same_name(image.image_id) in dropped]
    reading.images[:] = [image for image in reading.images if same_name(image.image_id) not in dropped]
    reading.aside.update(image.file for image in out)
    if corrected:
        reading.notes.append(f"{len(corrected)} grades were corrected by {errata.name}.")
    if out:
        names = few([image.image_id for image in out])
        reading.notes.append(f"{len(out)} pictures stay out as duplicates, by {errata.name}: {names}")
