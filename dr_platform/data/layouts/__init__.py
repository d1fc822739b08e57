"""Published collections as their owners deliver them, read unchanged: one small module for each layout.

A layout says by what it recognises a delivery, and reads tables and folders into the common form (`Listing`). What is
odd about a collection (a scale that is not ICDR, names that occur twice, a table without a header) is dealt with in its
module and told in the listing's notes. Nothing here opens a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from dr_platform.data.layouts import (
    any_csv,
    aptos2019,
    deepdrid,
    delivery,
    eyepacs,
    idrid,
    messidor,
    messidor2,
    rahim,
    sustech,
)
from dr_platform.data.layouts.delivery import MESSIDOR_TO_ICDR, Delivery, Options, Reading
from dr_platform.data.layouts.mapping import ColumnMap, read_mapping, save_mapping
from dr_platform.data.listing import Listing
from dr_platform.errors import DataError

__all__ = [
    "LAYOUTS",
    "MESSIDOR_TO_ICDR",
    "ColumnMap",
    "Layout",
    "Options",
    "list_images",
    "read_mapping",
    "recognise",
    "save_mapping",
]

AUTO = "auto"
CSV = "csv"


@dataclass(frozen=True)
class Layout:
    """How one collection is delivered."""

    name: str
    looks_for: str  # by what it is recognised
    license: str  # what each of its images is listed with
    recognise: Callable[[Delivery], str | None]  # the reason, in words; None if it is not this one
    read: Callable[[Delivery, Options], Reading]


def _layout(name: str, module: ModuleType) -> Layout:
    return Layout(name, module.LOOKS_FOR, module.LICENSE, module.recognise, module.read)


LAYOUTS = {
    name: _layout(name, module)
    for name, module in {
        "eyepacs": eyepacs,
        "aptos2019": aptos2019,
        "messidor": messidor,
        "messidor2": messidor2,
        "idrid": idrid,
        "deepdrid": deepdrid,
        "sustech": sustech,
        "rahim": rahim,
        CSV: any_csv,
    }.items()
}


def recognise(directory: Path, labels: Path | None = None) -> list[tuple[str, str]]:
    """(layout, reason) for each layout that fits what was delivered; `csv` only if no other does."""
    return _fitting(delivery.scan(directory, labels))


def list_images(
    directory: Path,
    layout: str = AUTO,
    *,
    labels: Path | None = None,
    columns: ColumnMap | None = None,
    options: Options | None = None,
) -> Listing:
    """Every image that a delivered folder names, in the order of its tables, with what is odd about it in the notes.

    layout: a key of LAYOUTS, or "auto" for the only one that fits. labels: the one table to read, which may lie
    elsewhere, instead of those in the folder. columns: for the layout csv, which "auto" then takes.
    Raises DataError if no layout or several fit, or for the first mistake in a table.
    """
    options = replace(options or Options(), columns=columns or (options.columns if options else None))
    delivered = delivery.scan(directory, labels)
    chosen, reason = _choose(delivered, layout, options, labels)
    reading = chosen.read(delivered, options)
    if not reading.images:
        raise DataError(f"{directory} holds nothing that {chosen.name} reads: it looks for {chosen.looks_for}.")
    delivery.check(reading.images)
    notes = [*reading.notes, *delivery.summary(reading.images, delivered, reading.aside)]
    return Listing(chosen.name, reason, tuple(reading.images), tuple(notes))


def _choose(delivered: Delivery, layout: str, options: Options, labels: Path | None) -> tuple[Layout, str]:
    """The layout and the reason for it."""
    if layout == AUTO and options.columns is not None:
        layout = CSV
    if layout == AUTO:
        name, reason = _only(delivered, labels)
    elif layout in LAYOUTS:
        name, reason = layout, LAYOUTS[layout].recognise(delivered) or "chosen by name"
    else:
        raise DataError(f"There is no layout {layout!r}. Choose one of: {', '.join(LAYOUTS)}, or {AUTO}.")
    if options.columns is not None and name != CSV:
        raise DataError(f"Names of columns were given, but {name} has its own. Leave them out, or choose {CSV}.")
    if options.messidor_grades != MESSIDOR_TO_ICDR and name != "messidor":
        raise DataError(f"A mapping of Messidor's grades was given, but this is {name}. Leave it out.")
    if options.errata is not None and name != "messidor":
        raise DataError(f"{options.errata} corrects messidor, but this is {name}. Leave it out.")
    return LAYOUTS[name], reason


def _only(delivered: Delivery, labels: Path | None) -> tuple[str, str]:
    fitting = _fitting(delivered)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and labels is not None:
        return CSV, "no published layout fits, and the table was given"
    if fitting:
        said = "; ".join(f"{name}: {reason}" for name, reason in fitting)
        raise DataError(f"{delivered.directory} fits several layouts ({said}). Choose one, or give its part alone.")
    raise DataError(_why_none_fits(delivered))


def _why_none_fits(delivered: Delivery) -> str:
    """What a person sees who gave a folder that no layout knows. Raises DataError for a table that cannot be read."""
    found, more = f"{delivered.directory} fits no layout:", "`drp data layouts` lists them."
    tables = [table for table in delivered.tables if "/" not in table]
    if len(tables) != 1:
        held = f"several tables: {', '.join(tables)}" if tables else "no table of its own"
        return (
            f"{found} it holds {len(delivered.images)} pictures and {held}. "
            f"Name the table of images with --labels, or choose one with --layout; {more}"
        )
    columns = delivered.read(tables[0]).said()  # an empty or damaged one says so itself
    return (
        f"{found} {tables[0]} has the columns {columns}; a table of images has grade, and image_id or file. "
        f"Say which columns these are (--grade, --image-id, --file), or choose a layout with --layout; {more}"
    )


def _fitting(delivered: Delivery) -> list[tuple[str, str]]:
    found = [(layout.name, reason) for layout in LAYOUTS.values() if (reason := layout.recognise(delivered))]
    return [pair for pair in found if pair[0] != CSV] or found
