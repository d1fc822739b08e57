"""What a report says, as plain data: no path, no pixels but small JPEGs, no names but pseudonyms."""

from __future__ import annotations

from dataclasses import dataclass

from dr_platform.records import Visibility

GRADES: tuple[int | None, ...] = (0, 1, 2, 3, 4, None)
BINS = 40  # of a histogram


@dataclass(frozen=True)
class Picture:
    """An image under its pseudonym; `jpeg` is a small copy made from its pixels."""

    image_id: str
    collection: str
    visibility: Visibility
    grade: int | None
    width: int
    height: int
    jpeg: bytes


@dataclass(frozen=True)
class Version:
    """The digest of a collection's or a manifest's record, which covers every file of it."""

    what: str
    digest: str


@dataclass(frozen=True)
class CollectionCount:
    """A raw collection. grades: images in the order of `GRADES`; unusable: refused by ingest, and not in `images`."""

    name: str
    visibility: Visibility
    layout: str
    images: int
    patients: int
    without_patient: int
    grades: tuple[int, ...]
    left_out: int
    unusable: int


@dataclass(frozen=True)
class LicenceCount:
    """How many images came with a licence; an empty text where none was stated."""

    licence: str
    images: int
    collections: tuple[str, ...]


@dataclass(frozen=True)
class SplitCount:
    """Prepared images and patients of a collection and grade on the two sides of the split."""

    collection: str
    visibility: Visibility
    grade: int
    train: int
    held_out: int
    patients_train: int
    patients_held_out: int

    @property
    def share_held_out(self) -> float:
        """Share of patients that are held out."""
        return self.patients_held_out / (self.patients_train + self.patients_held_out)


@dataclass(frozen=True)
class LeftOut:
    """An image that is not used, and why, with what was measured."""

    image_id: str
    collection: str
    visibility: Visibility
    grade: int | None
    reason: str


@dataclass(frozen=True)
class Reason:
    """Images left out, by their first reason. pictures: some of them, each with what was measured in it."""

    what: str
    needed: str
    images: int
    pictures: tuple[tuple[Picture, str], ...]


@dataclass(frozen=True)
class Spread:
    """How a measurement is distributed over a collection: 5 %, 50 % and 95 % quantiles, and counts of `BINS` bins."""

    collection: str
    visibility: Visibility
    images: int
    low: float
    median: float
    high: float
    bins: tuple[int, ...]


@dataclass(frozen=True)
class Measure:
    """A measurement over all collections. Bins divide `start` .. `end`, and the outer ones hold what lies beyond.

    limits: what prepare demands of it.
    """

    name: str
    start: float
    end: float
    limits: tuple[float, ...]
    spreads: tuple[Spread, ...]


@dataclass(frozen=True)
class Pair:
    """Two images that are one photograph; `how` is the orientation of the second. used: which of them is."""

    first: Picture
    second: Picture
    similarity: float
    how: str
    used: tuple[bool, bool]


@dataclass(frozen=True)
class Examples:
    """Images of a collection and grade that are used, as the networks see them. images: how many there are."""

    collection: str
    visibility: Visibility
    grade: int | None
    images: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Withheld:
    """Totals of the proprietary collections that a public report does not name."""

    collections: int = 0
    images: int = 0
    left_out: int = 0
    train: int = 0
    held_out: int = 0
    pairs: int = 0


@dataclass(frozen=True)
class Report:
    """A data version. proprietary: whether proprietary collections are in it; if not, `withheld` has their totals."""

    project: str
    date: str | None
    digest: str
    grades: tuple[int, ...]  # prepared; the configured one if none has been
    resolution: int
    seed: int
    held_out: float
    proprietary: bool
    versions: tuple[Version, ...]
    notes: tuple[str, ...]
    collections: tuple[CollectionCount, ...]
    licences: tuple[LicenceCount, ...]
    split: tuple[SplitCount, ...]
    left_out: tuple[LeftOut, ...]
    reasons: tuple[Reason, ...]
    measures: tuple[Measure, ...]
    pairs: tuple[Pair, ...]  # the least alike; `similarities` has all
    similarities: tuple[float, ...]
    equal_files: int  # of these pairs
    examples: tuple[Examples, ...]
    withheld: Withheld
