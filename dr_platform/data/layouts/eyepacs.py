"""EyePACS, the Kaggle competition of 2015: `image,level` with names such as `10_left`, which tell patient and eye.

The table of the test part has a column `Usage` besides. In circulation are copies without a header, with `.jpg` for
`.jpeg`, and resized. `sampleSubmission.csv` has the same columns and no grades: every level in it is 0.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from dr_platform.data.layouts.delivery import ICDR, UNKNOWN_LICENSE, Delivery, Options, Reading, accepted, is_form, stem
from dr_platform.data.listing import Eye, Listed
from dr_platform.data.tables import Table, same_name
from dr_platform.errors import DataError

LOOKS_FOR = "a CSV with the columns image and level, or these two without a header, and names such as 10_left"
LICENSE = UNKNOWN_LICENSE

_NAME = re.compile(r"(\d+)_(left|right)")
_TEST = re.compile(r"test", re.IGNORECASE)
_EYES: dict[str, Eye] = {"left": "left", "right": "right"}


def recognise(delivery: Delivery) -> str | None:
    """Which table is one of EyePACS, in words; None if none is."""
    for table, headed in _tables(delivery).items():
        how = "has the columns image and level" if headed else "has no header"
        return f"{table} {how} and names such as {delivery.first_rows[table][1 if headed else 0][0]}"
    return None


def read(delivery: Delivery, options: Options) -> Reading:
    """The images of every table of EyePACS that was delivered, the training part's before the test part's."""
    reading = Reading([])
    for path, headed in _tables(delivery).items():
        table = delivery.read(path, columns=None if headed else ("image", "level"))
        reading.notes.extend(table.notes)
        if not headed:
            reading.notes.append(f"{path} has no header; its columns were taken for image and level.")
        reading.images.extend(_images(delivery, path, table))
    reading.images.sort(key=lambda image: ", test" in image.source)
    for form in filter(is_form, delivery.tables):
        reading.notes.append(f"{form} holds no grades, only the form of an answer, and was not read.")
        reading.aside.add(form)
    return reading


def _tables(delivery: Delivery) -> dict[str, bool]:
    """Each table of this layout, and whether it has a header."""
    found = {}
    for table, rows in delivery.first_rows.items():
        if is_form(table) or not rows:
            continue
        if {"image", "level"} <= delivery.headers()[table]:
            names = [same_name(cell) for cell in rows[0]]
            if len(rows) > 1 and _NAME.fullmatch(stem(rows[1][names.index("image")])):
                found[table] = True
        elif len(rows[0]) == 2 and _NAME.fullmatch(stem(rows[0][0])) and rows[0][1] in ICDR:
            found[table] = False
    return found


def _images(delivery: Delivery, path: str, table: Table) -> list[Listed]:
    part = "test" if table.has("Usage") or _TEST.match(PurePosixPath(path).name) else "train"
    usages = [usage for _, (usage,) in table.pick("Usage")] if table.has("Usage") else [""] * len(table.rows)
    images = []
    for (line, (name, level)), usage in zip(table.pick("image", "level"), usages, strict=True):
        where = f"{path} row {line}"
        match = _NAME.fullmatch(stem(name))
        if match is None:
            raise DataError(f"{where}: image is {name!r}; accepted are names such as 10_left and 10_right.")
        file = delivery.find(name, where, near=path, prefer=lambda image: part in image.casefold())
        images.append(
            Listed(
                where=where,
                image_id=stem(name),
                file=file or f"{part}/{stem(name)}.jpeg",
                grade=accepted(where, "level", level, ICDR),
                grade_given=level,
                scale="icdr" if level else "none",
                patient_id=match[1],
                eye=_EYES[match[2]],
                source=f"EyePACS 2015, {part}" + (f" ({usage})" if usage else ""),
                license=LICENSE,
            )
        )
    return images
