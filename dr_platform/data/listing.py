"""What a delivered folder says of its images, before anyone has opened one: the common form of every layout.

A layout reads the folders and tables of a collection as its owner delivers them and yields a `Listing`; ingest then
takes the pixels, and need not know how the images came to be listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Eye = Literal["left", "right"]
Scale = Literal["icdr", "messidor", "none"]
"""How the grade that was given is to be read: ICDR 0-4; Messidor's own 0-3, which is not ICDR; or no grade at all."""


@dataclass(frozen=True)
class Listed:
    """An image that a delivery names. What the delivery does not tell is None, or an empty text."""

    where: str  # "train.csv row 12", or the folder that said it; for messages
    image_id: str  # unique within the listing, as the owner calls it
    file: str  # relative to the delivered folder, with forward slashes; the file need not exist
    grade: int | None  # ICDR 0-4, after an explicit mapping where the scale is another
    grade_given: str  # as it stood in the table, or the class folder's name
    scale: Scale
    patient_id: str | None
    eye: Eye | None
    source: str  # which collection, and which part of it
    license: str  # how the owner lets it be used


@dataclass(frozen=True)
class Listing:
    """Every image of a delivery, in a fixed order, and what a person should know of how it was read."""

    layout: str
    reason: str  # why this layout was recognised, in a sentence
    images: tuple[Listed, ...]
    notes: tuple[str, ...] = ()  # e.g. "37 pictures have no row and stay out: a.jpg, b.jpg, ..."
