"""A delivered folder, walked once, and what every layout does with it: find pictures by name, read grades, sum up.

Names are compared without regard to case, Unicode form and the picture's ending, because tables and folders of the
published collections disagree in all three. A name that fits several files equally well is an error, never a guess.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from dr_platform.data import tables
from dr_platform.data.layouts.mapping import ColumnMap
from dr_platform.data.listing import Listed
from dr_platform.data.tables import Table, same_name
from dr_platform.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
UNKNOWN_LICENSE = "not stated; ask the owner"
ICDR = MappingProxyType({"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "": None})

# Messidor's grade 1, up to 5 microaneurysms and no haemorrhage, lies within ICDR 1, and its 0 is ICDR 0. Its 2 (6-14
# microaneurysms, or fewer than 5 haemorrhages) and 3 (more, or new vessels) each cut across ICDR 2-4.
MESSIDOR_TO_ICDR: Mapping[int, int | None] = MappingProxyType({0: 0, 1: 1, 2: None, 3: None})

_NAMED = 5  # how many names a note spells out

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What a person may say of a delivery besides its folder."""

    columns: ColumnMap | None = None  # csv: which column holds what
    messidor_grades: Mapping[int, int | None] = field(
        default_factory=lambda: MESSIDOR_TO_ICDR
    )  # Messidor's 0-3 to ICDR, or None
    errata: Path | None = None  # messidor: a table with the columns image name, corrected grade, duplicate of


@dataclass(frozen=True)
class Reading:
    """What a layout read: the images in order, notes, and the files it leaves out for a reason it has noted."""

    images: list[Listed]
    notes: list[str] = field(default_factory=list)
    aside: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Delivery:
    """The pictures and tables under a folder, relative to it with forward slashes, sorted; hidden ones left out."""

    directory: Path
    images: tuple[str, ...]
    tables: tuple[str, ...]  # one given by hand may lie elsewhere: its path is then absolute
    opened: set[str] = field(default_factory=set, compare=False)  # the tables that a layout has read so far

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> Table:
        """One of the tables, checked. Raises DataError."""
        self.opened.add(table)
        return tables.read_table(self.directory / table, columns=columns, name=table)

    @cached_property
    def first_rows(self) -> dict[str, list[tuple[str, ...]]]:
        """The first two rows of every CSV, trimmed; none for what is no CSV."""
        return {table: tables.peek(self.directory / table) for table in self.tables}

    def headers(self) -> dict[str, set[str]]:
        """The names in the first row of every CSV, as `same_name` has them."""
        return {table: set(map(same_name, rows[0])) if rows else set() for table, rows in self.first_rows.items()}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for image in self.images:
            found.setdefault(same_name(stem(image)), []).append(image)
        return found

    @cached_property
    def by_path(self) -> dict[str, list[str]]:
        """Path without its ending, as `same_name` has it -> the pictures there."""
        found: dict[str, list[str]] = {}
        for image in self.images:
            found.setdefault(same_name("/".join([*folders(image), stem(image)])), []).append(image)
        return found

    def find(
        self,
        name: str,
        where: str,
        *,
        near: str = "",
        keep: Callable[[str], bool] = lambda _: True,
        prefer: Callable[[str], bool] = lambda _: True,
    ) -> str | None:
        """The picture called `name`, with or without its ending; None if there is none.

        Of several, those that `keep` admits, then those that `prefer` favours, then the one that shares most folders
        with `near`. Raises DataError, naming them, if several are left.
        """
        found = [image for image in self._by_name.get(same_name(stem(name)), ()) if keep(image)]
        if len(found) == 1:
            return found[0]
        found = [image for image in found if prefer(image)] or found
        shared = [_folders_shared(image, near) for image in found]
        found = [image for image, depth in zip(found, shared, strict=True) if depth == max(shared)]
        if len(found) > 1:
            raise DataError(
                f"{where}: {name!r} may be {' or '.join(found[:_NAMED])}. Take the other copies out of the folder."
            )
        return found[0] if found else None


def scan(directory: Path, labels: Path | None = None) -> Delivery:
    """Walk a folder; links to folders are not followed. labels: the one table to read instead of those in the folder.

    Raises DataError if `directory` is not a folder.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder. Give the one that holds the images.")
    found: dict[bool, list[str]] = {True: [], False: []}
    for here, subfolders, names in os.walk(directory):
        subfolders[:] = sorted(name for name in subfolders if not _hidden(name))
        inside = Path(here).relative_to(directory).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if not _hidden(name) and (ending in IMAGE_ENDINGS or ending in tables.TABLE_ENDINGS):
                found[ending in IMAGE_ENDINGS].append(prefix + name)
    if labels is not None:
        here_too = labels.resolve().is_relative_to(directory.resolve())
        shown = labels.resolve().relative_to(directory.resolve()) if here_too else labels.absolute()
        found[False] = [shown.as_posix()]
    return Delivery(directory, tuple(sorted(found[True])), tuple(sorted(found[False])))


def _hidden(name: str) -> bool:
    """Also what unpacking on another system leaves: `__MACOSX/`, `._10_left.jpeg`."""
    return name.startswith(".") or name == "__MACOSX"


def stem(name: str) -> str:
    """The last part of a path, without a picture's ending; other dots stay. Backslashes part folders too."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    base, dot, ending = last.rpartition(".")
    return base if base and dot + ending.lower() in IMAGE_ENDINGS else last


def folders(path: str) -> list[str]:
    """The folders of a relative path with forward slashes, outermost first."""
    return path.split("/")[:-1]


def is_form(table: str) -> bool:
    """Whether a table is Kaggle's form of an answer: the columns of a table of grades, and every grade 0."""
    return re.search(r"sample_?submission", table, re.IGNORECASE) is not None


def _folders_shared(path: str, other: str) -> int:
    pairs = zip(folders(path), folders(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def in_folder(path: str, name: str) -> bool:
    """Whether a folder of `path` is called `name`, whatever its case."""
    return same_name(name) in map(same_name, folders(path))


def accepted(where: str, column: str, text: str, values: Mapping[str, T]) -> T:
    """What `text` stands for; 3.0 is 3. Raises DataError listing what is accepted."""
    if whole(text) not in values:
        listed = ", ".join(value or "empty" for value in values)
        raise DataError(f"{where}: {column} is {text!r}; accepted are {listed}.")
    return values[whole(text)]


def whole(text: str) -> str:
    """3 for 3.0, as a spreadsheet may have it; any other text as it is."""
    return re.sub(r"\A(\d+)\.0+\Z", r"\1", text)


def summary(images: Iterable[Listed], delivery: Delivery, aside: set[str]) -> list[str]:
    """Notes on tables not read, pictures without a row, rows without a picture, and the counts by grade."""
    images = list(images)
    present = set(delivery.images)
    without_row = sorted(present - {image.file for image in images} - aside)
    missing = [image.image_id for image in images if image.file not in present]
    notes = []
    if unread := [table for table in delivery.tables if table not in delivery.opened | aside]:
        notes.append(f"{len(unread)} tables are none of this collection's and were not read: {few(unread)}")
    if without_row:
        notes.append(f"{len(without_row)} pictures have no row and stay out: {few(without_row)}")
    if missing:
        notes.append(f"{len(missing)} rows name pictures that are not there: {few(missing)}")
    counts = Counter("none" if image.grade is None else str(image.grade) for image in images)
    notes.append("grades: " + ", ".join(f"{grade}: {count}" for grade, count in sorted(counts.items())))
    return notes


def few(names: list[str]) -> str:
    """The first of them, and how many more there are. Whatever a terminal would obey is spelt out."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:_NAMED]) + more


def check(images: Iterable[Listed]) -> None:
    """Raises DataError if an id is listed twice, is empty, or holds characters that nobody sees."""
    for image in images:
        if not image.image_id:
            raise DataError(f"{image.where}: no image is named. Name it, or remove the row.")
        tables.check_id(image.where, "the image's name", image.image_id)
        tables.check_id(image.where, "the patient", image.patient_id or "")
    tables.require_unique(((image.where, image.image_id, image.grade_given) for image in images), "image")
