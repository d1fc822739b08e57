"""Who is trained on and in which order: pure functions of (seed, identity), and the table of prepared images.

Nothing here depends on how many images there are, on their grade or on the resolution. A patient falls on one side of
the split by a hash of the patient's name, and stays there when images are added or another grade is prepared. An image
has its place in the order of subsets by a hash of its file: the first 500 are among the first 1000 at any resolution.
Names of images and patients leave the raw collection only as pseudonyms: hashes, the same for the same name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from dr_platform import files
from dr_platform.config import PrepareConfig
from dr_platform.data.collections import ImageRow
from dr_platform.errors import DataError
from dr_platform.records import Collection, Manifest, Share, Visibility

Split = Literal["train", "held-out"]
SPLITS: tuple[Split, ...] = ("train", "held-out")

ROWS_FILE = "manifest.parquet"
RECORD_FILE = "manifest.json"
_PSEUDONYM_DIGITS = 16
_APART = {"grade", "collections", "visibility", "shard_images"}  # settings that change no image of a collection


@dataclass(frozen=True)
class Candidate:
    """An image of the wanted grade with its place, before anyone has looked at its pixels."""

    raw: ImageRow
    collection: str
    visibility: Visibility
    image_id: str  # pseudonym
    patient: str  # pseudonym; of the image itself where no patient is known
    split: Split
    rank_key: str


@dataclass(frozen=True)
class ManifestRow:
    """A prepared image. `rank` counts within visibility and split; `rank_key` merges the visibilities in one order."""

    image_id: str
    patient: str
    eye: str | None
    grade: int
    collection: str
    visibility: Visibility
    source: str
    license: str
    sha256: str  # of the prepared pixels
    raw_sha256: str  # of the file in the raw collection
    split: Split
    rank: int
    rank_key: str


SCHEMA = pa.schema(
    [
        pa.field(name, pa.int32() if name in ("grade", "rank") else pa.string(), nullable=name == "eye")
        for name in ManifestRow.__dataclass_fields__
    ]
)


Placed = TypeVar("Placed", Candidate, ManifestRow)


def prepared_directory(prepared_root: Path, visibility: Visibility, grade: int) -> Path:
    """Where the images of a visibility and a grade are prepared."""
    return prepared_root / visibility / f"grade-{grade}"


def patient_key(collection: str, row: ImageRow) -> str:
    """What is never divided by the split: a patient within a collection, or the image itself where none is known."""
    return f"{collection}/{row.patient_id}" if row.patient_id else f"{collection}/image/{row.image_id}"


def split_of(key: str, seed: int, held_out: float) -> Split:
    """held-out for the share `held_out` of all patient keys, by the first 64 bits of a SHA-256."""
    uniform = int.from_bytes(_digest(f"{seed}:{key}")[:8], "big") / 2**64
    return "held-out" if uniform < held_out else "train"


def rank_key(raw_sha256: str, seed: int) -> str:
    """64 hexadecimal digits; images sorted by them are in the order in which subsets grow."""
    return _digest(f"{seed}:{raw_sha256}").hex()


def pseudonym(name: str) -> str:
    """16 hexadecimal digits that stand for a name, the same ones each time."""
    return _digest(name).hex()[:_PSEUDONYM_DIGITS]


def choose(
    collection: Collection, rows: Sequence[ImageRow], config: PrepareConfig, joined: Mapping[str, str] | None = None
) -> list[Candidate]:
    """The images of the configured grade in the order of the table, each with its split and place; none is opened.

    joined: patients that share a photograph with others -> the key under which all of them are split.
    """
    joined = joined or {}
    chosen = []
    for row in rows:
        if row.grade != config.grade:
            continue
        key = patient_key(collection.name, row)
        chosen.append(
            Candidate(
                raw=row,
                collection=collection.name,
                visibility=collection.visibility,
                image_id=pseudonym(f"{collection.name}/{row.image_id}"),
                patient=pseudonym(key),
                split=split_of(joined.get(key, key), config.seed, config.held_out),
                rank_key=rank_key(row.sha256, config.seed),
            )
        )
    return chosen


def in_order(images: Iterable[Placed]) -> list[Placed]:
    """The same images in the order in which subsets grow."""
    return sorted(images, key=lambda image: (image.rank_key, image.image_id))


def row_of(candidate: Candidate, grade: int, rank: int, sha256: str) -> ManifestRow:
    """The row of an image that was prepared. sha256: of its prepared pixels."""
    return ManifestRow(
        image_id=candidate.image_id,
        patient=candidate.patient,
        eye=candidate.raw.eye,
        grade=grade,
        collection=candidate.collection,
        visibility=candidate.visibility,
        source=candidate.raw.source,
        license=candidate.raw.license,
        sha256=sha256,
        raw_sha256=candidate.raw.sha256,
        split=candidate.split,
        rank=rank,
        rank_key=candidate.rank_key,
    )


def to_table(rows: Sequence[ManifestRow]) -> pa.Table:
    """Rows as an Arrow table with `SCHEMA`."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)


def write_manifest(
    directory: Path,
    rows: Sequence[ManifestRow],
    visibility: Visibility,
    config: PrepareConfig,
    skipped: int,
    collections: Iterable[str] = (),
) -> Manifest:
    """Store the rows and their summary in `directory`; returns the summary.

    collections: those of this visibility that were searched. The names of others have no place here: the public
    directory must not tell what proprietary ones are called.
    """
    pq.write_table(to_table(rows), directory / ROWS_FILE, compression="none")
    patients = {split: {row.patient for row in rows if row.split == split} for split in SPLITS}
    names = sorted({row.collection for row in rows})
    record = Manifest(
        visibility=visibility,
        grade=config.grade,
        resolution=config.resolution,
        seed=config.seed,
        held_out=config.held_out,
        collections=tuple(sorted(collections)),
        shares=tuple(
            Share(
                collection=name,
                visibility=visibility,
                train=sum(row.collection == name and row.split == "train" for row in rows),
                held_out=sum(row.collection == name and row.split == "held-out" for row in rows),
            )
            for name in names
        ),
        patients_train=len(patients["train"]),
        patients_held_out=len(patients["held-out"]),
        skipped=skipped,
        rows_sha256=files.sha256_file(directory / ROWS_FILE),
        settings_sha256=settings_sha256(config),
    )
    record.write(directory / RECORD_FILE)
    return record


def settings_sha256(config: PrepareConfig) -> str:
    """A digest of the settings by which every grade of both visibilities is prepared, whatever the collections."""
    return files.sha256_json(config.model_dump(mode="json", exclude=_APART))


def read_manifest(directory: Path) -> tuple[Manifest, list[ManifestRow]]:
    """The summary and the rows stored in `directory`. Raises DataError if either is missing or damaged."""
    record = Manifest.read(directory / RECORD_FILE)
    path = directory / ROWS_FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist. {Manifest.remedy}")
    if files.sha256_file(path) != record.rows_sha256:
        raise DataError(f"{path} is damaged: its bytes are not those that {RECORD_FILE} records. {Manifest.remedy}")
    return record, [ManifestRow(**row) for row in pq.read_table(path).to_pylist()]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
